"""The sampler: a thread that measures every live run of this host, each in slots of its own interval.

It stands apart: it shares nothing with ingest, rules and drain but the list of live writers and the notes that it writes into, and an
error of one run's sampling is that run's problem alone.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from simspool.agent.abort.members import named_process
from simspool.agent.live import LiveWriter, LiveWriters
from simspool.sdk.sampling.cgroup import Cgroups
from simspool.sdk.sampling.host import HostReading, disk_left, read_host
from simspool.sdk.sampling.meter import DEFAULT_INTERVAL, RunMeter
from simspool.sdk.sampling.slots import slot_of, start_of
from simspool.sdk.sampling.tree import Identity, Processes
from simspool.spool.process import is_alive

from .aside import Aside, Unanswered
from .gpu import GpuReading, Gpus
from .walltime import Deadlines, SlurmJob, ask_squeue, slurm_job

_LOOK = 1.0  # seconds between two looks at who is live
_APART = 0.1  # seconds that two rounds are apart at least: runs whose slots begin close together are measured in one
_PRIME = 1.0  # seconds that the first sample waits for usage to compare with
_PATIENCE = 0.2  # seconds for a disk or a driver to answer
_PSS_EVERY = 300.0
_MOST_FOLDERS = 64  # of one run's processes: those of many ranks are few in truth

_Place = tuple[str, str]  # mount namespace (empty for ours), folder
NEVER = 1 << 62
"""A moment that does not come: all slots are the scripts' own."""

Note = Callable[[str, Mapping[str, float | int], int], bool]
"""Records a run's sample with its step; False when it could not be kept."""


@dataclass(slots=True)
class _Sampled:
    """A run that is being sampled."""

    meter: RunMeter
    interval: int
    last: int  # the last slot that is done
    primed: float  # when there was first something to compare with; monotonic
    job: SlurmJob | None = None


@dataclass(slots=True)
class _Shared:
    """What the runs of one round have in common."""

    host: HostReading
    gpus: GpuReading = field(default_factory=GpuReading)
    disks: dict[_Place, tuple[float, int | None] | None] = field(default_factory=dict)


