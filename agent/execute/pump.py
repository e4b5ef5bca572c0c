"""Passing a stream on: every byte at once, unchanged and in order, and then shown to who reads along.

Guarantee: what leaves first is the command's bytes to where they belong; reading along comes second and can fail without any effect on
that. A reader downstream that takes its time slows the command as it would without us: one block (64 KiB) is in our hands, no more. A
reader that has gone away (`| head`) is learnt at once, and the command's next write finds a pipe without a reader, too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from .child import Stream

_BLOCK = 1 << 16
_QUIET = 0.2  # s without a byte after the command's end: what holds the stream open then is something that it left behind
_REST = 1 << 18  # bytes after its end: more than a pipe holds, so all of its own have come
_PATIENCE = 0.1  # s until a reader that waits for more is told that there is none


class Reader(Protocol):
    """Who reads along."""

    def read(self, data: bytes) -> None:
        """Take a block."""

    def pause(self) -> None:
        """Nothing has come for a moment."""

    def end(self) -> None:
        """Nothing will come any more."""


class Pump(threading.Thread):
    """Passes one stream on until its end. `on_end` is called last, in this thread; `report` gets what people should know."""

    def __init__(self, stream: Stream, readers: Sequence[Reader], on_end: Callable[[], None], report: Callable[[str], None]) -> None:
        super().__init__(name=f"exec-{stream.number}", daemon=True)
        self.stream = stream
        self.is_over = threading.Event()
        self.is_left_open = False  # the command has ended, and something that it started still has the stream
        self._readers, self._on_end, self._report = list(readers), on_end, report
        self._wake_in, self._wake_out = os.pipe()
        self._command_ended = False
        self._can_write = True

    def command_ended(self) -> None:
        """Have the stream read to its end, and no longer than that: what the command left behind is not waited for."""
        self._command_ended = True
        with contextlib.suppress(OSError):
            os.write(self._wake_out, b"x")

    def run(self) -> None:
        """The thread's work."""
        try:
            self._pass_all()
        except OSError as error:
            self._report(f"{_name(self.stream)} is no longer read: {error.strerror or error}")
        finally:
            if not self.is_left_open:
                os.close(self.stream.source)
            for reader in self._readers:
                self._show(reader, reader.end)
            self.is_over.set()
            self._on_end()

    def _pass_all(self) -> None:
        poll = select.poll()
        poll.register(self.stream.source, select.POLLIN)
        poll.register(self._wake_in, select.POLLIN)
        if self._is_pipe():
            poll.register(self.stream.number, 0)  # errors are always told
        rest, is_last, last = 0, False, time.monotonic()
        waits = False  # whether a reader waits for more
        while True:
            timeout = _QUIET if is_last else _PATIENCE if waits else None
            events = dict(poll.poll(None if timeout is None else timeout * 1000))
            if self._wake_in in events:
                poll.unregister(self._wake_in)
                is_last, last = True, time.monotonic()
            if self.stream.number in events:
                return  # whoever read it is gone: to close our end is what tells the command
            if self.stream.source in events:
                data = self._take()
                if not data:
                    return
                if not self._pass_on(data):
                    return
                for reader in self._readers:
                    self._show(reader, lambda reader=reader, data=data: reader.read(data))  # type: ignore[misc]
                waits, last = True, time.monotonic()
                rest += len(data) if is_last else 0
            elif waits and not events:
                waits = False
                for reader in self._readers:
                    self._show(reader, reader.pause)
            if is_last and (rest > _REST or time.monotonic() - last >= _QUIET):
                self.is_left_open = True
                return

    def _take(self) -> bytes:
        try:
            return os.read(self.stream.source, _BLOCK)
        except OSError as error:
            if error.errno == errno.EIO:  # a pseudo terminal that nobody has open any more
                return b""
            raise

    def _is_pipe(self) -> bool:
        mode = os.fstat(self.stream.number).st_mode
        return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)

    def _pass_on(self, data: bytes) -> bool:
        """Write a block; False when its reader is gone. Where it cannot be written otherwise (a full disk), the command goes on."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self.stream.number, view) :]
            except BlockingIOError:  # somebody made the terminal or pipe that we share non-blocking
                select.select([], [self.stream.number], [])
            except OSError as error:
                if error.errno in {errno.EPIPE, errno.ECONNRESET}:
                    return False
                if self._can_write:
                    self._can_write = False
                    self._report(f"{_name(self.stream)} cannot be passed on: {error.strerror or error}; the command goes on")
                return True
        self._can_write = True
        return True

    def _show(self, reader: Reader, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - the stream goes on, whatever it is
            self._readers = [r for r in self._readers if r is not reader]
            self._report(f"{_name(self.stream)} is no longer recorded as it should be: {type(error).__name__}: {error}")

    def hand_over(self) -> None:
        """Leave a stream that is still open to `cat`, which passes on what comes, with nobody reading along."""
        if not self.is_left_open:
            return
        null = os.open(os.devnull, os.O_WRONLY)
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate((self.stream.source, self.stream.number, null))]
        with contextlib.suppress(OSError):  # no cat: then the pipe breaks
            os.posix_spawnp("cat", ["cat"], os.environ, file_actions=actions, setsigmask=[])
        os.close(null)
        os.close(self.stream.source)


def _name(stream: Stream) -> str:
    return "stdout" if stream.number == 1 else "stderr"
