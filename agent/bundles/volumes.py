"""A bundle's volumes: one string of bytes, cut into files of a given size at most."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from simspool.spool import atomic, filesystem
from simspool.spool.direct_io import DirectIO
from simspool.spool.sink import PlainSink, Sink

from .errors import BadBundle, VolumeMissing

MOST = 9999


def volume_name(index: int) -> str:
    """Return the file name of a volume (from 0): `volume-0001` is the first."""
    return f"volume-{index + 1:04d}"


def open_file(folder: str, name: str) -> tuple[int, int]:
    """Open a regular file of a bundle; return descriptor and size. Links, devices and pipes are no files of a bundle.

    Raises FileNotFoundError, BadBundle, OSError.
    """
    path = os.path.join(folder, name)
    info = os.lstat(path)
    if not stat.S_ISREG(info.st_mode):  # before opening: to open a device may do something
        raise BadBundle(f"{path} is not a regular file: a bundle has no links and no devices")
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        os.close(fd)
        raise BadBundle(f"{path} is not a regular file: a bundle has no links and no devices")
    return fd, info.st_size


class VolumeWriter:
    """Writes volumes into a folder. `limit`: the most bytes of one (None: one volume takes all). Raises OSError."""

    def __init__(self, folder: str, limit: int | None, direct: DirectIO) -> None:
        self._folder, self._limit, self._direct = folder, limit, direct
        self._fd: int | None = None
        self._sink: Sink = PlainSink(-1)
        self.sizes: list[int] = []

    @property
    def total(self) -> int:
        """The bytes that were written."""
        return sum(self.sizes)

    def write(self, data: bytes) -> None:
        """Append bytes, into as many volumes as it takes."""
        view = memoryview(data)
        while view:
            room = len(view) if self._limit is None else self._limit - (self.sizes[-1] if self.sizes else self._limit)
            if self._fd is None or not room:
                self._next()
                continue
            part = view[:room]
            self._sink.write(part)
            self.sizes[-1] += len(part)
            view = view[len(part) :]

    def back_to(self, total: int) -> None:
        """Forget what was written after the first `total` bytes."""
        while self.sizes and self.total - self.sizes[-1] >= total:
            self._close()
            atomic.remove(os.path.join(self._folder, volume_name(len(self.sizes) - 1)))
            self.sizes.pop()
        if not self.sizes:
            return
        if self._fd is not None:
            self._sink.flush()
            self._close()
        self.sizes[-1] -= self.total - total
        self._fd = os.open(self._path(), os.O_WRONLY | os.O_CLOEXEC)
        os.ftruncate(self._fd, self.sizes[-1])
        os.lseek(self._fd, 0, os.SEEK_END)
        self._sink = PlainSink(self._fd, self.sizes[-1])

    def close(self) -> None:
        """Make the last volume durable, and close it."""
        if self._fd is not None:
            try:
                self._sink.flush()
                os.fsync(self._fd)
            finally:
                self._close()

    def _path(self) -> str:
        return os.path.join(self._folder, volume_name(len(self.sizes) - 1))

    def _next(self) -> None:
        self.close()
        if len(self.sizes) >= MOST:
            raise BadBundle(f"over {MOST} volumes: give a larger --volume-size")
        self.sizes.append(0)
        self._fd = os.open(self._path(), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._sink = self._direct.sink(self._fd)

    def _close(self) -> None:
        if self._fd is not None:
            self._sink.abandon()
            os.close(self._fd)
            self._fd = None


class VolumeReader:
    """Reads volumes of the sizes that a manifest names. `missing` are the names of those that are not there.

    Raises BadBundle for a volume that is no file, or longer or shorter than it should be: before anything is read of any.
    """

    def __init__(self, folder: str, sizes: Sequence[int]) -> None:
        self._folder = folder
        self._starts: list[int] = []
        self._fd: int | None = None
        self._open = -1
        self._begun = 0  # bytes of the open volume that were read, and need not stay in memory
        self.missing: list[str] = []
        at = 0
        for index, size in enumerate(sizes):
            self._starts.append(at)
            at += size
            try:
                fd, found = open_file(folder, volume_name(index))
            except FileNotFoundError:
                self.missing.append(volume_name(index))
                continue
            os.close(fd)
            if found != size:
                what = "it was cut" if found < size else "it was altered"
                raise BadBundle(f"{os.path.join(folder, volume_name(index))} has {found} bytes and not {size}: {what}; copy it again")
        self._starts.append(at)

    def read(self, start: int, length: int) -> bytes:
        """Return the bytes from `start` on. Raises VolumeMissing where a part of them is not there, BadBundle."""
        if lacking := self.lacking(start, length):
            raise VolumeMissing(lacking)
        parts = []
        while length:
            index = self._index(start)
            wanted = min(length, self._starts[index + 1] - start)
            fd, at = self._opened(index), start - self._starts[index]
            data = os.pread(fd, wanted, at)
            self._begun = filesystem.let_go(fd, self._begun, at + len(data))
            if not data:
                raise BadBundle(f"{os.path.join(self._folder, volume_name(index))} became shorter while it was read: import it again")
            parts.append(data)
            start, length = start + len(data), length - len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def lacking(self, start: int, length: int) -> list[str]:
        """Return the names of the missing volumes in which a part of these bytes lies."""
        if not self.missing or not length:
            return []
        names = [volume_name(i) for i in range(self._index(start), self._index(start + length - 1) + 1)]
        return [name for name in names if name in self.missing]

    def names(self, start: int, length: int) -> list[str]:
        """Return the names of the volumes in which these bytes lie."""
        return [volume_name(i) for i in range(self._index(start), self._index(start + max(length, 1) - 1) + 1)]

    def close(self) -> None:
        """Close what is open."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd, self._open = None, -1

    def _index(self, at: int) -> int:
        from bisect import bisect_right

        return min(bisect_right(self._starts, at) - 1, len(self._starts) - 2)

    def _opened(self, index: int) -> int:
        if self._fd is None or self._open != index:
            self.close()
            self._fd, _ = open_file(self._folder, volume_name(index))
            self._open, self._begun = index, 0
        return self._fd
