"""The drain loop of one target: connect, send what there is, wait for more; when the network goes, wait and try for ever."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any, TypeVar

from simspool.agent.catalog import Catalog
from simspool.agent.clock import Clock
from simspool.agent.journal import Journal
from simspool.agent.targets.port import Limits, Poison, Range, Refused, Target, TooLarge, Unreachable, Verdict
from simspool.spool import Spool

from .backoff import Backoff
from .batch import Batch, Batches, Delivered
from .uploads import Uploads

T = TypeVar("T")
Worker = Callable[..., Awaitable[Any]]
_SENDERS, _UPLOADERS = 2, 6
_REFUSED_PAUSE, _HEARTBEAT = 30.0, 30.0


class Drain:
    """Drains one spool to one target. `worker` runs a function in the agent's worker thread.

    `state` is idle, connecting, draining, waiting or refused; `problem` says why it waits. The loop ends only by cancellation.
    """

    def __init__(
        self, spool: Spool, catalog: Catalog, journal: Journal, target: Target, clock: Clock, worker: Worker,
        *, runs: Collection[str] | None = None, backoff: Backoff | None = None, live_runs: Callable[[], list[str]] | None = None,
    ) -> None:  # fmt: skip
        self._spool, self._catalog, self._journal, self._target, self._clock, self._worker = spool, catalog, journal, target, clock, worker
        self._runs = runs
        self._backoff = backoff or Backoff()
        self._live_runs = live_runs
        self._wake = asyncio.Event()
        self._retry_now = asyncio.Event()
        self._settled = asyncio.Event()
        self.state, self.problem, self.server = "idle", "", ""
        self.refused = False
        self.delivered = Delivered()

    @property
    def failures(self) -> int:
        """Failures in a row; 0 after anything was acknowledged."""
        return self._backoff.failures

    def wake(self) -> None:
        """There is something new to send."""
        self._wake.set()

    def network_changed(self) -> None:
        """Do not wait out the backoff."""
        self._retry_now.set()

    async def wait_for_change(self, timeout: float) -> None:
        """Return when something was acknowledged, failed, or the time (s) is over."""
        try:
            await asyncio.wait_for(self._settled.wait(), timeout)
        except TimeoutError:
            return
        self._settled.clear()

    async def run(self) -> None:
        """Drain for ever."""
        while True:
            try:
                await self._session()
            except Unreachable as error:
                self.state, self.problem = "waiting", str(error)
                pause = self._backoff.failed(error.after)
            except Refused as error:
                self.state, self.problem, self.refused = "refused", str(error), True
                pause = max(_REFUSED_PAUSE, self._backoff.failed())
            except OSError as error:
                self.state, self.problem = "waiting", f"the spool's journal cannot be written, so nothing is sent: {error}"
                pause = self._backoff.failed()
            self._settled.set()
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
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(_SENDERS):
                    group.create_task(self._send_records(batches, limits))
                group.create_task(self._send_blobs(uploads, limits))
                if self._live_runs is not None:
                    group.create_task(self._send_heartbeats())
        except BaseExceptionGroup as errors:
            for kind in (Refused, Unreachable, OSError):
                found = errors.subgroup(kind)
                if found is not None:
                    raise _first(found) from None
            raise

    def _note_server(self, server: str) -> None:
        with self._catalog.transaction() as db:
            db.execute("INSERT OR REPLACE INTO servers(url, server, seen) VALUES (?,?,?)", (self._target.url, server, time.time()))

    async def _send_records(self, batches: Batches, limits: Limits) -> None:
        del limits
        while True:
            self._wake.clear()
            batch: Batch | None = await self._worker(batches.take)
            if batch is None:
                await self._idle()
                continue
            try:
                verdicts = await self._send(batch.ranges)
            except BaseException:
                batches.release(batch)
                raise
            await self._worker(batches.settle, batch, verdicts)
            self._backoff.succeeded()
            self._settled.set()

    async def _idle(self) -> None:
        """Wait for news; look again now and then, for what was put off."""
        try:
            await asyncio.wait_for(self._wake.wait(), 5.0)
        except TimeoutError:
            return

    async def _send(self, ranges: list[Range]) -> list[Verdict]:
        """Send ranges, in smaller requests where the target cannot take them at once; one bad range does not stop the others."""
        try:
            return await self._target.send(ranges)
        except (TooLarge, Poison) as error:
            if len(ranges) == 1:
                return [Verdict("permanent", reason=str(error))]
        middle = len(ranges) // 2
        return await self._send(ranges[:middle]) + await self._send(ranges[middle:])

    async def _send_blobs(self, uploads: Uploads, limits: Limits) -> None:
        while True:
            waiting: list[tuple[str, str]] = await self._worker(uploads.waiting)
            if not waiting:
                await self._idle()
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
                path = await self._worker(uploads.path, digest, run)
                if path is None:
                    self.delivered.problems[digest] = f"the bytes of blob {digest} are not in the spool"
                    continue
                size = uploads.size(path)
                reason = (
                    f"its {size} bytes are over the server's limit of {limits.blob}"
                    if size > limits.blob
                    else await self._put(digest, path)
                )
                if reason is not None:
                    verdict = await self._worker(uploads.verdict_on_mismatch, path, digest, reason)
                    if verdict is None:
                        uploads.put_off(digest, 2.0)
                    else:
                        await self._worker(uploads.settle, (), [(digest, verdict)])
                        self.delivered.problems[digest] = verdict
                    continue
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
        except FileNotFoundError:
            return "it vanished from the spool while it was sent"

    async def _send_heartbeats(self) -> None:
        assert self._live_runs is not None
        while True:
            runs: list[str] = await self._worker(self._live_runs)
            if runs:
                await self._target.heartbeat(dict.fromkeys(runs, self._clock.wall()))
            await self._clock.sleep(_HEARTBEAT)


def _first(errors: BaseExceptionGroup[Any]) -> BaseException:
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
