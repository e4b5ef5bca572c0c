"""Folders, tags, alerts, grids and storage systems: small JSON documents with an owner and a visibility.

A folder's, tag's and grid's name is unique for its owner; an alert's is not, but an equal definition is one alert on request.
"""

# ruff: noqa: S608 - queries are made of our own text; what users send is bound
from __future__ import annotations

import json
import sqlite3
from typing import Any

from simspool.spool import ids

from . import abort_flags, access, filters
from .errors import Conflict, Invalid
from .identity import Principal
from .listing import Page
from .times import now_us, to_text

KINDS = {"folder": "path", "tag": "name", "alert": "name", "grid": "name", "storage": "name"}
_UNIQUE = frozenset({"folder", "tag", "grid", "storage"})
_SORTS = {"created": "t.created", "modified": "t.modified", "name": "t.name", "path": "t.name"}
_COMPARED = ("name", "description", "notification", "enabled", "source", "abort", "alert")
_DEFAULTS: dict[str, dict[str, Any]] = {
    "folder": {"description": None, "name": None, "metadata": {}, "tags": [], "ttl": None},
    "tag": {"colour": "#808080", "description": None},
    "alert": {
        "description": None, "notification": "none", "enabled": True, "abort": False, "run_tags": [], "auto": False, "delay": 0,
    },
    "grid": {"labels": []},
    "storage": {"backend": "File", "config": {}, "is_default": False, "is_tenant_useable": True, "is_enabled": True},
}  # fmt: skip
_RESERVED = ("id", "owner", "user", "created", "modified", "visibility", "starred")


def _find(db: sqlite3.Connection, who: Principal, kind: str, name: str) -> sqlite3.Row | None:
    found: sqlite3.Row | None = db.execute(
        "SELECT * FROM documents WHERE kind = ? AND owner = ? AND name = ?", (kind, who.user, name)
    ).fetchone()
    return found


def create(
    db: sqlite3.Connection, who: Principal, kind: str, body: dict[str, Any], *, deduplicate: bool = False
) -> tuple[str, bool]:
    """Create a document; return its id and whether it is new.

    Raises Conflict (with the id of the existing one) for a folder, tag, grid or storage of the same name.
    """
    name = body[KINDS[kind]]
    visibility = access.normalise(body.get("visibility"))
    kept = _DEFAULTS[kind] | {k: v for k, v in body.items() if k not in _RESERVED}
    if kind in _UNIQUE and (found := _find(db, who, kind, name)) is not None:
        raise Conflict(f"{kind} {name!r} exists already", id=found["id"])
    if deduplicate:
        for row in db.execute(
            "SELECT id, body FROM documents WHERE kind = ? AND owner = ? AND name = ?", (kind, who.user, name)
        ):
            other = json.loads(row["body"])
            if all(other.get(k) == kept.get(k) for k in _COMPARED):
                return str(row["id"]), False
    identity, now = ids.to_text(ids.new_id()), now_us()
    db.execute(
        "INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            identity, kind, who.user, who.tenant, int(visibility["public"]), int(visibility["tenant"]),
            json.dumps(visibility["users"]), name, now, now, json.dumps(kept),
        ),
    )  # fmt: skip
    return identity, True


def ensure_folder(db: sqlite3.Connection, who: Principal, path: str) -> str:
    """Return the id of the user's folder of this path, made when it is not there."""
    found = _find(db, who, "folder", path)
    return str(found["id"]) if found is not None else create(db, who, "folder", {"path": path})[0]


def _shown(db: sqlite3.Connection, who: Principal, row: sqlite3.Row) -> dict[str, Any]:
    out: dict[str, Any] = json.loads(row["body"])
    if out.get("source") == "alerts":
        out["source"] = "user"  # what the published client can show of an alert about other alerts; `alert.when` tells ours
    starred = db.execute(
        "SELECT 1 FROM stars WHERE user = ? AND kind = ? AND id = ?", (who.user, row["kind"], row["id"])
    ).fetchone()
    out |= {
        "id": row["id"], "user": row["owner"], "created": to_text(row["created"]), "modified": to_text(row["modified"]),
        "visibility": access.shown(row), "starred": starred is not None,
    }  # fmt: skip
    return out


