"""The agent's sampler, on real processes with real records; who is live is told by the test."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psutil
import pytest
from samples import samples

from simspool.agent.live import LiveWriter
from simspool.agent.notes import RunNotes
from simspool.agent.sampling.sampler import NEVER, Sampler
from simspool.sdk.sampling.peers import Peers
from simspool.spool import Spool
from simspool.spool.process import start_ticks, this_host

RUN = """
    import sys
    from simspool.spool import Origin, Writer, atomic, ids, open_spool
    raw, origin = ids.new_id(), Origin.now()
    folder = open_spool(sys.argv[1]).run(ids.to_text(raw))
    writer = Writer(folder.writers, raw, origin=origin)
    origin = {"wall": origin.wall, "boot": origin.boot, "boot_id": origin.boot_id.hex()}
    writer.record(8, {"name": "run", "status": "running"})
    atomic.write_json(folder.path + "/run.json", {"id": folder.id, "name": "run", "origin": origin})
    print(ids.to_text(raw), flush=True)
    for line in sys.stdin:
        exec(line)
        print("done", flush=True)
"""


class Site:
    """A sampler in the test's process, and the writers that are live."""

    def __init__(self, spool: Spool) -> None:
        self.spool, self.notes = spool, RunNotes(spool)
        self.live: list[LiveWriter] = []
        self.taken: list[tuple[str, dict[str, float | int], int]] = []
        self.refuse: set[str] = set()
        self.sampler = Sampler(spool.path, self._note, lambda: self.live, samples_from=0)

    def _note(self, run: str, values: Mapping[str, float | int], step: int) -> bool:
        if run in self.refuse:
            raise OSError("this run's disk is gone")
        self.taken.append((run, dict(values), step))
        return self.notes.sample(run, values, step)

    def add(self, run: str, *, foreign: tuple[Mapping[str, Any], ...] = (), **options: Any) -> None:
        options = {"resources_metrics_interval": 1, **options}
        found = Peers(self.spool.run(run)).living()
        self.live = [*self.live, *(LiveWriter(run, w, "creator", h, options, foreign) for w, h in found)]

    def of(self, run: str) -> list[dict[str, float | int]]:
        return [values for r, values, _ in self.taken if r == run]

    def turn(self, seconds: float = 0.0) -> None:
        """Let the sampler go on: one turn, then more until so much time is over."""
        until = time.monotonic() + seconds
        while True:
            time.sleep(min(max(self.sampler.turn(), 0.0), max(until - time.monotonic(), 0.0)))
            if time.monotonic() >= until:
                return

    def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self.turn(0.1)


@pytest.fixture
def site(spool: Spool) -> Iterator[Site]:
    made = Site(spool)
    yield made
    made.sampler.stop()
    made.notes.close()


def test_each_slot_has_one_sample(site: Site, spool: Spool, program: Callable[..., Any]) -> None:
    run = program(RUN, spool.path).hear()
    site.add(run)
    site.sampler.start()
    while len(site.taken) < 4:
        time.sleep(0.05)
    site.sampler.stop()
    site.notes.close()
    found = samples(spool, run)
    assert {s.by for s in found} == {"agent"}
    assert [s.slot for s in found] == sorted({s.slot for s in found})
    for sample in found:
        assert sample.slot == int(sample.at)
        assert {"resources/cpu.usage.percentage", "resources/disk.left", "resources/host.network.sent.rate"} <= sample.values.keys()
    assert site.sampler.problems == {}


def test_slots_before_the_announced_moment_are_the_scripts(site: Site, spool: Spool, program: Callable[..., Any]) -> None:
    run = program(RUN, spool.path).hear()
    site.add(run)
    site.sampler.samples_from = NEVER
    site.turn(2.5)
    assert site.taken == []
    site.sampler.samples_from = moment = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 1_500_000_000
    site.until(lambda: site.taken)
    origin = site.live[0].header.origin_boot
    assert site.taken[0][2] * 1_000_000_000 >= moment - origin


def test_two_runs_of_one_process_both_count_it(site: Site, spool: Spool, program: Callable[..., Any]) -> None:
    one, other = program(RUN, spool.path), program(RUN, spool.path)
    first, second = one.hear(), other.hear()
    site.add(first)
    body = {
        "pid": one.pid, "start_ticks": one.identity[1], "boot_id": this_host().boot_id.hex(), "pid_namespace": this_host().pid_namespace,
        "host": this_host().name, "foreign": True,
    }  # fmt: skip
    site.add(second, foreign=(body,))
    site.until(lambda: site.of(first) and site.of(second))
    assert site.of(first)[0]["resources/processes.count"] == 1
    assert site.of(second)[0]["resources/processes.count"] == 2


def test_a_process_of_another_boot_or_namespace_is_not_measured(site: Site, spool: Spool, program: Callable[..., Any]) -> None:
    one = program(RUN, spool.path)
    run = one.hear()
    here = this_host()
    right = {"pid": 1, "start_ticks": (start_ticks(1) or (0, ""))[0], "boot_id": here.boot_id.hex(), "pid_namespace": here.pid_namespace}
    site.add(run, foreign=({**right, "boot_id": "00" * 16}, {**right, "pid_namespace": 5}, {"pid": "x"}, {}))
    site.until(lambda: site.taken)
    assert site.of(run)[0]["resources/processes.count"] == 1


