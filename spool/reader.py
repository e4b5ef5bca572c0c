"""Reading a writer's segments: live and salvaged, always the same way (FORMAT.md section 7).

Damage is a value: it comes back beside the records, with its bounds, and never stops the reading of what follows.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any, Self

from . import frames, ids, layout, segment_header, shed
from .errors import DamagedSegment, InvalidSpool
from .frames import MARKER_BYTES, Decoded, MetricBatch, Record, Shape
from .records import Kind
from .salvage import Salvager, open_regular
from .segment_header import SegmentHeader

CHUNK = 1 << 20
_GLANCE = 1 << 14  # bytes of a live segment that are looked at first


@dataclass(frozen=True, slots=True)
class Damage:
    """Something in a segment that is not as it was written.

    `kind`: corrupt (a whole frame, wrong checksum), torn (the last frame is incomplete), loss (zeros or foreign bytes where
    frames should be), repeated (a frame whose sequence was read before), header, drops (a counter's slot), missing (a segment's file is
    gone). `first` and `last` are the sequences that are missing there, 0 when none or not known. `start` and `end` are byte offsets in
    the file.
    """

    kind: str
    segment: int
    start: int
    end: int
    first: int = 0
    last: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON."""
        return {"kind": self.kind, "segment": self.segment, "bytes": [self.start, self.end], "sequences": [self.first, self.last]}


@dataclass(slots=True)
class Chunk:
    """Consecutive records of one segment, as one read found them.

    `start` and `end` bound their bytes; `first` and `last` their sequences, gaps included (`last` < `first` when there are none).
    `gaps` lists (first, last, reason) of sequences that no longer exist.
    """

    header: SegmentHeader
    segment: int
    start: int
    end: int
    first: int
    last: int
    items: list[MetricBatch | Record] = field(default_factory=list)
    gaps: list[tuple[int, int, str]] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)
    sealed: bool = False
    valid_end: int = 0  # bytes from `start` to here are whole frames; from here to `end` lies what was skipped


class _Then(Enum):
    """What follows a read of a segment."""

    READ_ON = auto()
    WAIT = auto()  # nothing more now
    LEAVE = auto()  # nothing more ever: on to the next segment


def read_header(
    fd: int, writer: str, run: bytes, number: int, previous: SegmentHeader | None
) -> tuple[SegmentHeader, bool]:
    """Return a segment's header and whether it verified; a damaged one is rebuilt from its path and predecessor (R4).

    Raises NewerFormat.
    """
    writer_id = ids.from_text(writer)
    try:
        header = SegmentHeader.unpack(os.pread(fd, segment_header.STATIC_SIZE, 0))
        if header.writer == writer_id and header.number == number:
            return header, True
    except DamagedSegment:
        pass
    if previous is not None:
        return replace(previous, writer=writer_id, number=number, first=0), False
    return SegmentHeader(
        writer=writer_id, run=run, number=number, first=0, durability=1, pid=0, start_ticks=0, anchor_boot=0, anchor_wall=0,
        origin_boot=0, pid_namespace=0, boot_id=bytes(16), uid=0, rank=None, host="",
    ), False  # fmt: skip


