"""Large files that are written to become durable: past the page cache, by a thread beside.

To find memory for their pages, to copy into them and to write them back is most of what such files cost, and they push out what others
have in memory. Where a disk cannot do without (network disks, tmpfs, ...), they are written as any file is.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from . import filesystem
from .sink import PlainSink, Sink

BLOCK = 4 << 20
"""Bytes that are written at once; smaller files go through the page cache."""
_ALIGN = 4096  # bytes: no disk wants more, and memory is mapped in these
_BUFFERS = 3  # one is filled, one is written, one waits
# Where the kernel writes directly without asking anybody else. A network disk's server would have to answer for each block.
_DISKS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "vfat", "exfat", "overlay"})


class DirectIO:
    """A thread and a few buffers of 4 MiB, for any number of files after each other. A context manager; its sinks end before it."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="direct")
        self._free: SimpleQueue[mmap.mmap] = SimpleQueue()
        self._made = 0
        self._disks: dict[int, bool] = {}

    def sink(self, fd: int, size: int | None = None) -> Sink:
        """Return where to write an empty file's bytes; `size`: how many it is going to have, where that is known."""
        if (size is not None and size < 2 * BLOCK) or not self._is_disk(fd):
            return PlainSink(fd)
        return _DirectSink(self, fd, size is not None)

    def _is_disk(self, fd: int) -> bool:
        device = os.fstat(fd).st_dev
        if device not in self._disks:
            self._disks[device] = filesystem.type_of(f"/proc/self/fd/{fd}") in _DISKS
        return self._disks[device]

    def take(self) -> mmap.mmap:
        """Return a buffer, as soon as there is one."""
        if self._free.empty() and self._made < _BUFFERS:
            self._made += 1
            return mmap.mmap(-1, BLOCK)
        return self._free.get()

    def give_back(self, buffer: mmap.mmap) -> None:
        """Have a buffer used again."""
        self._free.put(buffer)

    def submit(self, call: Callable[[], None]) -> Future[None]:
        """Have it called in the thread."""
        return self._thread.submit(call)

    def close(self) -> None:
        """End the thread, and let go of the memory. Repeating is harmless."""
        self._thread.shutdown()
        while not self._free.empty():
            self._free.get().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _DirectSink:
    """Writes whole blocks directly; what is no multiple of the disk's, at the end, through the page cache."""

    def __init__(self, io: DirectIO, fd: int, is_large: bool) -> None:
        self._io, self._fd = io, fd
        self._plain: PlainSink | None = None if is_large else PlainSink(fd)  # for the first block: perhaps there is no second one
        self._at, self._filled = 0, 0
        self._buffer: mmap.mmap | None = None
        self._waiting: deque[Future[None]] = deque()

    def write(self, data: bytes | memoryview, /) -> None:
        view = memoryview(data)
        while view:
            if self._plain is not None and self._at < BLOCK:
                part = view[: BLOCK - self._at]
                self._plain.write(part)
                self._at += len(part)
            else:
                if self._buffer is None:
                    self._buffer, self._filled = self._io.take(), 0
                part = view[: BLOCK - self._filled]
                self._buffer[self._filled : self._filled + len(part)] = part
                self._filled += len(part)
                if self._filled == BLOCK:
                    self._submit()
            view = view[len(part) :]
        while self._waiting and self._waiting[0].done():
            self._waiting.popleft().result()

    def flush(self) -> None:
        if self._buffer is not None:
            self._submit()
        problem: BaseException | None = None
        while self._waiting:
            problem = self._waiting.popleft().exception() or problem
        if problem is not None:
            raise problem

    def abandon(self) -> None:
        if self._buffer is not None:
            self._io.give_back(self._buffer)
            self._buffer = None
        while self._waiting:
            self._waiting.popleft().exception()

    def _submit(self) -> None:
        assert self._buffer is not None
        self._waiting.append(self._io.submit(partial(self._put, self._buffer, self._filled, self._at)))
        self._at += self._filled
        self._buffer = None

    def _put(self, buffer: mmap.mmap, size: int, at: int) -> None:
        try:
            done, whole = 0, size - size % _ALIGN
            with memoryview(buffer) as view:
                while done < size:
                    with view[done : whole if done < whole else size] as part:
                        done += self._put_some(part, at + done)
        finally:
            self._io.give_back(buffer)

    def _put_some(self, part: memoryview, at: int) -> int:
        if len(part) % _ALIGN == 0 and at % _ALIGN == 0 and self._set_direct(True):
            try:
                return os.pwrite(self._fd, part, at)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
        self._set_direct(False)
        return os.pwrite(self._fd, part, at)

    def _set_direct(self, on: bool) -> bool:
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        wanted = flags | os.O_DIRECT if on else flags & ~os.O_DIRECT
        try:
            if wanted != flags:
                fcntl.fcntl(self._fd, fcntl.F_SETFL, wanted)
        except OSError:
            return False
        return True
