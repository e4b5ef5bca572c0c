"""Following one writer: its tail, its chain, and the pieces of its segments that a drain can cut ranges from."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, field
from typing import Any

from simspool.spool import Chunk, Kind, Tail, frames
from simspool.spool.frames import MetricBatch, Record
from simspool.spool.segment_header import SegmentHeader

from .summary import Summary

PIECE_BYTES = 1 << 20


@dataclass(slots=True)
class _Piece:
    first: int
    segment: int
    start: int
    end: int


@dataclass(slots=True)
class Followed:
    """A writer that is not complete yet."""

    writer: str
    run: str
    tail: Tail
    chain: int
    closed: bool = False
    role: str | None = None
    header: SegmentHeader | None = None
    quiet: int = 0  # reads in a row that brought nothing
    records: int = 0
    drops: str | None = None
    piece: _Piece | None = None
    shapes: set[tuple[int, int]] = field(default_factory=set)

    def take(self, db: sqlite3.Connection, summary: Summary, chunk: Chunk) -> int:
        """Put a chunk into the catalog, in the caller's transaction. Returns the number of points and records taken."""
        if self.header is not chunk.header:
            self.header = chunk.header
            db.execute("UPDATE writers SET header=? WHERE id=?", (chunk.header.pack(), self.writer))
        before, taken = self.chain, 0
        parts: list[tuple[int, Any]] = [(item.first, item) for item in chunk.items]
        parts += [(first, (first, last)) for first, last, _ in chunk.gaps]
        if chunk.gaps:
            parts.sort(key=lambda part: part[0])
        for _, part in parts:
            if isinstance(part, MetricBatch):
                self.chain = frames.extend_chain(self.chain, part.crcs)
                self._define(db, chunk, part)
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
                    self.role = "creator" if part.kind == Kind.RUN else str((part.body or {}).get("reason") or "attach")
            else:
                self.chain = frames.extend_chain_gap(self.chain, part[1] - part[0] + 1)
        if chunk.last >= chunk.first:
            self._add_piece(db, chunk, before)
        if chunk.damage:
            db.executemany(
                "INSERT OR REPLACE INTO damage(writer, segment, kind, start, end, first, last) VALUES (?,?,?,?,?,?,?)",
                [(self.writer, d.segment, d.kind, d.start, d.end, d.first, d.last) for d in chunk.damage],
            )
        self.records += chunk.last - chunk.first + 1
        return taken

    def _define(self, db: sqlite3.Connection, chunk: Chunk, batch: MetricBatch) -> None:
        key = (chunk.segment, batch.shape.id)
        if key not in self.shapes:
            self.shapes.add(key)
            body = json.dumps([list(batch.shape.names), batch.shape.types])
            db.execute("INSERT OR IGNORE INTO definitions(writer, segment, shape, body) VALUES (?,?,?,?)", (self.writer, *key, body))

    def _add_piece(self, db: sqlite3.Connection, chunk: Chunk, before: int) -> None:
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
            piece.end = chunk.valid_end
            db.execute("UPDATE pieces SET last=?, end=? WHERE writer=? AND first=?", (chunk.last, piece.end, self.writer, piece.first))
            return
        gaps = json.dumps(chunk.gaps) if chunk.gaps else None
        db.execute(
            'INSERT OR REPLACE INTO pieces(writer, "first", "last", segment, start, "end", chain, gaps,'
            ' irregular) VALUES (?,?,?,?,?,?,?,?,?)',
            (self.writer, chunk.first, chunk.last, chunk.segment, chunk.start, chunk.valid_end, before, gaps, int(irregular)),
        )
        self.piece = None if gaps or irregular else _Piece(chunk.first, chunk.segment, chunk.start, chunk.valid_end)

    def save(self, db: sqlite3.Connection) -> None:
        """Store the position, in the transaction that stored what was taken."""
        tail = self.tail
        db.execute(
            "UPDATE writers SET segment=?, offset=?, sequence=?, chain=?, complete=?, closed=?, role=?,"
            " drops=coalesce(?, drops) WHERE id=?",
            (
                tail.segment,
                tail.offset,
                tail.sequence,
                self.chain,
                int(self.complete),
                int(self.closed),
                self.role,
                self.drops,
                self.writer,
            ),
        )

    @property
    def complete(self) -> bool:
        """Nothing more can come: the close record was read, or the dead writer's last byte."""
        return self.closed or self.tail.complete