class Tail:
    """Follows one writer's records from a position on.

    `read` returns what is new. Positions (segment, offset, next sequence) may be stored and given again; shapes of the
    segment are then read anew from its beginning. `complete` becomes true when there will never be more: the writer is dead, or
    its close record was read.
    """

    def __init__(self, folder: str, run: str, *, segment: int = 0, offset: int = 0, sequence: int = 1) -> None:
        self.folder, self.writer = folder, os.path.basename(folder.rstrip("/"))
        self._run = ids.from_text(run)
        self.segment, self.offset, self.sequence = segment, offset, sequence
        self.header: SegmentHeader | None = None
        self._shapes: dict[int, Shape] = {}
        self._fd = -1
        self._sealed = self._final = self._closed = self._seal_asked = self._salvaged = False
        self._doubt = (0, 0, 0)
        self._size = _GLANCE
        self._salvager: Salvager | None = None
        self.complete = False

    def close(self) -> None:
        """Let go of the file. The position stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, *, dead: bool = False, limit: int = 1 << 62, glance: bool = False) -> Iterator[Chunk]:
        """Yield chunks from the position to the end of what is there now, at most about `limit` bytes.

        `dead` says that the writer's process is gone: then everything is salvaged. With `glance`, a read that finds news does not look
        whether another segment follows: the next one does. Raises NewerFormat, DamagedSegment for what is no file, and OSError.
        """
        used = 0
        while used < limit:
            if self._fd < 0:
                opened = self._open()
                if opened is None:
                    self.complete = dead or self._closed
                    return
                if opened.damage or opened.gaps:
                    yield opened
            final = self._final or self._sealed or dead
            chunk, then = self._read_chunk(final, dead)
            used += chunk.end - chunk.start
            if chunk.items or chunk.gaps or chunk.damage:
                yield chunk
            if then is _Then.LEAVE:
                self.close()
                self.segment, self.offset = self.segment + 1, 0
            elif then is _Then.WAIT:
                if final or (glance and used) or not self._has_successor():
                    return
                self._final = True  # from now on; what was written between the two looks is read as well

    # ------------------------------------------------------------------ files

    def _has_successor(self) -> bool:
        return any(s.number > self.segment for s in layout.segments(self.folder))

    def _open_file(self, wanted: int) -> tuple[int, bool] | None:
        """Open the wanted segment, or the first after it; return its number and whether it is sealed."""
        for _ in range(100):  # a file may be sealed, or pruned, between the look and the opening
            for suffix in ("seg", "open"):
                try:
                    self._fd = open_regular(layout.segment_path(self.folder, wanted, suffix))
                except FileNotFoundError:
                    continue
                return wanted, suffix == "seg"
            later = [s for s in layout.segments(self.folder) if s.number >= wanted]
            if not later:
                return None
            wanted = later[0].number
        raise DamagedSegment(f"{self.folder}: segment {wanted} is listed and cannot be opened")

    def _open(self) -> Chunk | None:
        """Open the segment at the position, or the next one that exists; the chunk tells of header damage and missing files."""
        wanted = max(self.segment, 1)
        opened = self._open_file(wanted)
        if opened is None:
            return None
        number, sealed = opened
        try:
            header, good = read_header(self._fd, self.writer, self._run, number, self.header or self._sibling_header(number))
        except BaseException:
            self.close()
            raise
        if number != self.segment:
            self.offset = 0
        chunk = Chunk(header, number, 0, 0, self.sequence, self.sequence - 1, sealed=sealed)
        if self.offset == 0:
            if not good or header.first > frames.MAX_SEQUENCE:
                chunk.damage.append(Damage("header", number, 0, segment_header.STATIC_SIZE))
            elif header.first > self.sequence:
                lost = (self.sequence, header.first - 1)
                reason = "lost" if number == wanted else "shed" if shed.covers(self.folder, range(wanted, number)) else "missing"
                if reason == "missing":
                    chunk.damage.append(Damage("missing", number - 1, 0, 0, *lost))
                chunk.gaps.append((*lost, reason))
                self.sequence = header.first
                chunk.last = header.first - 1
            whole = os.pread(self._fd, segment_header.SIZE, 0).ljust(segment_header.SIZE, b"\0")
            chunk.damage += [Damage("drops", number, at, at + 16) for at in segment_header.read_drops(whole, header.seed)[1]]
        self.segment, self.header, self._sealed = number, header, sealed
        self._final = self._seal_asked = self._salvaged = False
        self._salvager = Salvager(self._fd, header.seed)
        self._shapes = {}
        if self.offset > segment_header.SIZE:
            self._shapes = self._salvager.definitions(self.offset)
        else:
            self.offset = segment_header.SIZE
        return chunk

    def _sibling_header(self, number: int) -> SegmentHeader | None:
        """Return any good header of the same writer, to stand in for a damaged one."""
        for other in layout.segments(self.folder):
            if other.number != number:
                with contextlib.suppress(OSError, DamagedSegment, InvalidSpool), open(other.path, "rb") as f:
                    return SegmentHeader.unpack(f.read(segment_header.STATIC_SIZE))
        return None

    # ------------------------------------------------------------------ frames

    def _read_chunk(self, final: bool, dead: bool) -> tuple[Chunk, _Then]:
        """Read up to a chunk's bytes, and say what to do next."""
        header = self.header
        assert header is not None
        start = self.offset
        chunk = Chunk(header, self.segment, start, start, self.sequence, self.sequence - 1, sealed=self._sealed, valid_end=start)
        if not final and os.pread(self._fd, 2, start) != MARKER_BYTES:
            return chunk, _Then.WAIT  # nothing new: the usual case of a poll
        size = CHUNK if final else self._size
        data = os.pread(self._fd, size, start)
        found = frames.decode(data, header.seed, self._shapes)
        chunk.end = chunk.valid_end = start + found.end
        self._take(chunk, found)
        self.offset = chunk.end
        if found.seal is not None:
            self._note_end(chunk, found.seal)
            return chunk, _Then.LEAVE
        if not final:
            # what is allocated and not written yet is zeros: mostly they are all that a large read would bring
            goes_on = len(data) == size and data[found.end : found.end + 2] in {b"", MARKER_BYTES[:1], MARKER_BYTES}
            more = goes_on and (found.end > 0 or size < CHUNK)
            self._size = CHUNK if more else _GLANCE
            return chunk, _Then.READ_ON if more else _Then.WAIT
        if found.end > 0 and len(data) == CHUNK:
            return chunk, _Then.READ_ON  # perhaps only cut by the chunk's end
        if found.end == len(data):
            if self._sealed:  # it should have ended with a seal
                chunk.damage.append(Damage("torn", self.segment, self.offset, self.offset, self.sequence, 0))
            return chunk, _Then.LEAVE
        return chunk, self._salvage(chunk, dead)

    def _take(self, chunk: Chunk, found: Decoded) -> None:
        """Put decoded items into the chunk, with the gaps between their sequences; what came before is not taken again."""
        for item in found.items:
            for part in [item] if isinstance(item, Record) else _consecutive(item):
                if part.last > frames.MAX_SEQUENCE:  # no writer ever counts so far: it was made up
                    chunk.damage.append(Damage("corrupt", self.segment, chunk.start, chunk.end))
                    continue
                if part.first < self.sequence:
                    last = min(part.last, self.sequence - 1)
                    chunk.damage.append(Damage("repeated", self.segment, chunk.start, chunk.end, part.first, last))
                    if isinstance(part, Record) or part.last < self.sequence:
                        continue
                    part.rows = [row for row in part.rows if row[frames.SEQ] >= self.sequence]
                elif part.first > self.sequence:
                    chunk.gaps.append((self.sequence, part.first - 1, "lost"))
                chunk.items.append(part)
                self.sequence = part.last + 1
                self._closed = isinstance(part, Record) and part.kind == Kind.CLOSE
        chunk.last = self.sequence - 1

    def _note_end(self, chunk: Chunk, seal: dict[str, Any]) -> None:
        assert self._salvager is not None
        last = seal.get("last")
        if isinstance(last, int) and self.sequence <= last < self.sequence + (1 << 32):
            chunk.gaps.append((self.sequence, last, "lost"))
            if not self._salvaged:  # otherwise the damage before says where
                chunk.damage.append(Damage("loss", self.segment, chunk.end, chunk.end, self.sequence, last))
            self.sequence = last + 1
            chunk.last = last
        end = self._salvager.end_of_data(chunk.end)
        if end > chunk.end:  # nothing follows a seal
            chunk.damage.append(Damage("loss", self.segment, chunk.end, end))

    def _salvage(self, chunk: Chunk, dead: bool) -> _Then:
        """At bytes that are no valid frame, in a segment that gets no more records: find the next valid frame (R2)."""
        header, salvager = self.header, self._salvager
        assert header is not None
        assert salvager is not None
        bad = self.offset
        frame = os.pread(self._fd, frames.MAX_FRAME, bad)
        verdict, length = frames.check_frame(frame, header.seed, 0)
        if verdict == "valid" and not self._seal_asked:  # its definition was damaged, twice: the seal may have it
            self._seal_asked = True
            known = len(self._shapes)
            self._shapes = salvager.sealed_definitions() | self._shapes
            if len(self._shapes) > known:
                return _Then.READ_ON
        own = frames.HEAD.unpack_from(frame)[4] if verdict == "valid" else 0
        at = salvager.next_valid(bad + (length if verdict == "valid" else 8), self.sequence)
        if at is not None:
            seq = frames.HEAD.unpack(os.pread(self._fd, frames.HEAD_SIZE, at))[4]
            lost = (own, own) if own else (self.sequence, seq - 1 if seq else 0) if seq != self.sequence else (0, 0)
            kind = "loss" if verdict == "none" else "corrupt"
            chunk.damage.append(Damage(kind, self.segment, bad, at, *lost))
            self.offset = chunk.end = at
            self._salvaged = True
            return _Then.READ_ON
        end = salvager.end_of_data(bad)
        size = os.fstat(self._fd).st_size
        if end > bad and not self._sealed and not dead and self._doubt != (self.segment, bad, end):
            self._doubt = self.segment, bad, end  # its writer may be writing the seal just now: look again next time
            return _Then.WAIT
        if end > bad:
            half_written = verdict == "corrupt" and not self._sealed and not any(frame[length - 4 : length])
            kind = "loss" if verdict == "none" else "torn" if verdict == "torn" or half_written else "corrupt"
            chunk.damage.append(Damage(kind, self.segment, bad, end, own or self.sequence, own))
            if own >= self.sequence:
                chunk.gaps.append((self.sequence, own, "lost"))
                self.sequence, chunk.last = own + 1, own
        elif self._sealed:
            chunk.damage.append(Damage("torn", self.segment, bad, size, self.sequence, 0))
        self.offset = chunk.end = size
        self._salvaged = True
        return _Then.LEAVE


def _consecutive(batch: MetricBatch) -> list[MetricBatch]:
    """Split a batch where its sequences jump (they do not, unless bytes were lost)."""
    rows = batch.rows
    if rows[-1][frames.SEQ] - rows[0][frames.SEQ] == len(rows) - 1:
        return [batch]
    parts: list[MetricBatch] = []
    for row in rows:
        if parts and row[frames.SEQ] == parts[-1].last + 1:
            parts[-1].rows.append(row)
        else:
            parts.append(MetricBatch(batch.kind, batch.shape, batch.flags, [row]))
    return parts


def read_drop_counts(folder: str) -> dict[str, int]:
    """Return a writer's drop counters: those of its newest segment, or of the one before where that is damaged."""
    counts: dict[str, int] = {}
    writer = ids.from_text(os.path.basename(folder.rstrip("/")))
    for file in reversed(layout.segments(folder)):
        with open(file.path, "rb") as f:
            header = f.read(segment_header.SIZE).ljust(segment_header.SIZE, b"\0")
        found, damaged = segment_header.read_drops(header, segment_header.seed(writer, file.number))
        counts = {reason: max(found.get(reason, 0), counts.get(reason, 0)) for reason in {*found, *counts}}
        if not damaged:
            break
    return counts
