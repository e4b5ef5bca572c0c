"""Metric points: a small row buffer per run, folded into columnar chunks, with a summary row per (run, metric).

Points of one (run, metric) are read in the order (wall time, writer, sequence). Values keep their type (bool, integer of any size,
float) and every bit, NaN and infinities included. Lists and summaries never decode the past.
"""

# ruff: noqa: S608 - queries are made of our own text; what users send is bound
from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack
import zstandard

from . import columns
from .errors import Invalid
from .summaries import Summary, save
from .times import from_text

DIRECT_ROWS = 2048  # a batch of this size needs no buffer
FOLD_ROWS, FOLD_BATCHES = 4096, 64
CHUNK_ROWS = 65536
_PACKED = 512  # buffered bytes from which zstd pays
_MAX_BUFFER = 256 << 20
_AXES = 5  # sequence, wall, step, time, timestamp


@dataclass(slots=True)
class PointBatch:
    """Rows of one shape from one writer, as columns.

    `walls` are ns, `steps` integers, `times` seconds, `stamps` µs since 1970 UTC (or None: not given by the user; or text, as given).
    `types` has a letter of `columns` for each name.
    """

    names: tuple[str, ...]
    types: str
    seqs: list[int]
    walls: list[int]
    steps: list[int]
    times: list[float]
    stamps: list[Any] | None
    values: list[list[Any]]

    def since(self, seq: int) -> PointBatch:
        """Return the rows whose sequence is above `seq`. Sequences ascend."""
        at = next((i for i, s in enumerate(self.seqs) if s > seq), len(self.seqs))
        return PointBatch(
            self.names, self.types, self.seqs[at:], self.walls[at:], self.steps[at:], self.times[at:],
            None if self.stamps is None else self.stamps[at:], [c[at:] for c in self.values],
        )  # fmt: skip


@dataclass(slots=True)
class Points:
    """Points of one metric in the order (wall, writer, sequence). `stamps` are µs: the user's, else the wall time's."""

    steps: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    stamps: list[int] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)


def shape_id(names: Sequence[str], types: str) -> int:
    """Return the id of a shape: the same for the same names and types, whoever asks (so nothing must be looked up)."""
    text = json.dumps([list(names), types])
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little", signed=True)


def append(db: sqlite3.Connection, run: str, writer: str, batches: Iterable[PointBatch]) -> int:
    """Store batches of one writer; return the number of values (rows x names)."""
    seen: dict[str, Summary] = {}
    total = 0
    for batch in batches:
        rows = len(batch.seqs)
        if not rows:
            continue
        shape = shape_id(batch.names, batch.types)
        db.execute("INSERT OR IGNORE INTO shapes VALUES (?, ?, ?)", (shape, json.dumps(list(batch.names)), batch.types))
        for at in range(0, rows, CHUNK_ROWS):
            part = batch if rows <= CHUNK_ROWS else _slice(batch, at, at + CHUNK_ROWS)
            if len(part.seqs) >= DIRECT_ROWS:
                _store_chunk(db, run, writer, shape, part)
            else:
                db.execute(
                    "INSERT INTO buffer (run, writer, shape, rows, first, last, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (run, writer, shape, len(part.seqs), part.seqs[0], part.seqs[-1], _pack_rows(part)),
                )
        for name, kind, values in zip(batch.names, batch.types, batch.values, strict=True):
            summary = seen.get(name)
            if summary is None:
                summary = seen[name] = Summary()
            summary.add(kind, values, batch.steps, batch.times, batch.stamps, batch.walls)
        total += rows * len(batch.names)
    save(db, run, seen)
    return total


def _slice(batch: PointBatch, a: int, b: int) -> PointBatch:
    return PointBatch(
        batch.names, batch.types, batch.seqs[a:b], batch.walls[a:b], batch.steps[a:b], batch.times[a:b],
        None if batch.stamps is None else batch.stamps[a:b], [c[a:b] for c in batch.values],
    )  # fmt: skip


def _pack_rows(batch: PointBatch) -> bytes:
    values = [json.dumps(c) if t == "j" else c for t, c in zip(batch.types, batch.values, strict=True)]
    body = bytes(msgpack.packb([batch.seqs, batch.walls, batch.steps, batch.times, batch.stamps, *values]))
    return b"\1" + zstandard.compress(body, 1) if len(body) >= _PACKED else b"\0" + body


def _unpack_rows(blob: bytes, types: str) -> list[list[Any] | None]:
    body = blob[1:] if blob[0] == 0 else zstandard.decompress(blob[1:], max_output_size=_MAX_BUFFER)
    parts: list[Any] = msgpack.unpackb(body)
    return parts[:_AXES] + [json.loads(c) if t == "j" else c for t, c in zip(types, parts[_AXES:], strict=True)]


