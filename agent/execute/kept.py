"""What a command printed, kept as a file: the first and the last part, and a line that says how much is between.

The bytes go to an unnamed file beside the run, so memory stays flat, and nothing is left behind by a kill.
"""

from __future__ import annotations

import os
import tempfile
from typing import BinaryIO

_PIECE = 1 << 20


class KeptOutput:
    """Takes a stream's blocks and keeps at most `limit` bytes of them: half from the beginning, half from the end.

    A disk that refuses ends the keeping, not the stream: `problem` then says why, and what was kept until then counts.
    """

    def __init__(self, folder: str, limit: int) -> None:
        self._head, self._ring = limit - limit // 2, limit // 2
        self._folder = folder
        self._file: BinaryIO | None = None
        self._done: BinaryIO | None = None
        self.size = 0
        self.problem = ""

    def read(self, data: bytes) -> None:
        """Take a block."""
        if self.problem:
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 - it lives as long as this does
            self._write(memoryview(data))
        except OSError as error:
            self.problem = error.strerror or str(error)

    def pause(self) -> None:
        """Nothing is to be done."""

    def end(self) -> None:
        """Nothing is to be done."""

    def _write(self, view: memoryview) -> None:
        assert self._file is not None
        fd = self._file.fileno()
        while view:
            if self.size < self._head:
                at, room = self.size, self._head - self.size
            elif self._ring:
                at = (self.size - self._head) % self._ring
                at, room = self._head + at, self._ring - at
            else:
                self.size += len(view)
                return
            n = os.pwrite(fd, view[:room], at)
            self.size += n
            view = view[n:]

    @property
    def left_out(self) -> int:
        """How many bytes are between the two parts that are kept."""
        return max(0, self.size - self._head - self._ring)

    def file(self) -> BinaryIO | None:
        """Return the file as it is to be saved, until `close`; None when nothing was kept. Raises OSError."""
        if self._file is None or not self.size:
            return None
        if not self.left_out and not self.problem:
            return self._file
        done = self._done = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 - as above
        _copy(self._file, done, 0, min(self.size, self._head))
        if self.left_out:
            at = (self.size - self._head) % self._ring if self._ring else 0
            first = os.pread(self._file.fileno(), 1, self._head - 1)
            line = f"[... {self.left_out:,} bytes are left out here (agent exec --keep-output) ...]\n"
            done.write((b"" if first == b"\n" else b"\n") + line.encode())
            _copy(self._file, done, self._head + at, self._ring - at)
            _copy(self._file, done, self._head, at)
        else:
            _copy(self._file, done, self._head, self.size - min(self.size, self._head))
        if self.problem:
            done.write(f"\n[... nothing more was kept: {self.problem} ...]\n".encode())
        return done

    def close(self) -> None:
        """Let the files go."""
        for file in (self._file, self._done):
            if file is not None:
                file.close()


def _copy(source: BinaryIO, target: BinaryIO, at: int, count: int) -> None:
    while count > 0:
        data = os.pread(source.fileno(), min(count, _PIECE), at)
        if not data:
            return
        view = memoryview(data)
        while view:
            view = view[os.write(target.fileno(), view) :]
        at, count = at + len(data), count - len(data)
