"""Reading a writer's segments: live and salvaged, always the same way (FORMAT.md section 7).

Damage is a value: it comes back beside the records, with its bounds, and never stops the reading of what follows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from . import frames, ids, layout, records, segment_header
from .errors import DamagedSegment
from .frames import Decoded, MetricBatch, Record, Shape
from .records import Kind
from .segment_header import SegmentHeader

CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Damage:
    """Something in a segment that is not as it was written.

    `kind`: corrupt (a whole frame, wrong checksum), torn (the last frame is incomplete), loss (zeros or foreign bytes where
    frames should be), header, drops (a counter's slot), missing (a segment's file is gone). `first` and `last` are the sequences that
    are missing there, 0 when none or not known. `start` and `end` are byte offsets in the file.
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


def read_header(fd: int, writer: str, run: bytes, number: int, previous: SegmentHeader | None) -> tuple[SegmentHeader, bool]:
    """Return a segment's header and whether it verified; a damaged one is rebuilt from its path and predecessor (R4).

    Raises NewerFormat.
    """
    static = os.pread(fd, segment_header.STATIC_SIZE, 0)
    writer_id = ids.from_text(writer)
    try:
        header = SegmentHeader.unpack(static)
        if header.writer == writer_id and header.number == number:
            return header, True
    except DamagedSegment:
        pass
    p = previous
    return SegmentHeader(
        writer=writer_id, run=p.run if p else run, number=number, first=0, durability=1, pid=p.pid if p else 0,
        start_ticks=p.start_ticks if p else 0, anchor_boot=p.anchor_boot if p else 0, anchor_wall=p.anchor_wall if p else 0,
        origin_boot=p.origin_boot if p else 0, pid_namespace=p.pid_namespace if p else 0, boot_id=p.boot_id if p else bytes(16),
        uid=p.uid if p else 0, rank=p.rank if p else None, host=p.host if p else "",
    ), False  # fmt: skip


