"""Counting what was recorded: read again from the segments, record by record, and not from the catalog.

A tally is the view of one target: which records it has acknowledged, and which of those it refused. What is between the acknowledged and
all that is there now may be on the target or not: the agent may be sending it in this moment.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from simspool.agent.scrub import is_dead
from simspool.spool import Kind, NewerFormat, Spool, Tail, ids
from simspool.spool.frames import BOOT, HAS_TIME, HAS_TIMESTAMP, SEQ, STEP, MetricBatch, Record
from simspool.spool.reader import Chunk

TIES = 64
"""So many points with one key are too many to say which is the first."""
Edge = tuple[int, Any]  # step and value
Row = tuple[int, int, int, int, Sequence[Any]]  # sequence, wall ns, step, user's time µs, values


@dataclass(slots=True)
class Ends:
    """The first and last points of a metric in one order. Those with the same key all count; with too many of them none does."""

    low: Any = None
    high: Any = None
    firsts: list[Edge] = field(default_factory=list)
    lasts: list[Edge] = field(default_factory=list)

    def see(self, key: Any, edge: Edge) -> None:
        """Take in a point."""
        if self.low is None or key <= self.low:
            self.firsts = [*self.firsts[-TIES:], edge] if key == self.low else [edge]
            self.low = key
        if self.high is None or key >= self.high:
            self.lasts = [*self.lasts[-TIES:], edge] if key == self.high else [edge]
            self.high = key


@dataclass(slots=True)
class Metric:
    """A metric's points: `least` were acknowledged, `most` are there. `ends` are those of all, by wall time, step, and the user's time."""

    least: int = 0
    most: int = 0
    ends: tuple[Ends, Ends, Ends] = field(default_factory=lambda: (Ends(), Ends(), Ends()))


@dataclass(slots=True)
class Kept:
    """A file's name as recorded, when, its digest, and whether the record that names it was acknowledged."""

    wall: int
    digest: str
    size: int
    key: str
    acknowledged: bool


@dataclass(slots=True)
class Tally:
    """`marks`: writer -> last acknowledged sequence; `without`: writer -> sequences that were refused or given up."""

    marks: Mapping[str, int]
    without: Mapping[str, frozenset[int]]
    orders: bool = False
    metrics: dict[str, Metric] = field(default_factory=dict)
    events: Metric = field(default_factory=Metric)
    files: dict[str, list[Kept]] = field(default_factory=dict)
    least: int = 0
    most: int = 0

    def points(self, writer: str, names: Sequence[str], rows: Sequence[Row]) -> None:
        """Count points of one writer, in their order."""
        refused, mark = self.without.get(writer, frozenset()), self.marks.get(writer, 0)
        if refused:
            rows = [row for row in rows if row[0] not in refused]
        if not rows:
            return
        least = len(rows) if rows[-1][0] <= mark else sum(row[0] <= mark for row in rows)
        by_step, by_time = (_outermost(rows, *places) for places in ((2, 3), (3, 2))) if self.orders else ([], [])
        for i, name in enumerate(names):
            metric = self.metrics.setdefault(name, Metric())
            metric.least += least
            metric.most += len(rows)
            wall, step, given = metric.ends
            for row in (rows[0], rows[-1]):
                wall.see(row[1], (row[2], row[4][i]))
            for row in by_step:
                step.see((row[2], row[3]), (row[2], row[4][i]))
            for row in by_time:
                given.see((row[3], row[2]), (row[2], row[4][i]))

    def record(self, writer: str, record: Record, wall: int) -> None:
        """Count a record that is no point."""
        if record.seq in self.without.get(writer, ()):
            return
        body, acknowledged = record.body or {}, record.seq <= self.marks.get(writer, 0)
        if record.kind == Kind.EVENT and isinstance(body.get("message"), str):
            self.events.least += acknowledged
            self.events.most += 1
        elif record.kind == Kind.ARTIFACT and isinstance(body.get("name"), str) and ids.is_digest(body.get("digest")):
            size = body.get("size")
            kept = Kept(wall, body["digest"], size if isinstance(size, int) else 0, f"{writer}.{record.seq}", acknowledged)
            self.files.setdefault(body["name"], []).append(kept)


def count(spool: Spool, run: str, tallies: Sequence[Tally], progress: Callable[[int], None] = lambda _: None) -> list[str]:
    """Read a run's segments once, for all these tallies. Returns what could not be read. `progress` hears of bytes."""
    problems: list[str] = []
    folder = spool.run(run)
    for writer in folder.writer_ids():
        path = folder.writer(writer)
        try:
            with Tail(path, run) as tail:
                for chunk in tail.read(dead=is_dead(path, run)):
                    _take(writer, chunk, tallies)
                    progress(chunk.end - chunk.start)
                    if chunk.items and isinstance(last := chunk.items[-1], Record) and last.kind == Kind.CLOSE:
                        break  # whatever follows is not the writer's
        except (NewerFormat, OSError) as error:
            problems.append(f"{os.path.basename(path)}: {error}")
    return problems


def _take(writer: str, chunk: Chunk, tallies: Sequence[Tally]) -> None:
    header = chunk.header
    for item in chunk.items:
        first, last = item.first, item.last
        for tally in tallies:
            tally.least += max(0, min(last, tally.marks.get(writer, 0)) - first + 1)
            tally.most += last - first + 1
        if isinstance(item, MetricBatch):
            rows = _rows(item, header.wall_ns)
            for tally in tallies:
                tally.points(writer, item.shape.names, rows)
            continue
        wall, body = header.wall_ns(item.boot_ns), item.body or {}
        values = body.get("values")
        if item.kind in {Kind.METRICS_JSON, Kind.RESOURCES_JSON} and isinstance(values, dict):
            step, stamp = body.get("step", 0), body.get("timestamp")
            row = (item.seq, wall, step, stamp if isinstance(stamp, int) else wall // 1000, list(values.values()))
            for tally in tallies:
                tally.points(writer, list(values), [row])
            continue
        for tally in tallies:
            tally.record(writer, item, wall)


def _outermost(rows: Sequence[Row], place: int, then: int) -> list[Row]:
    """Return the first and the last rows in the order of two of their fields, with all that have the same."""
    keys = [(row[place], row[then]) for row in rows]
    ends = {min(keys), max(keys)}
    return [row for row, key in zip(rows, keys, strict=True) if key in ends]


def _rows(item: MetricBatch, wall_ns: Callable[[int], int]) -> list[Row]:
    at, stamp_at = item.values_at, 5 + (item.flags & HAS_TIME)
    stamped = bool(item.flags & HAS_TIMESTAMP)
    return [
        (row[SEQ], wall := wall_ns(row[BOOT]), row[STEP], row[stamp_at] if stamped else wall // 1000, row[at:-1]) for row in item.rows
    ]
