"""The filter strings of `Client.get_runs`, applied to runs that were read from a spool; the server has the same grammar.

`name == x`, `name contains x`, `name not contains x`, `status == running`, `folder.path == /a`, `id == x`, `has tag.x`, `has not tag.x`,
`metadata.k exists`, `metadata.k >= v`, `system.cpu.arch == x`, `created < 3h` (younger than). All must hold.
"""

from __future__ import annotations

import operator
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from simspool.spool import InvalidRecord

_FORM = re.compile(r"^\s*(\S.*?)\s+(==|!=|>=|<=|>|<|not\s+contains\b|contains\b|not\s+exists\b|exists\b)\s?(.*)$", re.DOTALL)
_AGE = re.compile(r"^(\d{1,9})\s*([smhdwy])$")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "y": 31_557_600}
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "!=": operator.ne, ">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le,
}  # fmt: skip
_TEXTS = {"name": "name", "description": "description", "status": "status", "folder.path": "folder", "folder": "folder", "id": "id"}
_TIMES = {"created": "created", "started": "started", "endtime": "endtime", "ended": "endtime"}


def matches(run: Mapping[str, Any], filters: Sequence[str]) -> bool:
    """Say whether a run meets all filters. Raises InvalidRecord for what is not a filter here."""
    return all(_holds(run, text) for text in filters)


def _holds(run: Mapping[str, Any], text: str) -> bool:
    stripped = text.strip()
    for prefix, wanted in (("has not tag.", False), ("has tag.", True)):
        if stripped.startswith(prefix):
            return (stripped[len(prefix) :] in run["tags"]) is wanted
    found = _FORM.match(text)
    if found is None:
        raise _refused(text)
    column, sign, value = found[1], " ".join(found[2].split()), found[3].strip()
    if column in _TEXTS:
        return _text(run[_TEXTS[column]], sign, value, text)
    if column in _TIMES:
        return _time(run[_TIMES[column]], sign, value, text)
    if column == "user" and value == "self" and sign in {"==", "!="}:
        return sign == "=="  # a spool has one owner
    root, _, key = column.partition(".")
    if root in {"metadata", "system"} and key:
        return _value(_lookup(run[root], key), sign, value, text)
    raise _refused(text)


def _refused(text: str) -> InvalidRecord:
    return InvalidRecord(
        f"not a filter for runs in a spool: {text[:80]!r} (such as `name == x`, `has tag.x`, `metadata.k >= 3`, `created < 3h`)"
    )


def _text(found: Any, sign: str, value: str, text: str) -> bool:
    if sign.endswith("exists"):
        return (found is not None) is (sign == "exists")
    held = "" if found is None else str(found)
    if sign.endswith("contains"):
        return (value.lower() in held.lower()) is (sign == "contains")
    if sign not in {"==", "!="}:
        raise _refused(text)
    return _COMPARE[sign](held, value)


def _time(found: str | None, sign: str, value: str, text: str) -> bool:
    if sign not in {"<", ">", "<=", ">="}:
        raise _refused(text)
    if found is None:
        return False
    age = _AGE.match(value)
    if age is None:
        return _COMPARE[sign](found, value)
    from datetime import UTC, datetime

    moment = datetime.fromisoformat(found).replace(tzinfo=UTC).timestamp()
    return _COMPARE[sign](time.time() - moment, int(age[1]) * _UNITS[age[2]])


def _lookup(values: Mapping[str, Any], key: str) -> Any:
    if key in values:
        return values[key]
    found: Any = values
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _value(found: Any, sign: str, value: str, text: str) -> bool:
    if sign.endswith(("exists", "contains")):
        return _text(found, sign, value, text)
    is_number = isinstance(found, int | float) and not isinstance(found, bool)
    try:
        number: float | None = float(value)
    except ValueError:
        number = None
    if sign in {"==", "!="}:
        same = (found is not None and str(found) == value) or (is_number and found == number)
        same = same or (isinstance(found, bool) and str(found).lower() == value.lower())
        return same is (sign == "==")
    if number is None:
        return isinstance(found, str) and _COMPARE[sign](found, value)
    return is_number and _COMPARE[sign](found, number)
