"""One agent a spool and machine: an advisory lock that the kernel drops with its holder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from types import TracebackType
from typing import Self

from . import atomic
from .errors import Locked
from .layout import Spool


class SpoolLock:
    """Held while an agent serves a spool.

    It is an efficiency: the journal, not the lock, keeps effects single. It does not protect from agents on other machines
    where the file system's locks are local.
    """

    def __init__(self, spool: Spool) -> None:
        self._path = os.path.join(spool.agent, "lock")
        self._fd = -1

    def acquire(self) -> None:
        """Take the lock. Raises Locked, naming the holder, when another process has it. Repeating is harmless."""
        if self._fd >= 0:
            return
        atomic.make_folder(os.path.dirname(self._path))
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(fd, 4096, 0).decode(errors="replace").strip()
            os.close(fd)
            if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
                raise Locked(f"another agent serves this spool ({owner or 'unknown process'}): use it, or stop it first") from None
            raise
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps({"pid": os.getpid()}).encode(), 0)
        self._fd = fd

    def release(self) -> None:
        """Give the lock back. Harmless when it is not held."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.release()
