"""Where the bytes of a file go while it is written."""

from __future__ import annotations

import os
from typing import Protocol

from . import filesystem


class Sink(Protocol):
    """Where the bytes of an open file go, in order. Confined to one thread at a time."""

    def write(self, data: bytes | memoryview, /) -> None:
        """Append bytes; they may be written later. Raises OSError, also for bytes that were appended before."""

    def flush(self) -> None:
        """Return when all are written (durable only after an fsync). Raises OSError. Nothing may be written after it."""

    def abandon(self) -> None:
        """Return when nothing is being written any more; the descriptor may be closed then. Repeating is harmless."""


class PlainSink:
    """Writes through the page cache; the kernel begins early to bring it to the disk. `at`: how many bytes the file has."""

    def __init__(self, fd: int, at: int = 0) -> None:
        self._fd, self._begun, self._at = fd, at, at

    def write(self, data: bytes | memoryview, /) -> None:
        """See Sink."""
        write_all(self._fd, data)
        self._at += len(data)
        self._begun = filesystem.let_go(self._fd, self._begun, self._at)

    def flush(self) -> None:
        """See Sink."""

    def abandon(self) -> None:
        """See Sink."""


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of the bytes. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
