"""What the stand-in keeps: one SQLite file. What was committed survives SIGKILL and a power cut (synchronous=FULL)."""

from __future__ import annotations

import json
import math
import secrets
import sqlite3
import string
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FILE = "standin.sqlite"
LETTERS = string.ascii_letters + string.digits
SCHEMA = """
CREATE TABLE IF NOT EXISTS objects (seq INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, id TEXT NOT NULL UNIQUE,
    label TEXT, doc TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS objects_by_label ON objects (kind, label);
CREATE TABLE IF NOT EXISTS metrics (seq INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL, name TEXT NOT NULL, step INTEGER NOT NULL,
    time TEXT NOT NULL, timestamp TEXT NOT NULL, value TEXT NOT NULL, number REAL);
CREATE INDEX IF NOT EXISTS metrics_by_name ON metrics (run, name);
CREATE TABLE IF NOT EXISTS events (seq INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL, message TEXT NOT NULL, log_level TEXT,
    timestamp TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS events_by_run ON events (run);
CREATE TABLE IF NOT EXISTS grid_metrics (seq INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL, name TEXT NOT NULL,
    step INTEGER NOT NULL, time TEXT NOT NULL, timestamp TEXT NOT NULL, grid TEXT NOT NULL, array TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS run_artifacts (run TEXT NOT NULL, artifact TEXT NOT NULL, category TEXT NOT NULL, PRIMARY KEY (run, artifact));
CREATE TABLE IF NOT EXISTS run_grids (run TEXT NOT NULL, grid TEXT NOT NULL, metric TEXT NOT NULL, PRIMARY KEY (run, metric));
CREATE TABLE IF NOT EXISTS alert_status (alert TEXT NOT NULL, run TEXT NOT NULL, status TEXT NOT NULL, PRIMARY KEY (alert, run));
CREATE TABLE IF NOT EXISTS contents (checksum TEXT PRIMARY KEY, data BLOB NOT NULL);
"""
# by this field an object of a kind is found, and for most kinds it is there once only
LABELS = {"folders": "path", "artifacts": "checksum"} | dict.fromkeys(("runs", "alerts", "tags", "storage", "tenants", "grids"), "name")
KINDS = ("folders", "runs", "alerts", "tags", "grids", "artifacts", "storage", "tenants", "users")


