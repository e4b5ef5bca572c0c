"""The one daemon thread of a process: looks after everything that is open, about once a second.

It only takes work off the callers: fdatasync within a second (later while the disk takes long over a large blob), the next
segment, old seals, blobs into the pool, the doorbell's address. A process where it cannot start (the interpreter shuts down, no
more threads) records just as well, and syncs at close. For the moment of a fork there is no such thread.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import Protocol

_PERIOD = 1.0
_SOON = 0.02  # s until the first look
_BREATH = 0.005  # s that an agent gets which was too busy to hear a ring
_NEVER = float("inf")
_PATIENCE = 0.2  # s: how long a fork waits for a thread that is busy with the disk


class Tended(Protocol):
    """What the keeper looks after."""

    def tend(self) -> bool:
        """Do what is due; False when nothing will ever be due again. Must not raise."""

    def ring_again(self) -> None:
        """Ring, if the last ring did not get through. Must not raise."""


class _Keeper:
    def __init__(self) -> None:
        self.pid = os.getpid()
        self._lock = threading.RLock()  # a signal handler may open a run while `watch` runs
        # Held: nobody wakes the thread. A lock and no Event: a signal handler may wake it in the middle of another waking.
        self._wake = threading.Lock()
        self._wake.acquire()
        self._is_new = False
        self._tended: list[Tended] = []
        self._thread: threading.Thread | None = None
        self._paused = False

    def watch(self, item: Tended) -> None:
        with self._lock:
            if not any(known is item for known in self._tended):
                self._tended = [*self._tended, item]
                self._is_new = True
            self._start()
        self.wake()

    def wake(self) -> None:
        """Have the thread look around at once."""
        with contextlib.suppress(RuntimeError):  # it was woken already
            self._wake.release()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and self._tended and not self._paused:
                thread = threading.Thread(target=self._work, name="simspool-keeper", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    return
                self._thread = thread

    def pause(self) -> None:
        """End the thread; Python warns of forks beside threads, and with reason."""
        self._paused = True
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self.wake()
            thread.join(_PATIENCE)

    def resume(self) -> None:
        self._paused = False
        self._start()

    def _work(self) -> None:
        due, soon = time.monotonic() + _PERIOD, _NEVER
        while True:
            woken = self._wake.acquire(timeout=max(min(due, soon) - time.monotonic(), 0.0))
            with self._lock:
                if self._paused:
                    self._thread = None
                    return
                if self._is_new:  # a first look, when the opening is over
                    self._is_new, soon = False, time.monotonic() + _SOON
            if woken:
                time.sleep(_BREATH)
                for item in self._tended:
                    item.ring_again()
                continue
            now = time.monotonic()
            if now >= soon:
                soon = _NEVER
            if now >= due:
                due = max(due + _PERIOD, now + _PERIOD / 10)  # without drift: resource samples have slots of whole seconds
            done = [item for item in self._tended if not item.tend()]
            with self._lock:
                self._tended = [item for item in self._tended if not any(item is d for d in done)]
                if not self._tended:
                    self._thread = None
                    return


_keeper: _Keeper | None = None


def watch(item: Tended) -> None:
    """Look after an item from now on, in this process. Repeating is harmless."""
    global _keeper
    if _keeper is None or _keeper.pid != os.getpid():
        _keeper = _Keeper()
    _keeper.watch(item)


def wake() -> None:
    """Have those rung again whose ring did not get through. Safe at any moment, also in a signal handler."""
    if _keeper is not None:
        _keeper.wake()


def pause() -> None:
    """End the thread, before a fork or at the interpreter's end."""
    if _keeper is not None:
        _keeper.pause()


def _in_parent() -> None:
    if _keeper is not None:
        _keeper.resume()


def _in_child() -> None:
    global _keeper
    _keeper = None


os.register_at_fork(before=pause, after_in_parent=_in_parent, after_in_child=_in_child)
