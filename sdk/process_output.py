"""Where a process writes: two files beside the script, which nobody has to read while it runs.

Guarantee: a file that another process is still writing to, or whose content is kept nowhere else yet, is never overwritten; the next free
number is taken instead (`run_solver.2.out`). A lock, which the process inherits, tells the first; an attribute of the file, set when
its content is safe in a spool, tells the second. Where the file system has no locks or no attributes, each start takes a new number.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from typing import Self

from .errors import ProcessNotStarted

_DONE = "user.simspool.done"  # may be overwritten
_TAKEN = frozenset({errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENXIO, errno.ELOOP, errno.ETXTBSY})
_STEM = 180  # bytes of a file's name before its ending
_NUMBERS = 10_000
TEXT_LIMIT = 16 << 20
"""Bytes of output that are handed on as text."""


class Output:
    """One output file, locked and open. `name` is what the artifact is called: the file's name without its number."""

    def __init__(self, path: str, name: str, fd: int) -> None:
        self.path, self.name, self.fd = path, name, fd

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return os.fstat(self.fd).st_size

    @property
    def source(self) -> str:
        """A path that leads to this very file, also where it was renamed or deleted meanwhile."""
        return f"/proc/self/fd/{self.fd}"

    def end(self, limit: int) -> tuple[str, int]:
        """Return the last `limit` bytes as text, and how many bytes there are before them."""
        return _end(self.fd, limit)

    def release(self) -> None:
        """Say that the content may be overwritten: it is kept elsewhere, or nobody wants it."""
        with contextlib.suppress(OSError):  # no such attributes here: then it is never overwritten
            os.setxattr(self.fd, _DONE, b"1")

    def close(self) -> None:
        """Let go of the file; a process that inherited it goes on writing, and keeps the lock."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class Outputs:
    """The two files of a process: `out` and `err`."""

    def __init__(self, out: Output, err: Output) -> None:
        self.out, self.err = out, err

    @classmethod
    def open(cls, run_name: str, identifier: str) -> Self:
        """Open `<run name>_<identifier>.out` and `.err` in the working folder, or the first numbers that are free.

        Slashes and control characters in the names become `_`. Raises ProcessNotStarted where the folder cannot be written to.
        """
        stem = re.sub(r"[/\x00-\x1f\x7f]", "_", f"{run_name}_{identifier}")
        stem = os.fsencode(stem)[:_STEM].decode(errors="ignore")
        folder = os.getcwd()
        for number in range(1, _NUMBERS):
            numbered = stem if number == 1 else f"{stem}.{number}"
            out = _claim(folder, f"{numbered}.out", f"{stem}.out")
            if out is None:
                continue
            err = None
            try:
                err = _claim(folder, f"{numbered}.err", f"{stem}.err")
            finally:
                if err is None:
                    out.close()
            if err is not None:
                return cls(out, err)
        raise ProcessNotStarted(errno.EEXIST, f"add_process: {_NUMBERS} files like {stem}.out are in {folder}: clear it")

    @property
    def is_numbered(self) -> bool:
        """Whether the documented names were taken."""
        return os.path.basename(self.out.path) != self.out.name

    def tail(self, lines: int, limit: int) -> str:
        """Return the last lines of stderr, or of stdout where stderr is empty; at most `limit` bytes."""
        for output in (self.err, self.out):
            text = output.end(limit)[0].rstrip()
            if text:
                return "\n".join(text.splitlines()[-lines:])
        return ""

    def close(self) -> None:
        """Let go of both."""
        self.out.close()
        self.err.close()


def text_of(path: str, fd: int = -1) -> str:
    """Return a file's content as text; of more than 16 MiB the end, behind a line that says so. Raises OSError."""
    own = fd if fd >= 0 else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text, before = _end(own, TEXT_LIMIT)
    finally:
        if fd < 0:
            os.close(own)
    if before:
        return f"[simspool: the last {TEXT_LIMIT >> 20} MiB; {before} bytes before these are in {path}]\n{text}"
    return text


def _end(fd: int, limit: int) -> tuple[str, int]:
    at = max(os.fstat(fd).st_size - limit, 0)
    parts, position = [], at
    while position < at + limit and (part := os.pread(fd, min(1 << 20, at + limit - position), position)):
        parts.append(part)
        position += len(part)
    return b"".join(parts).decode(errors="replace"), at


def _claim(folder: str, file: str, name: str) -> Output | None:
    """Open a file, locked and empty; None when it is another one's."""
    import fcntl

    path = os.path.join(folder, file)
    try:
        # not blocking: it may be a FIFO
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in _TAKEN and os.path.lexists(path):
            return None
        raise ProcessNotStarted(
            error.errno, f"add_process: the process's output goes to {path}, which cannot be written: {error.strerror}"
        ) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.set_blocking(fd, True)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if os.fstat(fd).st_size:
            os.removexattr(fd, _DONE)  # first: a content that is not marked is never overwritten
            os.ftruncate(fd, 0)
    except OSError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return Output(path, name, fd)
