"""The drain loop of one target: connect, send what there is, wait for more; when the network goes, wait and try for ever."""

from __future__ import annotations

import asyncio
import math
import sqlite3
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any, TypeVar

from simspool.agent.catalog import Catalog
from simspool.agent.catalog.store import is_damage
from simspool.agent.clock import Clock
from simspool.agent.journal import Journal
from simspool.agent.progress import Progress
from simspool.agent.targets.port import Limits, Poison, Range, Refused, Target, TooLarge, Unreachable, Verdict
from simspool.spool import Spool

from .backoff import Backoff
from .batch import Batch, Batches, Delivered
from .uploads import Uploads

T = TypeVar("T")
Worker = Callable[..., Awaitable[Any]]
_UPLOADERS = 6
_REFUSED_PAUSE, _HEARTBEAT, _LOOK_AGAIN = 30.0, 30.0, 5.0  # seconds
_SESSION, _RECORDS, _BLOBS, _HEARTBEATS = "drain", ("drain: records 1", "drain: records 2"), "drain: files", "drain: heartbeats"


class Drain:
    """Drains one spool to one target. `worker` runs a function in the agent's worker thread.

    `state` is idle, connecting, draining, waiting or refused; `problem` says why it waits. The loop ends only by cancellation.
    """

    def __init__(
        self, spool: Spool, catalog: Catalog, journal: Journal, target: Target, clock: Clock, worker: Worker,
        *, runs: Collection[str] | None = None, backoff: Backoff | None = None, live_runs: Callable[[], list[str]] | None = None,
        progress: Progress | None = None, flagged: Callable[[str, dict[str, dict[str, Any]]], None] | None = None,
    ) -> None:  # fmt: skip
        self._spool, self._catalog, self._journal, self._target, self._clock, self._worker = spool, catalog, journal, target, clock, worker
        self._runs = runs
        self._backoff = backoff or Backoff()
        self._live_runs = live_runs
        self._progress = progress or Progress()
        self._flagged = flagged
        self._wake = asyncio.Event()
        self._retry_now = asyncio.Event()
        self._settled = asyncio.Event()
        self.state, self.problem, self.server = "idle", "", ""
        self.refused = False
        self.attempts = 0  # that failed, ever
        self.floor = 0.0  # seconds that the last answer asked us to wait
        self.delivered = Delivered()

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
            self._progress.turn(_SESSION)
            try:
                await self._session()
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
            self._progress.turn(_SESSION, pause)
            await self._pause(pause)

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
        batches = Batches(self._spool, self._catalog, self._journal, server, limits, self._runs)
        batches.delivered = self.delivered
        uploads = Uploads(self._spool, self._catalog, self._journal, server, self._runs)
        self.state = "draining"
        self._progress.end(_SESSION)  # from here on, each of its parts by itself
        try:
            async with asyncio.TaskGroup() as group:
                for name in _RECORDS:
                    group.create_task(self._send_records(batches, name))
                group.create_task(self._send_blobs(uploads, limits))
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
            for name in (*_RECORDS, _BLOBS, _HEARTBEATS):
                self._progress.end(name)

    def _note_server(self, server: str) -> None:
        with self._catalog.transaction() as db:
            db.execute("INSERT OR REPLACE INTO servers(url, server, seen) VALUES (?,?,?)", (self._target.url, server, time.time()))

    async def _send_records(self, batches: Batches, name: str) -> None:
        while True:
            self._progress.turn(name)
            self._wake.clear()
            batch: Batch | None = await self._worker(batches.take)
            if batch is None:
                await self._idle(name)
                continue
            try:
                verdicts = await self._send(batch.ranges, batches, name)
            except BaseException:
                batches.release(batch)
                raise
            if not verdicts:
                batches.release(batch)  # all of it is cut anew, smaller
                continue
            await self._worker(batches.settle, batch, verdicts)
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

    async def _send_blobs(self, uploads: Uploads, limits: Limits) -> None:
        while True:
            self._progress.turn(_BLOBS)
            waiting: list[tuple[str, str]] = await self._worker(uploads.waiting)
            if not waiting:
                await self._idle(_BLOBS)
                continue
            missing = set(await self._target.missing([d for d, _ in waiting]))
            known = [d for d, _ in waiting if d not in missing]
            if known:
                await self._worker(uploads.settle, known)
                self.delivered.known_blobs += len(known)
            await self._upload([(d, run) for d, run in waiting if d in missing], uploads, limits)
            self._backoff.succeeded()
            self._settled.set()

    async def _upload(self, blobs: list[tuple[str, str]], uploads: Uploads, limits: Limits) -> None:
        """Send blobs side by side; receipts are journaled in groups."""
        todo = iter(blobs)
        stored: list[str] = []

        async def one_after_another() -> None:
            for digest, run in todo:
                self._progress.turn(_BLOBS, math.inf)  # a large file takes hours; the target's own time limit on each block watches it
                path = await self._worker(uploads.path, digest, run)
                if path is None:
                    gone = f"the bytes of a file of run {run} are gone from the spool: restore them from a copy"
                    self.delivered.problems.setdefault(digest, gone)
                    self.delivered.lacking.add(digest)
                    self._settled.set()
                    continue
                size = uploads.size(path)
                reason = (
                    f"its {size} bytes are over the server's limit of {limits.blob}"
                    if size > limits.blob
                    else await self._put(digest, path)
                )
                if reason is not None:
                    await self._worker(uploads.not_taken, digest, path, reason, self.delivered)
                    self._settled.set()
                    continue
                self.delivered.problems.pop(digest, None)
                self.delivered.lacking.discard(digest)
                stored.append(digest)
                self.delivered.blobs += 1
                self.delivered.blob_bytes += size
                if len(stored) >= 32:
                    group = stored[:]
                    stored.clear()
                    await self._worker(uploads.settle, group)
                    self._settled.set()

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(_UPLOADERS):
                    group.create_task(one_after_another())
        except BaseExceptionGroup as errors:
            raise _first(errors) from None
        finally:
            if stored:
                await asyncio.shield(self._worker(uploads.settle, stored))

    async def _put(self, digest: str, path: str) -> str | None:
        try:
            return await self._target.put(digest, path)
        except OSError as error:
            return f"it cannot be read: {error.strerror}"

    async def _send_heartbeats(self) -> None:
        assert self._live_runs is not None
        while True:
            self._progress.turn(_HEARTBEATS)
            runs: list[str] = await self._worker(self._live_runs)
            if runs:
                flags = await self._target.heartbeat(dict.fromkeys(runs, self._clock.wall()))
                if flags and self._flagged is not None:
                    await self._worker(self._flagged, self.server, flags)
            self._progress.turn(_HEARTBEATS, _HEARTBEAT)
            await self._clock.sleep(_HEARTBEAT)


def _first(errors: BaseExceptionGroup[Any]) -> BaseException:
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
