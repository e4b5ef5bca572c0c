"""An alert's definition: checked, in one canonical form, and with the id that follows from it (docs/alerts.md).

The same definition has the same id in every run, wherever it was written down: in a script, a site's file or a command.
"""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from . import alert_expression, ids, records, run_filter
from .errors import InvalidRecord
from .reference_curve import AXES
from .scalars import real

SOURCES = ("metrics", "events", "user", "alerts")
NOTIFICATIONS = ("none", "email")
AGGREGATIONS = ("average", "sum", "at least one", "all")
WINDOW = 5.0  # seconds
_NAME = re.compile(r"[a-zA-Z0-9\-_\s/.:]{1,1024}")
_LONGEST = 4096  # characters of a pattern

_ABOVE_BELOW = ("is above", "is below")
_RANGES = ("is inside range", "is outside range")
_RATES = ("rate is above", "rate is below")
REFERENCE_RULE = "deviates from reference"
RULES = (*_ABOVE_BELOW, *_RANGES, "is not finite", *_RATES, "no progress", REFERENCE_RULE)

# What a definition may hold beside `rule`: needed, then possible.
_MARGINS = ("window", "frequency", "hold", "hysteresis", "clear_after")
_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    **dict.fromkeys(_ABOVE_BELOW, (("metric", "threshold"), ("aggregation", *_MARGINS))),
    **dict.fromkeys(_RANGES, (("metric", "range_low", "range_high"), ("aggregation", *_MARGINS))),
    **dict.fromkeys(_RATES, (("metric", "threshold"), _MARGINS)),
    "is not finite": (("metric",), ("frequency", "hold", "clear_after")),
    "no progress": ((), ("metric", "window", "hold", "clear_after")),
    REFERENCE_RULE: (
        ("metric", "reference"), ("tolerance", "relative_tolerance", "xaxis", "aggregation", "window", "frequency", "hold", "clear_after"),
    ),
    "events": (("pattern",), ("frequency", "hold", "clear_after")),
    "user": ((), ()),
    "alerts": (("when",), ("runs", "hold", "clear_after")),
}  # fmt: skip
_DEFAULTS: dict[str, Any] = {
    "aggregation": "average", "window": WINDOW, "hold": 0.0, "hysteresis": 0.0, "tolerance": 0.0, "relative_tolerance": 0.0,
    "xaxis": "step",
}  # fmt: skip


def define(
    name: Any,
    source: Any = "metrics",
    *,
    description: Any = None,
    notification: Any = "none",
    trigger_abort: Any = False,
    **given: Any,
) -> dict[str, Any]:
    """Return an alert's body: id, name, source, abort, notification, description and the definition under `alert`.

    `given`: rule, metric, threshold, range_low, range_high, aggregation, window, frequency, hold, hysteresis, clear_after, pattern, when,
    runs, reference (a curve's SHA-256), tolerance, relative_tolerance, xaxis, each None (or its default) where it is not meant. Numbers
    become floats. Raises InvalidRecord, naming the argument and what to do.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRecord(f"alert name {name!r} is not valid: use 1 to 1024 letters, digits, blanks and - _ / . : only"[:300])
    what = f"alert {name!r}"
    _choice(what, "source", source, SOURCES)
    _choice(what, "notification", notification, NOTIFICATIONS)
    if not isinstance(trigger_abort, bool):
        raise InvalidRecord(f"{what}: trigger_abort must be True or False, not {trigger_abort!r}"[:300])
    body: dict[str, Any] = {
        "name": name, "source": source, "abort": trigger_abort, "notification": notification,
        "alert": _definition(what, source, given),
    }  # fmt: skip
    body["id"] = identity(body)
    if description is not None:
        if not isinstance(description, str):
            raise InvalidRecord(f"{what}: description must be text, not {description!r}"[:300])
        body["description"] = description
    return body


def identity(body: Mapping[str, Any]) -> str:
    """Return the id of an alert: made of name, source, abort, notification and definition, and of nothing else."""
    meant = {key: body[key] for key in ("name", "source", "abort", "notification", "alert")}
    return ids.to_text(hashlib.sha256(records.encode(meant)).digest()[:16])


def describe(body: Mapping[str, Any]) -> str:
    """Return an alert's definition in words, for messages."""
    parts = {"source": body.get("source"), **dict(body.get("alert") or {})}
    if isinstance(parts.get("reference"), str):
        parts["reference"] = str(parts["reference"])[:16]  # as the artifact is named
    if body.get("abort"):
        parts["trigger_abort"] = True
    if body.get("notification") != "none":
        parts["notification"] = body.get("notification")
    return ", ".join(f"{key}={value!r}" for key, value in parts.items())


