"""Whether the kernel killed a process for memory: what its cgroup has counted since, and what the kernel's log says.

The log names the process: where it may be read, it alone counts. The counters name nobody: a rise of the last seconds counts for a process
that ended by SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

_KEEP = 10.0  # s: a large process is counted as killed long before it is gone
_LIMIT_EVERY = 10  # looks
_MOST_LOG = 100_000  # records
_INITIAL_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO: the kernel's log has the pids of the first namespace
_UNLIMITED = 1 << 60  # v1 says "no limit" as a number near 2**63
_KILLED = re.compile(rb"(?P<what>[Mm]emory cgroup out of memory|[Oo]ut of memory)[^:]*: Killed process (?P<pid>\d+) ")
_CONSTRAINT = re.compile(rb"oom-kill:.*?\boom_memcg=(?P<group>[^,\n]+),.*?\bpid=(?P<pid>\d+),uid=")


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """The kernel killed the process for memory. `cgroup`: whose limit (bytes) was reached; None when the machine itself ran out."""

    source: str
    cgroup: str | None
    limit: int | None

    def as_dict(self) -> dict[str, Any]:
        """Return it as evidence."""
        return {k: v for k, v in (("source", self.source), ("cgroup", self.cgroup), ("limit", self.limit)) if v is not None}


@dataclass(frozen=True, slots=True)
class _Hierarchy:
    """Where a memory controller is mounted. `root`: the group that the mount shows; `old`: version 1."""

    mount: str
    root: str
    old: bool

    def folder(self, group: str) -> str:
        inside = group.removeprefix(self.root) if self.root != "/" else group
        return os.path.join(self.mount, inside.lstrip("/"))

    def kills(self, folder: str) -> int | None:
        """Return how many processes of the group itself were killed for memory; None when there is no such group."""
        for name in ("memory.oom_control",) if self.old else ("memory.events.local", "memory.events"):
            text = _read(os.path.join(folder, name))
            if text is not None:
                return _counter(text, "oom_kill")
        return None

    def limit(self, folder: str) -> int | None:
        """Return the bytes that the group may have: the smallest limit of it and those above."""
        smallest: int | None = None
        while folder.startswith(self.mount):
            text = _read(os.path.join(folder, "memory.limit_in_bytes" if self.old else "memory.max"))
            if text is not None and text.strip().isdigit() and int(text) < min(_UNLIMITED, smallest or _UNLIMITED):
                smallest = int(text)
            if folder.rstrip("/") == self.mount:
                break
            folder = os.path.dirname(folder.rstrip("/"))
        return smallest


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            return f.read(1 << 16)
    except OSError:
        return None


def _counter(text: str, name: str) -> int | None:
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return None


def find_hierarchies(mounts: str) -> list[_Hierarchy]:
    """Return the memory hierarchies in the text of a mountinfo file: of version 1 and of version 2."""
    found = []
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        parts, kinds = fields.split(), rest.split()
        if len(parts) < 5 or len(kinds) < 3:
            continue
        root, mount = (p.encode().decode("unicode_escape") if "\\" in p else p for p in parts[3:5])
        if kinds[0] == "cgroup" and "memory" in kinds[2].split(","):
            found.append(_Hierarchy(mount, root, old=True))
        elif kinds[0] == "cgroup2":
            found.append(_Hierarchy(mount, root, old=False))
    return sorted(found, key=lambda h: not h.old)


def group_of(text: str, *, old: bool) -> str | None:
    """Return the memory group in the text of a /proc/<pid>/cgroup file, None when it names none."""
    for line in text.splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if (old and "memory" in controllers.split(",")) or (not old and number == "0" and not controllers):
            return path
    return None


@dataclass(frozen=True, slots=True)
class Counted:
    """What a group said when its process was gone: its limit (bytes), and whether a process of it was killed for memory lately."""

    limit: int | None
    killed: OutOfMemory | None


class MemoryGroup:
    """The memory cgroup of a living process, with what it counted lately: `look` every few seconds, `count` when it is gone."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._seen: deque[tuple[float, int]] = deque()
        self._hierarchy: _Hierarchy | None = None
        self._group = self._folder = ""
        self.limit: int | None = None
        self._looks = 0
        self.look()

    def look(self) -> None:
        """Take the counter as it is while the process lives."""
        text = _read(f"/proc/{self._pid}/cgroup")
        if not text:
            return
        for hierarchy in find_hierarchies(_read("/proc/self/mountinfo") or "") if self._hierarchy is None else [self._hierarchy]:
            group = group_of(text, old=hierarchy.old)
            if group is None:
                continue
            folder = hierarchy.folder(group)
            count = hierarchy.kills(folder)
            if count is None:
                continue
            now = time.monotonic()
            if folder != self._folder:
                self._seen.clear()
                self._looks = 0
                self._hierarchy, self._group, self._folder = hierarchy, group, folder
            if self._looks % _LIMIT_EVERY == 0:
                self.limit = hierarchy.limit(folder)
            self._looks += 1
            self._seen.append((now, count))
            while len(self._seen) > 1 and self._seen[1][0] <= now - _KEEP:
                self._seen.popleft()
            return

    def count(self) -> Counted:
        """Say what the group has counted of late, now that the process is gone."""
        count = None if self._hierarchy is None else self._hierarchy.kills(self._folder)
        if count is None or not self._seen or count <= self._seen[0][1]:
            return Counted(self.limit, None)
        # a group without a limit counts what is killed when the machine runs out
        return Counted(self.limit, OutOfMemory("cgroup", None if self.limit is None else self._group, self.limit))


