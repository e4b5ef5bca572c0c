"""Runs: the fold of their records (spool's runstate), and the columns that lists, filters and sorting use.

Both faces go through `fold`: drained records with their own writer, and what the dialect's calls say with a writer that the server
keeps for the run. A run that was made by the dialect lives on heartbeats and may become `lost`; a drained one speaks for itself.
"""

# ruff: noqa: S608 - queries are made of our own text; what users send is bound
from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Mapping
from typing import Any

from simspool.spool import ids, runstate
from simspool.spool.records import FINAL_STATUSES, Kind

from . import abort_flags, access, artifacts, documents, plain, points
from .errors import Conflict, Invalid
from .identity import Principal
from .names import new_name
from .times import from_text, now_us

REST, DRAIN = "rest", "drain"
Change = tuple[str, int, int, int, Mapping[str, Any] | None]  # writer, sequence, kind, wall ns, body
_FIELDS = {
    "name": "name", "description": "description", "folder": "folder", "visibility": "visibility", "ttl": "retention",
    "heartbeat_timeout": "timeout", "system": "system", "notifications": "notification",
}  # fmt: skip


def find(db: sqlite3.Connection, who: Principal, run: str, *, write: bool = False) -> sqlite3.Row:
    """Return the row of a run that the user may see (or, with `write`, change). Raises NotFound and Forbidden."""
    row = db.execute("SELECT * FROM runs WHERE id = ?", (run,)).fetchone()
    return access.require(row, who, f"run {run[:64]!r}", write=write)


def fold(db: sqlite3.Connection, who: Principal, run: str, origin: str, changes: Iterable[Change]) -> None:
    """Fold records into a run, made when it is not there, and bring its columns up to date. The caller has checked the owner."""
    row = db.execute("SELECT state, status, ended, started, origin FROM runs WHERE id = ?", (run,)).fetchone()
    state = runstate.empty() if row is None else json.loads(row["state"])
    before = None if row is None else row["status"]
    for writer, seq, kind, wall, body in changes:
        runstate.apply(state, writer, seq, kind, wall, body)
    columns = _columns(state)
    if row is not None and row["origin"] == REST:
        columns["started"], columns["ended"] = row["started"], row["ended"]
    if row is None or row["origin"] == REST:
        now = now_us()
        if columns["status"] != "created" and columns["started"] is None:
            columns["started"] = now
        if columns["status"] not in FINAL_STATUSES:
            columns["ended"] = None
        elif before != columns["status"] or columns["ended"] is None:
            columns["ended"] = columns["ended"] if row is None and columns["ended"] else now
    visibility = _visibility(runstate.value(state, "visibility"))
    columns |= {
        "state": json.dumps(state, separators=(",", ":")), "modified": now_us(), "public": int(visibility["public"]),
        "tenant_visible": int(visibility["tenant"]), "users": json.dumps(visibility["users"]),
    }  # fmt: skip
    if row is None:
        columns |= {
            "id": run, "owner": who.user, "tenant": who.tenant, "origin": origin, "swept": 0,
            "created": _created(state) or now_us(), "heartbeat": now_us(),
        }  # fmt: skip
        columns["name"] = columns["name"] or new_name(run)
        names = ", ".join(columns)
        places = ", ".join(f":{c}" for c in columns)
        db.execute(f"INSERT INTO runs ({names}) VALUES ({places})", columns)
    else:
        columns["name"] = columns["name"] or new_name(run)
        if origin == DRAIN and (created := _created(state)) is not None:
            columns["created"] = created
        changed = ", ".join(f"{c} = :{c}" for c in columns)
        db.execute(f"UPDATE runs SET {changed} WHERE id = :id", {**columns, "id": run})
    documents.ensure_folder(db, who, columns["folder"])


def _created(state: Mapping[str, Any]) -> int | None:
    """Return when a run was created (µs): as its creator says, else when its first writer opened."""
    try:
        return from_text(runstate.value(state, "created"))
    except Invalid:
        started = runstate.started(state)
        return None if started is None else started // 1000


def _visibility(value: object) -> dict[str, Any]:
    try:
        return access.normalise(value)
    except Invalid:  # a drained record's odd visibility: nobody but the owner
        return access.normalise(None)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15 else None