def _definition(what: str, source: str, given: Mapping[str, Any]) -> dict[str, Any]:
    known = {key: _checked(what, key, value) for key, value in given.items() if value is not None}
    found: dict[str, Any] = {}
    form = source
    if source == "metrics":
        rule = known.pop("rule", None)
        if rule is None:
            raise InvalidRecord(f"{what} needs a rule: one of {', '.join(RULES)}")
        found["rule"] = form = rule
    needed, possible = _KEYS[form]
    shown = f"source {source!r}" if form == source else f"rule {form!r}"
    for key in needed:
        if key not in known:
            raise InvalidRecord(f"{what} with {shown} needs {key}: add {key}=...")
    for key, value in known.items():
        if key in needed or key in possible:
            if value != _DEFAULTS.get(key):
                found[key] = value
        elif value != _DEFAULTS.get(key):
            raise InvalidRecord(f"{what} with {shown} has no use for {key}: leave {key}={value!r} out"[:300])
    if found.get("clear_after") == 0.0 and source != "events":
        del found["clear_after"]
    if form in _RANGES:
        _check_range(what, form, found)
    if form == REFERENCE_RULE:
        _check_reference(what, found)
    return found


def _check_reference(what: str, found: Mapping[str, Any]) -> None:
    if not found.get("tolerance") and not found.get("relative_tolerance"):
        raise InvalidRecord(f"{what}: a tolerance or a relative_tolerance must be above 0, or the last bit of a number fires")
    if found.get("aggregation") == "sum":
        raise InvalidRecord(f"{what}: deviations are not summed: use average, at least one or all")
    if any(c in found["metric"] for c in "*?["):
        raise InvalidRecord(f"{what}: a reference is the curve of one metric: give its name, not the pattern {found['metric']!r}"[:300])


def _check_range(what: str, rule: str, found: Mapping[str, Any]) -> None:
    low, high, margin = found["range_low"], found["range_high"], found.get("hysteresis", 0.0)
    if not low < high:
        raise InvalidRecord(f"{what}: range_low must be below range_high, not {low!r} and {high!r}")
    if rule == "is outside range" and not low + margin <= high - margin:
        raise InvalidRecord(f"{what}: hysteresis {margin!r} leaves nothing of the range {low!r} to {high!r}: use at most half of its width")


def _checked(what: str, key: str, value: Any) -> Any:
    check = _CHECKS.get(key)
    if check is None:
        raise InvalidRecord(f"{what}: there is no {key}: use {', '.join(_CHECKS)}")
    return check(what, key, value)


