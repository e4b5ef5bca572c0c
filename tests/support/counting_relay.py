"""A TCP relay between a client and a server: it counts what the client sends, may be slow, and may damage a byte."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Self
from urllib.parse import urlsplit


class CountingRelay:
    """Runs in a thread of its own. `sent` has (monotonic seconds, bytes) of each block from the client.

    `rate` is in bytes a second over all connections. The next byte with number `damage` (counted over all connections) is changed.
    """

    def __init__(self, upstream: str, rate: float | None = None) -> None:
        parts = urlsplit(upstream)
        self._to = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.rate, self.damage = rate, -1
        self.sent: list[tuple[float, int]] = []
        self.total, self.connections = 0, 0
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._free_at = 0.0
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0, limit=1 << 16)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._started.set()
        await self._stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            to_reader, to_writer = await asyncio.open_connection(*self._to, limit=1 << 16)
        except OSError:
            writer.transport.abort()
            return
        there = asyncio.ensure_future(self._forward(reader, to_writer))
        back = asyncio.ensure_future(self._copy(to_reader, writer))
        try:
            await asyncio.wait([there, back], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (there, back):
                task.cancel()
            for one in (writer, to_writer):
                one.transport.abort()  # what a killed peer has not read is gone

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await self._read(reader):
            if self.rate is not None:
                self._free_at = max(self._free_at, self._loop.time()) + len(data) / self.rate
                await asyncio.sleep(self._free_at - self._loop.time())
            if self.total <= self.damage < self.total + len(data):
                at = self.damage - self.total
                data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
            self.total += len(data)
            self.sent.append((time.monotonic(), len(data)))
            writer.write(data)
            try:
                await writer.drain()
            except OSError:
                return

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await self._read(reader):
            writer.write(data)

    @staticmethod
    async def _read(reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.read(1 << 16)
        except OSError:
            return b""
