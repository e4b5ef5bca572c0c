"""The agent's part that tells people: what the catalog says is pending goes to a thread a channel; what they say goes into the runs."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from simspool.agent.catalog import Catalog
from simspool.agent.ingest import Ingest
from simspool.agent.notes import RunNotes
from simspool.spool import Kind, Spool

from .channels import carrier_of
from .queue import SETTLE, Notice, pending, since
from .sender import PATIENCE, Sender
from .settings import Channel, NotifySource

_BUSY, _IDLE = 1.0, SETTLE  # s between looks at the queue, where no news comes
_GATHER = 0.1
_SECOND_LOOK = 0.25
TELL = 30.0  # s that a sync takes at most to tell what is pending


class Notifier:
    """Give it a loop (`run`), or one go (`tell`); then `stop` it. `follows` says whether a run is being watched."""

    def __init__(
        self, spool: Spool, catalog: Catalog, ingest: Ingest, notes: RunNotes, work: Callable[..., Awaitable[Any]], source: NotifySource,
        report: Callable[[str], None], follows: Callable[[str], bool] = lambda _: False,
    ) -> None:  # fmt: skip
        self._spool, self._catalog, self._ingest, self._notes = spool, catalog, ingest, notes
        self._work, self._source, self._report, self._follows = work, source, report, follows
        self._news = asyncio.Event()
        self._changed, self._applied = True, False
        self._senders: dict[str, Sender] = {}
        self._since: dict[str, int] = {}
        self._noted: set[str] = set()
        self._listed = 0
        self._closed = False

    # ------------------------------------------------------------------ the loop

    async def run(self) -> None:
        """Look after the queue until cancelled."""
        while True:
            pause = _IDLE
            try:
                await self._apply()
                pause = await self._work(self._look, SETTLE)
            except (OSError, sqlite3.Error) as error:
                self._report(f"nobody can be told of alerts just now: {error}")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._news.wait()
            await asyncio.sleep(_GATHER)
            self._news.clear()

    async def tell(self, timeout: float = TELL) -> int:
        """Tell what is pending, where everything is taken in; up to `timeout` s, and no longer where a channel fails.

        Returns how much is left.
        """
        await self._apply()
        until = time.monotonic() + timeout
        while True:
            await self._work(self._look, 0.0)
            if not self._busy() or time.monotonic() >= until:
                return sum(sender.waiting() for sender in self._senders.values())
            await asyncio.sleep(_SECOND_LOOK)

    def wake(self) -> None:
        """Something was taken in."""
        self._news.set()

    def reload(self) -> None:
        """Read the configuration again, soon. Safe in a signal's handler of the event loop."""
        self._changed = True
        self._news.set()

    def retry(self) -> None:
        """The network changed: try again what failed."""
        for sender in self._senders.values():
            sender.retry()

    def stop(self) -> None:
        """End the threads. What is being delivered is cut off, and tried again by the next agent."""
        until = time.monotonic() + PATIENCE
        for sender in self._senders.values():
            sender.begin_stop()
        for sender in self._senders.values():
            sender.stop(max(until - time.monotonic(), 0.0))
        self._closed = True

    async def _apply(self) -> None:
        """Take over the channels of the configuration."""
        if not self._changed:
            return
        self._changed = False
        if self._applied:
            await asyncio.to_thread(self._source.refresh)
        self._applied = True
        await asyncio.to_thread(self._set, self._source.channels)

    def _set(self, channels: Collection[Channel]) -> None:
        wanted = {channel.name: channel for channel in channels}
        kept = {}
        for name, sender in self._senders.items():
            if sender.settings == wanted.get(name):
                kept[name] = sender
                sender.retry()
            else:
                sender.stop()
        self._since = self._since | since(self._spool, wanted, self._source.path, note=True)
        for name, channel in wanted.items():
            if name not in kept:
                carrier = carrier_of(channel, self._report, self._spool.id)
                kept[name] = Sender(channel, carrier, self._record, self._abandoned, self._report)
                kept[name].start()
        self._senders = kept  # at once, as other threads look at it

    # ------------------------------------------------------------------ the queue, in the worker thread

    def _look(self, settle: float) -> float:
        """Offer each channel what is pending for it; return how long (s) until the next look, where no news comes."""
        now, self._listed = time.time(), 0
        runs: set[str] = set()
        held: dict[str, bool] = {}
        for name, sender in self._senders.items():
            found = pending(self._catalog, name, sender.settings.on, self._since[name], now, settle=settle)
            runs.update(notice.run for notice, _ in found)
            sender.offer(found, {notice.run for notice, _ in found if self._is_held(notice, held)})
            self._listed += len(found)
        self._release(runs)
        return _BUSY if self._listed or self._noted else _IDLE

    def _is_held(self, notice: Notice, held: dict[str, bool]) -> bool:
        """Say whether more is to be read of a run before anything is told of it: what an agent before this one said of it, and, of one
        that has ended, what its scripts did.
        """
        key = f"{notice.run} {notice.event == 'ended'}"
        if key not in held:
            own = self._notes.position(notice.run)
            scripts = notice.event == "ended"
            held[key] = not self._ingest.knows_all(notice.run, but=own[0] if own else None, scripts=scripts)
        return held[key]

    def _release(self, wanted: Collection[str]) -> None:
        """Close the agent's part of runs in which nothing more is to be noted, so that they are complete."""
        if self._noted:
            waiting = set().union(*(sender.runs() for sender in self._senders.values()))
            for run in self._noted - waiting - set(wanted) - self._ingest.busy_runs():
                self._noted.discard(run)
                if not self._follows(run):
                    self._notes.release(run)

    # ------------------------------------------------------------------ from the channels' threads

    def _record(self, notice: Notice, body: dict[str, Any]) -> bool:
        if self._closed:
            return False
        self._noted.add(notice.run)
        # another part of the agent may let go of the run's writer just now: then there is a new one
        return self._notes.record(notice.run, Kind.NOTIFICATION, body) or self._notes.record(notice.run, Kind.NOTIFICATION, body)

    def _abandoned(self, notice: Notice, why: str) -> None:
        what = f"alert {notice.body.get('alert')!r}" if notice.event != "ended" else "the end of the run"
        text = f"nobody was told of {what} ({notice.event}), tried for a day: {why}"
        if not self._closed:
            self._notes.record(notice.run, Kind.EVENT, {"message": text, "level": "warning"})
        self._report(f"run {notice.run}: {text}")

    # ------------------------------------------------------------------ for others

    def _busy(self) -> bool:
        return any(sender.is_busy() for sender in self._senders.values())

    def waiting(self) -> int:
        """Return how many notices wait, all channels together."""
        return max(self._listed, sum(sender.waiting() for sender in self._senders.values()))

    def runs(self) -> set[str]:
        """Return the runs of which something waits to be told."""
        return set().union(*(sender.runs() for sender in self._senders.values()))

    def channels(self) -> dict[str, tuple[Collection[str], int]]:
        """Return the channels: their events, and since when (wall ns) they are there."""
        return {name: (sender.settings.on, self._since[name]) for name, sender in self._senders.items()}

    def problems(self) -> dict[str, str]:
        """Return why channels do not get on."""
        return {name: sender.problem for name, sender in self._senders.items() if sender.problem}
