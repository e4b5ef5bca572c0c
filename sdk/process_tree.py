"""Processes of this PID namespace by identity (pid and start time together), their trees, and signals that cannot hit another.

Guarantee: a signal reaches only a process whose start time is the one that was asked for. It goes through a pidfd, and the start time is
read again after that is open, so that a pid that was reused meanwhile is not hit. Never signalled: pid 0 and 1, this process, those
above it. The limit: where the kernel has no pidfd, or refuses it, nothing is signalled at all.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

_LOOK = 0.1  # seconds between two looks for children that appeared
_REAP = 5.0  # seconds for a killed process to go; one in an uninterruptible wait (a hung mount) may stay longer


@dataclass(frozen=True, slots=True)
class Process:
    """A process: its pid and its start time in ticks since boot (`/proc/<pid>/stat` field 22)."""

    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """What `stop` did: who was sent SIGTERM, who then SIGKILL, and who is `left` (may not be signalled, or waits in the kernel)."""

    terminated: tuple[Process, ...] = ()
    killed: tuple[Process, ...] = ()
    left: tuple[Process, ...] = ()


def identify(pid: int) -> Process | None:
    """Return the process that has this pid now; None when there is none, or a zombie."""
    found = _stat(pid)
    if found is None or _is_dead(pid, found[1]):
        return None
    return Process(pid, found[2])


def is_gone(process: Process) -> bool:
    """Say whether a process has ended; a zombie has."""
    found = _stat(process.pid)
    return found is None or found[2] != process.start_ticks or _is_dead(process.pid, found[1])


def descendants(process: Process) -> list[Process]:
    """Return the children of a process, theirs and so on, parents first. What is forked or re-parented meanwhile may be missing."""
    found = {process: None}
    todo = [process]
    listing = None if _has_children_files() else _by_parent()
    while todo:
        parent = todo.pop(0)
        for child in _children(parent, listing):
            if child not in found:
                found[child] = None
                todo.append(child)
    return [p for p in found if p is not process]


def send(process: Process, number: int) -> bool:
    """Send a signal to exactly this process; False when it is gone, protected, or may not be signalled."""
    if process.pid in protected():
        return False
    fd = _open(process)
    if fd is None:
        return False
    try:
        signal.pidfd_send_signal(fd, number)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def protected() -> frozenset[int]:
    """Return the pids that are never signalled: 0, 1, this process and those above it."""
    found, pid = {0, 1}, os.getpid()
    while pid not in found:
        found.add(pid)
        stat = _stat(pid)
        if stat is not None:
            pid = stat[0]
    return frozenset(found)


def stop(processes: Iterable[Process], grace: float) -> Stopped:
    """Stop processes with all that descends from them: SIGTERM, `grace` seconds, SIGKILL. Returns when they are gone.

    Children that appear meanwhile are found about ten times a second, those whose parent has died before that look are not.
    Before SIGKILL everything is stopped (SIGSTOP), so that nothing can fork away. Never raises.
    """
    known: dict[Process, None] = {}
    spared, above = [], protected()
    for p in processes:
        if p.pid in above:  # its tree is not to be stopped either: we are in it
            spared.append(p)
        else:
            _grow(known, [p])
    terminated = tuple(p for p in known if send(p, signal.SIGTERM))
    _wait(known, grace)
    killed: dict[Process, None] = {}
    deadline = time.monotonic() + _REAP
    while left := [p for p in known if not is_gone(p)]:
        for p in _frozen(known, left):
            if send(p, signal.SIGKILL):
                killed[p] = None
        _wait(known, 0.5, look=False)
        if time.monotonic() > deadline or not any(p in killed for p in known if not is_gone(p)):
            break
    return Stopped(terminated, tuple(killed), tuple(p for p in (*spared, *known) if not is_gone(p)))


def _grow(known: dict[Process, None], roots: Iterable[Process]) -> list[Process]:
    """Add processes that live, and their descendants; return the new ones."""
    new = []
    for root in roots:
        for p in (root, *descendants(root)):
            if p not in known and not is_gone(p):
                known[p] = None
                new.append(p)
    return new


def _frozen(known: dict[Process, None], left: list[Process]) -> list[Process]:
    """Stop processes and whatever they forked meanwhile, until nothing new is found; return them all."""
    all_left, fresh = list(left), list(left)
    while fresh:
        stopped = [p for p in fresh if send(p, signal.SIGSTOP)]
        deadline = time.monotonic() + _LOOK  # a fork that had begun is finished first
        while not all(_stands_still(p) for p in stopped) and time.monotonic() < deadline:
            time.sleep(0.001)
        fresh = _grow(known, stopped)
        all_left += fresh
    return all_left


def _stands_still(process: Process) -> bool:
    found = _stat(process.pid)
    return found is None or found[2] != process.start_ticks or found[1] in "TtZX"


def _wait(known: dict[Process, None], seconds: float, *, look: bool = True) -> None:
    """Wait until all are gone, at most `seconds`. With `look`, children that appear are asked to end as well."""
    deadline = time.monotonic() + seconds
    with _watched() as watch:
        for p in known:
            watch.add(p)
        while (left := deadline - time.monotonic()) > 0:
            if not watch.wait(min(left, _LOOK)):
                return
            if look:
                for p in _grow(known, list(watch.alive)):
                    send(p, signal.SIGTERM)
                    watch.add(p)


class _Watch:
    """Pidfds of processes that live, by process."""

    def __init__(self) -> None:
        self.alive: dict[Process, int] = {}
        self._poll = select.poll()

    def add(self, process: Process) -> None:
        fd = _open(process)
        if fd is not None:
            self.alive[process] = fd
            self._poll.register(fd, select.POLLIN)

    def wait(self, seconds: float) -> bool:
        """Wait until one ends, at most so long; say whether any is left."""
        if not self.alive:
            return False
        ended = {fd for fd, _ in self._poll.poll(seconds * 1000)}
        for p, fd in list(self.alive.items()):
            if fd in ended:
                self._poll.unregister(fd)
                os.close(fd)
                del self.alive[p]
        return bool(self.alive)

    def close(self) -> None:
        for fd in self.alive.values():
            os.close(fd)


@contextlib.contextmanager
def _watched() -> Iterator[_Watch]:
    watch = _Watch()
    try:
        yield watch
    finally:
        watch.close()


def _open(process: Process) -> int | None:
    """Return a pidfd of exactly this process, None when it is gone or the kernel gives none."""
    if process.pid <= 0:
        return None
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:
        return None
    found = _stat(process.pid)
    if found is None or found[2] != process.start_ticks:
        os.close(fd)
        return None
    return fd


def _stat(pid: int) -> tuple[int, str, int] | None:
    """Return (parent's pid, state letter, start ticks), None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            fields = f.read().rpartition(b")")[2].split()
        return int(fields[1]), fields[0].decode(), int(fields[19])
    except (OSError, IndexError, ValueError):  # it ended while we read
        return None


def _is_dead(pid: int, state: str) -> bool:
    """A zombie is dead, unless it is only the first thread of a process whose other threads run on."""
    if state not in "ZX":
        return False
    try:
        return len(os.listdir(f"/proc/{pid}/task")) < 2
    except OSError:
        return True


@lru_cache(maxsize=1)
def _has_children_files() -> bool:
    """Whether the kernel lists a thread's children (CONFIG_PROC_CHILDREN)."""
    return os.path.exists("/proc/thread-self/children")


def _children(parent: Process, listing: dict[int, list[int]] | None) -> list[Process]:
    pids = listing.get(parent.pid, []) if listing is not None else _listed_children(parent.pid)
    found = []
    for pid in pids:
        stat = _stat(pid)
        if stat is not None and stat[0] == parent.pid and stat[1] != "X":  # else its pid has another owner already
            found.append(Process(pid, stat[2]))
    now = _stat(parent.pid)
    return found if now is not None and now[2] == parent.start_ticks else []


def _listed_children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for thread in threads:
        with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/task/{thread}/children", "rb") as f:
            found += map(int, f.read().split())
    return found


def _by_parent() -> dict[int, list[int]]:
    """Return all pids by their parent's: a look at every process."""
    found: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := _stat(int(name))) is not None:
            found.setdefault(stat[0], []).append(int(name))
    return found
