"""Applying drained ranges: rows, high-water mark and chain in one transaction. This is what makes the effect exactly-once.

The rules (docs/drain-protocol.md): records at or below the mark are skipped; a range beyond mark + 1 is not accepted; where a range
overlaps or meets the mark, the chains must agree; writers belong to the owner of the token that first sent them.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from simspool.spool import records as spool_records
from simspool.spool import runstate
from simspool.spool.frames import Record
from simspool.spool.records import Kind

from . import artifacts, documents, events, plain, points, runs
from .errors import Invalid, Refused
from .identity import Principal
from .ranges import Part, PreparedRange, json_points
from .times import from_text, now_us

_JSON_METRICS = frozenset({Kind.METRICS_JSON, Kind.RESOURCES_JSON})
_KNOWN_JSON = 128  # kinds from here on are users' own and are kept as they are

Verdict = dict[str, Any]


@dataclass(slots=True)
class _Rows:
    """What a range adds, gathered before it is written."""

    points: list[points.PointBatch] = field(default_factory=list)
    events: list[tuple[int, int, int, str | None, str]] = field(default_factory=list)
    changes: list[runs.Change] = field(default_factory=list)
    others: list[tuple[Record, int]] = field(default_factory=list)
    gaps: list[Part] = field(default_factory=list)
    refused: list[tuple[int, str, int]] = field(default_factory=list)  # sequence, reason, checksum


def refuse(writer: object, reason: str, mark: int = 0, chain: int = 0, detail: str = "") -> Verdict:
    """Return a permanent verdict."""
    out: Verdict = {"verdict": "permanent", "writer": writer, "mark": mark, "chain": chain, "reason": reason}
    return out | {"detail": detail} if detail else out


def apply_ranges(db: sqlite3.Connection, who: Principal, prepared: Sequence[PreparedRange | Verdict]) -> list[Verdict]:
    """Apply the ranges of one request in order; return a verdict each. Only `accepted` ones change anything.

    Entries that are verdicts already (malformed ranges) are given back with the writer's mark.
    """
    out = []
    for entry in prepared:
        if isinstance(entry, dict):
            row = db.execute("SELECT mark, chain, owner FROM writers WHERE id = ?", (str(entry["writer"]),)).fetchone()
            known = {"mark": row["mark"], "chain": row["chain"] or 0} if row is not None and row["owner"] == who.user else {}
            out.append(entry | known)
            continue
        db.execute("SAVEPOINT range")
        try:
            verdict = _apply(db, who, entry)
        except BaseException:
            db.execute("ROLLBACK TO range")
            db.execute("RELEASE range")
            raise
        db.execute("RELEASE range")
        out.append(verdict)
    return out


def _apply(db: sqlite3.Connection, who: Principal, entry: PreparedRange) -> Verdict:
    writer, run = entry.writer, entry.run
    known = db.execute("SELECT run, owner, mark, chain FROM writers WHERE id = ?", (writer,)).fetchone()
    owned = db.execute("SELECT owner FROM runs WHERE id = ?", (run,)).fetchone()
    if (known is not None and (known["owner"] != who.user or known["run"] != run or known["chain"] is None)) or (
        owned is not None and owned["owner"] != who.user
    ):
        return refuse(writer, "forbidden", detail="the run or the writer belongs to another user")
    mark, chain = (0, 0) if known is None else (known["mark"], known["chain"])
    if db.execute("SELECT 1 FROM tombstones WHERE run = ?", (run,)).fetchone() is not None:
        return refuse(writer, "forbidden", mark, chain, "the run was deleted on the server")
    if entry.again:
        return _again(db, who, entry, mark, chain)
    if entry.first > mark + 1:
        return {"verdict": "retry", "writer": writer, "mark": mark, "chain": chain, "reason": "gap"}
    done: Verdict = {"verdict": "accepted", "writer": writer, "mark": mark, "chain": chain, "refused": []}
    if entry.last < mark:
        return done
    running, rows = entry.chain, _Rows()
    if entry.first == mark + 1 and running != chain:
        return refuse(writer, "conflict", mark, chain)
    for part in entry.parts:
        if part.first <= mark <= part.last and part.extend(running, mark) != chain:
            return refuse(writer, "conflict", mark, chain)
        running = part.extend(running)
        if part.last > mark:
            _gather(rows, entry, part, mark)
    if entry.last == mark:
        return done
    _store(db, who, entry, rows)
    db.execute(
        "INSERT INTO writers VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET mark = excluded.mark, chain = excluded.chain",
        (writer, run, who.user, entry.last, running),
    )
    db.executemany(
        "INSERT OR REPLACE INTO refused (writer, seq, run, crc, reason) VALUES (?, ?, ?, ?, ?)",
        [(writer, seq, run, crc, plain.text(reason)) for seq, reason, crc in rows.refused],
    )
    return {**done, "mark": entry.last, "chain": running, "refused": [[seq, reason] for seq, reason, _ in rows.refused]}


def _again(db: sqlite3.Connection, who: Principal, entry: PreparedRange, mark: int, chain: int) -> Verdict:
    """Take records below the mark that were refused before. The list of those is this server's own, so each is taken once."""
    if entry.last > mark:
        return {"verdict": "retry", "writer": entry.writer, "mark": mark, "chain": chain, "reason": "gap"}
    span = (entry.writer, entry.first, entry.last)
    known = dict(db.execute("SELECT seq, crc FROM refused WHERE writer = ? AND seq BETWEEN ? AND ?", span).fetchall())
    rows = _Rows()
    tried = []
    for part in entry.parts:
        if part.record is None or part.first not in known:
            continue
        if known[part.first] != part.record.crc:
            return refuse(entry.writer, "conflict", mark, chain)
        db.execute("DELETE FROM records WHERE run = ? AND writer = ? AND seq = ?", (entry.run, entry.writer, part.first))
        tried.append(part.first)
        _gather(rows, entry, part, part.first - 1)
    _store(db, who, entry, rows)
    left = {seq: reason for seq, reason, _ in rows.refused}
    db.executemany(
        "UPDATE refused SET reason = ? WHERE writer = ? AND seq = ?", [(plain.text(why), entry.writer, seq) for seq, why in left.items()]
    )
    taken = [seq for seq in tried if seq not in left]
    db.executemany("DELETE FROM refused WHERE writer = ? AND seq = ?", [(entry.writer, seq) for seq in taken])
    out: Verdict = {"verdict": "accepted", "writer": entry.writer, "mark": mark, "chain": chain, "taken": taken}
    return out | {"refused": [[seq, reason] for seq, reason in left.items()]}