def now() -> str:
    """Return this moment as the dialect has it: UTC, without a zone."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")


class Store:
    """Objects are documents; points, events and contents are rows. All calls are synchronous, from one thread."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.db = sqlite3.connect(folder / FILE, isolation_level=None)
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("PRAGMA synchronous=FULL")
        self.db.executescript(SCHEMA)
        if self.find("folders", "/") is None:
            with self.transaction():
                self.add("folders", {"path": "/"})

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, and on disk when it ends."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.db.execute("ROLLBACK")
            raise
        self.db.execute("COMMIT")

    def close(self) -> None:
        """Close the file."""
        self.db.close()

    # objects
    def add(self, kind: str, doc: dict[str, Any]) -> str:
        """Store a new object; return its id of 22 letters and digits."""
        identity = "".join(secrets.choice(LETTERS) for _ in range(22))
        full = {"id": identity, "created": now(), **doc}
        self.db.execute(
            "INSERT INTO objects (kind, id, label, doc) VALUES (?, ?, ?, ?)",
            (kind, identity, full.get(LABELS.get(kind, "")), json.dumps(full)),
        )
        return identity

    def get(self, kind: str, identity: str) -> dict[str, Any] | None:
        """Return an object's document, or None."""
        row = self.db.execute("SELECT doc FROM objects WHERE id = ? AND kind = ?", (identity, kind)).fetchone()
        return None if row is None else dict(json.loads(row[0]))

    def put(self, kind: str, doc: dict[str, Any]) -> None:
        """Store an object's new document under its id."""
        self.db.execute("UPDATE objects SET doc = ?, label = ? WHERE id = ?", (json.dumps(doc), doc.get(LABELS.get(kind, "")), doc["id"]))

    def find(self, kind: str, label: str) -> dict[str, Any] | None:
        """Return the first object of this label, or None."""
        row = self.db.execute("SELECT doc FROM objects WHERE kind = ? AND label = ? ORDER BY seq LIMIT 1", (kind, label)).fetchone()
        return None if row is None else dict(json.loads(row[0]))

    def all(self, kind: str) -> list[dict[str, Any]]:
        """Return all objects of a kind, oldest first."""
        return [json.loads(row[0]) for row in self.db.execute("SELECT doc FROM objects WHERE kind = ? ORDER BY seq", (kind,))]

    def remove(self, kind: str, identity: str) -> None:
        """Remove an object and all that hangs on it."""
        self.db.execute("DELETE FROM objects WHERE id = ? AND kind = ?", (identity, kind))
        if kind == "runs":
            for table in ("metrics", "events", "grid_metrics", "run_artifacts", "run_grids", "alert_status"):
                self.db.execute(f"DELETE FROM {table} WHERE run = ?", (identity,))
        elif kind == "artifacts":
            self.db.execute("DELETE FROM run_artifacts WHERE artifact = ?", (identity,))
            unused = "DELETE FROM contents WHERE checksum NOT IN (SELECT label FROM objects WHERE kind = 'artifacts')"
            self.db.execute(unused)
        elif kind == "alerts":
            self.db.execute("DELETE FROM alert_status WHERE alert = ?", (identity,))

    # points and events: appended, never compared with what is there
    def append_metrics(self, run: str, sets: list[dict[str, Any]]) -> None:
        """Append the points of all sets."""
        self.db.executemany(
            "INSERT INTO metrics (run, name, step, time, timestamp, value, number) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                (run, name, s["step"], json.dumps(s["time"]), s["timestamp"], json.dumps(value), _number(value))
                for s in sets
                for name, value in s["values"].items()
            ),
        )

    def append_events(self, run: str, events: list[dict[str, Any]]) -> None:
        """Append events."""
        self.db.executemany(
            "INSERT INTO events (run, message, log_level, timestamp) VALUES (?, ?, ?, ?)",
            ((run, e["message"], e["log_level"], e["timestamp"]) for e in events),
        )

    def append_grid_metrics(self, run: str, sets: list[dict[str, Any]]) -> None:
        """Append arrays."""
        self.db.executemany(
            "INSERT INTO grid_metrics (run, name, step, time, timestamp, grid, array) VALUES (?, ?, ?, ?, ?, ?, ?)",
            ((run, s["metric"], s["step"], json.dumps(s["time"]), s["timestamp"], s["grid"], json.dumps(s["array"])) for s in sets),
        )

    def metric_names(self, run: str) -> list[str]:
        """Return the names of a run's metrics, sorted."""
        return [row[0] for row in self.db.execute("SELECT DISTINCT name FROM metrics WHERE run = ? ORDER BY name", (run,))]

    def points(self, run: str, name: str) -> list[tuple[int, float, str, Any]]:
        """Return (step, time, timestamp, value) of all points of a metric, in the order of arrival."""
        rows = self.db.execute("SELECT step, time, timestamp, value FROM metrics WHERE run = ? AND name = ? ORDER BY seq", (run, name))
        return [(step, json.loads(time), timestamp, json.loads(value)) for step, time, timestamp, value in rows]

    def summary(self, run: str) -> dict[str, dict[str, Any]]:
        """Return count, min, max, average and last of each metric; NaN and infinities count, but are no min, max or average."""
        rows = self.db.execute(
            "SELECT name, COUNT(*), MIN(number), MAX(number), AVG(number), MAX(seq) FROM metrics WHERE run = ? GROUP BY name", (run,)
        ).fetchall()
        found = {}
        for name, count, low, high, average, seq in rows:
            step, value, timestamp = self.db.execute("SELECT step, value, timestamp FROM metrics WHERE seq = ?", (seq,)).fetchone()
            last = json.loads(value)
            found[name] = {"count": count, "min": low, "max": high, "average": average, "last": last, "step": step, "timestamp": timestamp}
        return found

    def events(self, run: str) -> list[dict[str, Any]]:
        """Return a run's events in the order of arrival."""
        rows = self.db.execute("SELECT message, log_level, timestamp FROM events WHERE run = ? ORDER BY seq", (run,))
        return [{"message": message, "log_level": level, "timestamp": timestamp} for message, level, timestamp in rows]

    def counts(self) -> dict[str, int]:
        """Return how much of everything there is."""
        found = dict.fromkeys(KINDS, 0) | dict(self.db.execute("SELECT kind, COUNT(*) FROM objects GROUP BY kind").fetchall())
        for table in ("metrics", "events", "grid_metrics", "contents"):
            found[table] = self.db.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]
        return found


def _number(value: float) -> float | None:
    """Return what SQL can compare, else None: NaN, infinities, and integers beyond its range."""
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
