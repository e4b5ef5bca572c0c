"""Watching the processes that record: told by the kernel the moment one ends, and how.

A pidfd a process, opened while it lives, on the agent's event loop. Beyond `MOST` processes, and where the kernel has no pidfds,
processes are only looked for every few seconds, and nothing is known of how they ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from simspool.agent.live import LiveWriters
from simspool.sdk.process_exit import Exit, how_it_ended, open_process
from simspool.spool.process import this_host
from simspool.spool.runstate import AGENTS
from simspool.spool.segment_header import SegmentHeader

from .memory import Counted, MemoryGroup

MOST = 300
_EVERY, _PAUSE = 1.0, 0.05
_ASK_AGAIN, _PATIENCE = 0.01, 1.0  # s: a zombie that hides its status is asked until its parent has reaped it
_REMEMBER = 60e9  # ns
_GROUPS_EVERY = 3.0  # s

_Key = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Death:
    """A watched process's end: when it was seen (boot clock, ns), how, and what its memory cgroup had counted then."""

    boot: int
    exit: Exit | None
    memory: Counted


@dataclass(slots=True)
class _Watched:
    pid: int
    ticks: int
    fd: int
    group: MemoryGroup
    writers: set[str] = field(default_factory=set)
    seen: int = 0  # boot clock, ns
    memory: Counted | None = None
    death: Death | None = None


class ProcessWatch:
    """Follows the processes of `live` writers; calls `died` with the writers of one that ended.

    Confined to the event loop, but for `death`.
    """

    def __init__(self, live: LiveWriters, died: Callable[[list[str]], None], *, report: Callable[[str], None] = lambda _: None) -> None:
        self._live, self._died, self._report = live, died, report
        self._watched: dict[_Key, _Watched] = {}
        self._lock = threading.Lock()
        self._wake = asyncio.Event()
        self._running = self._said = False
        self._next_groups = 0.0

    async def run(self) -> None:
        """Look about once a second, and when woken, until cancelled."""
        self._running = True
        try:
            while True:
                self.look()
                await asyncio.sleep(_PAUSE)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_EVERY):
                        await self._wake.wait()
                self._wake.clear()
        finally:
            self._running = False
            for known in list(self._watched.values()):
                self._release(known)

    def wake(self) -> None:
        """There may be a new process: look now."""
        self._wake.set()

    def look(self) -> None:
        """Take in new processes, let go of those that nobody asks about any more, note what the cgroups have counted."""
        here = this_host()
        wanted: dict[_Key, set[str]] = {}
        for writer in self._live():
            header = writer.header
            if writer.role not in AGENTS and (header.boot_id, header.pid_namespace) == (here.boot_id, here.pid_namespace):
                wanted.setdefault((header.pid, header.start_ticks), set()).add(writer.writer)
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        for key in self._watched.keys() - wanted.keys():
            if now - self._watched[key].seen > _REMEMBER:  # of a dead one, somebody may be about to ask
                self._release(self._watched[key])
        groups_due = time.monotonic() >= self._next_groups
        if groups_due:
            self._next_groups = time.monotonic() + _GROUPS_EVERY
        for key, writers in wanted.items():
            known = self._watched.get(key) or self._open(*key)
            if known is not None:
                known.writers = writers
                if groups_due and not known.seen:
                    known.group.look()

    def _open(self, pid: int, ticks: int) -> _Watched | None:
        if len(self._watched) >= MOST:
            self._say(f"more than {MOST} processes record: of the others it is not known how they end")
            return None
        try:
            fd = open_process(pid, ticks)
        except OSError as error:
            self._say(f"processes cannot be watched ({error.strerror}): how they end is not known")
            return None
        if fd is None:
            return None
        known = _Watched(pid, ticks, fd, MemoryGroup(pid))
        with self._lock:
            self._watched[pid, ticks] = known
        asyncio.get_running_loop().add_reader(fd, self._ended, known)
        return known

    def _say(self, text: str) -> None:
        if not self._said:
            self._said = True
            self._report(text)

    def _ended(self, known: _Watched) -> None:
        """The kernel says that a process has ended; maybe its parent has not been told how."""
        asyncio.get_running_loop().remove_reader(known.fd)
        known.seen = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        known.memory = known.group.count()  # now: the group may go with its last process
        self._settle(known)

    def _settle(self, known: _Watched) -> None:
        if known.fd < 0 or known.memory is None:
            return
        exit_ = how_it_ended(known.fd, known.pid, known.ticks)
        late = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - known.seen > _PATIENCE * 1e9
        if exit_ is None and not late:
            asyncio.get_running_loop().call_later(_ASK_AGAIN, self._settle, known)
            return
        known.death = Death(known.seen, exit_, known.memory)
        self._died(sorted(known.writers))

    def _release(self, known: _Watched) -> None:
        with self._lock:
            self._watched.pop((known.pid, known.ticks), None)
        asyncio.get_running_loop().remove_reader(known.fd)
        os.close(known.fd)
        known.fd = -1

    # ------------------------------------------------------------------ from any thread

    def death(self, header: SegmentHeader) -> Death | Literal[False] | None:
        """Return how a writer's process ended; False while that is being found out, None when it was not watched."""
        with self._lock:
            known = self._watched.get((header.pid, header.start_ticks))
        if known is None:
            return None
        return known.death or (False if self._running else None)
