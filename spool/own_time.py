"""A point's own time: the `time` that the caller gave, else its `timestamp` less the wall time of the run's start, else its moment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from .segment_header import SegmentHeader

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def as_float(value: Any) -> float:
    """Return a value as floating point: numbers that are too large as infinite, what is no number as NaN."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError):
        return math.nan


def own_time(body: Mapping[str, Any], header: SegmentHeader, moment: float) -> float:
    """Return the own time (run seconds) of a point whose record has a JSON body. What is no time counts as not given."""
    time, stamp = body.get("time"), body.get("timestamp")
    if isinstance(time, (int, float)):
        found = as_float(time)
        return found if math.isfinite(found) else moment
    micros: int | None = stamp if isinstance(stamp, int) else None
    if isinstance(stamp, str):
        micros = _parse(stamp)
    if micros is None:
        return moment
    try:
        return (micros * 1000 - header.wall_ns(header.origin_boot)) / 1e9
    except OverflowError:
        return moment


def _parse(text: str) -> int | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    found = found.replace(tzinfo=UTC) if found.tzinfo is None else found
    return (found - _EPOCH) // timedelta(microseconds=1)
