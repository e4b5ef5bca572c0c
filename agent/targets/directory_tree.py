"""Files below one folder of the user's, entered folder by folder: no link on the way, whoever put it there, leads anywhere else.

What is written is durable when the function returns.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Any

from simspool.spool import ids

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a FIFO that somebody put there holds nothing up
_SMALL = 64 << 20  # bytes
_NO_LINKS = frozenset({errno.EPERM, errno.EMLINK, errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP})


@contextlib.contextmanager
def folder(root: str, parts: Sequence[str] = (), *, make: bool = False) -> Iterator[int]:
    """Give a descriptor of a folder below `root`. Raises OSError: FileNotFoundError without it, ELOOP or ENOTDIR for what is none."""
    fd = os.open(root, _FOLDER)
    try:
        for part in parts:
            try:
                below = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=fd)
            except FileNotFoundError:
                if not make:
                    raise
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, dir_fd=fd)
                    sync(fd)
                below = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=fd)
            os.close(fd)
            fd = below
        yield fd
    finally:
        os.close(fd)


def sync(fd: int) -> None:
    """Make a folder's entries durable; EINVAL (some network file systems) is tolerated."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def _regular(fd: int, name: str) -> os.stat_result:
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        raise OSError(errno.EISDIR, "not a regular file", name)
    return info


@contextlib.contextmanager
def opened(at: int, name: str) -> Iterator[io.BufferedReader]:
    """Give a regular file to be read. Raises OSError."""
    fd = os.open(name, os.O_RDONLY | _FILE, dir_fd=at)
    try:
        _regular(fd, name)
        with open(fd, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(fd)


def read(at: int, name: str) -> bytes:
    """Return a small file's bytes. Raises OSError."""
    with opened(at, name) as file:
        return file.read(_SMALL)


def lines(at: int, name: str, length: int) -> Iterator[bytes]:
    """Yield the lines in a file's first `length` bytes; none where there is no such file. Raises OSError."""
    if not length:
        return
    with opened(at, name) as file:
        for text in file:
            length -= len(text)
            if length < 0:
                return
            yield text


def read_json(at: int, name: str) -> Any:
    """Return a JSON file's value; None where there is no such file, or it is none of ours. Raises OSError for one that cannot be read."""
    try:
        return json.loads(read(at, name))
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def as_json(value: Any) -> bytes:
    """Return a value as the text of a small file."""
    return json.dumps(value, indent=1).encode() + b"\n"


def size(at: int, name: str) -> int | None:
    """Return a regular file's size, None without one. Raises OSError."""
    try:
        info = os.stat(name, dir_fd=at, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return info.st_size if stat.S_ISREG(info.st_mode) else None


def append(at: int, name: str, length: int, data: bytes) -> int:
    """Write bytes at `length`, where the file ends: what is behind it (a torn write) is cut off first. Return the new length.

    Raises FileNotFoundError for a file that is shorter than that, and OSError; then nothing behind `length` counts.
    """
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | _FILE, 0o666, dir_fd=at)
    try:
        had = _regular(fd, name).st_size
        if had < length:
            raise FileNotFoundError(errno.ENOENT, "shorter than it was", name)
        if had > length:
            os.ftruncate(fd, length)
        view, end = memoryview(data), length
        try:
            while view:
                written = os.pwrite(fd, view, end)
                view, end = view[written:], end + written
            os.fsync(fd)
        except OSError:
            with contextlib.suppress(OSError):  # on a full disk, others need the room
                os.ftruncate(fd, length)
            raise
    finally:
        os.close(fd)
    if not length:
        sync(at)
    return end


def put(at: int, name: str, data: bytes, *, exclusive: bool = False) -> bool:
    """Put a whole file under its name, or not at all. With `exclusive` an existing one wins, and False is returned. Raises OSError."""
    temporary = f".tmp-{ids.to_text(ids.new_id())}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE, 0o666, dir_fd=at)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        if exclusive:
            return publish(at, temporary, at, name)
        os.rename(temporary, name, src_dir_fd=at, dst_dir_fd=at)
        sync(at)
        return True
    finally:
        discard(at, temporary)


def create(root: str, parts: Sequence[str]) -> int:
    """Make a file that nobody may change later, and return its descriptor, to be written. Raises OSError."""
    with folder(root, parts[:-1]) as at:
        return os.open(parts[-1], os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE, 0o444, dir_fd=at)


def publish(source: int, temporary: str, at: int, name: str) -> bool:
    """Give a file that is whole and durable a second name; False where something has that name. Raises OSError."""
    try:
        os.link(temporary, name, src_dir_fd=source, dst_dir_fd=at, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # no hard links here: a rename cannot be exclusive, but whoever writes here holds the run's lock
        if os.access(name, os.F_OK, dir_fd=at, follow_symlinks=False):
            return False
        os.rename(temporary, name, src_dir_fd=source, dst_dir_fd=at)
    sync(at)
    return True


def link(source: int, name: str, at: int, new: str) -> bool:
    """Give a file a second name; False where links do not work. Raises OSError."""
    try:
        os.link(name, new, src_dir_fd=source, dst_dir_fd=at, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return False
    return True


def set_aside(at: int, name: str, new: str) -> None:
    """Rename a file, where it is there and is not empty. Raises OSError."""
    if size(at, name):
        os.rename(name, new, src_dir_fd=at, dst_dir_fd=at)
        sync(at)


def discard(at: int, name: str) -> None:
    """Delete a temporary file, where it is still there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=at)
