"""What was shed, in the catalog: the index of the journal's SHED records, and what they mean for each server."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from simspool.agent.catalog import Catalog
from simspool.spool import frames

WHOLE = 0
"""The segment number of a span that is all a writer had: its run went."""

PART = 500  # files in one record of the journal


@dataclass(frozen=True, slots=True)
class Span:
    """A writer's records that are shed: all of one segment, or of all segments. `marks`: what servers had of the writer, by server."""

    writer: str
    segment: int
    first: int
    last: int
    bytes: int
    marks: Mapping[str, int] = field(default_factory=dict)

    def lost_to(self, servers: Collection[str]) -> tuple[int, int]:
        """Return the first and last record that one of the servers did not have; the first is beyond the last where all had all."""
        had = min((self.marks.get(server, 0) for server in servers), default=0)
        return max(self.first, had + 1), self.last


@dataclass(frozen=True, slots=True)
class ShedFile:
    """A blob that is shed, and the writers whose records name it."""

    digest: str
    size: int
    writers: tuple[str, ...]


def bodies(
    run: str, at: float, spans: Sequence[Span], files: Sequence[ShedFile], writers: Mapping[str, Sequence[Any]] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the journal's records of one shedding, each in a frame's size.

    With `writers` ({writer: [header in hex, role]}) the whole run goes: what is needed to tell servers so later.
    """
    for i in range(0, max(len(spans), len(files), 1), PART):
        body: dict[str, Any] = {"shed": run, "at": at}
        part = spans[i : i + PART]
        body["spans"] = [[s.writer, s.segment, s.first, s.last, s.bytes, dict(s.marks)] for s in part]
        body["files"] = [[f.digest, f.size, list(f.writers)] for f in files[i : i + PART]]
        if writers is not None:
            body["writers"] = {s.writer: list(writers[s.writer]) for s in part}
        yield body


def had(run: str, writer: str, server: str, spans: Iterable[tuple[int, int]]) -> dict[str, Any]:
    """Return the journal's record that a server turned out to have had these spans (first, last) of a writer before they were shed."""
    return {"shed": run, "had": [writer, server, [list(span) for span in spans]]}


def rewound(run: str, writer: str, server: str, mark: int) -> dict[str, Any]:
    """Return the journal's record that a server has no more of a writer than up to a mark, what was shed included."""
    return {"shed": run, "rewound": [writer, server, mark]}


def _correct(db: sqlite3.Connection, body: Mapping[str, Any]) -> None:
    writer, server, found = body.get("had") or body["rewound"]
    rows = db.execute('SELECT segment, "first", "last", marks FROM shed WHERE writer = ?', (writer,)).fetchall()
    for segment, first, last, text in rows:
        marks = json.loads(text)
        is_had = "had" in body
        upto = max((min(b, last) for a, b in found if a <= first <= b), default=0) if is_had else min(marks.pop(server, 0), found)
        if upto >= first:
            marks[server] = upto
        db.execute("UPDATE shed SET marks = ? WHERE writer = ? AND segment = ?", (json.dumps(marks), writer, segment))


def index(db: sqlite3.Connection, body: Mapping[str, Any]) -> None:
    """Put one SHED record (or what a checkpoint says of one) into the catalog. Repeating it is harmless."""
    run = body["shed"]
    if "had" in body or "rewound" in body:
        _correct(db, body)
        return
    at = body["at"]
    db.executemany(
        'INSERT OR IGNORE INTO shed(writer, segment, "first", "last", run, bytes, marks, at, done) VALUES (?,?,?,?,?,?,?,?,0)',
        [(w, segment, first, last, run, size, json.dumps(marks), at) for w, segment, first, last, size, marks in body["spans"]],
    )
    db.executemany(
        "INSERT OR IGNORE INTO shed_files(writer, digest, run, size, at, done) VALUES (?,?,?,?,?,0)",
        [(writer, digest, run, size, at) for digest, size, writers in body["files"] for writer in writers],
    )
    if "writers" not in body:
        return
    last = {w: last for w, _, _, last, _, _ in body["spans"]}
    known = db.execute("SELECT last FROM pruned WHERE run = ?", (run,)).fetchone()
    gone = json.dumps({**(json.loads(known[0]) if known else {}), **last})
    db.execute("INSERT OR REPLACE INTO pruned(run, at, last) VALUES (?,?,?)", (run, at, gone))
    db.execute("INSERT OR IGNORE INTO runs(id, seen, complete, status, folder) VALUES (?,0,1,'lost','/')", (run,))
    db.executemany(
        'INSERT OR IGNORE INTO writers(id, run, segment, "offset", sequence, chain, complete, closed, role, header)'
        " VALUES (?,?,0,0,?,0,1,1,?,?)",
        [(w, run, last[w] + 1, role, bytes.fromhex(header)) for w, (header, role) in body["writers"].items()],
    )


def remembered(catalog: Catalog) -> Iterator[dict[str, Any]]:
    """Yield what says all of it again, for a checkpoint of the journal."""
    runs = catalog.rows("SELECT run, max(at) FROM (SELECT run, at FROM shed UNION ALL SELECT run, at FROM shed_files) GROUP BY run")
    for run, at in runs:
        spans = spans_of(catalog, "run = ?", (run,))
        names: dict[tuple[str, int], list[str]] = {}
        for writer, digest, size in catalog.rows("SELECT writer, digest, size FROM shed_files WHERE run = ?", (run,)):
            names.setdefault((digest, size), []).append(writer)
        files = [ShedFile(digest, size, tuple(writers)) for (digest, size), writers in names.items()]
        whole = {s.writer for s in spans if s.segment == WHOLE}
        parts = [s for s in spans if s.segment != WHOLE]
        if parts or files:
            yield from bodies(run, at, parts, files)
        if whole:
            rows = catalog.rows("SELECT id, header, role FROM writers WHERE run = ?", (run,))
            headers = {w: (bytes(header or b"").hex(), role) for w, header, role in rows}
            yield from bodies(run, at, [s for s in spans if s.writer in headers and s.segment == WHOLE], [], headers)


def spans_of(catalog: Catalog, where: str = "1", values: Sequence[Any] = ()) -> list[Span]:
    """Return the spans for which an SQL condition on the table `shed` holds, in order."""
    rows = catalog.rows(
        f'SELECT writer, segment, "first", "last", bytes, marks FROM shed WHERE {where} ORDER BY writer, "first"',  # noqa: S608 - own conditions
        values,
    )
    return [Span(w, segment, first, last, size, json.loads(marks)) for w, segment, first, last, size, marks in rows]


def is_shed(writer: str, digest: str) -> str:
    """Return the SQL condition that the bytes of a writer's artifact were shed: they will never be sent."""
    return f"EXISTS (SELECT 1 FROM shed_files WHERE shed_files.writer = {writer} AND shed_files.digest = {digest})"  # noqa: S608 - names of columns


def lost_spans(spans: Iterable[Span], servers: Collection[str]) -> Iterator[tuple[str, int, int]]:
    """Yield (writer, first, last) of what one of the servers will not get, each record once, in order.

    A run of which parts were shed before it went as a whole has both spans.
    """
    upto: dict[str, int] = {}
    for writer, begin, last in sorted((s.writer, *s.lost_to(servers)) for s in spans):
        first = max(begin, upto.get(writer, 0) + 1)
        if first <= last:
            upto[writer] = last
            yield writer, first, last


def extend_over(chain: int, known_before: int, known_after: int, count: int) -> int:
    """Return the chain after `count` records, from the chain that a server has before them.

    The two known ones are those of the catalog, before and after the same records. A chain is linear, so what differs before them (a
    span that one server got and another was told of as a gap) differs after them by B^count times as much.
    """
    return (known_after + (chain - known_before) * pow(frames.CHAIN_B, count, frames.CHAIN_P)) % frames.CHAIN_P


@dataclass(frozen=True, slots=True)
class Stretch:
    """`count` records of a writer: those of one piece, or a shed span. The known chains are the catalog's, before and after them."""

    first: int
    count: int
    known: int
    known_after: int
    is_shed: bool = False
    is_whole: bool = True


_STATES = 1024


def had_spans(stretches: Sequence[Stretch], chain: int, found: int) -> list[tuple[int, int]]:
    """Return which of the shed spans a server had, by its chain `found` behind all of them; `chain` is its chain before.

    Each span it either had or was told of as a gap, and the chain tells which. Where no combination gives it (a catalog that was built
    anew does not know the records' own chain), it counts as told, but for a last one that ends in the middle: that can only be had.
    """
    states: dict[int, tuple[tuple[int, int], ...]] = {chain: ()}
    for s in stretches:
        after: dict[int, tuple[tuple[int, int], ...]] = {}
        for before, spans in states.items():
            if not s.is_shed:
                after.setdefault(extend_over(before, s.known, s.known_after, s.count), spans)
                continue
            after.setdefault(frames.extend_chain_gap(before, s.count), spans)
            if s.is_whole and len(states) < _STATES:
                after.setdefault(extend_over(before, s.known, s.known_after, s.count), (*spans, (s.first, s.first + s.count - 1)))
        states = after
    if found in states:
        return list(states[found])
    last = stretches[-1] if stretches else None
    return [(last.first, last.first + last.count - 1)] if last is not None and last.is_shed and not last.is_whole else []
