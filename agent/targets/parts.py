"""Sending a large file to the embedded server in parts, on several connections; the server alone remembers what it has."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, BinaryIO

from .http import plain_text
from .port import NotNow, TooLarge, Unreachable

IN_PARTS = 8 << 20  # bytes from which on a file is sent in parts
_CONNECTIONS = 4
_CHECKSUM = 32
_TYPE = "application/x-simspool-parts"
_FAST, _SLOW = 1.0, 4.0  # seconds of a request after which the next one has more parts, or fewer
LATER = 30.0  # seconds until an upload that a server has no room for is tried again
_STUCK = 5  # times that a server says the same of an upload until it is given up
_AGAIN = 1.0  # seconds until a server that is still verifying is asked again
Call = Callable[..., Awaitable[tuple[int, Any]]]


class PartsBody:
    """Parts of an open file, each followed by its SHA-256. A part is read and hashed in a thread, and held alone."""

    def __init__(self, file: BinaryIO, size: int, part: int, first: int, count: int) -> None:
        self._file, self._end, self._part, self._first, self._count = file, size, part, first, count
        self.size = min(size, (first + count) * part) - first * part + count * _CHECKSUM
        self.broken = ""

    def _read(self, number: int) -> memoryview:
        at = number * self._part
        size = min(self._part, self._end - at)
        data = memoryview(bytearray(size + _CHECKSUM))
        got = 0
        while got < size:
            read = os.preadv(self._file.fileno(), [data[got:size]], at + got)
            if not read:
                raise EOFError
            got += read
        data[size:] = hashlib.sha256(data[:size]).digest()
        return data

    async def blocks(self, block: int) -> AsyncIterator[memoryview]:
        """See Body. Raises OSError or EOFError, and `broken` says why."""
        for number in range(self._first, self._first + self._count):
            try:
                data = await asyncio.to_thread(self._read, number)
            except OSError as error:
                self.broken = f"it cannot be read: {error.strerror}"
                raise
            except EOFError:
                self.broken = "it became shorter while it was sent"
                raise
            for at in range(0, len(data), block):
                yield data[at : at + block]


class _Broken(Exception):
    """Raised when the file itself cannot be read."""


class PartsUpload:
    """One upload. `call` makes a request of the drain protocol, `most` is how many parts the server takes in one."""

    def __init__(self, call: Call, url: str, digest: str, file: BinaryIO, most: int, slots: asyncio.Semaphore, connections: int) -> None:
        self._call, self._url, self._path, self._file, self._most = call, url, f"/blobs/{digest}/parts", file, most
        self._slots, self._connections = slots, min(connections, _CONNECTIONS)
        self._size = os.fstat(file.fileno()).st_size
        self._part = 0
        self._spans: list[list[int]] = []
        self._count = 1
        self._said: dict[str, Any] = {}
        self._stuck, self._problem = 0, ""

    async def send(self) -> str | None:
        """Send what the server lacks; None when it has the whole, verified, else the reason why it never will.

        Raises NotNow where it has no room for it at present, and what `call` raises.
        """
        try:
            while (answer := await self._ask()) is not None:
                if isinstance(answer, str):
                    return answer
                self._stuck = self._stuck + 1 if answer == self._said else 0
                self._said = answer
                if self._stuck >= _STUCK:
                    raise Unreachable(f"{self._url} does not get on with an upload of {self._size} bytes{self._problem}")
                if self._spans:
                    await self._send_spans()
                else:
                    await asyncio.sleep(_AGAIN)
        except TooLarge:
            return f"the server's limit is below its {self._size} bytes"
        except _Broken as error:
            return str(error)
        return None

    async def _ask(self) -> dict[str, Any] | str | None:
        """Ask what is missing: it is in `_spans` then. None when the server has the file, text for a reason why it never will."""
        status, value = await self._call("POST", self._path, value={"size": self._size}, ok=(200, 429, 507))
        detail = plain_text(value.get("detail"))[:300]
        if status in {429, 507}:
            raise NotNow(f"{self._url} has no room for its {self._size} bytes now: {detail}", LATER)
        if status != 200:
            return f"the server says {status}: {detail}"
        if value.get("stored") is True:
            return None
        part, spans = value.get("part"), value.get("missing")
        good = type(part) is int and 1 << 10 <= part <= 64 << 20 and isinstance(spans, list)
        count = -(-self._size // part) if good else 0
        for span in spans if good else ():
            good = good and isinstance(span, list) and len(span) == 2 and all(type(n) is int for n in span)
            good = good and 0 <= span[0] <= span[1] < count
        if not good:
            raise Unreachable(f"{self._url} says of an upload what makes no sense")
        self._part, self._spans = part, spans[::-1]
        return dict(value)

    async def _send_spans(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._connections):
                    group.create_task(self._send_some())
        except BaseExceptionGroup as errors:
            raise _first(errors) from None

    async def _send_some(self) -> None:
        while self._spans:
            async with self._slots:
                taken = self._take()
                if taken is None:
                    return
                if not await self._send_parts(*taken):
                    self._spans.clear()  # what is missing is to be asked for again

    def _take(self) -> tuple[int, int] | None:
        if not self._spans:
            return None
        first, last = self._spans[-1]
        count = min(self._count, last - first + 1)
        if first + count > last:
            self._spans.pop()
        else:
            self._spans[-1] = [first + count, last]
        return first, count

    async def _send_parts(self, first: int, count: int) -> bool:
        body = PartsBody(self._file, self._size, self._part, first, count)
        began = time.monotonic()
        path = f"{self._path}/{first}?size={self._size}&count={count}"
        try:
            status, value = await self._call("PUT", path, ok=(200, 507), body=body, headers={"Content-Type": _TYPE}, bulk=True)
        except Unreachable:
            if body.broken:  # not the server's fault: the others go on
                raise _Broken(body.broken) from None
            raise
        detail = plain_text(value.get("detail"))[:300]
        if status == 507:
            raise NotNow(f"{self._url} has no room for its {self._size} bytes now: {detail}", LATER)
        took = time.monotonic() - began
        if status != 200:
            self._problem = f" ({status}: {detail})"
            return False
        self._count = min(2 * self._count, self._most) if took < _FAST else max(self._count // 2, 1) if took > _SLOW else self._count
        return True


def _first(errors: BaseExceptionGroup[Any]) -> BaseException:
    """Return the one that says most: what is wrong with the file, or what the server says."""
    for kind in (_Broken, NotNow, TooLarge, Unreachable):
        found = errors.subgroup(kind)
        if found is not None:
            errors = found
            break
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
