"""Following one file of an inbox: its complete lines, once each, and when it is another file than it was.

A file that shrank, was replaced by another, or whose bytes before the position are not those that were read, begins a new epoch at its
first byte. What a replaced file got before it was replaced is read to its end first.
"""

from __future__ import annotations

import os
import stat
import time
import zlib
from dataclasses import dataclass

from .lenient import MAX_LINE
from .positions import LOOK_BACK, Mark, Position, Reached

_PIECE = 256 << 10
_BLANKS = b" \t\r\n\v\f"
_NONE = (-1, -1)  # no file's
_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # O_NONBLOCK: it may be a FIFO, which must not hang the agent


@dataclass(frozen=True, slots=True)
class Line:
    """A line: its bytes without the newline (None: there are too many), where it begins, and where the next one does."""

    data: bytes | None
    start: int
    end: int


class InboxFile:
    """One file. `lines` gives what is next; `advance` takes a line as done, which alone moves the position.

    `offset` is the position, in `epoch`; `step` and `bad` count its lines of metrics (in this epoch), and those not understood (in all).
    """

    def __init__(self, folder: str, name: str, reached: Reached | None) -> None:
        """Begin where `reached` says, None: at the beginning."""
        self.name, self._path = name, os.path.join(folder, name)
        self.epoch, self.offset, self.step, self.bad = 1, 0, 0, 0
        self._reached = reached
        self._fd = -1
        self._identity: tuple[int, int] | None = None
        self._before = b""  # the last bytes before the position
        self._looked = -1  # the size when all of it was read
        self._searched = 0  # no newline between the position and here
        self.is_gone = False

    # ------------------------------------------------------------------ what is new

    def has_news(self) -> bool:
        """Say whether there may be something to read. Raises OSError."""
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            found = None
        same = found is not None and (found.st_dev, found.st_ino) == self._identity
        if self._fd < 0:
            return found is not None and not (same and found.st_size == self._looked)
        self.is_gone = not same
        return found is None or not same or found.st_size != self._looked

    def is_open(self) -> bool:
        """Open the file if need be; say whether it is, and so its position is known. Raises OSError."""
        return self._fd >= 0 or self._open()

    def lines(self, *, final: bool = False) -> list[Line]:
        """Return the next complete lines, about 256 KiB of them; none when there are no more for now.

        With `final`, the last line needs no newline: nobody writes it to its end any more. Raises OSError.
        """
        if self._fd < 0 and not self._open():
            return []
        size = os.fstat(self._fd).st_size
        if size < self.offset:
            self._begin_again()
        found = self._read(size, final=final)
        if not found and self.is_gone:
            found = self._read(size, final=True)  # a replaced file gets no more
            if not found:
                self._change_file()
                return self.lines(final=final) if self._fd >= 0 else []
        self._looked = -1 if found else size
        return found

    def advance(self, line: Line) -> None:
        """A line is done with: the position is behind it."""
        back = min(line.end, LOOK_BACK)
        self.offset = self._searched = line.end
        kept = self._before + (line.data or b"") + b"\n" * (line.data is not None and line.end - line.start > len(line.data))
        self._before = kept[-back:] if back and line.data is not None else os.pread(self._fd, back, line.end - back)

    def position(self, first: Line | None) -> Position:
        """Return the position; `first` is the line behind it that is about to be copied, where there is one."""
        start = self.offset - len(self._before)
        seen, end = self._before, self.offset
        if first is not None and first.data is not None:
            end = first.start + len(first.data)
            seen = os.pread(self._fd, end - start, start)
        return Position(self.name, self.epoch, self.offset, self.step, self.bad, Mark(start, end, zlib.crc32(seen)))

    def close(self) -> None:
        """Let go of the file. The position stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # ------------------------------------------------------------------ reading

    def _read(self, size: int, *, final: bool) -> list[Line]:
        start, back = self.offset, len(self._before)
        if size <= start:
            return []
        data = os.pread(self._fd, back + _PIECE, start - back)
        if data[:back] != self._before:
            self._begin_again()
            start, back = 0, 0
            data = os.pread(self._fd, _PIECE, 0)
        data = data[back:]
        cut = data.rfind(b"\n") + 1
        if not cut and size - start > len(data):
            return self._read_long(size, final=final)
        found, at = [], 0
        while at < cut:
            end = data.index(b"\n", at)
            found.append(Line(data[at:end], start + at, start + end + 1))
            at = end + 1
        if final and not found and data and start + len(data) >= size:
            found.append(Line(data, start, start + len(data)))
        return found

    def _read_long(self, size: int, *, final: bool) -> list[Line]:
        """A line longer than a piece: find its end; what is beyond the limit is never held in memory."""
        start, at = self.offset, max(self.offset, self._searched)
        while at < size:
            piece = os.pread(self._fd, _PIECE, at)
            found = piece.find(b"\n")
            if found >= 0 or not piece:
                end = at + found
                break
            at = self._searched = at + len(piece)
        else:
            found, end = -1, at
        if found < 0 and not (final and at >= size):
            return []
        length = end - start if found >= 0 else at - start
        data = os.pread(self._fd, length, start) if length <= MAX_LINE else None
        return [Line(data, start, start + length + (found >= 0))]

    # ------------------------------------------------------------------ opening, epochs

    def _open(self) -> bool:
        try:
            fd = os.open(self._path, _OPEN)
        except FileNotFoundError:
            return False
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            return False
        identity = (found.st_dev, found.st_ino)
        changed = self._identity is not None and identity != self._identity
        self._fd, self._identity, self.is_gone = fd, identity, False
        if changed:
            self._begin_again()
        elif self._reached is not None:
            self._resume(self._reached, found.st_size)
            self._reached = None
        return True

    def _change_file(self) -> None:
        """The file that was open is read to its end, and another one has its name, or none."""
        self.close()
        if not self._open():
            self._identity = _NONE

    def _begin_again(self) -> None:
        self.epoch += 1
        self.offset = self.step = self._searched = 0
        self._before = b""

    def _resume(self, reached: Reached, size: int) -> None:
        """Go on where earlier agents stopped, if this is still the file that they read."""
        position = reached.position
        self.epoch, self.step, self.bad = position.epoch, position.step + reached.metrics, position.bad
        end, missing = self._skip(min(position.offset, size), reached.lines)
        if size < position.offset or missing or not position.mark.fits(self._fd):
            known = next((p for p in reversed(reached.before) if p.mark.fits(self._fd)), None) if reached.earlier_boot else None
            if known is None:
                self._begin_again()
                return
            # A power cut took the end of the file, which we have. What is left was copied; behind what a program has appended since,
            # nobody can tell where that end is: what follows the last place that is as it was, a batch at most, is copied again.
            if _is_touched(self._fd):
                end, self.step = known.offset, known.step
            else:
                end = size
        self.offset = self._searched = end
        back = min(end, LOOK_BACK)
        self._before = os.pread(self._fd, back, end - back)

    def _skip(self, start: int, lines: int) -> tuple[int, int]:
        """Return where the line behind so many begins (blank ones left out), and how many of them are missing."""
        at, line_start, blank = start, start, True
        while lines:
            piece = os.pread(self._fd, _PIECE, at)
            if not piece:
                break
            used = 0
            while lines and (end := piece.find(b"\n", used)) >= 0:
                blank = blank and not piece[used:end].strip(_BLANKS)
                lines -= not blank
                blank, used = True, end + 1
                line_start = at + used
            if lines:
                blank = blank and not piece[used:].strip(_BLANKS)
            at += len(piece)
        if lines == 1 and not blank:  # the last one was taken without its newline
            return at, 0
        return line_start, lines


def _is_touched(fd: int) -> bool:
    """Say whether a file was written to since this machine's boot."""
    return os.fstat(fd).st_mtime > time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