class Sampler:
    """Samples until it is stopped. `problems` tells by run what could not be done.

    `samples_from` (ns on the boot clock): slots that begin before are the scripts' own. It may be changed while the sampler runs.
    """

    def __init__(self, spool_path: str, note: Note, live: LiveWriters, *, samples_from: int = NEVER) -> None:
        self._spool_path, self._note, self._live = spool_path, note, live
        self.samples_from = samples_from
        self._processes, self._cgroups = Processes(), Cgroups()
        self._gpus, self._aside, self._deadlines = Gpus(), Aside(), Deadlines()
        self._runs: dict[str, _Sampled] = {}
        self._done: dict[str, tuple[int, int, int]] = {}  # interval, last slot and its end, of runs that are live no more
        self._writers: dict[str, list[LiveWriter]] = {}
        self._looked = -_LOOK
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.problems: dict[str, str] = {}
        self.problem = self.gpu_problem = ""

    def start(self) -> None:
        """Begin, in a thread."""
        self._thread = threading.Thread(target=self._work, name="simspool-sampler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End; a round that is being measured is waited for."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(5)

    def _work(self) -> None:
        delay = 0.0
        while not self._stop.wait(delay):
            try:
                delay = self.turn()
                self.problem = ""
            except Exception as error:  # noqa: BLE001 - shown by the agent's status, tried again
                self.problem, delay = f"{type(error).__name__}: {error}", _LOOK

    def turn(self) -> float:
        """Take the samples that are due; return the seconds until the next may be."""
        now = time.monotonic()
        if now >= self._looked + _LOOK:
            self._looked = now
            self._look()
        moment = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        due = [run for run in self._runs if self._wait(run, moment, now) <= 0.0]
        if due:
            self._round(due, moment)
        return self._delay(now)

    def _look(self) -> None:
        """Take up runs that have begun, drop those that have ended."""
        writers: dict[str, list[LiveWriter]] = {}
        for writer in self._live():
            if is_alive(writer.header) and not writer.options.get("disable_resources_metrics"):
                writers.setdefault(writer.run, []).append(writer)
        moment = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._done = {run: done for run, done in self._done.items() if moment < done[2]}
        for run in self._runs.keys() - writers.keys():
            gone, origin = self._runs.pop(run), self._writers[run][0].header.origin_boot
            self._done[run] = gone.interval, gone.last, start_of(gone.last + 1, origin, gone.interval)
            self.problems.pop(run, None)
        self._writers = writers
        for run, found in writers.items():
            found.sort(key=lambda w: w.writer)
            interval = _interval(found[0].options)
            known = self._runs.get(run)
            if known is None:
                meter = RunMeter(self._processes, self._cgroups, hidden=frozenset({os.getpid()}), pss_every=_PSS_EVERY)
                done = self._done.get(run, (0, -1, 0))  # a run that was closed and is recorded again, within one slot
                self._runs[run] = _Sampled(meter, interval, done[1] if done[0] == interval else -1, 0.0)
            elif known.interval != interval:  # other slots: the one that runs is left out, it may have been sampled under the old ones
                known.interval, known.last = interval, slot_of(moment, found[0].header.origin_boot, interval)

    def _wait(self, run: str, moment: int, now: float) -> float:
        """Return the seconds until a run is to be measured, 0 when it is due."""
        sampled, origin = self._runs[run], self._writers[run][0].header.origin_boot
        if not sampled.primed:
            return 0.0
        slot = slot_of(moment, origin, sampled.interval)
        if slot > sampled.last and start_of(slot, origin, sampled.interval) >= self.samples_from:
            return max(sampled.primed + _PRIME - now, 0.0)
        return (start_of(slot + 1, origin, sampled.interval) - moment) / 1e9

    def _delay(self, now: float) -> float:
        """Return the seconds until the next round, or until it is time to look who is live."""
        moment = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        waits = [self._wait(run, moment, now) for run in self._runs]
        return max(min([self._looked + _LOOK - now, *waits]), _APART)

    # ------------------------------------------------------------------ one round

    def _round(self, due: list[str], moment: int) -> None:
        self._processes.refresh()
        self._cgroups.refresh()
        import psutil  # 4 MB that an idle agent does without

        shared = _Shared(read_host(moment / 1e9, psutil))
        if self._gpus.are_due:
            try:
                shared.gpus = self._aside.ask("gpu", self._gpus.read, _PATIENCE)
                self.gpu_problem = self._gpus.problem
            except Unanswered as error:
                self.gpu_problem = f"the GPU driver: {error}"
        live = {writer.run for writer in self._live()}  # what has ended since the last look must not be written into again
        for run in due:
            if self._stop.is_set():
                return
            if run not in live:
                continue
            try:
                problem = self._sample(run, moment, shared)
            except Exception as error:  # noqa: BLE001 - one run's problem
                problem = f"its resources could not be sampled: {type(error).__name__}: {error}"
            if problem:
                self.problems[run] = problem
            else:
                self.problems.pop(run, None)

    def _sample(self, run: str, moment: int, shared: _Shared) -> str:
        """Take a run's sample, or what the first will be compared with. Returns what is the matter with it."""
        sampled, writers = self._runs[run], self._writers[run]
        roots = roots_of(writers)
        if not sampled.primed:
            sampled.primed = time.monotonic()
            sampled.job = next((job for pid, _ in roots if (job := slurm_job(pid)) is not None), None)
            sampled.meter.measure(roots, shared.host, ())
            return ""
        slot = slot_of(moment, writers[0].header.origin_boot, sampled.interval)
        sampled.last = slot
        disks, silent = self._disks(writers, shared)
        values = sampled.meter.measure(roots, shared.host, disks)
        if not values:
            return ""  # its processes have ended since the last look
        values.update(shared.gpus.of_tree(sampled.meter.pids))
        end = self._job_end(sampled.job)
        if end is not None:
            values["resources/walltime.left"] = end - time.time()
        return silent if self._note(run, values, slot) else "a resource sample could not be recorded"

    def _disks(self, writers: list[LiveWriter], shared: _Shared) -> tuple[list[tuple[float, int | None]], str]:
        """Return what is left where a run writes, each disk asked once a round, and what did not answer."""
        found, problem = [], ""
        for place, path in {("", self._spool_path): self._spool_path, **_working_folders(writers)}.items():
            if place not in shared.disks:
                try:
                    shared.disks[place] = self._aside.ask(("disk", place), partial(disk_left, path), _PATIENCE)
                except Unanswered as error:
                    shared.disks[place] = None
                    problem = f"the disk of {place[1]}: {error}"
            left = shared.disks[place]
            if left is not None:
                found.append(left)
        return found, problem

    def _job_end(self, job: SlurmJob | None) -> float | None:
        if job is None or job.end is not None:
            return None if job is None else job.end
        if self._deadlines.due(job.id):
            try:
                self._deadlines.put(job.id, self._aside.ask(("squeue", job.id), partial(ask_squeue, job.id), 0.0))
            except Unanswered:
                pass  # it is asked in the background; the answer is taken at a later sample
        return self._deadlines.end(job.id)


def _interval(options: Mapping[str, Any]) -> int:
    found = options.get("resources_metrics_interval", DEFAULT_INTERVAL)
    return found if isinstance(found, int) and found >= 1 else DEFAULT_INTERVAL


def roots_of(writers: list[LiveWriter]) -> list[Identity]:
    """Return the processes whose trees are the run's: those of its writers, and those that a script named."""
    roots: dict[Identity, None] = {}
    for writer in writers:
        roots[writer.header.pid, writer.header.start_ticks] = None
        for body in writer.processes:
            process = named_process(body)
            if process is not None:
                roots[process.pid, process.start_ticks] = None
    return list(roots)


def _working_folders(writers: list[LiveWriter]) -> dict[_Place, str]:
    """Return the working folders of a run's processes, with a path that leads there also out of another mount namespace."""
    found: dict[_Place, str] = {}
    for writer in writers[:_MOST_FOLDERS]:
        base = f"/proc/{writer.header.pid}"
        try:
            found[os.readlink(f"{base}/ns/mnt"), os.readlink(f"{base}/cwd")] = f"{base}/cwd"
        except OSError:
            continue
    return found