def _row(db: sqlite3.Connection, who: Principal, kind: str, identity: str, *, write: bool = False) -> sqlite3.Row:
    row = db.execute("SELECT * FROM documents WHERE id = ? AND kind = ?", (identity, kind)).fetchone()
    return access.require(row, who, f"{kind} {identity[:64]!r}", write=write)


def get(db: sqlite3.Connection, who: Principal, kind: str, identity: str) -> dict[str, Any]:
    """Return a document as the dialect shows it. Raises NotFound."""
    return _shown(db, who, _row(db, who, kind, identity))


def update(db: sqlite3.Connection, who: Principal, kind: str, identity: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Change some keys of a document and return it.

    Raises NotFound, Forbidden for another's, and Conflict where the new name is taken.
    """
    row = _row(db, who, kind, identity, write=True)
    body = json.loads(row["body"]) | {k: v for k, v in changes.items() if k not in _RESERVED}
    name = body[KINDS[kind]]
    if kind == "folder" and name != row["name"]:
        raise Invalid("a folder's path cannot be changed: create another and move its runs")
    if kind in _UNIQUE and name != row["name"] and (other := _find(db, who, kind, name)) is not None:
        raise Conflict(f"{kind} {name!r} exists already", id=other["id"])
    seen = access.normalise(changes["visibility"]) if "visibility" in changes else access.shown(row)
    db.execute(
        "UPDATE documents SET name = ?, body = ?, modified = ?, public = ?, tenant_visible = ?, users = ? WHERE id = ?",
        (name, json.dumps(body), now_us(), int(seen["public"]), int(seen["tenant"]), json.dumps(seen["users"]), identity),
    )
    return get(db, who, kind, identity)


def list_page(db: sqlite3.Connection, who: Principal, kind: str, page: Page) -> tuple[list[dict[str, Any]], int]:
    """Return a page of the documents that the user may see, newest first, and how many there are. Raises Invalid."""
    condition = filters.compile_filters(page.filters, who, "documents")
    order = []
    for column, descending in page.sorting:
        if column.startswith("metadata."):
            key = condition.bind(filters.json_path([column[9:]]))
            expression = f"json_extract(json_extract(t.body, '$.metadata'), {key})"
        elif column in _SORTS:
            expression = _SORTS[column]
        else:
            raise Invalid(f"sorting: {column[:80]!r} is not one of {', '.join(sorted(_SORTS))}, metadata.<key>")
        order.append(f"{expression} {'DESC' if descending else 'ASC'}")
    where = f"t.kind = :kind AND {access.visible('t')} AND {condition.sql}"
    values = {**condition.values, **access.parameters(who), "kind": kind}
    total = db.execute(f"SELECT count(*) FROM documents t WHERE {where}", values).fetchone()[0]
    rows = db.execute(
        f"SELECT t.* FROM documents t WHERE {where} ORDER BY {', '.join([*order, 't.created DESC', 't.id DESC'])}"
        " LIMIT :limit OFFSET :start",
        {**values, "limit": page.limit, "start": page.start},
    )
    return [_shown(db, who, row) for row in rows], int(total)


def delete(db: sqlite3.Connection, who: Principal, kind: str, identity: str) -> None:
    """Delete a document. Raises NotFound and Forbidden."""
    _row(db, who, kind, identity, write=True)
    db.execute("DELETE FROM documents WHERE id = ?", (identity,))
    db.execute("DELETE FROM stars WHERE kind = ? AND id = ?", (kind, identity))
    if kind == "alert":
        db.execute("DELETE FROM run_alerts WHERE alert = ?", (identity,))
    elif kind == "grid":
        db.execute("DELETE FROM run_grids WHERE grid = ?", (identity,))


def star(db: sqlite3.Connection, who: Principal, kind: str, identity: str, starred: bool) -> None:
    """Set whether the user has starred a run or a document. The caller has checked that the user may see it."""
    if starred:
        db.execute("INSERT OR IGNORE INTO stars VALUES (?, ?, ?)", (who.user, kind, identity))
    else:
        db.execute("DELETE FROM stars WHERE user = ? AND kind = ? AND id = ?", (who.user, kind, identity))


def star_document(db: sqlite3.Connection, who: Principal, kind: str, identity: str, starred: bool) -> dict[str, Any]:
    """Star or unstar a document that the user may see. Raises NotFound."""
    _row(db, who, kind, identity)
    star(db, who, kind, identity, starred)
    return {"id": identity, "starred": starred}


def set_alert_status(db: sqlite3.Connection, who: Principal, alert: str, run: str, status: str) -> dict[str, Any]:
    """Set a user alert's status for a run; a critical alert with `abort` raises the run's abort flag.

    Raises NotFound, Forbidden where the run is another's, and Invalid for an alert that is not the user's to set.
    """
    document = _row(db, who, "alert", alert)
    owned = db.execute("SELECT * FROM runs WHERE id = ?", (run,)).fetchone()
    access.require(owned, who, f"run {run[:64]!r}", write=True)
    body = json.loads(document["body"])
    if body.get("source") != "user":
        raise Invalid(f"the status of alert {body.get('name')!r} is decided by its rule: only alerts of source `user` can be set")
    store_alert_status(db, alert, run, status)
    if status == "critical" and body.get("abort"):
        abort_flags.raise_flag(db, run, f"alert {body.get('name')}")
    return {"id": alert, "run": run, "status": status}


def store_alert_status(db: sqlite3.Connection, alert: str, run: str, status: str) -> None:
    """Store an alert's status for a run. What was drained goes no further: script or agent have acted on it where it was said."""
    db.execute(
        "INSERT INTO run_alerts VALUES (?, ?, ?, ?) ON CONFLICT (run, alert) DO UPDATE SET status = excluded.status,"
        " changed = excluded.changed",
        (run, alert, status, now_us()),
    )


def alert_status(db: sqlite3.Connection, who: Principal, alert: str, run: str) -> str | None:
    """Return an alert's status for a run, None where it was never set. Raises NotFound."""
    _row(db, who, "alert", alert)
    access.require(db.execute("SELECT * FROM runs WHERE id = ?", (run,)).fetchone(), who, f"run {run[:64]!r}")
    row = db.execute("SELECT status FROM run_alerts WHERE run = ? AND alert = ?", (run, alert)).fetchone()
    return None if row is None else row["status"]


def run_alerts(db: sqlite3.Connection, who: Principal, run: str) -> list[dict[str, Any]]:
    """Return a run's alerts as `{"alert": {...}, "status": {"current": ...}}`. The caller has checked the run."""
    rows = db.execute(
        "SELECT d.*, ra.status AS run_status FROM run_alerts ra JOIN documents d ON d.id = ra.alert WHERE ra.run = ? ORDER BY d.name",
        (run,),
    )
    return [{"alert": _shown(db, who, row), "status": {"current": row["run_status"]}} for row in rows]


def attach_alerts(db: sqlite3.Connection, who: Principal, run: str, alerts: list[str]) -> None:
    """Make these the run's alerts, keeping the status of those that it has. Raises NotFound for one that the user cannot see."""
    for alert in alerts:
        _row(db, who, "alert", alert)
        db.execute("INSERT OR IGNORE INTO run_alerts VALUES (?, ?, NULL, ?)", (run, alert, now_us()))
    db.execute(
        "DELETE FROM run_alerts WHERE run = ? AND alert NOT IN (SELECT value FROM json_each(?))", (run, json.dumps(alerts))
    )


def folder_tree(
    db: sqlite3.Connection, who: Principal, identity: str, *, recursive: bool, alone: bool
) -> list[tuple[str, str]]:
    """Return (id, path) of a folder of the user's own and, with `recursive`, those under it.

    Raises NotFound, Forbidden, and Conflict where there are some under it, unless `alone` says that they do not matter.
    """
    row = _row(db, who, "folder", identity, write=True)
    path = row["name"]
    found = [(row["id"], path)]
    prefix = path.rstrip("/") + "/"
    under = db.execute(
        "SELECT id, name FROM documents WHERE kind = 'folder' AND owner = ? AND substr(name, 1, ?) = ? AND name <> ?",
        (who.user, len(prefix), prefix, path),
    ).fetchall()
    if recursive:
        found += [(child["id"], child["name"]) for child in under]
    elif under and not alone:
        raise Conflict(f"folder {path!r} has {len(under)} folder(s) under it: delete with recursive=true")
    return found
