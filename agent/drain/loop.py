"""The drain loop of one target: connect, send what there is, wait for more; when the network goes, wait and try for ever."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any, TypeVar

from simspool.agent.catalog import Catalog
from simspool.agent.catalog.store import is_damage
from simspool.agent.clock import Clock
from simspool.agent.journal import Journal
from simspool.agent.progress import Progress
from simspool.agent.targets.port import Poison, Range, Refused, Target, TooLarge, Unreachable, Verdict
from simspool.spool import Spool

from .again import Again
from .audit import Audit
from .backoff import Backoff
from .batch import Batch, Batches, Delivered
from .files import FileSender
from .memory import ServerMemory
from .uploads import Uploads

T = TypeVar("T")
Worker = Callable[..., Awaitable[Any]]
_REFUSED_PAUSE, _HEARTBEAT, _LOOK_AGAIN = 30.0, 30.0, 5.0  # seconds


class Drain:
    """Drains one spool to one target. `worker` runs a function in the agent's worker thread; `name` is for its progress.

    `state` is idle, connecting, draining, waiting or refused; `problem` says why it waits. The loop ends only by cancellation.
    """

    def __init__(
        self, spool: Spool, catalog: Catalog, journal: Journal, target: Target, clock: Clock, worker: Worker,
        *, name: str = "drain", runs: Collection[str] | None = None, backoff: Backoff | None = None,
        live_runs: Callable[[], list[str]] | None = None, progress: Progress | None = None,
        flagged: Callable[[str, dict[str, dict[str, Any]]], None] | None = None, report: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self._spool, self._catalog, self._journal, self._target, self._clock, self._worker = spool, catalog, journal, target, clock, worker
        self._runs = runs
        self._name, self._heartbeats = name, f"{name}: heartbeats"
        self._backoff = backoff or Backoff()
        self._live_runs = live_runs
        self._progress = progress or Progress()
        self._flagged, self._report = flagged, report
        self._wake = asyncio.Event()
        self._retry_now = asyncio.Event()
        self._settled = asyncio.Event()
        self.state, self.problem, self.server = "idle", "", ""
        self.refused = False
        self.restored = False  # at the last connect, the server had less than its receipts say
        self.attempts = 0  # that failed, ever
        self.floor = 0.0  # seconds that the last answer asked us to wait
        self.delivered = Delivered()
        self.busy: set[str] = set()  # writers of which something is under way

    @property
    def failures(self) -> int:
        """Failures in a row; 0 after anything was acknowledged."""
        return self._backoff.failures

    def wake(self) -> None:
        """There is something new to send."""
        self._wake.set()

    def retry(self) -> None:
        """Do not wait out the backoff: the network changed, or somebody asks."""
        self._retry_now.set()

    async def wait_for_change(self, timeout: float) -> None:
        """Return when something was acknowledged, failed, or the time (s) is over."""
        try:
            async with asyncio.timeout(timeout):
                await self._settled.wait()
        except TimeoutError:
            return
        self._settled.clear()

    async def run(self) -> None:
        """Drain for ever. Ends only by cancellation, or by an error that nobody foresaw."""
        while True:
            floor = 0.0
            self._progress.turn(self._name)
            try:
                await self._one_session()
            except Unreachable as error:
                self.state, self.problem, self.refused, floor = "waiting", str(error), False, error.after
            except Refused as error:
                self.state, self.problem, self.refused, floor = "refused", str(error), True, _REFUSED_PAUSE
            except OSError as error:
                self.state, self.problem = "waiting", f"the spool's journal cannot be written, so nothing is sent: {error}"
            except sqlite3.Error as error:
                if is_damage(error):
                    raise
                self.state, self.problem = "waiting", f"the catalog cannot be written, so nothing is sent: {error}"
            pause = self._backoff.failed(floor)
            self.floor = floor
            self.attempts += 1
            self._settled.set()
            self._progress.turn(self._name, pause)
            await self._pause(pause)

    async def _one_session(self) -> None:
        """Run a session in a task of its own: a task group that fails in the moment of a cancellation would tell of the failure only, and
        leaves the task's count of cancellations changed (Python 3.11).
        """
        session = asyncio.create_task(self._session())
        try:
            await asyncio.wait([session])
        finally:
            if not session.done():
                session.cancel()
            await asyncio.gather(session, return_exceptions=True)  # also of one that is done: nobody else may hear of its error
        session.result()

    async def _pause(self, seconds: float) -> None:
        """Wait, but not longer than until the network changes."""
        self._retry_now.clear()
        waits = [asyncio.ensure_future(self._clock.sleep(seconds)), asyncio.ensure_future(self._retry_now.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _session(self) -> None:
        """One connection's life; ends only by an exception."""
        self.state = "connecting"
        server, limits = await self._target.connect()
        self.server, self.problem, self.refused = server, "", False
        await self._worker(self._note_server, server)
        target, traits = self._target, self._target.traits
        target.bind(ServerMemory(self._catalog, self._journal, server, self._worker))
        batches = Batches(self._spool, self._catalog, self._journal, server, limits, self._runs, traits)
        batches.delivered = self.delivered
        audit = Audit(target, server, self._catalog, self._journal, batches.cutter, self._worker, self.delivered, self._report)
        self.restored = await audit.look()
        again = Again(self._catalog, self._journal, batches, traits, self._runs)
        self.busy = batches.busy
        uploads = Uploads(self._spool, self._catalog, self._journal, server, self._runs, by_record=traits.files_by_record)
        files = FileSender(
            target, uploads, limits, self.delivered, self._worker, self._progress, f"{self._name}: files", self._idle,
            self.wake, self._moved,
        )  # fmt: skip
        self.state = "draining"
        self._progress.end(self._name)  # from here on, each of its parts by itself
        try:
            async with asyncio.TaskGroup() as group:
                for i in range(traits.senders):
                    group.create_task(self._send_records(batches, again, f"{self._name}: records {i + 1}"))
                group.create_task(files.run())
                if self._live_runs is not None:
                    group.create_task(self._send_heartbeats())
        except BaseExceptionGroup as errors:
            others = errors.split((Refused, Unreachable, OSError, sqlite3.Error))[1]
            if others is not None:
                raise _first(others) from None
            for kind in (sqlite3.Error, OSError, Refused, Unreachable):
                found = errors.subgroup(kind)
                if found is not None:
                    raise _first(found) from None
            raise
        finally:
            self._progress.end_all(f"{self._name}: ")

    def _note_server(self, server: str) -> None:
        with self._catalog.transaction() as db:
            db.execute("INSERT OR REPLACE INTO servers(url, server, seen) VALUES (?,?,?)", (self._target.url, server, time.time()))

    async def _send_records(self, batches: Batches, again: Again, name: str) -> None:
        while True:
            self._progress.turn(name)
            self._wake.clear()
            settle = again.settle
            batch: Batch | None = await self._worker(again.take)
            if batch is None:
                settle, batch = batches.settle, await self._worker(batches.take)
            if batch is None:
                await self._idle(name)
                continue
            try:
                verdicts = await self._send(batch.ranges, batches, name)
            except BaseException:
                batches.release(batch)
                raise
            if not verdicts:
                batches.release(batch, anew=True)  # smaller
                continue
            await self._worker(settle, batch, verdicts)
            for verdict in verdicts:
                if verdict.kind == "unsent":
                    raise Unreachable(verdict.reason, verdict.after)
            self._moved()

    def _moved(self) -> None:
        """The target has taken something."""
        self._backoff.succeeded()
        self._settled.set()

    async def _idle(self, name: str) -> None:
        """Wait for news; look again now and then, for what was put off."""
        self._progress.turn(name, _LOOK_AGAIN)
        try:
            async with asyncio.timeout(_LOOK_AGAIN):  # not wait_for, which may swallow a cancellation
                await self._wake.wait()
        except TimeoutError:
            return

    async def _send(self, ranges: list[Range], batches: Batches, name: str) -> list[Verdict]:
        """Send ranges, in smaller requests where the target cannot take them at once; one bad range does not stop the others.

        Returns nothing when a single range is too large and can be cut smaller.
        """
        self._progress.turn(name)
        try:
            return await self._target.send(ranges)
        except TooLarge as error:
            if len(ranges) == 1:
                return [] if batches.smaller() else [Verdict("permanent", reason=str(error))]
        except Poison as error:
            if len(ranges) == 1:
                return [Verdict("permanent", reason=str(error))]
        middle = len(ranges) // 2
        before = await self._send(ranges[:middle], batches, name)
        after = await self._send(ranges[middle:], batches, name) if before else []
        return before + after if after else []

    async def _send_heartbeats(self) -> None:
        assert self._live_runs is not None
        while True:
            self._progress.turn(self._heartbeats)
            runs: list[str] = await self._worker(self._live_runs)
            if runs:
                flags = await self._target.heartbeat(dict.fromkeys(runs, self._clock.wall()))
                if flags and self._flagged is not None:
                    await self._worker(self._flagged, self.server, flags)
            self._progress.turn(self._heartbeats, _HEARTBEAT)
            await self._clock.sleep(_HEARTBEAT)


def _first(errors: BaseExceptionGroup[Any]) -> BaseException:
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
