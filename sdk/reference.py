"""A curve to compare with, for `deviates from reference`: made of an earlier run's points, a file, or numbers (docs/alerts.md)."""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from simspool.spool import InvalidRecord, Kind, RunFolder, RunNotFound, Spool, Tail, UnreadableFile, process, reference_curve
from simspool.spool.frames import BOOT, HAS_TIME, HAS_TIMESTAMP, SEQ, STEP, MetricBatch, Record
from simspool.spool.own_time import as_float, own_time
from simspool.spool.scalars import real
from simspool.spool.segment_header import SegmentHeader

_LARGEST = 256 << 20  # bytes of a file
_BETWEEN = re.compile(r"[,;\s]+")
_JSON_METRICS = frozenset({Kind.METRICS_JSON, Kind.RESOURCES_JSON})


class Made(NamedTuple):
    """A curve in its one form, and where it is from."""

    data: bytes
    source: str


def curve_from(reference: object, metric: str, xaxis: str, spool: Spool | None) -> Made:
    """Return the curve that is meant: a run's id, unique prefix or name, a CSV file's path, (x, value) pairs, or {x: value}.

    A text that means no run of the spool is a path. Raises RunNotFound, InvalidRecord (no points, no numbers) and UnreadableFile, each
    with what to do.
    """
    if isinstance(reference, str):
        try:
            if spool is None:
                raise RunNotFound(f"no run {reference!r} is known here")
            run = spool.run(spool.find_run(reference))
        except RunNotFound as error:
            if os.path.exists(reference):
                return curve_from_file(reference)
            raise RunNotFound(f"reference: {error}; there is no file of this name either") from None
        return curve_from_run(run, metric, xaxis)
    if isinstance(reference, os.PathLike):
        return curve_from_file(os.fsdecode(reference))
    if isinstance(reference, Mapping):
        return _from_pairs(reference.items())
    if isinstance(reference, Iterable):
        return _from_pairs(reference)
    raise InvalidRecord(f"reference must be a run, a file, (x, value) pairs or a dictionary, not {reference!r}"[:300])


def _from_pairs(pairs: Iterable[Any]) -> Made:
    points = []
    for pair in pairs:
        try:
            x, value = pair
        except (TypeError, ValueError):
            raise InvalidRecord(f"reference: {pair!r} is not an (x, value) pair"[:300]) from None
        points.append((real("reference: x", x), real("reference: value", value)))
    return Made(reference_curve.encode(points), "")


def curve_from_file(path: str) -> Made:
    """Return the curve in a file of two columns, x and value, between commas, semicolons or blanks.

    A first line without numbers is a header; empty lines and those that begin with # are left out. Raises UnreadableFile and
    InvalidRecord, which names the line.
    """
    try:
        with open(path, encoding="utf-8-sig") as f:
            if os.fstat(f.fileno()).st_size > _LARGEST:
                raise UnreadableFile(errno.EFBIG, f"reference {path} is over {_LARGEST >> 20} MiB: thin it out")
            return Made(reference_curve.encode(_lines(path, f)), os.path.abspath(path))
    except UnreadableFile:
        raise
    except UnicodeDecodeError:
        raise InvalidRecord(f"reference {path} is no text: two columns are expected, x and value") from None
    except InvalidRecord as error:
        raise InvalidRecord(str(error) if path in str(error) else f"reference {path}: {error}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UnreadableFile(getattr(error, "errno", None) or errno.EINVAL, f"cannot read reference {path}: {reason}") from None


def _lines(path: str, lines: Iterable[str]) -> Iterator[tuple[float, float]]:
    is_first = True
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        columns = _BETWEEN.split(text)
        try:
            x, value = map(float, columns)
        except ValueError:
            if not is_first or len(columns) != 2:
                raise InvalidRecord(f"reference {path}, line {number}: two numbers are expected, x and value, not {text[:100]!r}") from None
        else:
            yield x, value
        is_first = False


def curve_from_run(run: RunFolder, metric: str, xaxis: str) -> Made:
    """Return the curve of a metric in an earlier run, by step or own time; the points of all its writers count, as far as they lie in
    the spool. Raises InvalidRecord when there are none."""
    found = [point for writer in run.writer_ids() for point in _points(run, writer, metric, by_time=xaxis == "time")]
    found.sort(key=lambda p: p[:3])  # the last recorded counts
    try:
        return Made(reference_curve.encode((x, value) for _, _, _, x, value in found), f"run {run.id}, {metric} by {xaxis}")
    except InvalidRecord:
        raise InvalidRecord(
            f"reference: run {run.id} has no points of {metric!r} in the spool: `agent cat {run.id}` shows what it has"
        ) from None


def _points(run: RunFolder, writer: str, metric: str, *, by_time: bool) -> Iterator[tuple[int, str, int, float, float]]:
    """A writer's points: (wall time in ns, writer, sequence, x, value)."""
    with Tail(run.writer(writer), run.id) as tail:
        for dead in (False, True):
            for chunk in tail.read(dead=dead):
                for item in chunk.items:
                    if isinstance(item, Record):
                        if item.kind in _JSON_METRICS:
                            yield from _of_json(chunk.header, writer, item, metric, by_time=by_time)
                    elif metric in item.shape.names:
                        yield from _of_batch(chunk.header, writer, item, metric, by_time=by_time)
            if tail.complete or tail.header is None or process.is_alive(tail.header) is not False:
                return


def _of_batch(
    header: SegmentHeader, writer: str, batch: MetricBatch, metric: str, *, by_time: bool
) -> Iterator[tuple[int, str, int, float, float]]:  # fmt: skip
    at, origin = batch.values_at + batch.shape.names.index(metric), header.origin_boot
    start = header.wall_ns(origin)
    for row in batch.rows:
        x = row[STEP]
        if by_time:
            x = (row[BOOT] - origin) / 1e9
            if batch.flags & HAS_TIME:
                x = row[5] if math.isfinite(row[5]) else x
            elif batch.flags & HAS_TIMESTAMP:
                x = (row[5] * 1000 - start) / 1e9
        yield header.wall_ns(row[BOOT]), writer, row[SEQ], float(x), float(row[at])


def _of_json(
    header: SegmentHeader, writer: str, record: Record, metric: str, *, by_time: bool
) -> Iterator[tuple[int, str, int, float, float]]:  # fmt: skip
    body = record.body or {}
    values, step = body.get("values"), body.get("step")
    value = values.get(metric) if isinstance(values, dict) else None
    if isinstance(value, (int, float)):
        moment = (record.boot_ns - header.origin_boot) / 1e9
        x = own_time(body, header, moment) if by_time else as_float(step) if isinstance(step, int) else math.nan
        yield header.wall_ns(record.boot_ns), writer, record.seq, x, as_float(value)
