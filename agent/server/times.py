"""The dialect's times: UTC text without a zone, and integers of µs since 1970 inside."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta

from .errors import Invalid

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICRO = timedelta(microseconds=1)
_AGE = re.compile(r"^(\d{1,9})\s*([smhdwy])$")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "y": 31_557_600}


def now_us() -> int:
    """Return the wall time in µs since 1970 UTC."""
    return time.time_ns() // 1000


def to_text(micros: int | None) -> str | None:
    """Return `YYYY-mm-ddTHH:MM:SS.ffffff`, or None for None and for times that a calendar cannot hold."""
    if micros is None:
        return None
    try:
        return (_EPOCH + micros * _MICRO).strftime("%Y-%m-%dT%H:%M:%S.%f")
    except OverflowError:
        return None


def from_text(value: object, what: str = "timestamp") -> int:
    """Return µs for a time as text (with or without a zone) or as seconds since 1970. Raises Invalid."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            micros = round(value * 1_000_000)
        except (ValueError, OverflowError):
            raise Invalid(f"{what}: {value!r} is not a time") from None
        if abs(micros) < 1 << 62:
            return micros
        raise Invalid(f"{what}: {value!r} is not a time")
    if isinstance(value, str) and len(value) <= 40:
        try:
            parsed = datetime.fromisoformat(value)
        except ValueError:
            raise Invalid(f"{what}: {value[:40]!r} is not a time of the form 2026-01-31T12:00:00.000000") from None
        if parsed.tzinfo is None:
            parsed = parsed.replace(tzinfo=UTC)
        return (parsed - _EPOCH) // _MICRO
    raise Invalid(f"{what}: a time of the form 2026-01-31T12:00:00.000000 is expected")


def age_us(text: str) -> int:
    """Return the µs of a duration such as `3h` or `2d`. Raises Invalid."""
    found = _AGE.match(text.strip())
    if not found:
        raise Invalid(f"not a duration: {text[:40]!r} (a number and s, m, h, d, w or y, such as 3h)")
    return int(found[1]) * _UNITS[found[2]] * 1_000_000
