"""Sending files of one target's backlog: several side by side, so that one that takes a day holds up neither the small nor the records."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from simspool.agent.progress import Progress
from simspool.agent.targets.port import File, Limits, NotNow, Target

from .batch import Delivered
from .uploads import Uploads, damage_of

_GROUP, _GROUP_TIME = 32, 1.0  # receipts that are journaled together, and how long (s) one waits for others


class FileSender:
    """One connection's files. `worker` runs a function in the agent's worker thread; `idle` waits for news, which
    `wake` makes; `settled` is told of receipts.
    """

    def __init__(
        self, target: Target, uploads: Uploads, limits: Limits, delivered: Delivered, worker: Callable[..., Awaitable[Any]],
        progress: Progress, name: str, idle: Callable[[str], Awaitable[None]], wake: Callable[[], None], settled: Callable[[], None],
    ) -> None:  # fmt: skip
        self._target, self._uploads, self._limits, self._delivered, self._worker = target, uploads, limits, delivered, worker
        self._progress, self._name, self._idle, self._wake, self._told = progress, name, idle, wake, settled
        self._queue: deque[File] = deque()
        self._under_way: set[str] = set()
        self._stored: list[str] = []
        self._flushed = time.monotonic()
        self._failed = False
        self._more = asyncio.Event()
        self._wanted = asyncio.Event()

    async def run(self) -> None:
        """Send what waits, for ever. Ends only by an exception; what was acknowledged is journaled first."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._find())
                for i in range(self._target.traits.uploaders):
                    group.create_task(self._send(f"{self._name} {i + 1}"))
        finally:
            if self._stored:
                settling = asyncio.ensure_future(self._worker(self._uploads.settle, self._stored))
                settling.add_done_callback(_hear)  # also where nobody waits for it any more
                await asyncio.shield(settling)

    async def _find(self) -> None:
        """Keep the queue filled with what the target does not have."""
        while True:
            self._progress.turn(self._name)
            self._wanted.clear()
            self._failed = False
            waiting: list[File] = await self._worker(self._uploads.waiting, frozenset(self._under_way))
            if not waiting:
                if not self._failed:
                    await self._idle(self._name)
                continue
            missing = set(await self._target.missing(waiting))
            known = [f.key for f in waiting if f.key not in missing]
            if known:
                await self._worker(self._uploads.settle, known)
                self._delivered.known_blobs += len(known)
                self._told()
            self._queue.extend(f for f in waiting if f.key in missing)
            self._under_way.update(missing)
            self._more.set()
            while self._queue:
                self._progress.turn(self._name, math.inf)  # the uploads' own turns tell whether something moves
                await self._wanted.wait()
                self._wanted.clear()

    async def _send(self, name: str) -> None:
        while True:
            while not self._queue:
                self._wanted.set()
                self._progress.end(name)
                self._more.clear()
                await self._more.wait()
            file = self._queue.popleft()
            # a large file takes hours; the target's own time limit on each block watches it
            self._progress.turn(name, math.inf)
            if await self._one(file):
                self._stored.append(file.key)  # under way until its receipt is journaled
            else:
                self._under_way.discard(file.key)
                self._failed = True  # it may be tried again, in another way
                self._wake()
            await self._flush()

    async def _one(self, file: File) -> bool:
        """Send a file; True when the target has it."""
        path = await self._worker(self._uploads.path, file.digest, file.run)
        if path is None:
            self._uploads.put_off(file.key, 60.0)
            gone = f"the bytes of a file of run {file.run} are gone from the spool: restore them from a copy"
            self._delivered.problems.setdefault(file.key, gone)
            self._delivered.lacking.add(file.key)
            self._told()
            return False
        size = self._uploads.size(path)
        too_large = f"its {size} bytes are over the server's limit of {self._limits.blob}"
        try:
            reason = too_large if size > self._limits.blob else await self._put(file, path)
        except NotNow as later:
            self._uploads.put_off(file.key, later.after)
            self._delivered.problems[file.key] = str(later)
            self._told()
            return False
        if reason is not None:
            # what is too large is so whatever its bytes; the others may take long to read, and the worker has records to serve
            damage = "" if reason is too_large else await asyncio.to_thread(damage_of, path, file.digest)
            await self._worker(self._uploads.not_taken, file, path, reason, damage, self._delivered)
            self._told()
            return False
        self._delivered.problems.pop(file.key, None)
        self._delivered.lacking.discard(file.key)
        self._delivered.blobs += 1
        self._delivered.blob_bytes += size
        return True

    async def _put(self, file: File, path: str) -> str | None:
        try:
            return await self._target.put(file, path)
        except OSError as error:
            return f"it cannot be read: {error.strerror}"

    async def _flush(self) -> None:
        """Journal receipts, in groups while more come."""
        if not self._stored or (self._queue and len(self._stored) < _GROUP and time.monotonic() - self._flushed < _GROUP_TIME):
            return
        group, self._stored = self._stored, []
        try:
            await self._worker(self._uploads.settle, group)
        except BaseException:
            self._stored += group
            raise
        self._under_way.difference_update(group)
        self._flushed = time.monotonic()
        self._told()


def _hear(task: asyncio.Future[None]) -> None:
    """A disk that took no receipts: what they are about is sent again, and recognised."""
    if not task.cancelled():
        task.exception()
