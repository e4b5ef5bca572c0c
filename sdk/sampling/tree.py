"""What a process tree uses: processor time, memory, threads, open files, I/O. Read from /proc, a few small files a process.

Processes come and go between and during the readings. A process is its pid and start time together, so a pid that is used again is
another one. The processor time and I/O of children that ended are found in the parent that waited for them, and are counted once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MIB = 1 << 20
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_FEW_THREADS = 64  # fewer than any host has processes
_SEARCH_SHARE = 0.005  # of a core: what looking for new processes may cost
_PSS_SHARE = 0.001  # of a core: the kernel walks all page tables for it, holding the process's memory lock

Identity = tuple[int, int]
"""A process's pid and its start time, in ticks since boot."""


@dataclass(slots=True)
class Stat:
    """What /proc/<pid>/stat says. `cpu` is seconds, those of children that it waited for included; `memory` bytes."""

    pid: int
    parent: int
    session: int
    start: int
    cpu: float
    threads: int
    memory: int
    ended: bool


class Processes:
    """Reads processes, each at most once until `refresh`: several trees may share some."""

    def __init__(self) -> None:
        self._stats: dict[int, Stat | None] = {}
        self._everything: list[int] | None = None
        self._has_children_files = os.path.exists("/proc/thread-self/children")

    def refresh(self) -> None:
        """Forget what was read."""
        self._stats.clear()
        self._everything = None

    def stat(self, pid: int) -> Stat | None:
        """Return a process's state; None when there is none, or the kernel hides it."""
        try:
            return self._stats[pid]
        except KeyError:
            found = self._stats[pid] = _stat(pid)
            return found

    def children(self, pids: Iterable[int]) -> list[int]:
        """Return processes that are children of some of these, and theirs, as far as they can be told now.

        Two ways: the threads' lists of children, or a look at every process of the host; the one that reads fewer files.
        """
        known = set(pids)
        threads = sum(s.threads for pid in known if (s := self._stats.get(pid)) is not None)
        if self._has_children_files and threads <= _FEW_THREADS:
            return self._listed(known)
        if self._everything is None:
            self._everything = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
        if self._has_children_files and threads <= len(self._everything):
            return self._listed(known)
        return self._with_parents(known, self._everything)

    def _listed(self, known: set[int]) -> list[int]:
        found: list[int] = []
        todo = list(known)
        while todo:
            pid = todo.pop()
            stat = self.stat(pid)
            if stat is None or stat.ended:
                continue
            for child in _children(pid, stat.threads):
                if child not in known:
                    known.add(child)
                    found.append(child)
                    todo.append(child)
        return found

    def _with_parents(self, known: set[int], everything: list[int]) -> list[int]:
        by_parent: dict[int, list[int]] = {}
        for pid in everything:
            if pid not in known and (stat := self.stat(pid)) is not None:
                by_parent.setdefault(stat.parent, []).append(pid)
        found: list[int] = []
        todo = list(known)
        while todo:
            for child in by_parent.pop(todo.pop(), ()):
                found.append(child)
                todo.append(child)
        return found


@dataclass(slots=True)
class _Member:
    start: int
    parent: int
    counters: tuple[float, ...]  # processor seconds, bytes read, bytes written


