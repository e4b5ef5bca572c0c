"""SHA-256 in a thread beside: hashing takes about as long as writing, and both let go of the interpreter."""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

_AHEAD = 8  # chunks that wait to be hashed


class HashAside:
    """A hasher as hashlib's, whose `update` returns at once while few chunks wait. What it is given must not change. A context manager."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hash")
        self._waiting: deque[Future[None]] = deque()

    def update(self, data: bytes, /) -> None:
        """Hash these bytes too."""
        self._waiting.append(self._thread.submit(self._digest.update, data))
        if len(self._waiting) > _AHEAD:
            self._waiting.popleft().result()

    def hexdigest(self) -> str:
        """Return the digest of everything so far, in hex."""
        while self._waiting:
            self._waiting.popleft().result()
        return self._digest.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._thread.shutdown(cancel_futures=True)
