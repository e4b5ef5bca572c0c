"""A range's records as the lines of a directory target's files: JSON lines, or a table of metrics (docs/targets.md shows them)."""

from __future__ import annotations

import csv
import functools
import io
import json
import math
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from simspool.spool import Kind
from simspool.spool.records import label

from .port import Range
from .records import Fact, Gap, Point, records

EVENTS, RECORDS = "events.jsonl", "records.jsonl"
METRICS = {"jsonl": "metrics.jsonl", "csv": "metrics.csv"}
COLUMNS = ("step", "time", "timestamp", "metric", "value", "writer", "seq")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
_ODD = {math.inf: "Infinity", -math.inf: "-Infinity"}


def lines(sent: Range, after: int, form: str) -> Iterator[tuple[str, bytes, Point | Fact | Gap]]:
    """Yield (file, line or lines, record) for the records of a range behind the sequence `after`."""
    for record in records(sent):
        if isinstance(record, Gap):
            if record.last > after:
                said = {"writer": sent.writer, "kind": "gap", "first": max(record.seq, after + 1), "last": record.last}
                yield RECORDS, line({**said, "reason": record.reason}), record
        elif record.seq <= after:
            continue
        elif isinstance(record, Point):
            yield METRICS[form], (_table(sent.writer, record) if form == "csv" else _point(sent.writer, record)), record
        else:
            at = {"writer": sent.writer, "seq": record.seq, "timestamp": moment(record.at)}
            if record.kind == Kind.EVENT and isinstance(record.body.get("message"), str):
                yield EVENTS, line({**record.body, **at, "timestamp": record.body.get("timestamp", at["timestamp"])}), record
            else:
                yield RECORDS, line({**at, "kind": label(record.kind), "body": dict(record.body)}), record


def line(value: Any) -> bytes:
    """Return a value as one line of strict ASCII JSON; what JSON lacks is text: "NaN", "Infinity", "-Infinity"."""
    try:
        text = _encode(value)
    except ValueError:
        text = _encode(strict(value))
    return text.encode() + b"\n"


def strict(value: Any) -> Any:
    """Return a value in which numbers that JSON lacks are text."""
    if isinstance(value, float) and not math.isfinite(value):
        return _ODD.get(value, "NaN")
    if isinstance(value, dict):
        return {k: strict(v) for k, v in value.items()}
    return [strict(v) for v in value] if isinstance(value, list) else value


def moment(us: int) -> str:
    """Return µs since 1970 as text, UTC; the number itself where it is no date."""
    seconds, rest = divmod(us, 1_000_000)
    try:
        return f"{_second(seconds)}.{rest:06d}Z"
    except (OverflowError, ValueError):
        return str(us)


@functools.lru_cache(64)
def _second(seconds: int) -> str:
    return (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")


def _point(writer: str, point: Point) -> bytes:
    """As `line`, put together by hand: there are millions of them."""
    values = ",".join([_key(name) + _number(value) for name, value in point.values.items()])
    sort = ',"resource":true' if point.resource else ""
    begin = f'{{"step":{point.step},"time":{_number(point.time)},"timestamp":"{moment(point.at)}","values":{{{values}}}{sort}'
    return f'{begin},"writer":"{writer}","seq":{point.seq}}}\n'.encode()


def _number(value: float | bool) -> str:
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return f'"{_ODD.get(value, "NaN")}"'
    return repr(value)


@functools.lru_cache(4096)
def _key(name: str) -> str:
    return _encode(name) + ":"


def _table(writer: str, point: Point) -> bytes:
    text = io.StringIO()
    begin, end = f"{point.step},{point.time!r},{moment(point.at)},", f",{writer},{point.seq}\n"
    for name, value in point.values.items():
        # a column of numbers must stay one: True and False are 1 and 0
        text.write(f"{begin}{_cell(name)},{int(value) if value is True or value is False else value!r}{end}")
    return text.getvalue().encode(errors="backslashreplace")


@functools.lru_cache(4096)
def _cell(name: str) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow([name])  # both are quoted in a name
    return text.getvalue()[:-2]


def header(form: str) -> bytes:
    """Return what a file of metrics begins with."""
    return ",".join(COLUMNS).encode() + b"\n" if form == "csv" else b""


def read_points(found: Iterable[bytes], form: str) -> Iterator[tuple[str, int, float, str]]:
    """Yield (metric, step, value, timestamp) of a file of metrics. Raises ValueError, KeyError or TypeError for other lines."""
    if form == "csv":
        for row in csv.DictReader(text.decode() for text in found):
            yield row["metric"], int(row["step"]), float(row["value"]), row["timestamp"]
        return
    for text in found:
        said = json.loads(text)
        for name, value in said["values"].items():
            yield name, said["step"], float(value), said["timestamp"]
