"""A spool as a Client's source: read from the segments, with no agent, no catalog and no server.

What dead writers left unsealed is read too. A run whose processes are all gone without a close is `lost`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from simspool.spool import Chunk, InvalidRecord, Kind, RunNotFound, Spool, Tail, blobs, process, runstate
from simspool.spool.frames import BOOT, HAS_TIME, HAS_TIMESTAMP, SEQ, STEP, MetricBatch, Record
from simspool.spool.records import FINAL_STATUSES

from .errors import ArtifactNotFound
from .run_filters import matches
from .source import RUN_KEYS, Artifact, Series, joined

_CHUNK = 1 << 20
_SORTS = {"name", "created", "started", "endtime", "status", "folder", "description", "id"}


class _Point(NamedTuple):
    wall: int
    writer: str
    seq: int
    step: int
    time: float
    timestamp: int
    value: Any


class SpoolSource:
    """See source.Source."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    def find(self, text: str) -> str:
        """See Source."""
        return self._spool.find_run(text)

    def run(self, run: str) -> dict[str, Any]:
        """See Source."""
        if not os.path.isdir(self._spool.run(run).path):
            raise RunNotFound(f"no run {run!r} in the spool {self._spool.path}: `agent ls` lists what is there")
        return _shown(run, self._state(run))

    def runs(self, filters: Sequence[str], start: int, count: int | None, sorting: Sequence[tuple[str, bool]]) -> list[dict[str, Any]]:
        """See Source."""
        found = [shown for run in self._spool.run_ids() if matches(shown := self.run(run), filters)]
        found.sort(key=lambda r: (r["created"] or "", r["id"]), reverse=True)
        for column, descending in reversed(sorting):
            found.sort(key=lambda r: _sort_key(r, column), reverse=descending)
        return found[start:] if count is None else found[start : start + count]

    def metric_names(self, run: str) -> list[str]:
        """See Source."""
        names: set[str] = set()
        for _, chunk in self._chunks(run):
            for item in chunk.items:
                if isinstance(item, MetricBatch):
                    names.update(item.shape.names)
                elif item.kind in _JSON_METRICS and item.body is not None:
                    names.update(item.body.get("values") or ())
        return sorted(names)

    def values(self, runs: Sequence[str], metrics: Sequence[str], axis: str, most: int | None) -> Series:
        """See Source."""
        out: Series = {}
        for run in runs:
            series = {}
            for metric, points in self._points(run, metrics).items():
                xs, ys = _along(points, axis)
                kept = _thin(len(xs), most)
                series[metric] = [{axis: _time_text(xs[i]) if axis == "timestamp" else xs[i], "value": ys[i]} for i in kept]
            if series:
                out[run] = series
        return out

    def aggregated(self, runs: Sequence[str], metrics: Sequence[str], axis: str, most: int | None) -> dict[str, list[dict[str, Any]]]:
        """See Source."""
        by_run = [self._points(run, metrics) for run in runs]
        out = {}
        for metric in metrics:
            groups: dict[Any, list[float]] = {}
            for series in by_run:
                for x, y in zip(*_along(series.get(metric, []), axis), strict=True):
                    if isinstance(y, int | float) and math.isfinite(y) and x == x:
                        groups.setdefault(x, []).append(float(y))
            xs = sorted(groups)
            if xs:
                out[metric] = [_aggregate(axis, xs[i], groups[xs[i]]) for i in _thin(len(xs), most)]
        return out

    def events(self, run: str, contains: str | None, start: int, count: int | None) -> list[dict[str, Any]]:
        """See Source."""
        found = []
        for writer, wall, record in self._records(run, Kind.EVENT):
            body = record.body or {}
            message, level = body.get("message"), body.get("level")
            if isinstance(message, str) and (contains is None or contains.lower() in message.lower()):
                at = _micros(body.get("timestamp"), wall)
                shown = {"message": message, "timestamp": _time_text(at), "log_level": level if isinstance(level, str) else None}
                found.append(((at, wall, writer, record.seq), shown))
        found.sort(key=lambda pair: pair[0])
        return [shown for _, shown in found[start : None if count is None else start + count]]

    def gaps(self, run: str) -> list[dict[str, Any]]:
        """See Source."""
        return joined((tail.writer, *gap) for tail, chunk in self._chunks(run) for gap in chunk.gaps)

    def alerts(self, run: str) -> list[dict[str, Any]]:
        """See Source."""
        found = []
        for name, told in runstate.alerts(self._state(run)).items():
            body, since = told["definition"] or {"source": "user"}, told["since"]
            found.append(
                {
                    "name": name, "source": body.get("source"), "description": body.get("description"),
                    "notification": body.get("notification") or "none", "abort": body.get("abort") is True,
                    "alert": body.get("alert") or None, "status": told["state"], "reason": told["reason"],
                    "since": None if since is None else _time_text(since // 1000),
                }
            )  # fmt: skip
        return found

    def artifacts(self, run: str) -> list[Artifact]:
        """See Source."""
        folder = self._spool.run(run)
        latest: dict[str, tuple[tuple[int, str, int], Artifact]] = {}
        for writer, wall, record in self._records(run, Kind.ARTIFACT):
            body = record.body or {}
            name, digest = body.get("name"), body.get("digest")
            if not isinstance(name, str) or not isinstance(digest, str) or len(digest) != 64 or not digest.isalnum():
                continue
            shown = {
                "name": name, "category": body.get("category"), "checksum": digest, "size": body.get("size"), "mime_type": body.get("mime"),
                "original_path": body.get("path") or "", "metadata": body.get("metadata") or {}, "created": _time_text(wall // 1000),
            }  # fmt: skip
            stamp = (wall, writer, record.seq)
            if name not in latest or latest[name][0] < stamp:
                latest[name] = stamp, Artifact(shown, blobs.path_of(self._spool, folder, digest))
        return [latest[name][1] for name in sorted(latest)]

    def content(self, artifact: Artifact) -> Iterator[bytes]:
        """See Source."""
        if artifact.place is None:
            raise ArtifactNotFound(f"the bytes of artifact {artifact.name!r} are gone from the spool: read them from the server")
        with open(artifact.place, "rb") as f:
            while data := f.read(_CHUNK):
                yield data

    # ------------------------------------------------------------------ segments

    def _chunks(self, run: str) -> Iterator[tuple[Tail, Chunk]]:
        folder = self._spool.run(run)
        for writer in folder.writer_ids():
            with Tail(folder.writer(writer), run) as tail:
                for chunk in tail.read():
                    yield tail, chunk
                if tail.header is not None and not folder.is_carried and process.is_alive(tail.header) is False:
                    for chunk in tail.read(dead=True):
                        yield tail, chunk

    def _records(self, run: str, kind: Kind) -> Iterator[tuple[str, int, Record]]:
        for tail, chunk in self._chunks(run):
            for item in chunk.items:
                if isinstance(item, Record) and item.kind == kind:
                    yield tail.writer, chunk.header.wall_ns(item.boot_ns), item

    def _state(self, run: str) -> dict[str, Any]:
        state = runstate.empty()
        last: dict[str, tuple[int, bool]] = {}
        is_foreign = self._spool.run(run).is_carried
        for tail, chunk in self._chunks(run):
            for item in chunk.items:
                if isinstance(item, Record):
                    wall = chunk.header.wall_ns(item.boot_ns)
                    runstate.apply(state, tail.writer, item.seq, item.kind, wall, item.body)
                else:
                    wall = chunk.header.wall_ns(item.rows[-1][BOOT])
                last[tail.writer] = wall, not is_foreign and process.is_alive(chunk.header) is False
        for writer, (wall, dead) in last.items():
            if dead and not runstate.is_ended(state["writers"].get(writer, {})):
                runstate.apply(state, writer, 1 << 62, Kind.SURVIVOR, wall, {"writer": writer, "status": "lost"})
        return state

    def _points(self, run: str, metrics: Iterable[str]) -> dict[str, list[_Point]]:
        """Return the points of some metrics, in order of (wall time, writer, sequence)."""
        found: dict[str, list[_Point]] = {name: [] for name in metrics}
        for tail, chunk in self._chunks(run):
            header = chunk.header
            shift, origin = header.anchor_wall - header.anchor_boot, header.origin_boot
            for item in chunk.items:
                if isinstance(item, Record):
                    if item.kind in _JSON_METRICS and item.body is not None:
                        _add_json(found, tail.writer, item, header.wall_ns(item.boot_ns), (item.boot_ns - origin) / 1e9)
                    continue
                at, flags = item.values_at, item.flags
                for place, (name, kind) in enumerate(zip(item.shape.names, item.shape.types, strict=True), at):
                    if name not in found:
                        continue
                    for row in item.rows:
                        wall = row[BOOT] + shift
                        found[name].append(
                            _Point(
                                wall, tail.writer, row[SEQ], row[STEP], row[5] if flags & HAS_TIME else (row[BOOT] - origin) / 1e9,
                                row[5 + (flags & HAS_TIME)] if flags & HAS_TIMESTAMP else wall // 1000,
                                row[place] != 0 if kind == "?" else row[place],
                            )
                        )  # fmt: skip
        for points in found.values():
            points.sort(key=lambda p: p[:3])
        return {name: points for name, points in found.items() if points}


_JSON_METRICS = frozenset({Kind.METRICS_JSON, Kind.RESOURCES_JSON})


def _add_json(found: dict[str, list[_Point]], writer: str, record: Record, wall: int, seconds: float) -> None:
    body = record.body or {}
    values, step, time, stamp = body.get("values"), body.get("step", 0), body.get("time", seconds), body.get("timestamp")
    if isinstance(values, dict):
        for name, value in values.items():
            if name in found:
                moment = _micros(stamp, wall)
                found[name].append(_Point(wall, writer, record.seq, step, float(time), moment, value))


def _shown(run: str, state: dict[str, Any]) -> dict[str, Any]:
    status, started, finished = runstate.status(state), runstate.started(state), runstate.finished(state)
    explicit = state["status"]
    if finished is None and status in FINAL_STATUSES and explicit:
        finished = explicit[2][0]
    seen = runstate.value(state, "visibility")
    everything = {
        "id": run, "name": runstate.value(state, "name"), "status": status, "reason": runstate.reason(state),
        "folder": runstate.value(state, "folder", "/"),
        "description": runstate.value(state, "description"), "tags": runstate.tags(state), "metadata": runstate.metadata(state),
        "created": _time_text(_micros(runstate.value(state, "created"), started)) if started is not None else None,
        "started": _time_text(started // 1000) if started is not None and status != "created" else None,
        "endtime": _time_text(finished // 1000) if finished is not None and status in FINAL_STATUSES else None,
        "visibility": {"public": seen == "public", "tenant": seen == "tenant", "users": seen if isinstance(seen, list) else []},
        "ttl": runstate.value(state, "retention"), "heartbeat_timeout": runstate.value(state, "timeout"),
        "system": runstate.value(state, "system") or {},
    }  # fmt: skip
    return {key: everything[key] for key in RUN_KEYS}


def _sort_key(run: dict[str, Any], column: str) -> tuple[bool, str, Any]:
    value = run["metadata"].get(column[9:]) if column.startswith("metadata.") else run.get(column, _SORTS)
    if value is _SORTS or (column not in _SORTS and not column.startswith("metadata.")):
        raise InvalidRecord(f"cannot sort by {column[:80]!r}: use {', '.join(sorted(_SORTS))} or metadata.<key>")
    kind = "" if isinstance(value, bool | int | float) else type(value).__name__
    return value is not None, kind, value if value is not None else 0


def _along(points: list[_Point], axis: str) -> tuple[list[Any], list[Any]]:
    pairs = [(getattr(p, axis), p.value) for p in points]
    pairs.sort(key=lambda pair: (pair[0] != pair[0], pair[0]))  # stable; NaN times last
    return [x for x, _ in pairs], [y for _, y in pairs]


def _thin(count: int, most: int | None) -> Sequence[int]:
    """Evenly spread, the first and the last always among them: as the server does."""
    if most is None or count <= most:
        return range(count)
    return [count - 1] if most == 1 else [round(i * (count - 1) / (most - 1)) for i in range(most)]


def _aggregate(axis: str, x: Any, ys: list[float]) -> dict[str, Any]:
    average = math.fsum(ys) / len(ys)
    spread = math.sqrt(math.fsum((y - average) ** 2 for y in ys) / len(ys)) if len(ys) > 1 else 0.0
    return {axis: x, "average": average, "min": min(ys), "max": max(ys), "std": spread, "count": len(ys)}


def _micros(stamp: object, wall: int) -> int:
    if isinstance(stamp, int):
        return stamp
    if isinstance(stamp, str):
        from datetime import UTC, datetime, timedelta

        try:
            moment = datetime.fromisoformat(stamp)
        except ValueError:
            return wall // 1000
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
        return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    return wall // 1000


def _time_text(micros: int) -> str | None:
    from datetime import UTC, datetime, timedelta

    try:
        return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)).strftime("%Y-%m-%dT%H:%M:%S.%f")
    except OverflowError:
        return None
