"""Calls that may hang (a network disk that went away), in threads of their own: the event loop waits only so long for each."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from .port import Unreachable

T = TypeVar("T")

_GOODBYE = 5.0  # seconds


class Threads:
    """Runs functions in daemon threads. While one is overdue nothing else is begun, so that what hangs and what is tried again never meet.

    `what` names the place in errors; `limit` is how long (s) a call may take.
    """

    def __init__(self, what: str, limit: float) -> None:
        self._what, self._limit = what, limit
        self._running: dict[asyncio.Future[Any], float] = {}
        self._keyed: dict[asyncio.Future[Any], str] = {}

    async def call(self, function: Callable[..., T], *args: Any, key: str = "") -> T:
        """Return what the function returns. Raises Unreachable for a call, this one or an earlier one, that takes too long.

        `settled` waits for those with the same key.
        """
        now = time.monotonic()
        oldest = min(self._running.values(), default=now)
        if now - oldest > self._limit:
            raise Unreachable(f"{self._what} has not answered for {now - oldest:.0f} s: is its disk there?")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._running[future] = now
        if key:
            self._keyed[future] = key
        future.add_done_callback(self._ended)
        threading.Thread(target=_work, args=(loop, future, function, args), daemon=True, name="directory target").start()
        try:
            async with asyncio.timeout(self._limit):
                return await asyncio.shield(future)
        except TimeoutError:
            if future.done():
                raise
            raise Unreachable(f"{self._what} does not answer: is its disk there?") from None

    def _ended(self, future: asyncio.Future[Any]) -> None:
        del self._running[future]
        self._keyed.pop(future, None)
        if not future.cancelled():
            future.exception()  # whoever asked may have gone

    async def settled(self, key: str) -> None:
        """Wait for calls with this key that nobody waits for any more (they were cancelled), as long as a call may take."""
        left = [future for future, known in self._keyed.items() if known == key]
        if left:
            await asyncio.wait(left, timeout=self._limit)

    async def finish(self) -> None:
        """Wait for what still runs, a moment: what hangs ends with the process, and harms nothing later."""
        if self._running:
            await asyncio.wait(list(self._running), timeout=min(self._limit, _GOODBYE))


def _work(loop: asyncio.AbstractEventLoop, future: asyncio.Future[T], function: Callable[..., T], args: tuple[Any, ...]) -> None:
    result: T | None = None
    error: BaseException | None = None
    try:
        result = function(*args)
    except BaseException as raised:  # noqa: BLE001 - whatever it is, it belongs to whoever waits
        error = raised
    with contextlib.suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(_settle, future, result, error)


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
