"""Following one writer: its tail, its chain, and the pieces of its segments that a drain can cut ranges from."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from simspool.spool import Chunk, Kind, Tail, frames, runstate
from simspool.spool.frames import MetricBatch, Record
from simspool.spool.segment_header import SegmentHeader

from .summary import Summary

PIECE_BYTES = 1 << 20


@dataclass(slots=True)
class _Piece:
    first: int
    last: int
    segment: int
    start: int
    end: int
    chain: int
    gaps: str | None
    irregular: bool


@dataclass(slots=True)
class Followed:
    """A writer that is not complete yet. What was taken lies in memory until `save_all` stores it."""

    writer: str
    run: str
    tail: Tail
    chain: int
    closed: bool = False
    role: str | None = None
    header: SegmentHeader | None = None
    quiet: int = 0  # reads in a row that brought nothing
    trusted: bool = True  # what was taken was seen by this process, or found again on the disk
    declared: bool = False  # of a dead writer without a close record: the spool says so
    drops: str | None = None
    new_header: bytes | None = None
    piece: _Piece | None = None  # the last one, while it may grow
    pieces: list[_Piece] = field(default_factory=list)  # new or grown since the last save
    shapes: set[tuple[int, int]] = field(default_factory=set)
    definitions: list[tuple[Any, ...]] = field(default_factory=list)
    damage: list[tuple[Any, ...]] = field(default_factory=list)

    def take(self, summary: Summary, chunk: Chunk) -> int:
        """Take a chunk in. Returns the number of points and records taken."""
        if self.header is not chunk.header:
            self.header, self.new_header = chunk.header, chunk.header.pack()
        before, taken = self.chain, 0
        parts: list[tuple[int, Any]] = [(item.first, item) for item in chunk.items]
        parts += [(first, (first, last)) for first, last, _ in chunk.gaps]
        if chunk.gaps:
            parts.sort(key=lambda part: part[0])
        for _, part in parts:
            if isinstance(part, MetricBatch):
                self.chain = frames.extend_chain(self.chain, part.crcs)
                self._define(chunk, part)
                summary.metrics(self.run, chunk.header, part)
                taken += len(part.rows) * len(part.shape.names)
            elif isinstance(part, Record):
                self.chain = frames.extend_chain(self.chain, (part.crc,))
                summary.record(self.run, self.writer, chunk.header, part)
                taken += 1
                if part.kind == Kind.CLOSE:
                    self.closed = True
                    self.drops = json.dumps((part.body or {}).get("drops") or {})
                elif part.kind in {Kind.RUN, Kind.ATTACH} and self.role is None:
                    self.role = runstate.role_of(part.kind, part.body)
            else:
                self.chain = frames.extend_chain_gap(self.chain, part[1] - part[0] + 1)
        if chunk.last >= chunk.first:
            self._add_piece(chunk, before)
        self.damage += [(self.writer, d.segment, d.kind, d.start, d.end, d.first, d.last) for d in chunk.damage]
        return taken

    def _define(self, chunk: Chunk, batch: MetricBatch) -> None:
        key = (chunk.segment, batch.shape.id)
        if key not in self.shapes:
            self.shapes.add(key)
            self.definitions.append((self.writer, *key, json.dumps([list(batch.shape.names), batch.shape.types])))

    def _add_piece(self, chunk: Chunk, before: int) -> None:
        """Note where the chunk's frames lie; a chunk that goes on where the last piece ended extends it."""
        irregular = any(d.kind == "loss" and d.start == chunk.start and d.end == chunk.end for d in chunk.damage)
        piece = self.piece
        if (
            piece is not None
            and piece.segment == chunk.segment
            and piece.end == chunk.start
            and not chunk.gaps
            and not irregular
            and chunk.valid_end - piece.start <= PIECE_BYTES
        ):
            piece.last, piece.end = chunk.last, chunk.valid_end
            if not self.pieces or self.pieces[-1] is not piece:
                self.pieces.append(piece)
            return
        gaps = json.dumps(chunk.gaps) if chunk.gaps else None
        piece = _Piece(chunk.first, chunk.last, chunk.segment, chunk.start, chunk.valid_end, before, gaps, irregular)
        self.pieces.append(piece)
        self.piece = None if gaps or irregular else piece

    @property
    def complete(self) -> bool:
        """Nothing more is to be done: the close record was read, or the dead writer's last byte, and its death is noted."""
        return self.closed or (self.tail.complete and self.declared)


def save_all(db: sqlite3.Connection, changed: Iterable[Followed]) -> None:
    """Store positions and all that was taken up to them, in the caller's transaction."""
    changed = list(changed)
    many = db.executemany
    many(
        'INSERT OR REPLACE INTO pieces(writer, "first", "last", segment, start, "end", chain, gaps, irregular) VALUES (?,?,?,?,?,?,?,?,?)',
        [(f.writer, p.first, p.last, p.segment, p.start, p.end, p.chain, p.gaps, int(p.irregular)) for f in changed for p in f.pieces],
    )
    many("INSERT OR IGNORE INTO definitions(writer, segment, shape, body) VALUES (?,?,?,?)", [d for f in changed for d in f.definitions])
    many(
        'INSERT OR REPLACE INTO damage(writer, segment, kind, start, "end", "first", "last") VALUES (?,?,?,?,?,?,?)',
        [d for f in changed for d in f.damage],
    )
    many(
        'UPDATE writers SET segment=?, "offset"=?, sequence=?, chain=?, complete=?, closed=?, role=?, drops=coalesce(?, drops),'
        " header=coalesce(?, header) WHERE id=?",
        [
            (
                f.tail.segment, f.tail.offset, f.tail.sequence, f.chain, int(f.complete), int(f.closed),
                f.role if f.role is None or f.role.isascii() else f.role.encode(errors="replace").decode(),
                f.drops, f.new_header, f.writer,
            )
            for f in changed
        ],
    )  # fmt: skip
    for followed in changed:
        followed.pieces.clear()
        followed.definitions.clear()
        followed.damage.clear()
        followed.new_header = None
