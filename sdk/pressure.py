"""What a script does where a spool runs out of room: it refuses, and counts, what matters least (docs/budgets.md).

The agent says how it stands (spool/pressure.py); where none does, the disk's free space is looked at. That is done by the keeper's
thread; a call that logs reads one attribute.
"""

from __future__ import annotations

import math
import os
import time as clock
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from simspool.spool import Drop, InvalidRecord, Kind, Origin, Writer, pressure
from simspool.spool.pressure import FILES, METRICS, SAMPLES, Pressure
from simspool.spool.process import this_host

from .budget import Budget

KEEP = {METRICS: 10, FILES: 100}
"""One of so many calls with the same metrics is taken, by level."""

QUIET_NS = 1_000_000_000
"""Whoever logs no more than once in this time (ns) is not thinned: it is not what fills a disk."""

_SHAPES = 4096
_Held = tuple[dict[str, Any], int, float, "int | str"]


class Look:
    """How a spool stands, as far as this process can tell."""

    def __init__(self, spool_path: str, budget: Budget) -> None:
        self._path, self._budget = spool_path, budget
        self._file = pressure.path_of(spool_path)
        self._seen: tuple[int, int] | None = None
        self._word = Pressure()
        self._until = 0.0
        self._own = Pressure()

    def now(self) -> Pressure:
        """Look, and return what counts: one `stat`, and one `statvfs` where no agent says anything. Never raises."""
        moment = clock.monotonic()
        try:
            info = os.stat(self._file)
            seen = (info.st_ino, info.st_mtime_ns)
        except OSError:
            seen = None
        if seen != self._seen:
            self._seen = seen
            found = pressure.read(self._path) if seen is not None else None
            self._word, self._until = (found[0], moment + found[1]) if found is not None else (Pressure(), 0.0)
        if moment < self._until:
            self._own = Pressure(self._word.level)  # the floor goes on from there when the agent dies
            return self._word
        self._own = floor_pressure(self._path, self._budget, self._own)
        return self._own


def floor_pressure(path: str, budget: Budget, before: Pressure) -> Pressure:
    """Return how the free space of a disk stands against its floor. A disk that does not answer changes nothing."""
    try:
        found = os.statvfs(path)
    except OSError:
        return before
    floor, free = budget.free.of(found.f_blocks * found.f_frsize), found.f_bavail * found.f_frsize
    use = floor / max(free, 1)
    level = pressure.level_after(before.level, use)
    since = before.since if level == before.level else clock.time()
    why = f"{free / 1e6:.0f} MB are free on the spool's disk, and {floor / 1e6:.0f} MB are to stay free"
    return Pressure(level, use, why, since if level else 0.0, before.watched) if floor else Pressure()


@dataclass(slots=True)
class _Shape:
    """Calls with the same metrics."""

    is_watched: bool
    calls: int = 0
    kept_at: int = 0  # ns on the boot clock; 0 for never
    held: _Held | None = None
    is_finite: bool = True


class Thinning:
    """The gate of one writer (see spool.writer.Gate). `watched` are names and patterns of metrics that alert rules look at.

    Level 1 refuses resource samples. From level 2 on, of the calls that give the same metrics, the first is taken and then one of
    every KEEP, those that come QUIET_NS after the last one that was taken, the first with a number that is not finite, and all that give
    a watched metric. The last one that was not taken is held, with its own step and time, until a later one is taken, and recorded when
    the writer is closed.
    """

    def __init__(self, level: int, watched: Callable[[], Iterable[str]], origin_boot: int) -> None:
        self.level = level
        self._watched, self._patterns = watched, frozenset(watched())
        self._origin = origin_boot
        self._shapes: dict[tuple[str, ...], _Shape] = {}

    def refresh(self) -> None:
        """Look which metrics are watched by now."""
        patterns = frozenset(self._watched())
        if patterns != self._patterns:
            self._patterns = patterns
            for names, shape in list(self._shapes.items()):
                shape.is_watched = self._is_watched(names)

    def _is_watched(self, names: Iterable[str]) -> bool:
        return any(name == p or fnmatchcase(name, p) for name in names for p in self._patterns)

    def refuses(self, writer: Writer, values: Mapping[str, Any], step: Any, time: Any, timestamp: Any, kind: int) -> bool:
        """Say whether a call is not taken, and count it. Raises InvalidRecord for a call that is not valid."""
        if self.level < SAMPLES:
            return False
        if kind == Kind.RESOURCES:
            if self._is_watched(values):
                return False
            writer.pass_over(Drop.BUDGET_SAMPLE, kind, step)
            return True
        if self.level < METRICS or not isinstance(values, Mapping):
            return False
        boot = clock.clock_gettime_ns(clock.CLOCK_BOOTTIME)
        names = (*values,)
        shape = self._shapes.get(names)
        if shape is None:
            if not all(isinstance(name, str) for name in names) or len(self._shapes) >= _SHAPES:
                return False
            shape = self._shapes[names] = _Shape(self._is_watched(names))
        shape.calls += 1
        is_quiet = not shape.kept_at or boot - shape.kept_at >= QUIET_NS
        if shape.is_watched or is_quiet or shape.calls >= KEEP[min(self.level, FILES)]:
            shape.calls, shape.kept_at, shape.held = 0, boot, None
            return False
        plain, step, time, timestamp = writer.plain(values, step, time, timestamp)
        is_finite = all(map(math.isfinite, plain.values()))
        if is_finite != shape.is_finite:  # the first NaN counts, and the first number after it
            shape.is_finite, shape.calls, shape.kept_at, shape.held = is_finite, 0, boot, None
            return False
        used = writer.pass_over(Drop.BUDGET_THINNED, kind, step)
        when = (boot - self._origin) / 1e9 if time is None else time
        shape.held = plain, used, when, clock.time_ns() // 1000 if timestamp is None else timestamp
        return True

    def forked(self) -> None:
        """In a child: what the parent holds is the parent's."""
        self._shapes = {}

    def restate(self, writer: Writer) -> int:
        """Record what is held, when nothing more will come; returns how many records that were.

        The gate is taken off. Their calls have been counted as not taken, and are: these are records of the recorder's own.
        """
        writer.gate = None
        held = [shape.held for shape in self._shapes.values() if shape.held is not None]
        self._shapes = {}
        return sum(_put(writer, one) for one in held)


def watched_by(definitions: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the metrics (names and patterns) that alerts look at, by the bodies of their definitions.

    Rules that wait for a value that is not finite see the first one anyhow, and those that wait for any metric at all see enough.
    """
    rules = [rule for body in definitions if isinstance(rule := body.get("alert"), Mapping) and rule.get("rule") != "is not finite"]
    return {rule["metric"] for rule in rules if isinstance(rule.get("metric"), str)}


def origin_boot(origin: Origin) -> int:
    """Return a run's start on this host's boot clock (ns); a start on another host by the wall clocks."""
    if origin.boot_id == this_host().boot_id:
        return origin.boot
    return clock.clock_gettime_ns(clock.CLOCK_BOOTTIME) - (clock.time_ns() - origin.wall)


def _put(writer: Writer, held: _Held) -> bool:
    values, step, time, timestamp = held
    try:
        return writer.metrics(values, step, time, timestamp)
    except InvalidRecord:
        return False
