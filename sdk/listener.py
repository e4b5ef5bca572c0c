"""The listener: a daemon thread that waits on a datagram socket beside the agent's bell, so that a request is heard at once.

It waits in the receiving system call itself: each further call that lets go of the interpreter would cost a busy script's switch interval.
A datagram only hurries what lies in a file already, so all of this may fail: then the keeper finds the file within about a second.
For the moment of a fork there is no such thread; datagrams wait in the socket meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from simspool.spool import atomic

if TYPE_CHECKING:
    import socket

_LARGEST = 1 << 18  # bytes of a datagram
_PATIENCE = 0.2  # s: how long a fork waits for the thread
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_SHUT_BOTH = 2
_LONGEST = 107  # bytes of a unix socket's path


class Listener:
    """Hears datagrams of this user's processes at a path. `heard` gets their bytes, empty for one that did not fit.

    It is called in the listener's thread and may take its time. `start` says whether it works here.
    """

    def __init__(self, path: str, heard: Callable[[bytes], None]) -> None:
        self.path, self._heard = path, heard
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._paused = self._stopped = self._busy = False

    def start(self) -> bool:
        """Bind (mode 0600) and listen."""
        import socket

        if len(os.fsencode(self.path)) > _LONGEST:
            return False
        ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            ear.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            os.fchmod(ear.fileno(), 0o600)  # before the bind, so that it never has another mode
            ear.bind(self.path)
        except OSError:
            ear.close()
            return False
        self._socket = ear
        _listeners.append(self)
        self.resume()
        return True

    @property
    def is_well(self) -> bool:
        """Whether the socket is still there to be heard."""
        return self._socket is not None and not self._stopped and os.path.exists(self.path)

    def _work(self, ear: socket.socket) -> None:
        space = 64  # bytes of ancillary data: one set of credentials
        while not self._stopped:
            try:
                data, extra, flags, _ = ear.recvmsg(_LARGEST, space)
            except OSError:
                break
            if data and _sender(extra) == os.geteuid():
                self._busy = True
                with contextlib.suppress(Exception):  # the keeper finds the file, and tries again
                    self._heard(b"" if flags & _TRUNCATED else data)
                self._busy = False
            if self._paused and not self._stopped:
                return
        ear.close()

    def resume(self) -> None:
        """Have a thread listen, unless one does or this is stopped."""
        self._paused = False
        ear, thread = self._socket, self._thread
        if ear is None or self._stopped or _forking or (thread is not None and thread.is_alive()):
            return
        thread = threading.Thread(target=self._work, args=(ear,), name="simspool-listener", daemon=True)
        with contextlib.suppress(RuntimeError):  # no more threads, or the interpreter shuts down
            thread.start()
            self._thread = thread

    def pause(self) -> None:
        """End the thread before a fork; not while it acts on what it heard, that would take too long."""
        self._paused = True
        thread = self._thread
        if thread is None or self._busy or thread is threading.current_thread() or not thread.is_alive():
            return
        if not self._poke():
            self.stop()
        thread.join(_PATIENCE)

    def _poke(self) -> bool:
        """Wake the thread with an empty datagram."""
        import socket

        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as finger:
                finger.sendto(b"", self.path)
        except BlockingIOError:  # it has something to read
            return True
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """Listen no more. The thread ends by itself; what it acts on at the moment goes on."""
        ear, self._socket = self._socket, None
        if ear is None:
            return
        self._stopped = True
        with contextlib.suppress(ValueError):
            _listeners.remove(self)
        with contextlib.suppress(OSError):
            atomic.remove(self.path)
        thread = self._thread
        with contextlib.suppress(OSError):
            ear.shutdown(_SHUT_BOTH)
        if thread is None or not thread.is_alive():
            ear.close()

    def leave(self) -> None:
        """In a forked child: let go of the parent's socket, which goes on listening there."""
        ear, self._socket, self._stopped = self._socket, None, True
        if ear is not None:
            ear.close()


_TRUNCATED = 0x20  # MSG_TRUNC
_SCM_CREDENTIALS = 2


def _sender(extra: list[tuple[int, int, Any]]) -> int:
    """Return the uid that the kernel says sent a datagram, -1 when it does not say."""
    for _, kind, data in extra:
        if kind == _SCM_CREDENTIALS and len(data) >= _CREDENTIALS.size:
            return int(_CREDENTIALS.unpack_from(data)[1])
    return -1


_listeners: list[Listener] = []
_forking = False


def _before_fork() -> None:
    global _forking
    _forking = True
    for listener in tuple(_listeners):
        listener.pause()


def _in_parent() -> None:
    global _forking
    _forking = False
    for listener in tuple(_listeners):
        listener.resume()


def leave_all() -> None:
    """In a forked child: forget the parent's listeners."""
    global _forking
    _forking = False
    for listener in tuple(_listeners):
        listener.leave()
    _listeners.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=leave_all)
