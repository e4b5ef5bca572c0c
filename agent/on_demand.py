"""An agent that a script started: how it begins, and how it ends by itself when nothing is left to do.

Nothing is left when no writer lives here, all that died are closed, and the server has everything (or none is configured), for `idle`
seconds. With a server that does not answer, or refuses, it ends ten minutes after the last writer did; the data waits for the next agent.

The end is announced before it happens: the host file goes, then comes one more look. A script that saw the file before has made its writer
by then, and is found; one that comes later sees no agent, and starts another, which waits for the lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import stat
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from simspool.sdk.agent_start import FIRST_PAUSE, LONGEST_PAUSE, StartNote, serving_agent
from simspool.spool import SpoolError, atomic
from simspool.spool.lock import SpoolLock
from simspool.spool.process import start_ticks

from .status import count_waiting
from .truth.known import known_targets

if TYPE_CHECKING:
    from simspool.spool import Spool

    from .app import Agent

IDLE = 30.0  # s
_PATIENCE = 600.0  # s with a server that takes nothing
_NICE = 10
_LOG_BYTES = 1 << 20


def settle() -> None:
    """Become a good neighbour of the script: no descriptor of its, low priority, a log that stays small.

    For a process that does nothing else yet.
    """
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):  # the listing's own
                os.close(int(name))
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    log = os.fstat(2)
    if stat.S_ISREG(log.st_mode) and log.st_size > _LOG_BYTES:
        with contextlib.suppress(OSError):
            os.ftruncate(2, 0)


def stamped(text: str) -> str:
    """Return a line of the log: the time, the process, the text."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} [{os.getpid()}] {text}"


def note_start(spool: Spool, *, serves: bool) -> None:
    """Note for scripts whether this start led to an agent that serves. If not (another host's has the spool), they wait longer."""
    with contextlib.suppress(OSError), StartNote(spool.path).held(wait=True) as note:
        if note is not None:
            note.write(0, FIRST_PAUSE if serves else LONGEST_PAUSE)


def is_elsewhere(spool: Spool) -> bool:
    """Whether the host's lock is held by a process of another host (of the same name) or namespace, as far as the lock tells."""
    try:
        holder = atomic.read_json(SpoolLock(spool).path)["pid"]
    except (OSError, ValueError, KeyError, TypeError):
        return False  # it is being written at this moment
    return isinstance(holder, int) and start_ticks(holder) is None


def replace(spool: Spool) -> bool:
    """Ask an agent on demand to make room for a lasting one; False when the agent that serves is none."""
    found = serving_agent(spool.path)
    if found is None or not found.on_demand:
        return False
    with contextlib.suppress(OSError):
        handle = os.pidfd_open(found.pid)
        try:
            if (start_ticks(found.pid) or (0, ""))[0] == found.start_ticks:
                signal.pidfd_send_signal(handle, signal.SIGTERM)
        finally:
            os.close(handle)
    return True


class IdleEnd:
    """Ends an agent when nothing is left. `idle` is in seconds."""

    def __init__(self, agent: Agent, idle: float, report: Callable[[str], None]) -> None:
        self._agent, self._idle, self._report = agent, idle, report
        self._taken = -1
        self._waiting = 0
        self._quiet_since = self._moved = time.monotonic()

    async def watch(self, stop: asyncio.Event) -> None:
        """Set `stop` when nothing is left; return then."""
        while not stop.is_set():
            await asyncio.sleep(min(1.0, self._idle / 4))
            now = time.monotonic()
            try:
                why = await self._look(now)
                if why and await self._is_over():
                    self._report(f"{why}: this agent ends")
                    stop.set()
            except (OSError, SpoolError, sqlite3.Error) as error:
                if now - self._moved > _PATIENCE or self._spool_is_gone():
                    self._report(f"the spool cannot be read ({error}): this agent ends")
                    stop.set()

    async def _look(self, now: float) -> str:
        """Return why it is time to end, or nothing."""
        agent = self._agent
        busy = await agent.work(agent.ingest.busy_runs)
        if busy or agent.syncs or agent.inboxes.is_busy or self._taken != agent.taken:
            self._taken, self._quiet_since, self._moved = agent.taken, now, now
            return ""
        if self._spool_is_gone():
            return "the spool is gone" if now - self._quiet_since >= self._idle else ""
        waiting = await agent.work(self._count_waiting)
        if waiting:
            self._quiet_since = now
            if waiting != self._waiting:
                self._waiting, self._moved = waiting, now
            stuck = now - self._moved > _PATIENCE
            return f"{waiting} records, files or messages wait for a server or a channel that takes nothing" if stuck else ""
        return "nothing is left to do" if now - self._quiet_since >= self._idle else ""

    def _count_waiting(self) -> int:
        agent = self._agent
        if agent.lease.is_elsewhere:
            return 0  # another host's agent sends
        notices = agent.notifier.waiting() if agent.notifier is not None else 0
        waiting = 0
        for lane in agent.drains.counting if agent.drains is not None else ():
            [server] = [t.server for t in known_targets(agent.catalog, [lane.settings])]
            waiting = max(waiting, count_waiting(agent.catalog, lane.drain.server or server))
        relayed = agent.relay.waiting() if agent.relay is not None else 0
        return max(waiting, relayed) + notices

    async def _news(self) -> bool:
        """Whether a look at everything finds something new."""
        agent = self._agent
        await asyncio.to_thread(agent.inboxes.copy_all)
        writers = await agent.work(agent.ingest.scan)
        read = await agent.work(agent.ingest.read)
        busy = await agent.work(agent.ingest.busy_runs)
        return bool(writers or read.records or busy)

    async def _is_over(self) -> bool:
        """Announce the end, then look once more."""
        agent = self._agent
        agent.withdraw()
        if self._spool_is_gone():
            return True  # and nothing is to be written where it was
        try:
            over = not await self._news()
        except (OSError, SpoolError, sqlite3.Error):
            over = False
        if over:
            with contextlib.suppress(OSError), StartNote(agent.spool.path).held(wait=True) as note:
                if note is not None:
                    note.write(0, 0.0)
            return True
        self._quiet_since = time.monotonic()
        agent.announce()
        return False

    def _spool_is_gone(self) -> bool:
        return not os.path.exists(os.path.join(self._agent.spool.path, "SPOOL"))
