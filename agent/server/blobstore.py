"""The blob folder: bytes under their SHA-256, visible only when whole, verified and fsynced."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

from simspool.spool.ids import is_digest

from .errors import Invalid, TooLarge

_FLUSH = 1 << 20


def _make_durable(temporary: Path, fd: int, final: Path) -> None:
    os.fsync(fd)
    final.parent.mkdir(mode=0o700, exist_ok=True)
    os.replace(temporary, final)
    for folder in (final.parent, final.parent.parent):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


class BlobStore:
    """A folder `blobs/<2 hex>/<64 hex>`, and `blobs/incoming/` for what is not yet verified."""

    def __init__(self, root: Path) -> None:
        """Open the folder; uploads that a dead server left are removed."""
        self._root = root
        self._incoming = root / "incoming"
        self._incoming.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in self._incoming.iterdir():
            left.unlink()

    def path(self, digest: str) -> Path:
        """Return where a blob lies (or would). Raises ValueError for what is not a digest."""
        if not is_digest(digest):
            raise ValueError("not a digest")
        return self._root / digest[:2] / digest

    async def receive(self, body: AsyncIterator[bytes], digest: str, limit: int) -> int:
        """Store a body whose bytes must have this digest; return its size. Durable when this returns.

        Raises TooLarge over the limit and Invalid where the digest differs; then nothing became visible. Disk work runs in threads.
        """
        temporary = self._incoming / secrets.token_hex(16)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        hasher, size, waiting = hashlib.sha256(), 0, bytearray()

        def put(data: bytes) -> None:
            hasher.update(data)
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]

        try:
            async for block in body:
                size += len(block)
                if size > limit:
                    raise TooLarge(f"the upload is over its limit of {limit} bytes")
                waiting += block
                if len(waiting) >= _FLUSH:
                    data, waiting = bytes(waiting), bytearray()
                    await asyncio.to_thread(put, data)
            await asyncio.to_thread(put, bytes(waiting))
            if hasher.hexdigest() != digest:
                raise Invalid("the SHA256 you specified did not match the calculated checksum: send the bytes that have this digest")
            await asyncio.to_thread(_make_durable, temporary, fd, self.path(digest))
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
        return size

    def adopt(self, whole: Path, digest: str) -> None:
        """Give a file of this folder's disk, whose digest was verified, its place. Durable when this returns."""
        fd = os.open(whole, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _make_durable(whole, fd, self.path(digest))
        finally:
            os.close(fd)

    @staticmethod
    def write(path: Path, data: bytes) -> None:
        """Write a small file beside the blobs: whole or not at all, durable when this returns."""
        temporary = path.with_name(f".{path.name}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            _make_durable(temporary, fd, path)
        finally:
            os.close(fd)

    @staticmethod
    def discard(*paths: Path) -> None:
        """Delete what is left of uploads."""
        for path in paths:
            path.unlink(missing_ok=True)