def _store_chunk(db: sqlite3.Connection, run: str, writer: str, shape: int, batch: PointBatch) -> None:
    stamps = batch.stamps
    if stamps is None:
        packed = columns.pack("n", [None] * len(batch.seqs))
    else:
        packed = columns.pack("q" if all(type(s) is int and columns.kind_of(s) == "q" for s in stamps) else "j", stamps)
    axes = msgpack.packb(
        [
            columns.pack("q", batch.seqs), columns.pack("q", batch.walls), columns.pack("q", batch.steps),
            columns.pack("d", batch.times), packed,
        ]
    )  # fmt: skip
    chunk = db.execute(
        "INSERT INTO chunks (run, writer, shape, rows, first, last, axes) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (run, writer, shape, len(batch.seqs), batch.seqs[0], batch.seqs[-1], axes),
    ).lastrowid
    db.executemany(
        "INSERT INTO columns (chunk, place, body) VALUES (?, ?, ?)",
        [(chunk, i, columns.pack(t, c)) for i, (t, c) in enumerate(zip(batch.types, batch.values, strict=True))],
    )


_FOLDABLE = (
    "SELECT b.run, b.writer, b.shape, s.names, s.types FROM buffer b JOIN shapes s ON s.id = b.shape JOIN runs r ON r.id = b.run"
    " GROUP BY b.run, b.shape, b.writer HAVING sum(b.rows) >= ? OR count(*) >= ? OR r.ended IS NOT NULL LIMIT ?"
)


def foldable(db: sqlite3.Connection) -> bool:
    """Say whether `fold` would do something."""
    return db.execute(_FOLDABLE, (FOLD_ROWS, FOLD_BATCHES, 1)).fetchone() is not None


def fold(db: sqlite3.Connection, limit: int = 32) -> int:
    """Fold buffered rows into chunks where there are enough of them, or the run has ended; return how many groups were folded.

    Idempotent: rows move within the caller's transaction.
    """
    groups = db.execute(_FOLDABLE, (FOLD_ROWS, FOLD_BATCHES, limit)).fetchall()
    for run, writer, shape, names, types in groups:
        found = db.execute(
            "SELECT id, body, rows FROM buffer WHERE run = ? AND shape = ? AND writer = ? ORDER BY first", (run, shape, writer)
        ).fetchall()
        taken: list[sqlite3.Row] = []
        rows = 0
        for row in found:
            if taken and rows + row["rows"] > CHUNK_ROWS:
                break
            taken.append(row)
            rows += row["rows"]
        parts = [_unpack_rows(row["body"], types) for row in taken]
        joined: list[list[Any]] = [[] for _ in range(_AXES + len(types))]
        for part in parts:
            count = len(part[0] or ())
            for into, column in zip(joined, part, strict=True):
                into.extend([None] * count if column is None else column)
        stamps = joined[4] if any(s is not None for s in joined[4]) else None
        seqs, walls, steps, times = joined[:4]
        batch = PointBatch(tuple(json.loads(names)), types, seqs, walls, steps, times, stamps, joined[_AXES:])
        _store_chunk(db, run, writer, shape, batch)
        db.executemany("DELETE FROM buffer WHERE id = ?", [(row["id"],) for row in taken])
    return len(groups)


def _places(db: sqlite3.Connection, run: str, metric: str) -> dict[int, tuple[int, str]]:
    shapes = db.execute(
        "SELECT id, names, types FROM shapes WHERE id IN"
        " (SELECT shape FROM chunks WHERE run = ? UNION SELECT shape FROM buffer WHERE run = ?)",
        (run, run),
    )
    out = {}
    for shape, names, types in shapes:
        listed = json.loads(names)
        if metric in listed:
            out[shape] = (listed.index(metric), types)
    return out


def read(db: sqlite3.Connection, run: str, metric: str) -> Points:
    """Return all points of one metric of a run."""
    rows: list[tuple[int, str, int, int, float, Any, Any]] = []
    for shape, (place, types) in _places(db, run, metric).items():
        for writer, axes, body in db.execute(
            "SELECT k.writer, k.axes, c.body FROM chunks k JOIN columns c ON c.chunk = k.id AND c.place = ?"
            " WHERE k.run = ? AND k.shape = ?",
            (place, run, shape),
        ):
            seqs, walls, steps, times, stamps = (columns.unpack(blob) for blob in msgpack.unpackb(axes))
            rows += zip(walls, [writer] * len(seqs), seqs, steps, times, stamps, columns.unpack(body), strict=True)
        for writer, body in db.execute("SELECT writer, body FROM buffer WHERE run = ? AND shape = ?", (run, shape)):
            parts = _unpack_rows(body, types)
            seqs, walls, steps, times = (part or [] for part in parts[:4])
            given = parts[4] or [None] * len(seqs)
            rows += zip(walls, [writer] * len(seqs), seqs, steps, times, given, parts[_AXES + place] or [], strict=True)
    rows.sort(key=lambda row: row[:3])
    out = Points()
    for wall, _, _, step, time, stamp, value in rows:
        out.steps.append(step)
        out.times.append(time)
        out.stamps.append(stamp if isinstance(stamp, int) else _moment(stamp, wall))
        out.values.append(value)
    return out


def forget(db: sqlite3.Connection, run: str) -> None:
    """Delete all points of a run."""
    db.execute("DELETE FROM columns WHERE chunk IN (SELECT id FROM chunks WHERE run = ?)", (run,))
    for table in ("chunks", "buffer", "summaries"):
        db.execute(f"DELETE FROM {table} WHERE run = ?", (run,))


def _moment(stamp: object, wall: int) -> int:
    """Return the µs of a time given as text; what is no time is placed by the record's own."""
    if stamp is None:
        return wall // 1000
    try:
        return from_text(stamp)
    except Invalid:
        return wall // 1000
