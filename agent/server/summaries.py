"""A summary row per (run, metric), kept while points arrive, so that lists and aggregates never decode the past."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from simspool.spool.own_time import as_float

_VECTOR = 64  # values from which numpy is quicker than a loop


class Summary:
    """Count, extremes, sum and last value of some points of one metric. Non-finite values are counted, not summed.

    "First" and "last" are in wall time. Integers beyond 2**53 lose digits in min, max and sum, never in the points themselves.
    """

    __slots__ = ("count", "finite", "first", "infinite", "last", "max", "min", "nan", "spans", "sum")

    def __init__(self) -> None:
        self.count = self.finite = self.nan = self.infinite = 0
        self.min, self.max, self.sum = math.inf, -math.inf, 0.0
        self.first: tuple[int, Any, int, float, int | None] | None = None  # wall, value, step, time, stamp
        self.last: tuple[int, Any, int, float, int | None] | None = None
        self.spans: list[tuple[int, int, float, float]] = []  # step min, max, time min, max

    def add(
        self, kind: str, values: Sequence[Any], steps: Sequence[int], times: Sequence[float], stamps: Sequence[Any] | None,
        walls: Sequence[int],
    ) -> None:
        """Take in a column; all sequences have the same length, and walls ascend."""  # fmt: skip
        count = len(values)
        self.count += count
        if kind == "d" and count >= _VECTOR:
            array = np.array(values, np.float64)
            nan = int(np.isnan(array).sum())
            finite = array[np.isfinite(array)]
            self.nan += nan
            self.infinite += count - nan - len(finite)
            self._finite(len(finite), finite.min() if len(finite) else 0, finite.max() if len(finite) else 0, _sum(finite))
        else:
            kept = []
            for value in values:
                number = as_float(value)
                if math.isfinite(number):
                    kept.append(number)
                elif number != number:
                    self.nan += 1
                else:
                    self.infinite += 1
            if kept:
                self._finite(len(kept), min(kept), max(kept), sum(kept))
        self.spans.append((min(steps), max(steps), min(times), max(times)))
        head, tail = ((walls[i], values[i], steps[i], times[i], _stamp(stamps, i)) for i in (0, -1))
        if self.first is None or head[0] < self.first[0]:
            self.first = head
        if self.last is None or tail[0] >= self.last[0]:
            self.last = tail

    def _finite(self, count: int, low: float, high: float, total: float) -> None:
        if count:
            self.finite += count
            self.min, self.max = min(self.min, float(low)), max(self.max, float(high))
            self.sum += float(total)

    def row(self, run: str, metric: str) -> tuple[Any, ...]:
        """Return the row for `save`."""
        assert self.first is not None
        assert self.last is not None
        low, high = (self.min, self.max) if self.finite else (None, None)
        steps_low, steps_high, times_low, times_high = zip(*self.spans, strict=True)
        return (
            run, metric, self.count, self.finite, self.nan, self.infinite, low, high, self.sum,
            json.dumps(self.first[1]), json.dumps(self.last[1]), self.first[2], self.last[2], min(steps_low), max(steps_high),
            _real(self.first[3]), _real(self.last[3]), _real(min(times_low)), _real(max(times_high)), self.first[4], self.last[4],
            self.first[0], self.last[0],
        )  # fmt: skip


def _sum(array: Any) -> float:
    with np.errstate(over="ignore"):
        return float(array.sum()) if len(array) else 0.0


def _real(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _stamp(stamps: Sequence[Any] | None, at: int) -> int | None:
    stamp = None if stamps is None else stamps[at]
    return stamp if isinstance(stamp, int) else None


_UPSERT = """
INSERT INTO summaries (run, metric, count, finite, nan, infinite, min, max, sum, first, last, first_step, last_step, min_step, max_step,
  first_time, last_time, min_time, max_time, first_at, last_at, first_wall, last_wall)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (run, metric) DO UPDATE SET
  count = count + excluded.count, finite = finite + excluded.finite, nan = nan + excluded.nan, infinite = infinite + excluded.infinite,
  min = min(coalesce(min, excluded.min), coalesce(excluded.min, min)), max = max(coalesce(max, excluded.max), coalesce(excluded.max, max)),
  sum = sum + excluded.sum, min_step = min(min_step, excluded.min_step), max_step = max(max_step, excluded.max_step),
  min_time = min(coalesce(min_time, excluded.min_time), coalesce(excluded.min_time, min_time)),
  max_time = max(coalesce(max_time, excluded.max_time), coalesce(excluded.max_time, max_time)),
  first = iif(excluded.first_wall < first_wall, excluded.first, first),
  first_step = iif(excluded.first_wall < first_wall, excluded.first_step, first_step),
  first_time = iif(excluded.first_wall < first_wall, excluded.first_time, first_time),
  first_at = iif(excluded.first_wall < first_wall, excluded.first_at, first_at),
  first_wall = min(first_wall, excluded.first_wall),
  last = iif(excluded.last_wall >= last_wall, excluded.last, last),
  last_step = iif(excluded.last_wall >= last_wall, excluded.last_step, last_step),
  last_time = iif(excluded.last_wall >= last_wall, excluded.last_time, last_time),
  last_at = iif(excluded.last_wall >= last_wall, excluded.last_at, last_at),
  last_wall = max(last_wall, excluded.last_wall)
"""


def save(db: sqlite3.Connection, run: str, seen: dict[str, Summary]) -> None:
    """Merge the summaries of new points into the stored ones."""
    db.executemany(_UPSERT, [summary.row(run, metric) for metric, summary in seen.items()])


def of_run(db: sqlite3.Connection, run: str, names: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
    """Return a run's summaries by metric name, in order of name."""
    wanted = None if names is None else set(names)
    out = {}
    for row in db.execute("SELECT * FROM summaries WHERE run = ? ORDER BY metric", (run,)):
        if wanted is not None and row["metric"] not in wanted:
            continue
        finite = row["finite"]
        out[row["metric"]] = {
            "count": row["count"],
            "min": row["min"],
            "max": row["max"],
            "average": row["sum"] / finite if finite and row["sum"] is not None else None,
            "sum": row["sum"],
            "first": json.loads(row["first"]),
            "last": json.loads(row["last"]),
            "nan": row["nan"],
            "infinite": row["infinite"],
            "first_step": row["first_step"],
            "last_step": row["last_step"],
            "first_time": row["first_time"],
            "last_time": row["last_time"],
        }
    return out


def span(db: sqlite3.Connection, runs: Sequence[str]) -> dict[str, Any]:
    """Return the smallest and largest step, time (s) and timestamp (µs) over all metrics of some runs; None where there is none."""
    row = db.execute(
        "SELECT min(min_step), max(max_step), min(min_time), max(max_time), min(coalesce(first_at, first_wall / 1000)),"
        " max(coalesce(last_at, last_wall / 1000)) FROM summaries WHERE run IN (SELECT value FROM json_each(?))",
        (json.dumps(list(runs)),),
    ).fetchone()
    return dict(zip(("min_step", "max_step", "min_time", "max_time", "min_timestamp", "max_timestamp"), row, strict=True))
