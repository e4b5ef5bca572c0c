"""Metrics, events and arrays: appended blindly, as they come, and read back along an axis."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from filters import texts
from models import FORMAT, Events, GridMetrics, Metrics, Refused, check, details
from objects import page
from pydantic import ValidationError
from store import now

if TYPE_CHECKING:
    from simvue_server import StandIn

AXES = {"step": 0, "time": 1, "timestamp": 2}


def _names(raw: str | None, what: str) -> list[str]:
    try:
        found = json.loads(raw or "")
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(n, str) for n in found):
        raise Refused(422, f"{what} must be a JSON list of strings")
    return found


def _thinned(points: list[Any], most: int | None) -> list[Any]:
    """Return at most so many, evenly, with the first and the last."""
    if most is None or len(points) <= most:
        return points
    return [points[-1]] if most == 1 else [points[i * (len(points) - 1) // (most - 1)] for i in range(most)]


class Readings:
    """The same batch twice is there twice."""

    def __init__(self, at: StandIn) -> None:
        self.at, self.store = at, at.store

    def post_metrics(self, body: Any, line: str) -> tuple[int, Any]:
        """Append a batch, or refuse it as a whole."""
        batch = check(Metrics, body, strict=self.at.options.strict).model_dump()
        self.at.objects.need("runs", batch["run"])
        self.at.faults.reject(line, "metric", sorted({name for each in batch["metrics"] for name in each["values"]}))
        moment = now()
        for each in batch["metrics"]:
            each["timestamp"] = each["timestamp"] or moment
        self.store.append_metrics(batch["run"], batch["metrics"])
        return 200, {}

    def post_events(self, body: Any, line: str) -> tuple[int, Any]:
        """Append a batch, or refuse it as a whole."""
        batch = check(Events, body, strict=self.at.options.strict).model_dump()
        self.at.objects.need("runs", batch["run"])
        self.at.faults.reject(line, "event", [each["message"] for each in batch["events"]])
        moment = now()
        for each in batch["events"]:
            each["timestamp"] = each["timestamp"] or moment
        self.store.append_events(batch["run"], batch["events"])
        return 200, {}

    def post_grid_metrics(self, run: str, body: Any, line: str) -> tuple[int, Any]:
        """Append arrays, or refuse them as a whole."""
        self.at.objects.need("runs", run)
        try:
            batch = [each.model_dump() for each in GridMetrics.validate_python(body)]
        except ValidationError as error:
            raise Refused(422, details(error)) from None
        moment = now()
        for each in batch:
            self.at.objects.need("grids", each["grid"])
            each["timestamp"] = each["timestamp"] or moment
        self.at.faults.reject(line, "metric", [each["metric"] for each in batch])
        self.store.append_grid_metrics(run, batch)
        return 200, {}

    def metrics(self, query: dict[str, str]) -> tuple[int, Any]:
        """Return values along an axis, in its order: by run, or over all runs with average, min and max."""
        runs, names = _names(query.get("runs"), "runs"), _names(query.get("metrics"), "metrics")
        axis = query.get("xaxis", "step")
        if axis not in AXES:
            raise Refused(422, "xaxis must be step, time or timestamp")
        most = int(query["max_points"]) if query.get("max_points", "").isdigit() else None
        if query.get("aggregate", "").lower() in {"true", "1"}:
            if axis == "timestamp":
                raise Refused(422, "xaxis timestamp cannot be aggregated")
            return 200, self._aggregated(runs, names, axis, most)
        found: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for run in runs:
            for name in names:
                points = sorted(self.store.points(run, name), key=lambda p: p[AXES[axis]])
                if points:
                    found.setdefault(run, {})[name] = [{axis: p[AXES[axis]], "value": p[3]} for p in _thinned(points, most)]
        return 200, found

    def _aggregated(self, runs: list[str], names: list[str], axis: str, most: int | None) -> dict[str, list[dict[str, Any]]]:
        found = {}
        for name in names:
            at: dict[Any, list[float]] = {}
            for run in runs:
                for point in self.store.points(run, name):
                    at.setdefault(point[AXES[axis]], []).append(point[3])
            if at:
                rows = [{axis: x, "average": sum(at[x]) / len(at[x]), "min": min(at[x]), "max": max(at[x])} for x in sorted(at)]
                found[name] = _thinned(rows, most)
        return found

    def names(self, query: dict[str, str]) -> tuple[int, Any]:
        """Return the names of the metrics of runs."""
        return 200, sorted({name for run in _names(query.get("runs"), "runs") for name in self.store.metric_names(run)})

    def span(self, body: Any) -> tuple[int, Any]:
        """Return from where to where the metrics of runs go."""
        runs = _names(json.dumps(body), "the body")
        points = [p for run in runs for name in self.store.metric_names(run) for p in self.store.points(run, name)]
        if not points:
            return 200, {}
        steps, times = [p[0] for p in points], [p[1] for p in points]
        return 200, {"min_step": min(steps), "max_step": max(steps), "min_time": min(times), "max_time": max(times)}

    def grid_values(self, run: str, name: str, query: dict[str, str]) -> tuple[int, Any]:
        """Return an array at a step; the last that came, when there are several."""
        self.at.objects.need("runs", run)
        if not query.get("step", "").isdigit():
            raise Refused(422, "step must be a whole number")
        sql = "SELECT array FROM grid_metrics WHERE run = ? AND name = ? AND step = ? ORDER BY seq DESC LIMIT 1"
        row = self.store.db.execute(sql, (run, name, int(query["step"]))).fetchone()
        if row is None:
            raise Refused(404, f"no values of {name} at step {query['step']}")
        return 200, {"array": json.loads(row[0])}

    def grid_span(self, run: str, name: str) -> tuple[int, Any]:
        """Return from where to where an array metric goes, in a list."""
        sql = "SELECT MIN(step), MAX(step), COUNT(*) FROM grid_metrics WHERE run = ? AND name = ?"
        low, high, count = self.store.db.execute(sql, (run, name)).fetchone()
        return 200, [{"min_step": low, "max_step": high, "count": count}] if count else []

    def attach_grid(self, run: str, grid: str, body: Any) -> tuple[int, Any]:
        """Say that a run's metric is on a grid."""
        self.at.objects.need("runs", run)
        self.at.objects.need("grids", grid)
        if not isinstance(body, dict) or not isinstance(body.get("metric"), str):
            raise Refused(422, "metric must be a string")
        self.store.db.execute("INSERT OR REPLACE INTO run_grids VALUES (?, ?, ?)", (run, grid, body["metric"]))
        return 200, {"id": grid}

    def grids_of(self, run: str) -> tuple[int, Any]:
        """Return the grids of a run, each with the metric that is on it."""
        self.at.objects.need("runs", run)
        rows = self.store.db.execute("SELECT grid, metric FROM run_grids WHERE run = ? ORDER BY rowid", (run,)).fetchall()
        return 200, [(self.store.get("grids", grid) or {}) | {"metric": metric} for grid, metric in rows]

    def events(self, query: dict[str, str]) -> tuple[int, Any]:
        """Return a page of a run's events, by time, equal times as they came."""
        self.at.objects.need("runs", query.get("run", ""))
        found = sorted(self.store.events(query["run"]), key=lambda e: e["timestamp"])
        for text in texts(query.get("filters")):
            field, _, wanted = text.partition(" contains ")
            if field not in {"event.message", "message"} or not wanted:
                raise Refused(422, f"cannot read the filter {text!r}")
            found = [e for e in found if wanted in e["message"]]
        return 200, {"data": page(query, found), "count": len(found)}

    def histogram(self, query: dict[str, str]) -> tuple[int, Any]:
        """Return how many events fell into each window of so many seconds."""
        self.at.objects.need("runs", query.get("run", ""))
        try:
            begin, end = (datetime.strptime(query[f"timestamp_{side}"], FORMAT) for side in ("begin", "end"))
            window = timedelta(seconds=int(query["window"]))
        except (KeyError, ValueError):
            raise Refused(422, "window, timestamp_begin and timestamp_end are needed") from None
        if window <= timedelta() or (end - begin) / window > 100_000:
            raise Refused(422, "window is too small")
        moments = [datetime.strptime(e["timestamp"], FORMAT) for e in self.store.events(query["run"])]
        data = []
        while begin < end:
            data.append({"timestamp": begin.strftime(FORMAT), "count": sum(begin <= m < min(begin + window, end) for m in moments)})
            begin += window
        return 200, {"data": data}
