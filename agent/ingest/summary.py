"""What one ingest transaction adds to the catalog's summaries, gathered in memory and written once."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from typing import Any

from simspool.agent.notify.queue import Queued
from simspool.spool import Kind, ids, records, runstate
from simspool.spool.frames import BOOT, STEP, MetricBatch, Record
from simspool.spool.segment_header import SegmentHeader


class Summary:
    """Run states, metric counts and last values, events and artifacts of the records taken since the last `flush`.

    `silent` says of which runs nobody here is to be told.
    """

    def __init__(self, connection: sqlite3.Connection, *, silent: Callable[[str], bool] = lambda run: False) -> None:
        self._connection, self._silent = connection, silent
        self.new_runs: set[str] = set()  # of which nothing is stored: no need to ask
        self._states: dict[str, dict[str, Any]] = {}
        self._metrics: dict[tuple[str, str], list[Any]] = {}
        self._events: dict[str, list[Any]] = {}
        self._artifacts: list[tuple[Any, ...]] = []
        self._notify = Queued()

    def state(self, run: str) -> dict[str, Any]:
        """Return a run's folded state, to be changed in place."""
        state = self._states.get(run)
        if state is None and run in self.new_runs:
            self.new_runs.discard(run)
            state = self._states[run] = runstate.empty()
        elif state is None:
            row = self._connection.execute("SELECT state FROM runs WHERE id = ?", (run,)).fetchone()
            state = self._states[run] = json.loads(row[0]) if row and row[0] else runstate.empty()
        return state

    def metrics(self, run: str, header: SegmentHeader, batch: MetricBatch) -> None:
        """Count a batch's points, resource samples like any other; each metric's last value is that of its last row."""
        last, n = batch.rows[-1], len(batch.rows)
        wall = header.wall_ns(last[BOOT])
        for name, value in batch.values(last).items():
            self._point(run, name, value, last[STEP], wall, n)

    def _point(self, run: str, name: str, value: Any, step: Any, wall: int, n: int) -> None:
        known = self._metrics.get((run, name))
        if known is None:
            self._metrics[run, name] = [n, value, step, wall]
            return
        known[0] += n
        if wall >= known[3]:
            known[1:] = value, step, wall

    def record(self, run: str, writer: str, header: SegmentHeader, record: Record) -> None:
        """Fold a JSON record."""
        body, kind = record.body, record.kind
        if body is None:
            return
        wall = header.wall_ns(record.boot_ns)
        if kind in {Kind.METRICS_JSON, Kind.RESOURCES_JSON}:
            values = body.get("values")
            if isinstance(values, dict):
                for name, value in values.items():
                    self._point(run, name, value, body.get("step"), wall, 1)
        elif kind == Kind.EVENT:
            known = self._events.setdefault(run, [0, "", 0])
            known[0] += 1
            if wall >= known[2]:
                known[1:] = plain_text(str(body.get("message", ""))[:500]), wall
        elif kind == Kind.ARTIFACT:
            digest, name = body.get("digest"), body.get("name")
            if ids.is_digest(digest) and isinstance(name, str):  # another text names no file: it would lead anywhere
                category, mime = plain_text(body.get("category")), plain_text(body.get("mime"))
                size = _column_int(body.get("size"))
                self._artifacts.append((writer, record.seq, run, plain_text(name), category, plain_text(digest), size, mime))
        elif kind == Kind.NOTIFICATION:
            self._notify.said(run, wall, body)
        else:
            if kind == Kind.DECISION and not self._silent(run):
                self._notify.decided(run, wall, body)
            runstate.apply(self.state(run), writer, record.seq, kind, wall, body)

    def flush(self) -> None:
        """Write everything, inside the caller's transaction."""
        many = self._connection.executemany
        many(
            "UPDATE runs SET name=?, folder=?, status=?, tags=?, metadata=?, state=?, created=?, ended=?, modified=unixepoch() WHERE id=?",
            [
                (
                    plain_text(runstate.value(state, "name")), plain_text(runstate.value(state, "folder", "/")), runstate.status(state),
                    _json(runstate.tags(state)), _json(runstate.metadata(state)), _json(state), _column_int(runstate.started(state)),
                    _column_int(runstate.finished(state)), run,
                )
                for run, state in self._states.items()
            ],
        )  # fmt: skip
        many(
            "INSERT INTO metrics(run, name, count, last, step, wall) VALUES (?,?,?,?,?,?) ON CONFLICT(run,"
            " name) DO UPDATE SET count = count + excluded.count,"
            " last = CASE WHEN excluded.wall >= wall THEN excluded.last ELSE last END, step = CASE WHEN"
            " excluded.wall >= wall THEN excluded.step ELSE step END,"
            " wall = max(wall, excluded.wall)",
            [
                (run, plain_text(name), n, records.encode({"v": value}).decode(), _column_int(step), _column_int(wall))
                for (run, name), (n, value, step, wall) in self._metrics.items()
            ],
        )
        many(
            "INSERT INTO events(run, count, last, wall) VALUES (?,?,?,?) ON CONFLICT(run) DO UPDATE SET count = count + excluded.count,"
            " last = CASE WHEN excluded.wall >= wall THEN excluded.last ELSE last END, wall = max(wall, excluded.wall)",
            [(run, n, message, _column_int(wall)) for run, (n, message, wall) in self._events.items()],
        )
        many(
            "INSERT OR IGNORE INTO artifacts(writer, seq, run, name, category, digest, size, mime) VALUES (?,?,?,?,?,?,?,?)",
            self._artifacts,
        )
        self._notify.flush(self._connection, {run: state for run, state in self._states.items() if not self._silent(run)})
        self.forget()

    def forget(self) -> None:
        """Drop what is not written: its transaction was rolled back."""
        self._states.clear()
        self._metrics.clear()
        self._events.clear()
        self._artifacts.clear()
        self._notify.clear()


def plain_text(value: Any) -> str | None:
    """Return text that a TEXT column holds: records may carry lone surrogates. None for what is no text."""
    if not isinstance(value, str):
        return None
    return value if value.isascii() else value.encode(errors="replace").decode()


def _column_int(value: Any) -> int | None:
    return value if isinstance(value, int) and -(1 << 63) <= value < 1 << 63 else None


def _json(value: Any) -> str:
    return records.encode({"v": value}).decode()[5:-1] if not isinstance(value, dict) else json.dumps(value, separators=(",", ":"))
