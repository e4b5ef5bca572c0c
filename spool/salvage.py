"""Finding what is still good in a damaged segment (FORMAT.md R2), in bounded time whatever the bytes are."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from . import frames, records, segment_header
from .errors import DamagedSegment, InvalidSpool
from .frames import HEAD, HEAD_SIZE, MARKER_BYTES, MAX_FRAME, MIN_FRAME, Shape
from .records import UNSEQUENCED_KINDS, Kind

_WINDOW = 1 << 20
# Bytes that look like the beginnings of large frames, one every 8 bytes, would cost a checksum of a megabyte each: after so
# many checksummed bytes a segment, only small frames are still looked for.
_CHECKSUM_BUDGET = 512 << 20
_SMALL_FRAME = 1024


class Salvager:
    """Searches one segment's file for valid frames."""

    def __init__(self, fd: int, crc_seed: int) -> None:
        self._fd, self._seed = fd, crc_seed
        self._budget = _CHECKSUM_BUDGET

    def next_valid(self, start: int, sequence: int) -> int | None:
        """Return where the first valid frame at or after `start` (a multiple of 8) begins whose record is not before `sequence`."""
        for at in self._markers(start):
            head = os.pread(self._fd, HEAD_SIZE, at)
            if len(head) < HEAD_SIZE:
                return None
            _, kind, _, length, seq, _ = HEAD.unpack(head)
            if not MIN_FRAME <= length <= MAX_FRAME or length & 7 or (seq if kind in UNSEQUENCED_KINDS else seq < sequence):
                continue
            if self._budget <= 0 and length > _SMALL_FRAME:
                continue
            self._budget -= length
            if frames.check_frame(os.pread(self._fd, length, at), self._seed, 0)[0] == "valid":
                return at
        return None

    def _markers(self, start: int) -> Iterator[int]:
        base, window = start, 4096
        while data := os.pread(self._fd, window, base):
            at = data.find(MARKER_BYTES)
            while at >= 0:
                if at % 8 == 0:
                    yield base + at
                at = data.find(MARKER_BYTES, at + 1)
            base += len(data) // 8 * 8 or 8
            window = _WINDOW

    def end_of_data(self, start: int) -> int:
        """Return the end (a multiple of 8 where the file allows) of the bytes after `start` that are not zero; `start` when all are."""
        end, base = start, start
        while data := os.pread(self._fd, _WINDOW, base):
            used = len(data.rstrip(b"\0"))
            if used:
                end = base + min(len(data), (used + 7) & ~7)
            base += len(data)
        return end

    def definitions(self, until: int) -> dict[int, Shape]:
        """Return the shapes defined before byte `until`."""
        shapes: dict[int, Shape] = {}
        at = segment_header.SIZE
        while at < until:
            data = os.pread(self._fd, min(MAX_FRAME, until - at), at)
            offset = 0
            while True:
                verdict, length = frames.check_frame(data, self._seed, offset)
                if verdict != "valid":
                    break
                if data[offset + 2] == Kind.DEFINITION:
                    _learn(shapes, data[offset + HEAD_SIZE : offset + length - 4])
                offset += length
            if offset == 0:  # damaged here: it was reported when it was first read
                found = self.next_valid(at + 8, 0)
                offset = until - at if found is None else found - at
            at += offset
        return shapes

    def sealed_definitions(self) -> dict[int, Shape]:
        """Return the shapes that the seal repeats; none when there is no valid seal."""
        shapes: dict[int, Shape] = {}
        size = os.fstat(self._fd).st_size
        base = max(segment_header.SIZE, size - MAX_FRAME)
        data = os.pread(self._fd, MAX_FRAME, base)
        at = len(data)
        while (at := data.rfind(MARKER_BYTES, 0, at)) >= 0:
            if (base + at) % 8 or data[at + 2 : at + 3] != bytes((Kind.SEAL,)):
                continue
            verdict, length = frames.check_frame(data, self._seed, at)
            if verdict == "valid":
                try:
                    bodies = records.decode(data[at + HEAD_SIZE : at + length - 4]).get("definitions")
                except ValueError:
                    break
                for body in bodies if isinstance(bodies, list) else ():
                    if isinstance(body, dict):
                        _define(shapes, body)
                break
        return shapes


def _learn(shapes: dict[int, Shape], payload: bytes) -> None:
    try:
        _define(shapes, records.decode(payload))
    except ValueError:
        pass  # valid bytes, but no definition: frames of this shape will be reported


def _define(shapes: dict[int, Shape], body: dict[str, object]) -> None:
    try:
        shape = frames.parse_shape(body)
    except ValueError:
        return
    shapes.setdefault(shape.id, shape)


def open_regular(path: str) -> int:
    """Open a segment's file for reading, without blocking on what is no file.

    Raises OSError, DamagedSegment for what is no file, and InvalidSpool for one that another user has put there: a spool has one owner, and
    nobody records in that one's name.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    info = os.fstat(fd)
    if stat.S_ISREG(info.st_mode) and info.st_uid in {0, os.geteuid()}:
        return fd
    os.close(fd)
    if not stat.S_ISREG(info.st_mode):
        raise DamagedSegment(f"{path} is not a regular file: move it out of the spool")
    raise InvalidSpool(f"{path} belongs to uid {info.st_uid}, and you are uid {os.geteuid()}: it is not read; move it out of the spool")
