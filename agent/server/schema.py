"""The tables of the embedded server and how older databases become current ones.

Made by sqlite-utils, which is imported only when there is something to do (it pulls pandas in where that is installed).
Times are integers: `wall` in ns, everything else in µs since 1970 UTC. Sets and maps are JSON text.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable
from typing import Any

VERSION = 3

_TABLES: dict[str, tuple[dict[str, type], str | tuple[str, ...]]] = {
    "meta": ({"key": str, "value": str}, "key"),
    "runs": (
        {
            "id": str, "owner": str, "tenant": str, "origin": str, "state": str, "name": str, "folder": str, "status": str,
            "description": str, "created": int, "started": int, "ended": int, "modified": int, "heartbeat": int,
            "heartbeat_timeout": float, "ttl": float, "public": int, "tenant_visible": int, "users": str, "tags": str,
            "metadata": str, "system": str, "notifications": str, "abort_reason": str, "abort_at": int, "swept": int,
            "abort_writers": str,
        },
        "id",
    ),
    "tombstones": ({"run": str, "deleted": int}, "run"),
    "writers": ({"id": str, "run": str, "owner": str, "mark": int, "chain": int}, "id"),
    "records": ({"id": int, "run": str, "writer": str, "seq": int, "kind": int, "wall": int, "body": bytes}, "id"),
    "refused": ({"writer": str, "seq": int, "run": str, "crc": int, "reason": str}, ("writer", "seq")),
    "gaps": ({"id": int, "run": str, "writer": str, "first": int, "last": int, "reason": str}, "id"),
    "events": (
        {"id": int, "run": str, "writer": str, "seq": int, "wall": int, "at": int, "level": str, "message": str},
        "id",
    ),
    "shapes": ({"id": int, "names": str, "types": str}, "id"),
    "buffer": (
        {"id": int, "run": str, "writer": str, "shape": int, "rows": int, "first": int, "last": int, "body": bytes},
        "id",
    ),
    "chunks": (
        {"id": int, "run": str, "writer": str, "shape": int, "rows": int, "first": int, "last": int, "axes": bytes},
        "id",
    ),
    "columns": ({"id": int, "chunk": int, "place": int, "body": bytes}, "id"),
    "summaries": (
        {
            "run": str, "metric": str, "count": int, "finite": int, "nan": int, "infinite": int, "min": float, "max": float,
            "sum": float, "first": str, "last": str, "first_step": int, "last_step": int, "min_step": int, "max_step": int,
            "first_time": float, "last_time": float, "min_time": float, "max_time": float, "first_at": int, "last_at": int,
            "first_wall": int, "last_wall": int,
        },
        ("run", "metric"),
    ),
    "documents": (
        {
            "id": str, "kind": str, "owner": str, "tenant": str, "public": int, "tenant_visible": int, "users": str, "name": str,
            "created": int, "modified": int, "body": str,
        },
        "id",
    ),
    "run_alerts": ({"run": str, "alert": str, "status": str, "changed": int}, ("run", "alert")),
    "artifacts": (
        {
            "id": str, "owner": str, "tenant": str, "name": str, "digest": str, "size": int, "mime": str, "path": str,
            "metadata": str, "created": int,
        },
        "id",
    ),
    "run_artifacts": ({"run": str, "artifact": str, "category": str, "attached": int}, ("run", "artifact")),
    "blobs": ({"digest": str, "size": int, "created": int}, "digest"),
    "blob_owners": ({"digest": str, "owner": str}, ("digest", "owner")),
    "stars": ({"user": str, "kind": str, "id": str}, ("user", "kind", "id")),
    "arrays": (
        {"id": int, "run": str, "metric": str, "step": int, "time": float, "at": int, "grid": str, "body": bytes},
        "id",
    ),
    "run_grids": ({"run": str, "metric": str, "grid": str}, ("run", "metric")),
}  # fmt: skip

_INDEXES: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("runs", ("owner", "created"), False),
    ("runs", ("name",), False),
    ("runs", ("folder",), False),
    ("runs", ("origin", "status"), False),
    ("writers", ("run",), False),
    ("records", ("run", "kind"), False),
    ("gaps", ("run",), False),
    ("events", ("run", "at", "id"), False),
    ("buffer", ("run", "shape", "writer", "rows"), False),
    ("chunks", ("run", "shape"), False),
    ("columns", ("chunk", "place"), True),
    ("documents", ("kind", "owner", "name"), False),
    ("run_alerts", ("alert",), False),
    ("artifacts", ("digest",), False),
    ("artifacts", ("owner", "created"), False),
    ("run_artifacts", ("artifact",), False),
    ("arrays", ("run", "metric", "step"), False),
)


def _first(db: Any) -> None:
    for table, (fields, key) in _TABLES.items():
        db[table].create(fields, pk=key, strict=False)
    for table, fields_of_index, unique in _INDEXES:
        db[table].create_index(fields_of_index, unique=unique)
    db["meta"].insert({"key": "server", "value": secrets.token_hex(16)})


def _second(db: Any) -> None:
    if "abort_writers" not in db["runs"].columns_dict:  # a database that is made now has it
        db["runs"].add_column("abort_writers", str)


def _third(db: Any) -> None:
    if "refused" not in db.table_names():
        fields, key = _TABLES["refused"]
        db["refused"].create(fields, pk=key, strict=False)


_MIGRATIONS: tuple[Callable[[Any], None], ...] = (_first, _second, _third)


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the database to VERSION, in one transaction; a killed migration leaves the old version.

    Raises RuntimeError when a newer simspool wrote it; it is left untouched.
    """
    found = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if found > VERSION:
        raise RuntimeError(f"the server's database has version {found}, this simspool knows {VERSION}: upgrade simspool")
    if found == VERSION:
        return
    from sqlite_utils import Database

    db = Database(connection, execute_plugins=False)
    connection.execute("BEGIN IMMEDIATE")
    try:
        for step in _MIGRATIONS[found:]:
            step(db)
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
