"""Array metrics: values on a grid, one array per (run, metric, step), stored and read back whole."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

import zstandard

from . import documents
from .errors import Invalid, NotFound
from .identity import Principal
from .times import to_text

_MAX_VALUES = 50_000
_MAX_BYTES = 64 << 20


def _flatten(value: object, shape: list[int], level: int = 0) -> list[float]:
    if not isinstance(value, list) or level > 1 or not value:
        raise Invalid("array: a list of numbers, or a list of such lists of one length, is expected")
    if len(shape) <= level:
        shape.append(len(value))
    if len(value) != shape[level]:
        raise Invalid("array: the rows must have one length")
    if isinstance(value[0], list):
        return [x for row in value for x in _flatten(row, shape, level + 1)]
    if not all(isinstance(x, (int, float)) for x in value):
        raise Invalid("array: numbers are expected")
    return [float(x) for x in value]


def attach(db: sqlite3.Connection, who: Principal, run: str, grid: str, metric: str) -> dict[str, str]:
    """Say that a run's array metric lies on a grid. The caller has checked the run. Raises NotFound for the grid."""
    documents.get(db, who, "grid", grid)
    db.execute("INSERT OR REPLACE INTO run_grids VALUES (?, ?, ?)", (run, metric, grid))
    return {"id": grid, "metric": metric}


def of_run(db: sqlite3.Connection, who: Principal, run: str) -> list[dict[str, Any]]:
    """Return a run's grids, each with the metric that lies on it. The caller has checked the run."""
    rows = db.execute("SELECT metric, grid FROM run_grids WHERE run = ? ORDER BY metric", (run,)).fetchall()
    return [documents.get(db, who, "grid", row["grid"]) | {"metric": row["metric"]} for row in rows]


def append(db: sqlite3.Connection, who: Principal, run: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Store arrays; one logged again for a step takes the place of the earlier. The caller has checked the run.

    Each row has metric, grid, step, time, timestamp (µs) and array. Raises Invalid for an array that does not fit its grid, and NotFound.
    """
    for row in rows:
        shape: list[int] = []
        values = _flatten(row["array"], shape)
        axes = documents.get(db, who, "grid", row["grid"])["grid"]
        if len(values) > _MAX_VALUES or sorted(shape) != sorted(len(axis) for axis in axes):
            raise Invalid(
                f"array of {row['metric'][:64]!r}: {shape} values do not fit the grid's {[len(a) for a in axes]} (at most {_MAX_VALUES})"
            )
        body = zstandard.compress(json.dumps(row["array"]).encode())
        db.execute("DELETE FROM arrays WHERE run = ? AND metric = ? AND step = ?", (run, row["metric"], row["step"]))
        db.execute(
            "INSERT INTO arrays (run, metric, step, time, at, grid, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (run, row["metric"], row["step"], row["time"], row["timestamp"], row["grid"], body),
        )
        db.execute("INSERT OR REPLACE INTO run_grids VALUES (?, ?, ?)", (run, row["metric"], row["grid"]))


def values(db: sqlite3.Connection, run: str, metric: str, step: int) -> dict[str, Any]:
    """Return the array of a step. The caller has checked the run. Raises NotFound."""
    row = db.execute("SELECT * FROM arrays WHERE run = ? AND metric = ? AND step = ?", (run, metric, step)).fetchone()
    if row is None:
        raise NotFound(f"array metric {metric[:64]!r} has no values at step {step}")
    array = json.loads(zstandard.decompress(row["body"], max_output_size=_MAX_BYTES))
    return {"array": array, "step": row["step"], "time": row["time"], "timestamp": to_text(row["at"]), "grid": row["grid"]}


def span(db: sqlite3.Connection, run: str, metric: str) -> list[dict[str, Any]]:
    """Return the extent of an array metric in step, time and timestamp, as a list of one, or of none."""
    row = db.execute(
        "SELECT min(step), max(step), min(time), max(time), min(at), max(at), count(*) FROM arrays WHERE run = ? AND metric = ?",
        (run, metric),
    ).fetchone()
    if not row[6]:
        return []
    return [
        {
            "min_step": row[0], "max_step": row[1], "min_time": row[2], "max_time": row[3], "min_timestamp": to_text(row[4]),
            "max_timestamp": to_text(row[5]), "count": row[6],
        }
    ]  # fmt: skip