def _gather(rows: _Rows, entry: PreparedRange, part: Part, mark: int) -> None:
    if part.reason is not None:
        rows.gaps.append(Part(max(part.first, mark + 1), part.last, reason=part.reason))
        return
    if part.points is not None:
        _add_points(rows, part.points.since(mark) if part.first <= mark else part.points)
        return
    record = part.record
    assert record is not None
    wall = part.wall
    try:
        if not -(1 << 63) <= wall < 1 << 63:
            raise ValueError("its wall time is out of range")
        if record.body is None and record.kind < _KNOWN_JSON and record.kind in _ALL_KINDS:
            raise ValueError("its body is not a JSON object")
        if record.kind in _JSON_METRICS:
            _add_points(rows, json_points(record, wall, part.seconds))
        elif record.kind == Kind.EVENT:
            rows.events.append(_event(record, wall))
        else:
            if record.kind in runstate.FOLDED_KINDS:
                rows.changes.append((entry.writer, record.seq, record.kind, wall, record.body))
            rows.others.append((record, wall))
    except ValueError as error:
        rows.refused.append((record.seq, str(error), record.crc))


_ALL_KINDS = frozenset(int(k) for k in Kind)


def _add_points(rows: _Rows, batch: points.PointBatch) -> None:
    last = rows.points[-1] if rows.points else None
    if (
        last is not None
        and last.names == batch.names
        and last.types == batch.types
        and (last.stamps is None) == (batch.stamps is None)
    ):
        last.seqs += batch.seqs
        last.walls += batch.walls
        last.steps += batch.steps
        last.times += batch.times
        if last.stamps is not None:
            last.stamps += batch.stamps or []
        for into, column in zip(last.values, batch.values, strict=True):
            into.extend(column)
    else:
        rows.points.append(batch)


def _event(record: Record, wall: int) -> tuple[int, int, int, str | None, str]:
    body = record.body or {}
    message, level, stamp = body.get("message"), body.get("level"), body.get("timestamp")
    if not isinstance(message, str):
        raise ValueError("an event needs a message")  # noqa: TRY004 - a refused record, whatever is odd about it
    at = wall // 1000
    if isinstance(stamp, int) and not isinstance(stamp, bool) and abs(stamp) < 1 << 62:
        at = stamp
    elif isinstance(stamp, str):
        try:
            at = from_text(stamp)
        except Invalid:  # text that is no time: the record's own time orders it
            at = wall // 1000
    return record.seq, wall, at, plain.text(level) if isinstance(level, str) else None, plain.text(message)