def _choice(what: str, key: str, value: Any, allowed: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise InvalidRecord(f"{what}: {key} must be one of {', '.join(allowed)}, not {value!r}"[:400])
    return value


def _number(what: str, key: str, value: Any) -> float:
    number = real(f"{what}: {key}", repr(value) if isinstance(value, bool) else value)
    if math.isnan(number):
        raise InvalidRecord(f"{what}: {key} must be a number, not NaN: the rule 'is not finite' finds NaN")
    return number + 0.0  # no -0.0: it would be another id


def _seconds(what: str, key: str, value: Any) -> float:
    number = _number(what, key, value)
    if not 0 < number < math.inf:
        raise InvalidRecord(f"{what}: {key} must be a number of seconds above 0, not {value!r}")
    return number


def _not_negative(what: str, key: str, value: Any) -> float:
    number = _number(what, key, value)
    if not 0 <= number < math.inf:
        raise InvalidRecord(f"{what}: {key} must be a number of at least 0, not {value!r}")
    return number


def _text(what: str, key: str, value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST:
        raise InvalidRecord(f"{what}: {key} must be text of 1 to {_LONGEST} characters, not {value!r}"[:300])
    return value


def _digest(what: str, key: str, value: Any) -> str:
    if not ids.is_digest(value):
        raise InvalidRecord(f"{what}: {key} must be a curve's SHA-256 in 64 hex digits, not {value!r}"[:300])
    return value


def _expression(what: str, key: str, value: Any) -> str:
    text = _text(what, key, value)
    try:
        alert_expression.parse(text)
    except InvalidRecord as error:
        raise InvalidRecord(f"{what}: {error}") from None
    return text


def _filter(what: str, key: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST:
        raise InvalidRecord(f"{what}: {key} must be text of at most {_LONGEST} characters, not {value!r}"[:300])
    try:
        run_filter.parse(value)
    except InvalidRecord as error:
        raise InvalidRecord(f"{what}: {key}: {error}") from None
    return value


def _pattern(what: str, key: str, value: Any) -> str:
    text = _text(what, key, value)
    if text.startswith("re:"):
        _check_expression(what, text[3:])
    return text


def _check_expression(what: str, expression: str) -> None:
    """Refuse what Python's and RE2's regular expressions do not both have."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(expression)
    except (re.error, RecursionError, OverflowError) as error:
        raise InvalidRecord(f"{what}: pattern 're:{expression}' is not a regular expression: {error}"[:400]) from None
    found = _beyond_re2(expression)
    if found:
        raise InvalidRecord(f"{what}: pattern 're:{expression}' has {found}, which is not in RE2 (linear time): write it without"[:400])


def _beyond_re2(expression: str) -> str:
    """Return the first thing in a valid expression that RE2 does not have, empty when there is none."""
    at, in_class = 0, False
    while at < len(expression):
        here = expression[at]
        if here == "\\":
            escaped = expression[at + 1]
            if escaped.isdigit() and escaped != "0":
                return f"the back reference \\{escaped}"
            if escaped in "ZuUN":
                return f"the escape \\{escaped}"
            at += 2
            continue
        if in_class:
            in_class = here != "]"
        elif here == "[":
            in_class = True
            at += 2 if expression[at + 1 : at + 2] == "^" else 1
            at += expression[at : at + 1] == "]"
            continue
        elif (found := _REPEATED.match(expression, at)) and max(int(n) for n in found.groups() if n) > _MOST_REPEATS:
            return f"the repetition {found[0]}"
        elif found := _ENHANCED.match(expression, at):
            return f"{_NAMES.get(found[0][:4]) or _NAMES.get(found[0][:3]) or 'the form'} {found[0]}"
        at += 1
    return ""


_ENHANCED = re.compile(r"\(\?(?:=|!|<=|<!|P=|\(|>|#)|\(\?[a-zA-Z-]*[aLux][a-zA-Z-]*[:)]|[*+?}]\+")
_REPEATED = re.compile(r"\{(\d+),?(\d*)\}")
_MOST_REPEATS = 1000
_NAMES = {"(?=": "look-around", "(?!": "look-around", "(?<=": "look-around", "(?<!": "look-around", "(?P=": "the back reference"}
_CHECKS: dict[str, Callable[[str, str, Any], Any]] = {
    "rule": lambda what, key, value: _choice(what, key, value, RULES),
    "metric": _text, "threshold": _number, "range_low": _number, "range_high": _number,
    "aggregation": lambda what, key, value: _choice(what, key, value, AGGREGATIONS),
    "window": _seconds, "frequency": _seconds, "hold": _not_negative, "hysteresis": _not_negative, "clear_after": _not_negative,
    "pattern": _pattern, "when": _expression, "runs": _filter, "reference": _digest, "tolerance": _not_negative,
    "relative_tolerance": _not_negative, "xaxis": lambda what, key, value: _choice(what, key, value, AXES),
}  # fmt: skip
