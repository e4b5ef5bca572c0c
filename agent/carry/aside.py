"""Work in a thread beside, in order: hashing, writing and fsync let go of the interpreter, and need not wait for each other."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Self

_SMALL = 64 << 10  # bytes that are hashed sooner than a thread wakes up


class Aside:
    """Makes calls in one thread, in the order in which they are given; `ahead` of them wait at most. A context manager.

    Each is made, whatever those before it raised. What one raises is raised by a later `do` or `wait`, once.
    """

    def __init__(self, name: str, ahead: int = 8) -> None:
        self._thread, self._ahead = ThreadPoolExecutor(1, thread_name_prefix=name), ahead
        self._waiting: deque[Future[object]] = deque()

    def do(self, call: Callable[[], object]) -> None:
        """Have it called; waits while too many others do."""
        self._waiting.append(self._thread.submit(call))
        while len(self._waiting) > self._ahead:
            self._waiting.popleft().result()

    def wait(self) -> None:
        """Return when everything was called."""
        while self._waiting:
            self._waiting.popleft().result()

    def close(self) -> None:
        """End the thread, when everything was called; what that raises is not heard."""
        self._thread.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class HashAside:
    """A hasher as hashlib's (SHA-256), which works aside: `update` returns at once while few chunks wait. They must not change."""

    def __init__(self, aside: Aside) -> None:
        self._digest, self._aside = hashlib.sha256(), aside

    def update(self, data: bytes, /) -> None:
        """Hash these bytes too."""
        if len(data) < _SMALL:
            self._aside.wait()
            self._digest.update(data)
        else:
            self._aside.do(partial(self._digest.update, data))

    def hexdigest(self) -> str:
        """Return the digest of everything so far, in hex."""
        self._aside.wait()
        return self._digest.hexdigest()
