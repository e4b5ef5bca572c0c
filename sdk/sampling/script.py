"""Samples from the script's own process, in its keeper's thread, while no agent of the host takes them.

It costs the script what the reading of /proc costs. It is never asked twice for a slot, and stops as soon as it sees an agent.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from simspool.spool import Kind, Origin, RunFolder, Writer
from simspool.spool.process import this_host

from .cgroup import Cgroups
from .host import disk_left, read_host
from .meter import DEFAULT_INTERVAL, RunMeter
from .peers import Peers, sampling_agent
from .slots import AHEAD, Turn, slot_of, start_of
from .tree import Identity, Processes


class ScriptSampler:
    """One run's samples. `new`: this process has just created the run, so nobody else can have sampled it."""

    def __init__(self, spool_path: str, folder: RunFolder, origin: Origin, *, new: bool) -> None:
        self._spool_path = spool_path
        self._origin = origin.boot
        if origin.boot_id != this_host().boot_id:  # of another host: by the wall clocks
            self._origin = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - (time.time_ns() - origin.wall)
        self._peers = Peers(folder)
        self._processes, self._cgroups = Processes(), Cgroups()
        self._meter: RunMeter | None = None
        moment = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        alone_from = -1 if new else moment
        self._beside_agent, self._beside_elder = Turn(alone_from, looked=moment, ahead=AHEAD), Turn(alone_from)
        self._interval, self._last = 0, -1

    def tend(self, writer: Writer, options: Mapping[str, Any], others: Iterable[Identity] = ()) -> None:
        """Take a sample if one is due; about once a second.

        `options` are the run's, `others` the processes that count as the script's.
        """
        moment = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        agent = sampling_agent(self._spool_path)
        self._beside_agent.saw(agent, moment)
        if options.get("disable_resources_metrics"):
            self._meter = None
            return
        origin, interval = self._origin, int(options.get("resources_metrics_interval", DEFAULT_INTERVAL))
        slot = slot_of(moment, origin, interval)
        if interval != self._interval:
            self._last = slot if self._interval else -1  # what the old slots had is not counted in the new ones
            self._interval = interval
        if slot <= self._last:
            return
        start = start_of(slot, origin, interval)
        living = [(w, h) for w, h in self._peers.living() if agent is None or h.pid != agent.pid]
        elder = next((w for w, h in living if w < writer.id_text and h.pid != os.getpid()), None)
        self._beside_elder.saw(elder, moment)
        theirs = (agent is not None and start >= agent.samples_from) or elder is not None
        if theirs or not self._beside_agent.has(start) or not self._beside_elder.has(start):
            self._meter, self._last = None, slot
            return
        roots = [*dict.fromkeys([*((h.pid, h.start_ticks) for _, h in living), *others])]
        if self._meter is None:  # from now on there is usage to compare with; the sample comes a second later
            self._meter = RunMeter(self._processes, self._cgroups)
            self._measure(self._meter, roots)
            return
        self._last = slot
        values = self._measure(self._meter, roots)
        if values:
            writer.metrics(values, slot, kind=Kind.RESOURCES)

    def _measure(self, meter: RunMeter, roots: list[Identity]) -> dict[str, float | int]:
        self._processes.refresh()
        self._cgroups.refresh()
        at = time.clock_gettime(time.CLOCK_BOOTTIME)
        values = meter.measure(roots, read_host(at, sys.modules.get("psutil")), self._disks())
        end = os.environ.get("SLURM_JOB_END_TIME", "")
        if values and end.isascii() and end.isdecimal():
            values["resources/walltime.left"] = int(end) - time.time()
        return values

    def _disks(self) -> Iterator[tuple[float, int | None]]:
        for path in (self._spool_path, "."):
            try:
                yield disk_left(path)
            except OSError:
                continue
