"""Noticing at once that a child of this process has ended, and how: one daemon thread that waits on pidfds.

It reaps only the children that it was given, never another's. Where the script itself waits for any child (`os.wait()`), or ignores
SIGCHLD, it may be the one who gets the status: the kernel is then asked for it (Linux 6.15 and later); else it stays unknown, and is
said to be so. For the moment of a fork there is no such thread.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable
from dataclasses import dataclass

from simspool.spool.process import start_ticks

from .process_exit import Exit, told_by_kernel

_NO_FD_EVERY = 50  # ms between two looks at children for which the kernel gives no pidfd
_PATIENCE = 0.2  # s: how long a fork waits for the thread


@dataclass(slots=True)
class _Child:
    pid: int
    ticks: int
    fd: int
    ended: Callable[[Exit], None]


class _Watch:
    def __init__(self) -> None:
        self.pid = os.getpid()
        self._lock = threading.RLock()  # a signal handler may start a process while `add` runs
        self._turn = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._children: dict[int, _Child] = {}
        self._thread: threading.Thread | None = None
        self._paused = False

    def add(self, child: _Child) -> None:
        with self._lock:
            self._children[child.pid] = child
            self.start()
        self._poke()

    def start(self) -> bool:
        """Have the thread work; False where none can be had."""
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                return True
            if self._paused or not self._children:
                return True
            thread = threading.Thread(target=self._work, name="simspool-processes", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads, or the interpreter shuts down
                return False
            self._thread = thread
            return True

    def _poke(self) -> None:
        with contextlib.suppress(OSError):
            os.eventfd_write(self._wake, 1)

    def _work(self) -> None:
        while True:
            self.look(None)
            with self._lock:
                if self._paused or not self._children:
                    self._thread = None
                    return

    def look(self, timeout: int | None) -> None:
        """Wait (ms, None for ever) until a child ends, or somebody pokes; tell of those that have."""
        with self._turn:
            children = list(self._children.values())
            poll = select.poll()
            poll.register(self._wake, select.POLLIN)
            for child in children:
                if child.fd >= 0:
                    poll.register(child.fd, select.POLLIN)
            blind = any(child.fd < 0 for child in children)
            ready = {fd for fd, _ in poll.poll(_NO_FD_EVERY if blind else timeout)}
            if self._wake in ready:
                with contextlib.suppress(OSError):
                    os.eventfd_read(self._wake)
            for child in children:
                if child.fd in ready or child.fd < 0:
                    self._tell(child)

    def _tell(self, child: _Child) -> None:
        end = _reap(child)
        if end is None:
            return
        with self._lock:
            self._children.pop(child.pid, None)
        if child.fd >= 0:
            os.close(child.fd)
        child.ended(end)

    def pause(self) -> None:
        self._paused = True
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self._poke()
            thread.join(_PATIENCE)

    def resume(self) -> None:
        self._paused = False
        self.start()

    def leave(self) -> None:
        """In a forked child: the parent's children are not its own."""
        for fd in (self._wake, *(child.fd for child in self._children.values())):
            with contextlib.suppress(OSError):
                os.close(fd)


def _reap(child: _Child) -> Exit | None:
    """Return how a child ended; None while it runs."""
    try:
        if child.fd >= 0:
            found = os.waitid(os.P_PIDFD, child.fd, os.WEXITED | os.WNOHANG)
        elif start_ticks(child.pid) in {(child.ticks, state) for state in "RSDTtIZX"}:
            found = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG)
        else:
            return Exit()  # another one has waited, and the pid may have another owner
    except ChildProcessError:
        return (told_by_kernel(child.fd) if child.fd >= 0 else None) or Exit()
    if found is None:
        return None
    if found.si_code == os.CLD_EXITED:
        return Exit(code=found.si_status)
    return Exit(signal=found.si_status)


_watch: _Watch | None = None


def watch(pid: int, ticks: int, ended: Callable[[Exit], None]) -> None:
    """Have `ended` called, once and in a thread that it must not keep, when this child has ended."""
    global _watch
    if _watch is None or _watch.pid != os.getpid():
        _watch = _Watch()
    try:
        fd = os.pidfd_open(pid)
        found = start_ticks(pid)
        if found is not None and found[0] != ticks:  # it was waited for in this moment, and its pid given away
            os.close(fd)
            fd = -1
    except OSError:
        fd = -1
    _watch.add(_Child(pid, ticks, fd, ended))


def attend() -> None:
    """Do the thread's work for a moment where no thread can be had. For who waits, about once a second."""
    found = _watch
    if found is not None and found.pid == os.getpid() and not found.start():
        found.look(0)


def _before_fork() -> None:
    if _watch is not None:
        _watch.pause()


def _in_parent() -> None:
    if _watch is not None:
        _watch.resume()


def _in_child() -> None:
    global _watch
    found, _watch = _watch, None
    if found is not None:
        found.leave()


os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
