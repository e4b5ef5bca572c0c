"""Open segments: one port, two implementations that leave the same bytes (DESIGN 2.3).

Both take `store[a:b] = data` for a frame, so that the mapped one costs a memory copy and nothing else.
"""

from __future__ import annotations

import errno
import mmap
import os
from typing import Protocol

from . import atomic, layout
from .errors import SpaceExhausted
from .segment_header import SIZE as HEADER_SIZE
from .segment_header import SegmentHeader

SEGMENT_MAX = 8 << 20
FIRST_ALLOCATION = 64 << 10
NEXT_ALLOCATION = 1 << 20


class Store(Protocol):
    """Takes bytes at a place. Raises OSError when it cannot."""

    def __setitem__(self, where: slice, data: bytes, /) -> None: ...


class OpenSegment(Protocol):
    """A segment being written by this process."""

    number: int
    path: str
    fd: int
    store: Store
    capacity: int

    def grow(self, needed: int) -> None:
        """Have room for `needed` bytes in all, SEGMENT_MAX at most unless one frame needs more. Raises SpaceExhausted."""

    def forget_map(self) -> None:
        """Unmap, so that the file can be truncated; the store is unusable afterwards."""

    def close(self) -> None:
        """Let go of the file. Repeating is harmless."""


class _Descriptor:
    fd: int

    def close(self) -> None:
        """See OpenSegment."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class MappedSegment(_Descriptor):
    """A segment in a shared mapping of really allocated blocks: a full disk is an error when it grows, never a SIGBUS."""

    def __init__(self, fd: int, path: str, number: int, allocated: int) -> None:
        self.fd, self.path, self.number, self.capacity = fd, path, number, allocated
        self._map = mmap.mmap(fd, allocated, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self.store: Store = self._map

    def grow(self, needed: int) -> None:
        """See OpenSegment."""
        size = self.capacity
        while size < needed:
            size *= 2
        try:
            allocate(self.fd, self.capacity, size)
        except SpaceExhausted:  # nearly full: take no more than is needed
            size = (needed + mmap.PAGESIZE - 1) // mmap.PAGESIZE * mmap.PAGESIZE
            allocate(self.fd, self.capacity, size)
        self._map.resize(size)
        self.capacity = size

    def forget_map(self) -> None:
        """See OpenSegment."""
        self._map.close()

    def close(self) -> None:
        """See OpenSegment."""
        self._map.close()
        super().close()


class _FileStore:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __setitem__(self, where: slice, data: bytes) -> None:
        written = os.pwrite(self._fd, data, where.start)
        if written != len(data):
            if where.start >= HEADER_SIZE:
                os.ftruncate(self._fd, where.start)  # no half frame may stay in front of the next one
            raise OSError(errno.ENOSPC, "short write")


class FileSegment(_Descriptor):
    """A segment written by pwrite(2): for network and unknown file systems."""

    def __init__(self, fd: int, path: str, number: int) -> None:
        self.fd, self.path, self.number, self.capacity = fd, path, number, SEGMENT_MAX
        self.store: Store = _FileStore(fd)

    def grow(self, needed: int) -> None:
        """See OpenSegment. Space is taken as it is written."""
        self.capacity = max(self.capacity, needed)

    def forget_map(self) -> None:
        """See OpenSegment. Nothing to do."""


def allocate(fd: int, start: int, end: int) -> None:
    """Allocate real blocks for a part of a file. Raises SpaceExhausted."""
    try:
        os.posix_fallocate(fd, start, end - start)
    except OSError as error:
        raise SpaceExhausted(error.errno, f"cannot allocate {end - start} bytes: {error.strerror}") from None


def prepare(folder: str, number: int, attempt: int, *, mapped: bool) -> OpenSegment:
    """Make the file of a coming segment, allocated, under a name that readers ignore: `000002.1.next`.

    Each attempt has a name of its own: a caller in need and a preparation in another thread may make the same segment, and to
    empty a file that is mapped would kill the process (SIGBUS). Raises SpaceExhausted or OSError, and leaves nothing behind then.
    """
    path = layout.segment_path(folder, number, f"{attempt}.next")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        size = FIRST_ALLOCATION if number == 1 else NEXT_ALLOCATION
        if mapped:
            allocate(fd, 0, size)
            return MappedSegment(fd, path, number, size)
        if os.pwrite(fd, bytes(HEADER_SIZE), 0) != HEADER_SIZE:
            raise SpaceExhausted(errno.ENOSPC, f"no space for {path}")
        return FileSegment(fd, path, number)
    except BaseException:
        os.close(fd)
        atomic.remove(path)
        raise


def activate(folder: str, segment: OpenSegment, header: SegmentHeader, drops: bytes) -> None:
    """Write the header (and the cumulated drop counters) and give the segment its `.open` name (W5)."""
    segment.store[0 : HEADER_SIZE] = (header.pack() + drops).ljust(HEADER_SIZE, b"\0")
    os.rename(segment.path, layout.segment_path(folder, segment.number, "open"))


def discard(segment: OpenSegment) -> None:
    """Drop a prepared segment that was never activated."""
    segment.forget_map()
    segment.close()
    atomic.remove(segment.path)


def seal(folder: str, segment: OpenSegment, end: int, seal_frame: bytes) -> None:
    """Seal a segment whose frames end at `end` (W4). Raises OSError; the segment then stays open and readable.

    It may be repeated, also after an interruption at any point.
    """
    if segment.fd < 0:
        return
    segment.forget_map()
    at = end
    view = memoryview(seal_frame)
    while view:
        n = os.pwrite(segment.fd, view, at)
        view, at = view[n:], at + n
    os.ftruncate(segment.fd, at)
    os.fsync(segment.fd)
    sealed = layout.segment_path(folder, segment.number, "seg")
    if os.path.exists(sealed):  # a repetition: only the folder is left to do
        atomic.sync_folder(folder)
    else:
        atomic.rename(layout.segment_path(folder, segment.number, "open"), sealed)
    segment.close()