def _columns(state: Mapping[str, Any]) -> dict[str, Any]:
    started, finished, status = runstate.started(state), runstate.finished(state), runstate.status(state)
    explicit = state.get("status")
    if finished is None and status in FINAL_STATUSES and explicit:
        finished = explicit[2][0]
    name, folder = runstate.value(state, "name"), runstate.value(state, "folder")
    description, system = runstate.value(state, "description"), runstate.value(state, "system")
    return {
        "name": plain.text(name) if name else None,
        "folder": plain.text(folder) if isinstance(folder, str) and folder.startswith("/") else "/",
        "status": status,
        "description": None if description is None else plain.text(description),
        "started": None if started is None or status == "created" else started // 1000,
        "ended": finished // 1000 if finished is not None and status in FINAL_STATUSES else None,
        "heartbeat_timeout": _number(runstate.value(state, "timeout")),
        "ttl": _number(runstate.value(state, "retention")),
        "tags": plain.dumps(runstate.tags(state)),
        "metadata": plain.dumps(runstate.metadata(state)),
        "system": plain.dumps(system if isinstance(system, dict) else {}),
        "notifications": plain.text(runstate.value(state, "notification") or "none"),
    }


def own_writer(db: sqlite3.Connection, run: str, owner: str) -> tuple[str, int]:
    """Return the server's own writer of a run and its next sequence, which is taken by this call."""
    row = db.execute("SELECT id, mark FROM writers WHERE run = ? AND chain IS NULL", (run,)).fetchone()
    if row is None:
        writer = ids.to_text(ids.new_id())
        db.execute("INSERT INTO writers VALUES (?, ?, ?, 1, NULL)", (writer, run, owner))
        return writer, 1
    db.execute("UPDATE writers SET mark = mark + 1 WHERE id = ?", (row["id"],))
    return str(row["id"]), int(row["mark"]) + 1


def _as_changes(db: sqlite3.Connection, who: Principal, run: str, body: Mapping[str, Any]) -> list[Change]:
    out: list[Change] = []

    def add(kind: int, record: dict[str, Any]) -> None:
        writer, seq = own_writer(db, run, who.user)
        out.append((writer, seq, kind, time.time_ns(), record))

    fields = {_FIELDS[k]: v for k, v in body.items() if k in _FIELDS}
    if isinstance(fields.get("notification"), dict):
        fields["notification"] = fields["notification"].get("state")
    if fields:
        add(Kind.CONFIG, {"fields": fields})
    if body.get("metadata"):
        add(Kind.METADATA, {"set": body["metadata"]})
    if body.get("tags") is not None:
        add(Kind.TAGS, {"op": "set", "tags": body["tags"]})
    if body.get("status"):
        add(Kind.STATUS, {"status": body["status"]})
    return out


def create(db: sqlite3.Connection, who: Principal, body: Mapping[str, Any]) -> dict[str, str]:
    """Create a run from the dialect's body; return its id and name. Raises NotFound for an alert that the user cannot see."""
    run = ids.to_text(ids.new_id())
    record: dict[str, Any] = {_FIELDS[k]: v for k, v in body.items() if k in _FIELDS}
    if isinstance(record.get("notification"), dict):
        record["notification"] = record["notification"].get("state")
    record |= {"name": body.get("name") or new_name(run), "status": body.get("status") or "created"}
    record |= {"metadata": body.get("metadata") or {}, "tags": body.get("tags") or []}
    writer, seq = own_writer(db, run, who.user)
    fold(db, who, run, REST, [(writer, seq, Kind.RUN, time.time_ns(), record)])
    _set_times(db, run, body)
    if body.get("alerts"):
        documents.attach_alerts(db, who, run, body["alerts"])
    return {"id": run, "name": str(record["name"])}


def _set_times(db: sqlite3.Connection, run: str, body: Mapping[str, Any]) -> None:
    for key, column in (("started", "started"), ("endtime", "ended"), ("created", "created")):
        if isinstance(body.get(key), int):
            db.execute(f"UPDATE runs SET {column} = ? WHERE id = ?", (body[key], run))


def update(db: sqlite3.Connection, who: Principal, run: str, body: Mapping[str, Any]) -> dict[str, str]:
    """Change a run as the dialect's body says; metadata is merged key by key. Raises NotFound and Forbidden."""
    row = find(db, who, run, write=True)
    changes = _as_changes(db, who, run, body)
    if changes:
        fold(db, who, run, row["origin"], changes)
    _set_times(db, run, body)
    if body.get("status"):
        db.execute("UPDATE runs SET swept = 0, heartbeat = ? WHERE id = ?", (now_us(), run))
    if body.get("alerts") is not None:
        documents.attach_alerts(db, who, run, body["alerts"])
    return {"id": run}


def beat(db: sqlite3.Connection, who: Principal, run: str) -> dict[str, Any]:
    """Note that a run is alive now; one that was only thought lost runs again. Raises NotFound and Forbidden."""
    row = find(db, who, run, write=True)
    db.execute("UPDATE runs SET heartbeat = ? WHERE id = ?", (now_us(), run))
    if row["swept"] and row["status"] == "lost":
        update(db, who, run, {"status": "running"})
    return {"id": run}


