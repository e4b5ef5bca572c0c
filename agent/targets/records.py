"""A range's records in plain values, for targets that take records and not frames."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from simspool.spool import Kind, frames
from simspool.spool.frames import HAS_TIME, HAS_TIMESTAMP, MetricBatch, Record
from simspool.spool.segment_header import STATIC_SIZE, SegmentHeader

from .port import Range


@dataclass(frozen=True, slots=True)
class Point:
    """One log call: values of metrics (bool, int or float, as given), at a step.

    `time` is in seconds since the run's start (or what the user gave); `at` µs since 1970 UTC: the user's timestamp, else when the call was
    made. `resource`: it was measured by the recorder, not by the script.
    """

    seq: int
    step: int
    time: float
    at: int
    values: Mapping[str, float | int | bool]
    resource: bool = False


@dataclass(frozen=True, slots=True)
class Fact:
    """Any other record: its kind, its body as FORMAT.md section 5 has it, and when it was made (µs since 1970 UTC)."""

    seq: int
    kind: int
    at: int
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Gap:
    """Records that are nowhere any more: sequences `seq` to `last`, with the reason."""

    seq: int
    last: int
    reason: str


def records(sent: Range) -> Iterator[Point | Fact | Gap]:
    """Yield what a range holds, in its order. What its frames cannot say as it should be (a metric record without values) is a Fact."""
    size = int.from_bytes(sent.data[:4], "little")
    head = json.loads(sent.data[4 : 4 + size])
    header = SegmentHeader.unpack(sent.data[4 + size : 4 + size + STATIC_SIZE])
    body = memoryview(sent.data)[4 + size + STATIC_SIZE :]
    gaps = [Gap(first, last, reason) for first, last, reason in head["gaps"]]
    for item in frames.decode(body, header.seed, {}).items:
        for one in _plain(item, header):
            while gaps and gaps[0].seq < one.seq:
                yield gaps.pop(0)
            if one.seq <= sent.last:
                yield one
    yield from gaps


def _plain(item: MetricBatch | Record, header: SegmentHeader) -> Iterator[Point | Fact]:
    if isinstance(item, Record):
        at, body = header.wall_ns(item.boot_ns) // 1000, item.body or {}
        if item.kind in {Kind.METRICS_JSON, Kind.RESOURCES_JSON}:
            point = _point(item, body, (item.boot_ns - header.origin_boot) / 1e9, at)
            yield point or Fact(item.seq, item.kind, at, body)
        else:
            yield Fact(item.seq, item.kind, at, body)
        return
    names, types, resource = item.shape.names, item.shape.types, item.kind == Kind.RESOURCES
    stamp_at = 5 + (item.flags & HAS_TIME)
    for row in item.rows:
        boot = row[2]
        values = {
            name: value != 0 if kind == "?" else value
            for name, kind, value in zip(names, types, row[item.values_at : item.values_at + len(names)], strict=True)
        }
        time = row[5] if item.flags & HAS_TIME else (boot - header.origin_boot) / 1e9
        at = row[stamp_at] if item.flags & HAS_TIMESTAMP else header.wall_ns(boot) // 1000
        yield Point(row[1], row[4], time, at, values, resource)


def _point(record: Record, body: Mapping[str, Any], seconds: float, at: int) -> Point | None:
    values, step, time, stamp = body.get("values"), body.get("step", 0), body.get("time", seconds), body.get("timestamp")
    if not isinstance(values, dict) or not values or not all(isinstance(v, int | float) for v in values.values()):
        return None
    if not isinstance(step, int) or isinstance(step, bool) or not isinstance(time, int | float) or isinstance(time, bool):
        return None
    if isinstance(stamp, int) and not isinstance(stamp, bool):
        at = stamp
    elif isinstance(stamp, str):
        try:
            found = datetime.fromisoformat(stamp)
        except ValueError:
            return None
        at = round((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1e6)
    elif stamp is not None:
        return None
    return Point(record.seq, step, float(time), at, values, record.kind == Kind.RESOURCES_JSON)
