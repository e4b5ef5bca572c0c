"""A little room that is kept for shedding: on a disk that is full to the last byte, nothing could be journaled, and so nothing deleted."""

from __future__ import annotations

import contextlib
import os

from simspool.spool import Spool, atomic

SIZE = 2 << 20


class Reserve:
    """The file `agent/reserve` of a spool, really allocated."""

    def __init__(self, spool: Spool) -> None:
        self._path = os.path.join(spool.agent, "reserve")

    def keep(self) -> None:
        """Have it, if the disk has the room. Repeating it is harmless."""
        if os.path.exists(self._path):
            return
        with contextlib.suppress(OSError):  # tried again at the next look
            atomic.make_folder(os.path.dirname(self._path))
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, SIZE)
            except OSError:
                atomic.remove(self._path)
                raise
            finally:
                os.close(fd)

    def give_up(self) -> bool:
        """Give the room back where the disk has none; False where it has, or where there was no reserve. Raises OSError."""
        found = os.statvfs(os.path.dirname(self._path))
        return found.f_bavail * found.f_frsize < SIZE and atomic.remove(self._path)
