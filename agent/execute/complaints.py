"""What a command says on stderr, as events: bounded in number, and never without its last words.

Lines that come together are one event, so a traceback stays whole. A progress bar, which rewrites its line, is an event once the line is
finished. What is over the limits is counted, and the events say so; the whole text is in the file that is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_LONGEST = 16 << 10  # bytes of one event
_LINE = 64 << 10  # bytes of a line without an end that are remembered
_RATE, _BURST = 10.0, 100.0  # events a second, and at once
_MOST = 20_000  # events in all
_LAST = 8 << 10  # bytes of last words


class Complaints:
    """Reads a stream and calls `record(message)` with each event."""

    def __init__(self, record: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._record, self._clock = record, clock
        self._line = bytearray()  # begun, without an end
        self._text = bytearray()  # whole lines, not recorded yet
        self._budget, self._at = _BURST, clock()
        self._left = _MOST
        self._unsaid = 0  # lines that were not recorded since the last event
        self._last = bytearray()  # the end of them
        self.left_out = 0  # lines in all

    def read(self, data: bytes) -> None:
        """Take a block."""
        whole, newline, rest = data.rpartition(b"\n")
        if newline:
            for line in bytes(self._line + whole).split(b"\n"):
                self._add(line)
            self._line.clear()
        self._line += rest
        if len(self._line) > _LINE:
            shown = self._line.rpartition(b"\r")[2]
            self._line = bytearray(shown[-_LINE:])

    def _add(self, line: bytes) -> None:
        line = line.rstrip(b"\r").rpartition(b"\r")[2].rstrip()  # what stands there when a bar is done
        if not line:
            return
        line = line[:_LONGEST]
        if len(self._text) + len(line) >= _LONGEST:
            self.pause()
        if self._text:
            self._text += b"\n"
        self._text += line

    def pause(self) -> None:
        """Record what has come together."""
        if not self._text:
            return
        text = bytes(self._text)
        self._text.clear()
        now = self._clock()
        self._budget = min(_BURST, self._budget + (now - self._at) * _RATE)
        self._at = now
        if self._budget < 1 or not self._left:
            count = text.count(b"\n") + 1
            self._unsaid += count
            self.left_out += count
            self._last = (self._last + b"\n" + text if self._last else bytearray(text))[-_LAST:]
            return
        self._budget -= 1
        self._left -= 1
        self._say_what_is_missing()
        self._record(text.decode(errors="replace"))

    def end(self) -> None:
        """Record the rest; of what was left out, the end."""
        if self._line:
            self._add(bytes(self._line))
            self._line.clear()
        self.pause()
        if self._unsaid:
            last = bytes(self._last).decode(errors="replace")
            self._say_what_is_missing()
            self._record(last)

    def _say_what_is_missing(self) -> None:
        if self._unsaid:
            self._record(f"[{self._unsaid} lines on stderr are no events: too many at once]")
            self._unsaid = 0
            self._last.clear()
