"""How a process ended: by a wait status, or, for whoever is not its parent, by a pidfd opened while it lived and asked after it is gone.

Linux keeps the wait status behind a pidfd (PIDFD_GET_INFO, 6.15); a zombie shows it in /proc as well. Where neither is to be had, nothing
is known, and nothing is guessed.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
from dataclasses import dataclass
from typing import Any, Self

from simspool.spool.process import start_ticks

_INFO = struct.Struct("<QQ11Ii")  # struct pidfd_info: mask, cgroup id, ten ids and the pid itself, the wait status
_GET_INFO = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11
_WITH_EXIT = 1 << 3
_EXIT_CODE = 49  # of the fields of /proc/<pid>/stat behind the name

# Signals by which a process says that something is wrong with itself. By any other, somebody ended it.
FAULTS = frozenset({
    signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV, signal.SIGPIPE, signal.SIGXCPU,
    signal.SIGXFSZ, signal.SIGSYS,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Exit:
    """A process's end: an exit code, or the signal that ended it; neither where it is not known. `core`: a core was dumped."""

    code: int | None = None
    signal: int | None = None
    core: bool = False

    @classmethod
    def of_status(cls, status: int) -> Self:
        """Read a wait status."""
        if os.WIFSIGNALED(status):
            return cls(signal=os.WTERMSIG(status), core=os.WCOREDUMP(status))
        return cls(code=os.WEXITSTATUS(status))

    @property
    def returncode(self) -> int | None:
        """As subprocess has it: the exit code, or minus the signal; None where it is unknown."""
        return -self.signal if self.signal is not None else self.code

    @property
    def crashed(self) -> bool:
        """Whether it ended by a signal that says that something was wrong with it."""
        return self.signal in FAULTS

    @property
    def name(self) -> str:
        """The signal's name; empty for an exit code."""
        if self.signal is None:
            return ""
        try:
            return signal.Signals(self.signal).name
        except ValueError:  # a real-time signal
            return f"signal {self.signal}"

    def as_dict(self) -> dict[str, Any]:
        """Return it as records have it: {"code"} or {"signal", "core"?}; empty where it is not known."""
        if self.signal is None:
            return {} if self.code is None else {"code": self.code}
        return {"signal": self.signal, **({"core": True} if self.core else {})}


def open_process(pid: int, ticks: int) -> int | None:
    """Return a pidfd of the process of this pid and start time, None when it is not there any more (a zombie still is).

    Raises OSError where pidfds or descriptors are not to be had.
    """
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    found = start_ticks(pid)  # read after opening: what the pidfd holds cannot be another process any more
    if found is None or found[0] != ticks:
        os.close(fd)
        return None
    return fd


def told_by_kernel(fd: int) -> Exit | None:
    """Return how the process behind a pidfd ended that somebody has waited for; None where the kernel does not tell."""
    status = _of_pidfd(fd)
    return None if status is None else Exit.of_status(status)


def how_it_ended(fd: int, pid: int, ticks: int) -> Exit | None:
    """Return how the process behind a pidfd ended; None while that is not known (it lives, or waits for its parent), or never will be."""
    return told_by_kernel(fd) or exit_of_zombie(pid, ticks)


def exit_of_zombie(pid: int, ticks: int) -> Exit | None:
    """Return how a process ended that its parent has not reaped yet; None for any other, and where the kernel does not tell."""
    status = _of_zombie(pid, ticks)
    return None if status is None else Exit.of_status(status)


def _of_pidfd(fd: int) -> int | None:
    """Return the wait status of a process that its parent has reaped."""
    answer = bytearray(_INFO.size)
    struct.pack_into("<Q", answer, 0, _WITH_EXIT)
    try:
        fcntl.ioctl(fd, _GET_INFO, answer)
    except OSError:  # an older kernel, or not reaped yet
        return None
    fields = _INFO.unpack(answer)
    return int(fields[-1]) if fields[0] & _WITH_EXIT else None


def _of_zombie(pid: int, ticks: int) -> int | None:
    """Return the wait status that a zombie shows."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            fields = f.read().rpartition(b")")[2].split()
        if fields[0] != b"Z" or int(fields[19]) != ticks:
            return None
        status = int(fields[_EXIT_CODE])
    except (OSError, ValueError, IndexError):
        return None
    return status if status or _may_look_into(pid) else None


def _may_look_into(pid: int) -> bool:
    """Whether the kernel tells us about this process: it shows 0 in place of what it hides."""
    try:
        os.readlink(f"/proc/{pid}/cwd")  # guarded as the exit status is; of a zombie it is not there
    except PermissionError:
        return False
    except OSError:
        return True
    return True