def _store(db: sqlite3.Connection, who: Principal, entry: PreparedRange, rows: _Rows) -> None:
    run, writer = entry.run, entry.writer
    if rows.changes or db.execute("SELECT 1 FROM runs WHERE id = ?", (run,)).fetchone() is None:
        runs.fold(db, who, run, runs.DRAIN, rows.changes)
    else:
        db.execute("UPDATE runs SET modified = ? WHERE id = ?", (now_us(), run))
    points.append(db, run, writer, rows.points)
    events.append(db, run, writer, rows.events)
    for record, wall in rows.others:
        body = record.raw if record.body is None else spool_records.encode(record.body)
        db.execute(
            "INSERT INTO records (run, writer, seq, kind, wall, body) VALUES (?, ?, ?, ?, ?, ?)",
            (run, writer, record.seq, record.kind, wall, body),
        )
        try:
            _mirror(db, who, entry, record, wall)
        except (ValueError, Refused) as error:
            rows.refused.append((record.seq, str(error), record.crc))
    rows.refused.sort()
    db.executemany(
        "INSERT INTO gaps (run, writer, first, last, reason) VALUES (?, ?, ?, ?, ?)",
        [(run, writer, gap.first, gap.last, plain.text(gap.reason)) for gap in rows.gaps],
    )


def _mirror(db: sqlite3.Connection, who: Principal, entry: PreparedRange, record: Record, wall: int) -> None:
    """Bring what the dialect shows as objects of their own up to date: artifacts, folders, alerts."""
    body = record.body
    if body is None:
        return
    if record.kind == Kind.ARTIFACT:
        artifacts.drained(db, who, entry.run, entry.writer, record.seq, wall // 1000, body)
    elif record.kind == Kind.FOLDER:
        path = body.get("path")
        if not isinstance(path, str) or not path.startswith("/"):
            raise ValueError("a folder record needs a path that begins with /")
        folder = documents.ensure_folder(db, who, plain.text(path))
        details = {k: body[k] for k in ("metadata", "tags", "description") if body.get(k) is not None}
        if isinstance(details.get("metadata"), dict):
            details["metadata"] = documents.get(db, who, "folder", folder)["metadata"] | details["metadata"]
        if details:
            documents.update(db, who, "folder", folder, json.loads(plain.dumps(details)))
    elif record.kind in {Kind.ALERT, Kind.ALERT_STATE}:
        _mirror_alert(db, who, entry.run, record.kind, body)


def _mirror_alert(db: sqlite3.Connection, who: Principal, run: str, kind: int, body: dict[str, Any]) -> None:
    name = next((v for v in (body.get("name"), body.get("alert")) if isinstance(v, str)), None)
    if not name:
        raise ValueError("an alert record needs a name")
    name = plain.text(name)
    if kind == Kind.ALERT:
        definition = json.loads(plain.dumps({k: v for k, v in body.items() if k not in {"id", "status", "state", "since", "by"}}))
        alert, _ = documents.create(db, who, "alert", definition | {"name": name}, deduplicate=True)
        db.execute("INSERT OR IGNORE INTO run_alerts VALUES (?, ?, NULL, ?)", (run, alert, now_us()))
        return
    found = db.execute(
        "SELECT d.id FROM run_alerts ra JOIN documents d ON d.id = ra.alert WHERE ra.run = ? AND (d.name = ? OR d.id = ?)",
        (run, name, name),
    ).fetchone()
    if found is None:
        alert, _ = documents.create(db, who, "alert", {"name": name, "source": "user"}, deduplicate=True)
    else:
        alert = found["id"]
    state = body.get("status") or body.get("state")
    shown = {"firing": "critical", "critical": "critical"}.get(str(state), "ok")
    documents.store_alert_status(db, alert, run, shown)


def marks(db: sqlite3.Connection, who: Principal, writers: Sequence[str]) -> dict[str, list[int]]:
    """Return {writer: [mark, chain]} of those of the writers that are this user's."""
    rows = db.execute(
        "SELECT id, mark, chain FROM writers WHERE owner = ? AND chain IS NOT NULL AND id IN (SELECT value FROM json_each(?))",
        (who.user, json.dumps(list(writers))),
    )
    return {row["id"]: [row["mark"], row["chain"]] for row in rows}
