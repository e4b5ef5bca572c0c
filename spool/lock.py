"""One agent a spool, host and PID namespace: an advisory lock that the kernel drops with its holder.

What one agent does for all hosts goes by the lease (lease.py). Here it is about what a host has once: its processes, its catalog, its
sockets. The file's name has host and namespace, so that agents of other hosts do not meet, whether locks reach them or not.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import stat
from types import TracebackType
from typing import Self

from . import atomic
from .agent_address import address_stem
from .errors import Locked
from .layout import Spool

_BUSY = frozenset({errno.EWOULDBLOCK, errno.EACCES})
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})


class SpoolLock:
    """Held while an agent of this host serves a spool.

    It is an efficiency: the journal, not the lock, keeps effects single. Where the spool's file system has no locks, a file below /tmp
    takes its place.
    """

    def __init__(self, spool: Spool) -> None:
        self.path = f"{address_stem(spool.path)}.lock"
        self._spool = spool
        self._fds: list[int] = []

    def acquire(self) -> None:
        """Take the lock. Raises Locked, naming the holder, when another process has it. Repeating is harmless."""
        if self._fds:
            return
        atomic.make_folder(os.path.dirname(self.path))
        try:
            # agents of versions that knew of one host only had this one for themselves
            self._take(os.path.join(self._spool.agent, "lock"), fcntl.LOCK_SH)
            if not self._take(self.path, fcntl.LOCK_EX):
                self._take(_beside(self._spool), fcntl.LOCK_EX)
        except BaseException:
            self.release()
            raise
        fd = self._fds[-1]
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps({"pid": os.getpid()}).encode(), 0)

    def _take(self, path: str, how: int) -> bool:
        """Lock a file; False where its file system has no locks. Raises Locked."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(fd, 4096, 0).decode(errors="replace").strip()
            os.close(fd)
            if error.errno in _BUSY:
                raise Locked(f"another agent serves this spool ({owner or 'unknown process'}): use it, or stop it first") from None
            if error.errno in _NO_LOCKS:
                return False
            raise
        self._fds.append(fd)
        return True

    def release(self) -> None:
        """Give the lock back. Harmless when it is not held."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


def _beside(spool: Spool) -> str:
    """Return a path on this machine's own disk that stands for the spool's lock file. Raises OSError where no folder is safe."""
    folder = f"/tmp/simspool-{os.geteuid()}"  # noqa: S108 - owner and mode are checked below
    atomic.make_folder(folder)
    info = os.lstat(folder)
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o077:
        raise PermissionError(errno.EPERM, "it is not this user's alone: remove it", folder)
    key = hashlib.sha256(address_stem(os.path.realpath(spool.path)).encode(errors="surrogateescape")).hexdigest()[:32]
    return os.path.join(folder, f"{key}.lock")
