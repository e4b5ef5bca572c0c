"""Runs as the dialect shows them: one, a page of many, and how many there are of each status."""

# ruff: noqa: S608 - queries are made of our own text; what users send is bound
from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection
from typing import Any

from simspool.spool import runstate
from simspool.spool.records import FINAL_STATUSES, STATUSES

from . import access, documents, events, filters, runs, summaries
from .errors import Invalid
from .identity import Principal
from .listing import Page
from .times import now_us, to_text

PARTS = ("metadata", "metrics", "alerts", "system", "timing")
_SORTS = {
    "name": "t.name", "created": "t.created", "started": "t.started", "endtime": "t.ended", "modified": "t.modified",
    "status": "t.status", "folder": "t.folder", "user": "t.owner", "description": "t.description", "runtime": "t.ended - t.started",
}  # fmt: skip
_METRIC_PARTS = {"min": "min", "max": "max", "count": "count", "average": "sum / nullif(finite, 0)", "last": "json_extract(last, '$')"}


def _runtime(row: sqlite3.Row) -> str | None:
    if row["started"] is None:
        return None
    end = row["ended"] if row["ended"] is not None and row["status"] in FINAL_STATUSES else now_us()
    seconds, micros = divmod(max(end - row["started"], 0), 1_000_000)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{micros:06d}"


def _whole(value: float | None) -> float | int | None:
    return int(value) if value is not None and value == int(value) else value


def show(db: sqlite3.Connection, who: Principal, row: sqlite3.Row, parts: Collection[str] = PARTS) -> dict[str, Any]:
    """Return a run with some of its parts (see PARTS)."""
    run = row["id"]
    state = json.loads(row["state"])
    starred = db.execute("SELECT 1 FROM stars WHERE user = ? AND kind = 'run' AND id = ?", (who.user, run)).fetchone()
    out: dict[str, Any] = {
        "id": run, "name": row["name"], "status": row["status"], "reason": runstate.reason(state), "folder": row["folder"],
        "description": row["description"],
        "tags": runstate.tags(state), "user": row["owner"], "tenant": row["tenant"], "visibility": access.shown(row),
        "created": to_text(row["created"]), "modified": to_text(row["modified"]), "starred": starred is not None,
        "ttl": _whole(row["ttl"]), "heartbeat_timeout": _whole(row["heartbeat_timeout"]),
        "notifications": {"state": row["notifications"]},
    }  # fmt: skip
    if "timing" in parts:
        out |= {"started": to_text(row["started"]), "endtime": to_text(row["ended"]), "runtime": _runtime(row)}
    if "metadata" in parts:
        out["metadata"] = runstate.metadata(state)
    if "system" in parts:
        out["system"] = runstate.value(state, "system") or {}
    if "alerts" in parts:
        out["alerts"] = _alerts(db, who, run, state)
    if "metrics" in parts:
        out["metrics"] = summaries.of_run(db, run)
        out["events"] = events.summary(db, run)
    return out


def _alerts(db: sqlite3.Connection, who: Principal, run: str, state: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the run's alerts; those that were drained tell since when, and why."""
    found, told = documents.run_alerts(db, who, run), runstate.alerts(state)
    for entry in found:
        known = told.get(entry["alert"]["name"], {})
        since = known.get("since")
        entry["status"] |= {"since": None if since is None else to_text(since // 1000), "reason": known.get("reason")}
    return found


def get(db: sqlite3.Connection, who: Principal, run: str) -> dict[str, Any]:
    """Return a whole run. Raises NotFound."""
    return show(db, who, runs.find(db, who, run))


def _order(condition: filters.Condition, column: str) -> str:
    if column in _SORTS:
        return _SORTS[column]
    if column.startswith("metadata."):
        flat = condition.bind(filters.json_path([column[9:]]))
        nested = condition.bind(filters.json_path(column[9:].split(".")))
        return f"coalesce(json_extract(t.metadata, {flat}), json_extract(t.metadata, {nested}))"
    if column.startswith("metrics."):
        name, _, part = column[8:].rpartition(".")
        if part not in _METRIC_PARTS:
            name, part = column[8:], "last"
        return f"(SELECT {_METRIC_PARTS[part]} FROM summaries WHERE run = t.id AND metric = {condition.bind(name)})"
    raise Invalid(f"sorting: {column[:80]!r} is not one of {', '.join(sorted(_SORTS))}, metadata.<key>, metrics.<name>")


def list_page(
    db: sqlite3.Connection, who: Principal, page: Page, parts: Collection[str], attributes: Collection[str] | None = None
) -> tuple[list[dict[str, Any]], int]:
    """Return a page of the runs that the user may see, newest first, and how many match. Raises Invalid."""
    condition = filters.compile_filters(page.filters, who, "runs")
    where = f"{access.visible('t')} AND {condition.sql}"
    total = db.execute(f"SELECT count(*) FROM runs t WHERE {where}", {**condition.values, **access.parameters(who)}).fetchone()[0]
    order = [f"{_order(condition, column)} {'DESC' if desc else 'ASC'}" for column, desc in page.sorting]
    rows = db.execute(
        f"SELECT t.* FROM runs t WHERE {where} ORDER BY {', '.join([*order, 't.created DESC', 't.id DESC'])}"
        " LIMIT :limit OFFSET :start",
        {**condition.values, **access.parameters(who), "limit": page.limit, "start": page.start},
    )
    shown = [show(db, who, row, parts) for row in rows]
    if attributes is not None:
        shown = [{k: v for k, v in run.items() if k in attributes or k == "id"} for run in shown]
    return shown, int(total)


def statistics(db: sqlite3.Connection, who: Principal) -> dict[str, Any]:
    """Return how many runs of each status the user owns, how many points they hold, and how many bytes the user's files have."""
    counts = dict.fromkeys(STATUSES, 0) | dict(
        db.execute("SELECT status, count(*) FROM runs WHERE owner = ? GROUP BY status", (who.user,)).fetchall()
    )
    size = db.execute(
        "SELECT coalesce(sum(b.size), 0) FROM blob_owners o JOIN blobs b ON b.digest = o.digest WHERE o.owner = ?", (who.user,)
    ).fetchone()[0]
    points = db.execute(
        "SELECT coalesce(sum(s.count), 0) FROM summaries s JOIN runs r ON r.id = s.run WHERE r.owner = ?", (who.user,)
    ).fetchone()[0]
    return {"runs": {**counts, "data": size, "points": points}}


def gaps(db: sqlite3.Connection, who: Principal, run: str) -> list[dict[str, Any]]:
    """Return which records of a run were declared as gone, and why. Raises NotFound."""
    runs.find(db, who, run)
    rows = db.execute("SELECT writer, first, last, reason FROM gaps WHERE run = ? ORDER BY writer, first", (run,))
    return [dict(row) for row in rows]
