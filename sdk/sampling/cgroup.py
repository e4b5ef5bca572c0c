"""The limits of a process's control groups, version 1, 2 or both: what a container, a batch system or systemd lets it have.

The limit that counts is the tightest on the way from the process's group up to the root of what can be seen.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from .tree import MIB

_UNLIMITED = 1 << 60  # version 1 writes a huge number for "none"


@dataclass(frozen=True, slots=True)
class _Mount:
    root: str
    place: str


class Cgroups:
    """Finds the mounted hierarchies once. `proc` is where /proc is mounted."""

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc
        self._unified: _Mount | None = None
        self._controllers: dict[str, _Mount] = {}
        self._measured: dict[str, dict[str, float | int]] = {}
        try:
            with open(f"{proc}/self/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
                for line in f:
                    self._take(line.split())
        except OSError:
            pass  # no groups can be seen, so no limits are known

    def _take(self, fields: list[str]) -> None:
        try:
            dash = fields.index("-")
            kind, options = fields[dash + 1], fields[dash + 3]
        except (ValueError, IndexError):
            return
        mount = _Mount(fields[3].rstrip("/"), fields[4])
        if kind == "cgroup2":
            self._unified = self._unified or mount
        elif kind == "cgroup":
            for name in options.split(","):
                self._controllers.setdefault(name, mount)

    def refresh(self) -> None:
        """Forget what was measured; until then, each group is measured once."""
        self._measured.clear()

    def membership(self, pid: int) -> str:
        """Return which groups a process is in: equal texts are equal groups. Empty where that cannot be seen."""
        try:
            with open(f"{self._proc}/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as f:
                return f.read()
        except OSError:
            return ""

    def measure(self, membership: str) -> dict[str, float | int]:
        """Return the limits in force for the members of these groups, what is used and what is left of them; only limits that exist."""
        known = self._measured.get(membership)
        if known is not None:
            return known
        values = self._measured[membership] = {}
        paths = dict(_paths(membership))
        tightest = min((m for f in self._folders("memory", paths) if (m := _memory(f)) is not None), default=None)
        if tightest is not None:
            left, limit, used = tightest
            values["resources/cgroup.memory.limit"] = limit / MIB
            values["resources/cgroup.memory.used"] = used / MIB
            values["resources/cgroup.memory.left"] = left / MIB
        quota = min((q for f in self._folders("cpu", paths) if (q := _quota(f)) is not None), default=None)
        if quota is not None:
            values["resources/cgroup.cpu.limit"] = quota
        pids = min((p for f in self._folders("pids", paths) if (p := _pids(f)) is not None), default=None)
        if pids is not None:
            values["resources/cgroup.pids.left"], values["resources/cgroup.pids.limit"] = pids
        return values

    def _folders(self, controller: str, paths: dict[str, str]) -> Iterator[str]:
        """Yield the folders from the process's group up to the mount."""
        if controller in self._controllers:
            mount, path = self._controllers[controller], paths.get(controller)
        else:
            mount, path = self._unified or _Mount("", ""), paths.get("")
        if path is None or not mount.place:
            return
        inside = path[len(mount.root) :] if path == mount.root or path.startswith(mount.root + "/") else ""
        parts = [p for p in inside.split("/") if p]
        if ".." in parts:  # a group outside what our own namespace shows
            parts = []
        while True:
            yield os.path.join(mount.place, *parts)
            if not parts:
                return
            parts.pop()


def _paths(membership: str) -> Iterator[tuple[str, str]]:
    """Yield (controller, path); version 2 is the empty controller."""
    for line in membership.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for name in controllers.split(","):
            yield name, path


def _text(*parts: str) -> str | None:
    try:
        with open(os.path.join(*parts), encoding="ascii") as f:
            return f.read()
    except (OSError, ValueError):
        return None


def _number(*parts: str) -> int | None:
    text = _text(*parts)
    try:
        return int(text) if text is not None else None
    except ValueError:  # "max"
        return None


def _memory(folder: str) -> tuple[int, int, int] | None:
    """Return (left, limit, used) in bytes. File pages that are not in use are not counted as used: the kernel takes them back first."""
    for limit_file, used_file, key in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        limit = _number(folder, limit_file)
        if limit is None or limit >= _UNLIMITED:
            continue
        used = _number(folder, used_file)
        if used is None:
            continue
        for line in (_text(folder, "memory.stat") or "").splitlines():
            name, _, value = line.partition(" ")
            if name == key and value.isdecimal():
                used = max(used - int(value), 0)
                break
        return max(limit - used, 0), limit, used
    return None


def _quota(folder: str) -> float | None:
    """Return the processor time that is allowed, in percent of one core."""
    text = _text(folder, "cpu.max")
    if text is None:
        text = f"{_text(folder, 'cpu.cfs_quota_us')} {_text(folder, 'cpu.cfs_period_us')}"
    try:
        quota, period = (int(v) for v in text.split())
    except ValueError:
        return None
    return 100.0 * quota / period if quota > 0 and period > 0 else None


def _pids(folder: str) -> tuple[int, int] | None:
    """Return (left, limit) of processes and threads."""
    limit, used = _number(folder, "pids.max"), _number(folder, "pids.current")
    return None if limit is None or used is None else (max(limit - used, 0), limit)