class TreeMeter:
    """Measures the trees of some processes together. `hidden`: pids that never count, with what descends from them, unless asked for."""

    def __init__(self, processes: Processes, *, hidden: frozenset[int] = frozenset(), pss_every: float | None = None) -> None:
        """`pss_every`: seconds between two readings of the proportional memory, None for never."""
        self._processes, self._hidden = processes, hidden
        self._members: dict[int, _Member] = {}
        self._before = 0.0
        self._search_at = self._searched = self._since = 0.0  # the last two: on the boot clock
        self._totals = [0.0, 0.0, 0.0]
        self._pss_every = pss_every
        self._pss_at = time.monotonic() + min(60.0, pss_every or 0.0)

    @property
    def pids(self) -> set[int]:
        """The processes of the last measurement."""
        return set(self._members)

    def measure(self, roots: Iterable[Identity]) -> dict[str, float | int]:
        """Return what the trees use, empty when none of the roots lives. Usage over time is since the last call, absent in the first."""
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        living = self._find(roots)
        if not living:
            return {}
        counters = {pid: (s.cpu, *self._io(s)) for pid, s in living.items()}
        used = self._account(living, counters)
        seconds, first = now - self._before, not self._before
        self._before = now
        present = [s for s in living.values() if not s.ended]
        values: dict[str, float | int] = {} if first else {"resources/cpu.usage.percentage": 100.0 * used[0] / max(seconds, 1e-3)}
        values["resources/cpu.usage.memory"] = sum(s.memory for s in present) / MIB
        values["resources/processes.count"] = len(present)
        values["resources/processes.threads"] = sum(s.threads for s in present)
        values["resources/processes.files.open"] = sum(_open_files(s.pid) for s in present)
        values["resources/processes.io.read"] = self._totals[1] / MIB
        values["resources/processes.io.written"] = self._totals[2] / MIB
        if not first:
            values["resources/processes.io.read.rate"] = used[1] / MIB / max(seconds, 1e-3)
            values["resources/processes.io.written.rate"] = used[2] / MIB / max(seconds, 1e-3)
        values.update(self._pss([s.pid for s in present]))
        return values

    def usage(self, roots: Iterable[Identity]) -> tuple[float, int] | None:
        """Return the processor seconds since the last call (0 in the first) and the bytes of resident memory; None when no root lives.

        One file a process: it may be asked every second. Not to be mixed with `measure` on one meter.
        """
        living = self._find(roots)
        if not living:
            return None
        used = self._account(living, {pid: (s.cpu, 0.0, 0.0) for pid, s in living.items()})
        self._before = time.clock_gettime(time.CLOCK_BOOTTIME)
        return used[0], sum(s.memory for s in living.values() if not s.ended)

    def _find(self, roots: Iterable[Identity]) -> dict[int, Stat]:
        """Return the members that are there, ended ones that nobody has waited for included."""
        stat = self._processes.stat
        living = {pid: s for pid, m in self._members.items() if (s := stat(pid)) is not None and s.start == m.start}
        tops = {pid: s for pid, start in roots if (s := stat(pid)) is not None and s.start == start}
        if all(s.ended for s in tops.values()):
            return {}
        living.update(tops)
        sessions = {s.session for s in tops.values()}
        # who left both its parent and the session has made itself independent: a daemon that the script started, an agent for one
        while gone := [
            pid for pid, s in living.items()
            if pid not in tops and s.parent not in living and s.session not in sessions
        ]:  # fmt: skip
            for pid in gone:
                del living[pid]
        moment = time.monotonic()
        self._since = self._searched
        if moment >= self._search_at or not tops.keys() <= self._members.keys():
            began, self._searched = time.thread_time(), time.clock_gettime(time.CLOCK_BOOTTIME)
            found = self._processes.children(living)
            apart = self._hidden - tops.keys()
            for pid in found:
                s = stat(pid)
                if s is not None and pid not in apart and s.parent in living:
                    living[pid] = s
            self._search_at = moment + (time.thread_time() - began) / _SEARCH_SHARE
        return living

    def _account(self, living: Mapping[int, Stat], counters: Mapping[int, tuple[float, ...]]) -> list[float]:
        """Return what was used since the last call, by counter."""
        inherited: dict[int, list[float]] = {}
        for pid, member in self._members.items():
            if pid not in living or living[pid].start != member.start:
                heir = self._heir(member, living)
                if heir is not None:
                    into = inherited.setdefault(heir, [0.0, 0.0, 0.0])
                    for i, value in enumerate(member.counters):
                        into[i] += value
        used, first = [0.0, 0.0, 0.0], not self._before
        born_after = self._since * _TICKS - 1
        fresh: dict[int, _Member] = {}
        for pid, s in living.items():
            old, mine = self._members.get(pid), counters[pid]
            known = old is not None and old.start == s.start
            fresh[pid] = _Member(s.start, s.parent, mine)
            for i, value in enumerate(mine):
                if known:
                    assert old is not None
                    # a parent that has its children reaped by the kernel does not inherit: then this is too little, never below zero
                    more = max(value - old.counters[i] - inherited.get(pid, (0.0, 0.0, 0.0))[i], 0.0)
                elif first:
                    more = value if i else 0.0  # totals of I/O begin with what was there
                else:
                    more = value if s.start >= born_after else 0.0
                used[i] += more
                self._totals[i] += more
        self._members = fresh
        return used

    def _io(self, s: Stat) -> tuple[float, float]:
        """Return the bytes that a process has had read from and written to storage; those known before where the kernel does not tell."""
        try:
            words = _read(f"/proc/{s.pid}/io").split()
            return float(words[9]), float(words[11])
        except (OSError, IndexError, ValueError):
            member = self._members.get(s.pid)
            return (0.0, 0.0) if member is None or member.start != s.start else (member.counters[1], member.counters[2])

    def _heir(self, member: _Member, living: Mapping[int, Stat]) -> int | None:
        """Return the living process that has waited for an ended one: its parent, or its ended parent's."""
        parent = member.parent
        for _ in range(64):
            old = self._members.get(parent)
            if old is None:
                return None
            if parent in living and living[parent].start == old.start:
                return parent
            parent = old.parent
        return None

    def _pss(self, pids: Iterable[int]) -> dict[str, float]:
        """Return the tree's proportional memory, when it is due and all of it can be read."""
        now = time.monotonic()
        if self._pss_every is None or now < self._pss_at:
            return {}
        began, total, complete = time.thread_time(), 0, True
        for pid in pids:
            found = _pss(pid)
            if found is not None:
                total += found
            elif os.path.exists(f"/proc/{pid}"):
                complete = False  # another user's, or a kernel that does not tell
        self._pss_at = now + max(self._pss_every, (time.thread_time() - began) / _PSS_SHARE)
        return {"resources/processes.memory.pss": total / MIB} if complete else {}


def _read(path: str, most: int = 4096) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, most)
    finally:
        os.close(fd)


def _stat(pid: int) -> Stat | None:
    try:
        f = _read(f"/proc/{pid}/stat", 2048).rpartition(b")")[2].split()
        cpu = (int(f[11]) + int(f[12]) + int(f[13]) + int(f[14])) / _TICKS
        return Stat(pid, int(f[1]), int(f[3]), int(f[19]), cpu, int(f[17]), int(f[21]) * _PAGE, f[0] in {b"Z", b"X"})
    except (OSError, IndexError, ValueError):  # it ended while we read
        return None


def _children(pid: int, threads: int) -> list[int]:
    found: list[int] = []
    try:
        tasks = [str(pid)] if threads == 1 else os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for task in tasks:
        try:
            found += map(int, _read(f"/proc/{pid}/task/{task}/children", 1 << 16).split())
        except (OSError, ValueError):
            continue
    return found


def _open_files(pid: int) -> int:
    path = f"/proc/{pid}/fd"
    try:
        return os.stat(path).st_size or len(os.listdir(path))  # kernels before 6.2 do not count
    except OSError:
        return 0


def _pss(pid: int) -> int | None:
    try:
        for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, IndexError, ValueError):
        pass
    return None