def sweep_lost(db: sqlite3.Connection, now: int) -> int:
    """Make runs of the dialect `lost` whose heartbeat is older than their timeout (s); return how many. `now` is in µs."""
    late = db.execute(
        "SELECT id, owner, tenant FROM runs WHERE origin = 'rest' AND status = 'running' AND heartbeat_timeout IS NOT NULL"
        " AND heartbeat + heartbeat_timeout * 1000000 < ?",
        (now,),
    ).fetchall()
    for run, owner, tenant in late:
        update(db, Principal(owner, tenant), run, {"status": "lost"})
        db.execute("UPDATE runs SET swept = 1 WHERE id = ?", (run,))
    return len(late)


def any_late(db: sqlite3.Connection, now: int) -> bool:
    """Say whether `sweep_lost` would find anything."""
    return (
        db.execute(
            "SELECT 1 FROM runs WHERE origin = 'rest' AND status = 'running' AND heartbeat_timeout IS NOT NULL"
            " AND heartbeat + heartbeat_timeout * 1000000 < ? LIMIT 1",
            (now,),
        ).fetchone()
        is not None
    )


def request_abort(db: sqlite3.Connection, who: Principal, run: str, reason: str) -> dict[str, Any]:
    """Raise a run's abort flag; while the run lives, the first reason stays. Raises NotFound and Forbidden."""
    find(db, who, run, write=True)
    abort_flags.raise_flag(db, run, reason)
    return {"id": run, "status": True}


def abort_flag(db: sqlite3.Connection, who: Principal, run: str) -> dict[str, Any]:
    """Return whether a run's abort flag is up, and why. Raises NotFound."""
    row = find(db, who, run)
    return {"status": row["abort_at"] is not None, "reason": row["abort_reason"]}


def exchange_state(db: sqlite3.Connection, who: Principal, runs: Mapping[str, int | None]) -> dict[str, dict[str, Any]]:
    """Take heartbeats (µs) of drained runs; return the flags of those of the user's runs whose abort flag is up."""
    out = {}
    for run, heartbeat in runs.items():
        row = db.execute("SELECT owner, abort_at, abort_reason, abort_writers FROM runs WHERE id = ?", (run,)).fetchone()
        if row is None or row["owner"] != who.user:
            continue
        if heartbeat is not None:
            db.execute("UPDATE runs SET heartbeat = max(coalesce(heartbeat, 0), ?) WHERE id = ?", (heartbeat, run))
        flag = abort_flags.told(row)
        if flag is not None:
            out[run] = flag
    return out


def delete(db: sqlite3.Connection, who: Principal, run: str) -> dict[str, str]:
    """Delete a run and what hangs on it alone. It stays deleted: nothing that is drained later brings it back.

    Raises NotFound and Forbidden.
    """
    find(db, who, run, write=True)
    points.forget(db, run)
    own = db.execute(
        "SELECT artifact FROM run_artifacts WHERE run = ? AND artifact NOT IN (SELECT artifact FROM run_artifacts WHERE run <> ?)",
        (run, run),
    ).fetchall()
    for table in ("events", "records", "refused", "gaps", "run_alerts", "run_artifacts", "arrays", "run_grids"):
        db.execute(f"DELETE FROM {table} WHERE run = ?", (run,))
    for (artifact,) in own:
        artifacts.delete(db, who, artifact)
    db.execute("DELETE FROM stars WHERE kind = 'run' AND id = ?", (run,))
    db.execute("DELETE FROM runs WHERE id = ?", (run,))
    db.execute("INSERT OR IGNORE INTO tombstones VALUES (?, ?)", (run, now_us()))
    return {"id": run}


def delete_folder(
    db: sqlite3.Connection, who: Principal, folder: str, *, recursive: bool, with_runs: bool, runs_only: bool
) -> dict[str, list[str]]:
    """Delete a folder, those under it (`recursive`) and their runs (`with_runs`), or the runs only; return the ids.

    Raises NotFound, Forbidden, and Conflict where the folder is not empty and the flags do not say what to do.
    """
    tree = documents.folder_tree(db, who, folder, recursive=recursive, alone=runs_only)
    paths = [path for _, path in tree]
    inside = [
        row[0]
        for row in db.execute(
            "SELECT id FROM runs WHERE owner = ? AND folder IN (SELECT value FROM json_each(?))", (who.user, json.dumps(paths))
        )
    ]
    deleted = []
    if with_runs or runs_only:
        for run in inside:
            delete(db, who, run)
            deleted.append(run)
    elif inside:
        raise Conflict(f"folder {paths[0]!r} holds {len(inside)} run(s): delete with runs=true, or move them")
    gone = []
    if not runs_only:
        for identity, _ in tree:
            documents.delete(db, who, "folder", identity)
            gone.append(identity)
    return {"folders": gone, "runs": deleted}