class Tail:
    """Follows one writer's records from a position on.

    `read` returns what is new. Positions (segment, offset, next sequence) may be stored and given again; shapes of the
    segment are then read anew from its beginning.
    """

    def __init__(self, folder: str, run: str, *, segment: int = 0, offset: int = 0, sequence: int = 1) -> None:
        self.folder, self.writer = folder, os.path.basename(folder)
        self._run = ids.from_text(run)
        self.segment, self.offset, self.sequence = segment, offset, sequence
        self.header: SegmentHeader | None = None
        self._shapes: dict[int, Shape] = {}
        self._fd = -1
        self._sealed = False
        self.complete = False

    def close(self) -> None:
        """Let go of the file. The position stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Tail:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, *, dead: bool = False, limit: int = 1 << 62) -> Iterator[Chunk]:
        """Yield chunks from the position to the end of what is there now, at most about `limit` bytes.

        `dead` says that the writer's process is gone: then everything is salvaged, and `complete` becomes true at the end.
        """
        used = 0
        while used < limit:
            if self._fd < 0:
                opened = self._open()
                if opened is None:
                    self.complete = dead
                    return
                if opened.damage:
                    yield opened
            final = self._sealed or dead or self._has_successor()
            chunk, at_end = self._read_chunk(final)
            used += chunk.end - chunk.start
            if chunk.items or chunk.gaps or chunk.damage:
                yield chunk
            if not at_end:
                continue
            if not final:
                return
            self.close()
            self.segment, self.offset = self.segment + 1, 0

    def _files(self) -> list[layout.SegmentFile]:
        return [s for s in layout.segments(self.folder) if s.number >= self.segment]

    def _has_successor(self) -> bool:
        return any(os.path.exists(layout.segment_path(self.folder, self.segment + 1, suffix)) for suffix in ("open", "seg"))

    def _open(self) -> Chunk | None:
        """Open the segment at the position, or the next one that exists; the chunk tells header damage and missing files."""
        wanted = max(self.segment, 1)
        for suffix in ("seg", "open", "seg"):  # the third: it was sealed between the first look and the second
            path = layout.segment_path(self.folder, wanted, suffix)
            try:
                self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue
            number, sealed = wanted, suffix == "seg"
            break
        else:
            later = self._files()
            if not later:
                return None
            number, sealed = later[0].number, later[0].sealed
            try:
                self._fd = os.open(later[0].path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                return None
        header, good = read_header(self._fd, self.writer, self._run, number, self.header)
        chunk = Chunk(header, number, 0, 0, self.sequence, self.sequence - 1)
        if not good:
            chunk.damage.append(Damage("header", number, 0, segment_header.STATIC_SIZE))
        if number > wanted or (number > 1 and self.header is None and self.segment == 0):
            if good and header.first > self.sequence:
                chunk.damage.append(Damage("missing", number - 1, 0, 0, self.sequence, header.first - 1))
                chunk.gaps.append((self.sequence, header.first - 1, "missing"))
                self.sequence = header.first
                chunk.last = header.first - 1
            self.offset = 0
        whole = os.pread(self._fd, segment_header.SIZE, 0)
        _, slots = segment_header.read_drops(whole, header.seed)
        chunk.damage += [Damage("drops", number, at, at + 16) for at in slots]
        self.segment, self.header, self._sealed = number, header, sealed
        self._shapes = {}
        if self.offset > segment_header.SIZE:
            self._relearn_shapes()
        else:
            self.offset = segment_header.SIZE
        return chunk

    def _relearn_shapes(self) -> None:
        assert self.header is not None
        at = segment_header.SIZE
        while at < self.offset:
            data = os.pread(self._fd, min(CHUNK, self.offset - at), at)
            found = frames.decode(data, self.header.seed, self._shapes)
            if found.end == 0:
                at += 8
            at += found.end

    def _read_chunk(self, final: bool) -> tuple[Chunk, bool]:
        """Read up to a chunk's bytes; the flag says that nothing more can be had from this segment now."""
        header = self.header
        assert header is not None
        start = self.offset
        data = os.pread(self._fd, CHUNK, start)
        found = frames.decode(data, header.seed, self._shapes)
        chunk = Chunk(header, self.segment, start, start + found.end, self.sequence, self.sequence - 1, sealed=self._sealed)
        self._take(chunk, found)
        self.offset = chunk.end
        if found.seal is not None:
            self._note_end(chunk, found.seal)
            return chunk, True
        if found.end > 0 and len(data) == CHUNK:
            return chunk, False  # perhaps only cut by the chunk's end
        if found.end == len(data) and len(data) < CHUNK:
            if final and self._sealed:
                chunk.damage.append(Damage("torn", self.segment, self.offset, self.offset))
            return chunk, True
        if not final:
            return chunk, True
        return chunk, self._salvage(chunk)

    def _take(self, chunk: Chunk, found: Decoded) -> None:
        """Put decoded items into the chunk, with the gaps between their sequences; what came before is not taken again."""
        for item in found.items:
            batches = [item] if isinstance(item, Record) else _consecutive(item)
            for part in batches:
                if part.first > self.sequence:
                    chunk.gaps.append((self.sequence, part.first - 1, "lost"))
                elif part.first < self.sequence:
                    chunk.damage.append(Damage("loss", self.segment, chunk.start, chunk.end, 0, 0))
                    continue
                chunk.items.append(part)
                self.sequence = part.last + 1
        chunk.last = self.sequence - 1

    def _note_end(self, chunk: Chunk, seal: dict[str, Any]) -> None:
        last = seal.get("last")
        if isinstance(last, int) and last >= self.sequence and last - self.sequence < 1 << 32:
            chunk.gaps.append((self.sequence, last, "lost"))
            chunk.damage.append(Damage("loss", self.segment, chunk.end, chunk.end, self.sequence, last))
            self.sequence = last + 1
            chunk.last = last

    def _salvage(self, chunk: Chunk) -> bool:
        """At bytes that are no valid frame, in a segment that will not change: find the next valid frame (R2)."""
        header = self.header
        assert header is not None
        size = os.fstat(self._fd).st_size
        bad = self.offset
        data = os.pread(self._fd, size - bad, bad)
        verdict, length = frames.check_frame(data, header.seed, 0)
        if verdict == "valid" and self._learn_from_seal(data):
            return False  # its definition was damaged, twice; the seal had it
        at = self._next_valid(data, length if verdict == "corrupt" else 8)
        if at is None:
            if not any(data):
                self.offset = size
                if self._sealed:
                    chunk.damage.append(Damage("torn", self.segment, bad, size))
                return True  # the unused rest of an allocation
            kind = "corrupt" if verdict in {"corrupt", "valid"} else "torn" if verdict == "torn" else "loss"
            chunk.damage.append(Damage(kind, self.segment, bad, size, self.sequence, 0))
            self.offset = chunk.end = size
            return True
        seq = frames.HEAD.unpack_from(data, at)[4]
        kind = "corrupt" if verdict in {"corrupt", "valid"} else "loss"
        is_gap = seq > self.sequence
        chunk.damage.append(
            Damage(kind, self.segment, bad, bad + at, self.sequence if is_gap else 0, seq - 1 if is_gap else 0)
        )
        self.offset = chunk.end = bad + at
        return False

    def _next_valid(self, data: bytes, start: int) -> int | None:
        assert self.header is not None
        at = start
        while True:
            at = data.find(frames.MARKER_BYTES, at)
            if at < 0:
                return None
            if at % 8 == 0 and frames.check_frame(data, self.header.seed, at)[0] == "valid":
                seq, kind = frames.HEAD.unpack_from(data, at)[4], data[at + 2]
                if kind in {Kind.DEFINITION, Kind.SEAL} or seq >= self.sequence:
                    return at
            at += 1

    def _learn_from_seal(self, data: bytes) -> bool:
        """Read definitions from the seal; True when that brought new ones."""
        assert self.header is not None
        at = data.rfind(frames.MARKER_BYTES)
        while at >= 0:
            verdict, length = frames.check_frame(data, self.header.seed, at)
            if verdict == "valid" and data[at + 2] == Kind.SEAL:
                before = len(self._shapes)
                try:
                    seal = records.decode(data[at + frames.HEAD_SIZE : at + length - 4])
                    for body in seal.get("definitions", ()):
                        shape = frames.parse_shape(body)
                        self._shapes.setdefault(shape.id, shape)
                except (ValueError, AttributeError, TypeError):
                    return False
                return len(self._shapes) > before
            at = data.rfind(frames.MARKER_BYTES, 0, at)
        return False


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


def segment_shapes(path: str, writer: str, run: str, number: int, end: int) -> list[Shape]:
    """Return the shapes defined in a segment before byte `end`."""
    tail = Tail(os.path.dirname(path), run, segment=number, offset=end)
    try:
        tail._open()  # noqa: SLF001 - same module
        return list(tail._shapes.values())  # noqa: SLF001
    finally:
        tail.close()


def read_drop_counts(folder: str) -> dict[str, int]:
    """Return a writer's drop counters, from its newest segment."""
    files = layout.segments(folder)
    if not files:
        return {}
    newest = files[-1]
    with open(newest.path, "rb") as f:
        header = f.read(segment_header.SIZE).ljust(segment_header.SIZE, b"\0")
    counts, _ = segment_header.read_drops(header, segment_header.seed(ids.from_text(os.path.basename(folder)), newest.number))
    return counts
