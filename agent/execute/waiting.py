"""The main thread while the command runs: it waits for the command's end, and for signals, which it hands to the command.

Each signal reaches the command exactly once: what went to the whole process group has reached it already (see group.py). SIGTSTP stops us
when it has stopped the command, and no sooner, so that a full-screen program's last bytes are still passed on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable

from simspool.spool.process import start_ticks

from .child import Child
from .group import Witness

_NOT_OURS = {  # to be caught by nobody, about ourselves, or without an effect
    signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE,
    signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGSYS, signal.SIGTTIN, signal.SIGTTOU, signal.SIGURG,
}  # fmt: skip
FORWARDED = tuple(sorted((s for s in signal.valid_signals() if s not in _NOT_OURS), key=int))
_ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
_DRAIN = 0.05  # s for the last bytes of a command that has stopped


class Signals:
    """All signals that concern the command are blocked, and taken one by one. Make one before any thread is started."""

    def __init__(self) -> None:
        self._watched = {*FORWARDED, signal.SIGCHLD}
        self.mask_before: set[signal.Signals] = set(signal.pthread_sigmask(signal.SIG_BLOCK, self._watched))  # type: ignore[arg-type]
        self._witness = Witness(map(int, FORWARDED))
        self._stops = False

    @staticmethod
    def wake() -> None:
        """Have the main thread look around; from any thread."""
        with contextlib.suppress(OSError):
            os.kill(os.getpid(), signal.SIGCHLD)

    def await_end(self, child: Child) -> int:
        """Return the command's wait status when it has ended. Until then, signals go to it."""
        while True:
            info = signal.sigwaitinfo(self._watched)
            if info.si_signo != signal.SIGCHLD:
                self._hand_on(child, info.si_signo, info.si_code)
            status = self._look(child)
            if status is not None:
                return status

    def _hand_on(self, child: Child, number: int, code: int) -> None:
        reaches_all = self._witness.is_for_all(number, code)
        if number == signal.SIGTSTP:
            self._stops = True
        elif number == signal.SIGWINCH:
            for stream in child.streams:
                stream.match_window()
            # one that was told by the real terminal may have asked for the size before it was known
            reaches_all = reaches_all and not any(s.is_terminal for s in child.streams)
        if not reaches_all:
            with contextlib.suppress(OSError):  # it has ended, or it is another user's now (sudo)
                os.kill(child.pid, number)

    def _look(self, child: Child) -> int | None:
        pid, status = os.waitpid(child.pid, os.WNOHANG | os.WUNTRACED)
        if pid and not os.WIFSTOPPED(status):
            return status
        if self._stops and _is_stopped(child.pid):
            self._stops = False
            time.sleep(_DRAIN)
            os.kill(os.getpid(), signal.SIGSTOP)
        return None

    def await_all(self, events: Iterable[Callable[[], bool]], seconds: float | None = None) -> signal.Signals | None:
        """Wait until all are true; `wake` has them looked at. Returns the signal that ends the waiting, None when they are true or the
        time (s) is over."""
        deadline = None if seconds is None else time.monotonic() + seconds
        todo = list(events)
        while todo := [event for event in todo if not event()]:
            left = 3600.0 if deadline is None else deadline - time.monotonic()
            if left <= 0:
                return None
            info = signal.sigtimedwait(self._watched, left)
            if info is not None and info.si_signo in _ENDING and signal.getsignal(info.si_signo) != signal.SIG_IGN:
                return signal.Signals(info.si_signo)
            if info is not None and info.si_signo == signal.SIGTSTP:
                os.kill(os.getpid(), signal.SIGSTOP)
        return None

    def end(self) -> None:
        """Let the witness go."""
        self._witness.end()


def _is_stopped(pid: int) -> bool:
    found = start_ticks(pid)
    return found is not None and found[1] == "T"
