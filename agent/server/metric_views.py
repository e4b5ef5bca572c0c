"""Metric values as the dialect asks for them: by run or aggregated over runs, by step, time or timestamp, thinned on request."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Sequence
from typing import Any

from simspool.spool.own_time import as_float

from . import points, runs, summaries
from .errors import Invalid
from .identity import Principal
from .times import to_text

AXES = ("step", "time", "timestamp")
_MAX_POINTS = 20_000_000


def thin(count: int, most: int | None) -> Sequence[int]:
    """Return which of `count` points to keep when at most `most` are wanted: evenly spread, the first and the last always among them."""
    if most is None or count <= most:
        return range(count)
    if most == 1:
        return [count - 1]
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def _series(found: points.Points, axis: str) -> tuple[list[Any], list[Any]]:
    by_axis: dict[str, list[Any]] = {"step": found.steps, "time": found.times, "timestamp": found.stamps}
    xs = by_axis[axis]
    order = sorted(range(len(xs)), key=lambda i: (xs[i] != xs[i], xs[i]))  # stable; NaN times last
    return [xs[i] for i in order], [found.values[i] for i in order]


def values(
    db: sqlite3.Connection, who: Principal, wanted: Sequence[str], metrics: Sequence[str], axis: str, most: int | None
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return {run: {metric: [{axis: x, "value": v}]}} in ascending x, equal x in order of (wall time, writer, sequence).

    Runs and metrics without points are left out. Raises NotFound for a run that the user cannot see, and Invalid for a request of
    more than 20 million points.
    """
    _check_size(db, who, wanted, metrics)
    out: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for run in wanted:
        series = {}
        for metric in metrics:
            xs, ys = _series(points.read(db, run, metric), axis)
            kept = thin(len(xs), most)
            if xs:
                series[metric] = [{axis: to_text(xs[i]) if axis == "timestamp" else xs[i], "value": ys[i]} for i in kept]
        if series:
            out[run] = series
    return out


def _check_size(db: sqlite3.Connection, who: Principal, wanted: Sequence[str], metrics: Sequence[str]) -> None:
    total = 0
    for run in wanted:
        runs.find(db, who, run)
        total += sum(summary["count"] for summary in summaries.of_run(db, run, metrics).values())
    if total > _MAX_POINTS:
        raise Invalid(f"{total} points are too many for one answer (at most {_MAX_POINTS}): ask for fewer runs or metrics")


def aggregated(
    db: sqlite3.Connection, who: Principal, wanted: Sequence[str], metrics: Sequence[str], axis: str, most: int | None
) -> dict[str, list[dict[str, Any]]]:
    """Return {metric: [{axis: x, "average", "min", "max", "std", "count"}]} over the runs, per x, in ascending x.

    Non-finite values are left out. Raises as `values` does, and Invalid for the timestamp axis.
    """
    if axis == "timestamp":
        raise Invalid("aggregate: only over step or time")
    _check_size(db, who, wanted, metrics)
    out = {}
    for metric in metrics:
        groups: dict[Any, list[float]] = {}
        for run in wanted:
            for x, y in zip(*_series(points.read(db, run, metric), axis), strict=True):
                if isinstance(y, (int, float)) and math.isfinite(number := as_float(y)) and x == x:
                    groups.setdefault(x, []).append(number)
        xs = sorted(groups)
        if xs:
            out[metric] = [_aggregate(axis, xs[i], groups[xs[i]]) for i in thin(len(xs), most)]
    return out


def _aggregate(axis: str, x: Any, ys: list[float]) -> dict[str, Any]:
    average = math.fsum(ys) / len(ys)
    spread = math.sqrt(math.fsum((y - average) ** 2 for y in ys) / len(ys)) if len(ys) > 1 else 0.0
    return {axis: x, "average": average, "min": min(ys), "max": max(ys), "std": spread, "count": len(ys)}


def names(db: sqlite3.Connection, who: Principal, wanted: Sequence[str]) -> list[str]:
    """Return the names of all metrics of some runs, in order. Raises NotFound for a run that the user cannot see."""
    found: set[str] = set()
    for run in wanted:
        runs.find(db, who, run)
        found |= {row[0] for row in db.execute("SELECT metric FROM summaries WHERE run = ?", (run,))}
    return sorted(found)


def span(db: sqlite3.Connection, who: Principal, wanted: Sequence[str]) -> dict[str, Any]:
    """Return the extent of the runs' metrics in step, time (s) and timestamp (text). Raises NotFound for a run not seen."""
    for run in wanted:
        runs.find(db, who, run)
    found = summaries.span(db, list(wanted))
    return found | {key: to_text(found[key]) for key in ("min_timestamp", "max_timestamp")}
