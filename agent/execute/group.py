"""Whether a signal was meant for the whole process group, or for us alone.

The command is in our process group, so Ctrl-C, a scheduler's or a shell's `kill -- -PGID` reach it without us; what somebody sends to our
pid alone is to be forwarded. The kernel does not say which it was. A witness does: a `cat` in the same group that waits on a pipe, with
every signal blocked. Signals to a group are queued to all of its members in one go, so after a moment the witness has the signal pending
as well, or it was sent to us. The same holds where somebody signals every process of a control group.

The limit: of two equal signals that somebody sends to the group within a millisecond or two, the second may be forwarded too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable

_MOMENT = 0.01  # s: for the kernel to finish a loop over the group's members
_KERNEL = 0x80  # SI_KERNEL
_STOP_AND_GO = 1 << (signal.SIGTSTP - 1) | 1 << (signal.SIGCONT - 1)  # each takes back the other where it is pending


class Witness:
    """The witness of a process group. Where none can be started, every signal counts as ours alone."""

    def __init__(self, signals: Iterable[int]) -> None:
        self._signals = tuple(signals)
        self._pid, self._hold = self._start()
        self._known = 0  # signals that an earlier witness had, and that we have not got yet

    def _start(self) -> tuple[int, int]:
        hear, hold = os.pipe()  # it ends with us, however we end
        null = os.open(os.devnull, os.O_RDWR)
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate((hear, null, null))]
        try:
            path = {"PATH": os.environ.get("PATH", os.defpath)}
            return os.posix_spawnp("cat", ["cat"], path, file_actions=actions, setsigmask=self._signals, setsigdef=self._signals), hold
        except OSError:
            os.close(hold)
            return 0, -1
        finally:
            os.close(hear)
            os.close(null)

    def is_for_all(self, number: int, code: int) -> bool:
        """Say whether a signal that we have just got, with its `si_code`, went to the whole group. Takes about 10 ms."""
        bit = 1 << (number - 1)
        if self._known & bit:
            self._known &= ~bit
            return True
        from_terminal = code == _KERNEL and number != signal.SIGHUP  # a hang-up may be for the session's leader alone
        if not self._pid:
            return from_terminal
        old, hold = self._pid, self._hold
        self._pid, self._hold = self._start()  # first the new one: what comes now, at least one of them has
        if not from_terminal:
            time.sleep(_MOMENT)
        had = _pending(old)
        self._known |= had & ~_pending(self._pid) & ~bit
        _dismiss(old, hold)
        return from_terminal or bool(had & (_STOP_AND_GO if bit & _STOP_AND_GO else bit))

    def end(self) -> None:
        """Let it go."""
        if self._pid:
            _dismiss(self._pid, self._hold)
            self._pid = 0


def _pending(pid: int) -> int:
    found = 0
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/status", "rb") as f:
        for line in f:
            if line.startswith((b"SigPnd:", b"ShdPnd:")):
                found |= int(line.split()[1], 16)
    return found


def _dismiss(pid: int, hold: int) -> None:
    os.close(hold)
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
