"""Checks of what the caller gives: names, metadata, times. Each raises InvalidRecord and names the thing and the allowed form."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from simspool.spool import InvalidRecord

if TYPE_CHECKING:
    from datetime import datetime

MAX_NAME = 1024
CATEGORIES = ("input", "output", "code")
STATUSES = ("completed", "failed", "terminated")
LEVELS = ("debug", "info", "warning", "error", "critical")
_NAME = r"[a-zA-Z0-9\-_\s/.:]+"
_METRIC = r"[a-zA-Z0-9\-_\s/.:=><+()%]+"
_MIME = r"[a-zA-Z0-9!#$&^_.+-]+/[a-zA-Z0-9!#$&^_.+-]+(\s*;.*)?"
_CANONICAL = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}"
_SECONDS = {
    "s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60, "h": 3600, "hour": 3600, "d": 86400, "day": 86400, "w": 604800,
    "week": 604800, "month": 2_592_000, "y": 31_536_000, "year": 31_536_000,
}  # fmt: skip


def _matches(pattern: str, text: object) -> bool:
    return isinstance(text, str) and len(text) <= MAX_NAME and re.fullmatch(pattern, text) is not None


def check_name(what: str, name: object) -> str:
    """Return the name of a run, artifact or object."""
    if not _matches(_NAME, name):
        raise InvalidRecord(
            f"{what} {_shown(name)} is not valid: use 1 to {MAX_NAME} letters, digits, blanks and - _ / . : only"
        )
    return str(name)


def check_metric_name(name: str) -> None:
    """Refuse a metric's name that a server would refuse later."""
    if not _matches(_METRIC, name):
        raise InvalidRecord(
            f"metric name {_shown(name)} is not valid: use 1 to {MAX_NAME} letters, digits, blanks and - _ / . : = > < + ( ) % only"
        )


def check_folder(path: object) -> str:
    """Return a folder's path, which begins with a slash."""
    if not isinstance(path, str) or not path.startswith("/") or len(path) > MAX_NAME:
        raise InvalidRecord(f"folder {_shown(path)} is not valid: it must be text that begins with '/', such as '/project/tests'")
    return path


def check_category(category: object) -> str:
    """Return an artifact's category."""
    return one_of("category", category, CATEGORIES)


def one_of(what: str, value: object, allowed: tuple[str, ...]) -> str:
    """Return the value when it is one of the allowed texts."""
    if not isinstance(value, str) or value not in allowed:
        raise InvalidRecord(f"{what} must be one of {', '.join(allowed)}, not {_shown(value)}")
    return value


def check_mime(filetype: object) -> str:
    """Return a MIME type of the form type/subtype."""
    if not _matches(_MIME, filetype):
        raise InvalidRecord(f"filetype {_shown(filetype)} is not a MIME type: use the form type/subtype, such as text/csv")
    return str(filetype)


def check_text(what: str, value: object) -> str:
    """Return text of any length."""
    if not isinstance(value, str):
        raise InvalidRecord(f"{what} must be text, not {type(value).__name__} {_shown(value)}")
    return value


def check_tags(tags: object) -> list[str]:
    """Return tags without duplicates, in their order. A single text is refused: it would become one tag a letter."""
    if isinstance(tags, str) or not isinstance(tags, Iterable):
        raise InvalidRecord(f"tags must be a list of texts, not {_shown(tags)}")
    listed = list(tags)
    for tag in listed:
        if not isinstance(tag, str) or not 0 < len(tag) <= MAX_NAME:
            raise InvalidRecord(f"tag {_shown(tag)} is not valid: use 1 to {MAX_NAME} characters of text")
    return list(dict.fromkeys(listed))