@dataclass(frozen=True, slots=True)
class KernelLog:
    """The kernel's log of this boot, as far as it may be read. `kills`: (seconds on the monotonic clock, pid, whose limit)."""

    readable: bool
    kills: tuple[tuple[float, int, str | None], ...] = ()

    def of(self, pid: int, since: float) -> OutOfMemory | None:
        """Return the kill of a process of this pid that began at `since` (monotonic s) or later."""
        for at, killed, group in self.kills:
            # the log's clock is not disciplined: it may be off by some seconds after weeks
            if killed == pid and at >= since - 1.0 - at * 1e-4:
                return OutOfMemory("kernel-log", group, None if group is None else _limit_of(group))
        return None


def read_kernel_log(path: str = "/dev/kmsg") -> KernelLog:
    """Read the kernel's log for kills. Where it may not be read, or has the pids of another namespace, it says nothing."""
    try:
        if os.stat("/proc/self/ns/pid").st_ino != _INITIAL_NAMESPACE:
            return KernelLog(readable=False)
        log = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return KernelLog(readable=False)
    try:
        return parse_kernel_log(_records(log))
    finally:
        os.close(log)


def _records(log: int) -> list[bytes]:
    found = []
    for _ in range(_MOST_LOG):
        try:
            record = os.read(log, 16384)
        except BrokenPipeError:  # overwritten while we read: the next one is there
            continue
        except OSError:  # the end
            break
        if not record:
            break
        if b"illed process" in record or b"oom-kill" in record:
            found.append(record)
    return found


def parse_kernel_log(records: list[bytes]) -> KernelLog:
    """Take the kills out of records of /dev/kmsg."""
    kills: list[tuple[float, int, str | None]] = []
    groups: dict[int, str] = {}
    for record in records:
        prefix, _, text = record.partition(b";")
        if named := _CONSTRAINT.match(text):
            groups[int(named["pid"])] = os.fsdecode(named["group"])
        elif killed := _KILLED.match(text):
            with contextlib.suppress(ValueError, IndexError):
                pid, at = int(killed["pid"]), int(prefix.split(b",")[2]) / 1e6
                group = groups.pop(pid, "") if killed["what"].lower().startswith(b"memory") else None
                kills.append((at, pid, group))
    return KernelLog(True, tuple(kills))


def _limit_of(group: str) -> int | None:
    for hierarchy in find_hierarchies(_read("/proc/self/mountinfo") or ""):
        folder = hierarchy.folder(group)
        if os.path.isdir(folder) and (limit := hierarchy.limit(folder)) is not None:
            return limit
    return None


def out_of_memory(pid: int, began: float, counted: Counted | None, *, by_kill: bool | None) -> OutOfMemory | None:
    """Say whether a process that is gone was killed for memory.

    `began`: its start on the monotonic clock (s). `by_kill`: whether it ended by SIGKILL; where that is not known (None), only the
    log counts.
    """
    if by_kill is False:
        return None
    log = read_kernel_log()
    if log.readable:
        found = log.of(pid, began)
        if found is not None and found.cgroup is not None and found.limit is None and counted is not None:
            return replace(found, limit=counted.limit)  # the group has gone with the process
        return found
    return counted.killed if by_kill and counted is not None else None
