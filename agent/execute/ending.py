"""Ending as the command has ended: with its exit code, or by its signal, so that shells, schedulers and MPI see the same as without us."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys

from simspool.sdk.process_exit import Exit

_PR_SET_DUMPABLE = 4


class Ending(Exit):
    """How a command ended, and what that means for its run."""

    @property
    def status(self) -> str:
        """The run's status: a crash is `failed`, what somebody ended is `terminated`."""
        if self.signal is None:
            return "failed" if self.code else "completed"
        return "failed" if self.crashed else "terminated"

    @property
    def reason(self) -> str | None:
        """The reason for people; None for one that completed."""
        if self.signal is None:
            return f"exit code {self.code}" if self.code else None
        return f"{'it crashed:' if self.crashed else 'ended by'} {self.name}{', a core was dumped' if self.core else ''}"


def end_like(how: Ending) -> int:
    """Return the exit code to end with; for a command that a signal ended, end by that signal, and do not return."""
    if how.signal is None:
        return how.code or 0
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with contextlib.suppress(OSError, AttributeError):  # a core that is piped to a program has no limit
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    with contextlib.suppress(OSError, ValueError):  # SIGKILL cannot be set, and need not
        signal.signal(how.signal, signal.SIG_DFL)
    os.kill(os.getpid(), how.signal)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [how.signal])
    os._exit(128 + how.signal)  # the first process of a container does not die of signals
