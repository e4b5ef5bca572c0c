"""One file that is followed, by the inode: whatever its name becomes, what is read of it is read once."""

from __future__ import annotations

import os
import time

from simspool.spool import links

from .splitter import Lines

PIECE = 1 << 18
_FINGERPRINT = 256  # bytes before the offset, by which a file is known to be the one that was read
_BEFORE_END = 1 << 16
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")  # gzip, bzip2, xz, zstd, lz4

Key = tuple[int, int]


def key_of(status: os.stat_result) -> Key:
    """Return what names a file as long as it is held open, or has a name."""
    return status.st_dev, status.st_ino


def open_regular(path: str) -> int:
    """Open a regular file. Raises OSError, also for anything else: a FIFO or a device would be emptied, not followed.

    Nor is another user's link (see spool/links.py).
    """
    return links.open_file(path)


class Followed:
    """A file's descriptor, the position up to which it was read, and the line that has no end yet.

    `label` is the name under which it was found first; it stays, so that a log and its rotated predecessors have one.
    """

    __slots__ = ("_skip_zeros", "_tail", "changed", "compressed", "fd", "given", "key", "label", "lines", "lost_parts", "name", "named",
                 "offset", "restarts", "seen")  # fmt: skip

    def __init__(self, label: str, fd: int, position: tuple[int, bytes] = (0, b"")) -> None:
        self.label = self.name = label
        self.fd: int | None = fd
        self.key = key_of(os.fstat(fd))
        self.offset, self._tail = position
        self.lines = Lines()
        self.named = True  # it has a name that is followed
        self.given = False  # something of it was given
        self.compressed = False
        self.restarts = self.lost_parts = 0
        self.seen: tuple[int, int] = (-1, -1)  # size and time of change, when it was read to its end
        self.changed = time.monotonic()
        self._skip_zeros = False

    def to_end(self) -> None:
        """Begin behind the last whole line that is there now."""
        assert self.fd is not None
        size = os.fstat(self.fd).st_size
        begin = max(0, size - _BEFORE_END)
        last = os.pread(self.fd, size - begin, begin)
        self.offset = begin + last.rfind(b"\n") + 1 if b"\n" in last else (0 if begin == 0 else size)
        self._tail = last[: self.offset - begin][-_FINGERPRINT:]

    @property
    def position(self) -> tuple[int, bytes]:
        """Where to go on, and the bytes before it."""
        return self.offset, self._tail

    def read(self) -> tuple[bytes, bool]:
        """Return a block of whole lines (may be empty), and whether this was the end for now. Raises OSError."""
        if self.fd is None or self.compressed:
            return b"", True
        status = os.fstat(self.fd)
        now = status.st_size, status.st_mtime_ns
        if now == self.seen and self.offset == status.st_size:
            return b"", True
        # One call for the bytes before and the bytes behind: a truncation between two calls would go unseen.
        tail = self._tail
        data = os.pread(self.fd, len(tail) + PIECE, self.offset - len(tail))
        if data[: len(tail)] == tail:
            data = data[len(tail) :]
        else:
            self._restart()
        if not self.offset:
            self.offset = first_data(self.fd)
            self._skip_zeros = self.offset > 0
            data = os.pread(self.fd, PIECE, self.offset)
            if data.startswith(_COMPRESSED):
                self.compressed = True
                return b"", True
        if not data:
            self.seen = now
            return b"", True
        self.offset += len(data)
        self._tail = (self._tail + data)[-_FINGERPRINT:] if len(data) < _FINGERPRINT else data[-_FINGERPRINT:]
        self.changed = time.monotonic()
        at_end = len(data) < PIECE
        if at_end:
            self.seen = now if now[0] == self.offset else (-1, -1)
        if self._skip_zeros:
            data = data.lstrip(b"\0")
            self._skip_zeros = not data
        return self.lines.push(data), at_end

    def _restart(self) -> None:
        """It was truncated, or written anew: what is in it now is not what was read."""
        self.lost_parts += bool(self.lines.flush())
        self.offset, self._tail = 0, b""
        self.restarts += 1

    def has_data(self) -> bool:
        """Whether anything is in it."""
        return self.fd is not None and os.fstat(self.fd).st_size > 0

    def rest(self) -> None:
        """Close the descriptor; the position stays."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def is_unlinked(self) -> bool:
        """Whether no name is left, so that its inode will be another file's soon."""
        return self.fd is not None and os.fstat(self.fd).st_nlink == 0


def first_data(fd: int) -> int:
    """Return where the first byte is that is not in a hole.

    A program that does not append goes on at its old offset after a truncation, and leaves a hole before it.
    """
    try:
        return os.lseek(fd, 0, os.SEEK_DATA)
    except OSError:  # nothing but a hole, or a disk that does not know holes
        return 0