def check_metadata(metadata: object) -> dict[str, Any]:
    """Return metadata as plain values: text, numbers, booleans, None, and lists and dictionaries of these.

    NumPy and torch scalars become plain numbers.
    """
    if not isinstance(metadata, Mapping):
        raise InvalidRecord(f"metadata must be a dictionary, not {_shown(metadata)}")
    out = {}
    for key, value in metadata.items():
        if not isinstance(key, str) or not 0 < len(key) <= MAX_NAME:
            raise InvalidRecord(f"metadata key {_shown(key)} is not valid: use 1 to {MAX_NAME} characters of text")
        out[key] = _plain(key, value, 0)
    return out


def _plain(key: str, value: Any, depth: int) -> Any:
    if value is None or type(value) in {str, int, float, bool}:
        return value
    if isinstance(value, bool | int | float | str):  # subclasses: NumPy's float64, IntEnum, ...
        return next(kind(value) for kind in (bool, int, float, str) if isinstance(value, kind))
    if depth < 32:
        if isinstance(value, Mapping):
            return {check_text(f"a key in metadata {key!r}", k): _plain(key, v, depth + 1) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [_plain(key, v, depth + 1) for v in value]
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "size", 1) == 1:
        try:
            plain = item()
        except (TypeError, ValueError, RuntimeError):
            plain = value
        if isinstance(plain, bool | int | float | str):
            return plain
    raise InvalidRecord(
        f"metadata {key!r} must be text, a number or a boolean, not {type(value).__name__} {_shown(value)}: save_object keeps objects"
    )


def check_visibility(visibility: object) -> str | list[str] | None:
    """Return "public", "tenant", a list of user names, or None."""
    if visibility is None:
        return None
    if isinstance(visibility, list | tuple | set) and all(isinstance(u, str) and u for u in visibility):
        return list(visibility)
    if isinstance(visibility, str):
        return one_of("visibility", visibility, ("public", "tenant"))
    raise InvalidRecord(f"visibility must be 'public', 'tenant' or a list of user names, not {_shown(visibility)}")


def check_count(what: str, value: object) -> int:
    """Return a whole number above zero."""
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise InvalidRecord(f"{what} must be a whole number above 0, not {_shown(value)}")
    return value


def period_seconds(text: object) -> int:
    """Return the seconds of a period such as "1 day" or "2 weeks 3 hours". A month has 30 days, a year 365."""
    wrong = InvalidRecord(f"period {_shown(text)} is not valid: use numbers with units, such as '1 day' or '2 weeks 3 hours'")
    if not isinstance(text, str) or len(text) > MAX_NAME:
        raise wrong
    total, at = 0.0, 0
    for found in re.finditer(r"\s*(?:,|and\b)?\s*(\d+(?:\.\d+)?)\s*([a-z]+)", text.lower()):
        unit = found[2]
        seconds = _SECONDS.get(unit) or _SECONDS.get(unit.removesuffix("s"))
        if found.start() != at or seconds is None:
            raise wrong
        total += float(found[1]) * seconds
        at = found.end()
    if text[at:].strip() or not 1 <= total < 1 << 53:
        raise wrong
    return round(total)


def check_timestamp(timestamp: str | datetime) -> int | str:
    """Return a time as µs since 1970 UTC where it has the canonical form %Y-%m-%dT%H:%M:%S.%f (UTC) or is a datetime (UTC when naive).

    Other ISO forms are returned as they are.
    """
    from datetime import UTC, datetime, timedelta

    moment = timestamp
    if isinstance(timestamp, str):
        try:
            moment = datetime.fromisoformat(timestamp)
        except ValueError:
            raise InvalidRecord(
                f"timestamp {_shown(timestamp)} is not valid: use the form 2026-01-31T12:00:00.000000 (UTC)"
            ) from None
        if not re.fullmatch(_CANONICAL, timestamp):
            return timestamp
    if not isinstance(moment, datetime):
        raise InvalidRecord(f"timestamp must be text or a datetime, not {_shown(timestamp)}")
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a caller's broken __repr__ must not replace the message
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 120 else text[:117] + "..."