def test_one_runs_error_is_its_own_problem(site: Site, spool: Spool, program: Callable[..., Any]) -> None:
    bad, good = program(RUN, spool.path).hear(), program(RUN, spool.path).hear()
    for run in (bad, good):
        site.add(run)
    site.refuse.add(bad)
    site.until(lambda: len(site.of(good)) > 1)
    assert site.of(bad) == []
    assert list(site.sampler.problems) == [bad]
    assert "this run's disk is gone" in site.sampler.problems[bad]
    site.refuse.clear()
    site.until(lambda: site.of(bad))
    assert site.sampler.problems == {}


def test_switched_off_by_the_run(site: Site, spool: Spool, program: Callable[..., Any]) -> None:
    off, on = program(RUN, spool.path).hear(), program(RUN, spool.path).hear()
    site.add(off, disable_resources_metrics=True)
    site.add(on)
    site.until(lambda: site.of(on))
    assert site.of(off) == []


def test_another_interval_begins_with_the_next_slot(site: Site, spool: Spool, program: Callable[..., Any]) -> None:
    run = program(RUN, spool.path).hear()
    site.add(run)
    site.until(lambda: len(site.taken) > 1)
    seen, site.live = len(site.taken), []
    site.add(run, resources_metrics_interval=2)
    site.until(lambda: len(site.taken) > seen + 2)
    moments = [s.at for s in samples(spool, run)][seen + 1 :]
    assert all(int(at) % 2 == 0 for at in moments), moments


def test_a_run_that_is_opened_again_within_a_slot_has_its_sample_already(site: Site, spool: Spool, program: Callable[..., Any]) -> None:
    run, other = program(RUN, spool.path).hear(), program(RUN, spool.path).hear()
    site.add(run, resources_metrics_interval=3600)
    site.until(lambda: site.of(run))
    site.live = []
    site.add(other)
    site.until(lambda: site.of(other))
    site.add(run, resources_metrics_interval=3600)
    seen = len(site.of(other))
    site.until(lambda: len(site.of(other)) > seen + 3)
    assert len(site.of(run)) == 1


def test_a_run_that_ended_is_not_written_into_again(site: Site, spool: Spool, program: Callable[..., Any]) -> None:
    one, other = program(RUN, spool.path), program(RUN, spool.path)
    run, rest = one.hear(), other.hear()
    site.add(run)
    site.add(rest)
    site.until(lambda: site.of(run))
    one.process.kill()
    one.process.wait()
    seen, after = len(site.of(run)), len(site.of(rest))
    site.until(lambda: len(site.of(rest)) > after + 1)
    assert len(site.of(run)) == seen


def test_a_script_that_is_stopped_is_still_measured(site: Site, spool: Spool, program: Callable[..., Any]) -> None:
    one = program(RUN, spool.path)
    run = one.hear()
    site.add(run)
    os.kill(one.pid, signal.SIGSTOP)
    try:
        site.until(lambda: len(site.taken) > 1)
        assert site.taken[-1][1]["resources/cpu.usage.percentage"] == 0
    finally:
        os.kill(one.pid, signal.SIGCONT)


@pytest.mark.root
def test_a_dead_mount_is_one_runs_problem_alone(site: Site, spool: Spool, program: Callable[..., Any], tmp_path: Any) -> None:
    """A FUSE mount whose server was stopped: whoever asks it waits. The samples come all the same, of this run too."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("SKIPPED: no FUSE here")
    place = tmp_path / "mount"
    place.mkdir()
    with _silent_mount(str(place)):
        stuck, fine = program(RUN, spool.path), program(RUN, spool.path)
        run, other = stuck.hear(), fine.hear()
        site.add(run)
        site.add(other)
        stuck.tell(f"__import__('os').chdir({str(place)!r})")
        stuck.hear()
        site.until(lambda: len(site.of(other)) > 2 and len(site.of(run)) > 2)
        assert "no answer" in site.sampler.problems[run]
        assert other not in site.sampler.problems
        assert "resources/disk.left" in site.of(run)[-1], "the spool's own disk still answers"


@contextlib.contextmanager
def _silent_mount(place: str) -> Iterator[None]:
    """Mount a file system whose server answers what a chdir needs, and nothing else."""
    server = subprocess.Popen(["python3", __file__.replace("test_sampler.py", "silent_fuse.py"), place], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    line = server.stdout.readline().strip()
    try:
        if line != "mounted":
            pytest.skip(f"SKIPPED: no FUSE mount here ({line})")
        yield
    finally:
        server.kill()
        server.communicate()
        subprocess.run(["umount", "-l", place], check=False, capture_output=True)


def test_what_sampling_needs_is_small(site: Site, spool: Spool, program: Callable[..., Any]) -> None:
    """The sampler keeps no file open: its own count stays the same over many rounds."""
    run = program(RUN, spool.path).hear()
    site.add(run)
    site.until(lambda: len(site.taken) > 1)
    before = psutil.Process().num_fds()
    site.until(lambda: len(site.taken) > 4)
    assert psutil.Process().num_fds() == before
