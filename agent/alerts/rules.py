"""A rule, parsed from the body of an alert's record (docs/alerts.md)."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from simspool.spool import InvalidRecord, alert_expression
from simspool.spool.alert_definition import AGGREGATIONS, REFERENCE_RULE, RULES, SOURCES
from simspool.spool.alert_expression import Expression
from simspool.spool.reference_curve import AXES

THRESHOLD_RULES = ("is above", "is below")
RANGE_RULES = ("is inside range", "is outside range")
RATE_RULES = ("rate is above", "rate is below")
FINITE_RULE, PROGRESS_RULE = "is not finite", "no progress"
_PATTERN_MEMORY = 8 << 20
_LONGEST_MESSAGE = 1 << 20


class InvalidRule(ValueError):
    """Raised for a definition that is no rule; the text names the key and what is expected."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One alert's definition. Times are seconds; `since` is run seconds, None: from its own record on.

    `origin` is the (writer, sequence) of its record, `moment` when that was recorded, `body` its body.
    """

    id: str
    name: str
    source: str
    abort: bool = False
    notification: str = "none"
    by: str = "script"
    since: float | None = None
    rule: str = ""
    metric: str | None = None
    low: float = -math.inf
    high: float = math.inf
    aggregation: str = "average"
    window: float = 5.0
    frequency: float | None = None
    hold: float = 0.0
    hysteresis: float = 0.0
    clear_after: float | None = None
    pattern: str | None = None
    when: Expression | None = field(default=None, compare=False, hash=False)
    runs: str | None = None
    reference: str = ""
    tolerance: float = 0.0
    relative_tolerance: float = 0.0
    by_time: bool = False
    origin: tuple[str, int] = ("", 0)
    moment: float = 0.0
    body: Mapping[str, Any] = field(default_factory=dict, compare=False, hash=False)

    def matcher(self) -> Callable[[str], bool]:
        """Return what says whether the rule looks at a metric of this name."""
        pattern = self.metric
        if pattern is None:
            return lambda _: True
        if not any(c in pattern for c in "*?["):
            return pattern.__eq__
        match = re.compile(fnmatch.translate(pattern)).match
        return lambda name: name == pattern or match(name) is not None

    def describe(self) -> str:
        """Return the definition in words."""
        if self.source == "user":
            return "set by the script"
        if self.source == "events":
            return f"an event contains {self.pattern!r}"
        if self.when is not None:
            return self.when.text if self.runs is None else f"{self.when.text}, in {self.runs or 'all runs'}"
        if self.rule == PROGRESS_RULE:
            return f"no {'point of ' + self.metric if self.metric else 'step'} for {self.window:g} s"
        if self.rule == FINITE_RULE:
            return f"{self.metric} is not finite"
        if self.rule == REFERENCE_RULE:
            return f"{self.metric}: {self.aggregation} over {self.window:g} s deviates from the reference by more than {self.allowed()}"
        what = f"{self.metric}: rate" if self.rule in RATE_RULES else f"{self.metric}: {self.aggregation}"
        return f"{what} over {self.window:g} s {self.condition()}"

    def allowed(self) -> str:
        """Return the tolerance in words."""
        parts = [f"{self.tolerance:g}"] if self.tolerance else []
        return " + ".join([*parts, f"{self.relative_tolerance:g} of it"] if self.relative_tolerance else parts)

    def condition(self) -> str:
        """Return the comparison in words: `is above 3`."""
        rule = self.rule.removeprefix("rate ")
        if self.rule in RANGE_RULES:
            return f"{rule} {self.low:g} to {self.high:g}"
        return f"{rule} {self.high if rule == 'is above' else self.low:g}"


def _number(definition: Mapping[str, Any], key: str, *, least: float | None = None, over: float | None = None) -> float | None:
    value = definition.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidRule(f"{key} must be a number, not {value!r}"[:200])
    try:
        number = float(value)
    except OverflowError:
        number = math.inf if value > 0 else -math.inf
    if number != number or (least is not None and not number >= least) or (over is not None and not number > over):
        limit = f" of at least {least:g}" if least is not None else f" over {over:g}" if over is not None else ""
        raise InvalidRule(f"{key} must be a number{limit}, not {value!r}"[:200])
    return number


def _seconds(definition: Mapping[str, Any], key: str, *, positive: bool = False) -> float | None:
    number = _number(definition, key, over=0.0) if positive else _number(definition, key, least=0.0)
    if number is not None and math.isinf(number):
        raise InvalidRule(f"{key} must be a number of seconds, not infinite")
    return number


def _text(body: Mapping[str, Any], key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str) or not value:
        raise InvalidRule(f"{key} must be text, not {value!r}"[:200])
    return value


def _choice(body: Mapping[str, Any], key: str, choices: tuple[str, ...], default: str | None = None) -> str:
    value = body.get(key, default)
    if value not in choices:
        raise InvalidRule(f"{key} must be one of {', '.join(choices)}, not {value!r}"[:300])
    return str(value)


def parse_rule(body: Mapping[str, Any], origin: tuple[str, int] = ("", 0)) -> Rule:
    """Return the rule in an alert record's body. Raises InvalidRule."""
    source = _choice(body, "source", SOURCES)
    definition = body.get("alert")
    if definition is None:
        definition = {}
    if not isinstance(definition, Mapping):
        raise InvalidRule("alert must be the definition, a dictionary")
    common: dict[str, Any] = {
        "id": _text(body, "id"), "name": _text(body, "name"), "source": source, "abort": body.get("abort") is True,
        "notification": str(body.get("notification") or "none"), "by": str(body.get("by") or "script"),
        "since": _number(body, "since"), "origin": origin, "body": body,
    }  # fmt: skip
    if source == "user":
        return Rule(**common, clear_after=0.0)
    common |= {
        "frequency": _seconds(definition, "frequency", positive=True),
        "hold": _seconds(definition, "hold") or 0.0,
        "clear_after": _seconds(definition, "clear_after"),
    }
    if source == "alerts":
        return _parse_composed(definition, common)
    if source == "events":
        pattern = _text(definition, "pattern")
        message_matcher(pattern)
        return Rule(**common, pattern=pattern)
    rule = _choice(definition, "rule", RULES)
    metric = _text(definition, "metric") if rule != PROGRESS_RULE or definition.get("metric") is not None else None
    common |= {"rule": rule, "metric": metric, "window": _seconds(definition, "window", positive=True) or 5.0}
    common["clear_after"] = common["clear_after"] or 0.0
    if rule == REFERENCE_RULE:
        return _parse_reference(definition, common)
    if rule in RANGE_RULES:
        low, high = _number(definition, "range_low"), _number(definition, "range_high")
        if low is None or high is None or not low < high:
            given = f"{definition.get('range_low')!r} and {definition.get('range_high')!r}"
            raise InvalidRule(f"{rule!r} needs range_low < range_high, not {given}"[:200])
        common |= {"low": low, "high": high}
    elif rule in THRESHOLD_RULES or rule in RATE_RULES:
        threshold = _number(definition, "threshold")
        if threshold is None:
            raise InvalidRule(f"{rule!r} needs a threshold")
        common["high" if rule.endswith("above") else "low"] = threshold
    if rule in {FINITE_RULE, PROGRESS_RULE}:
        return Rule(**common)
    common["hysteresis"] = _seconds(definition, "hysteresis") or 0.0
    if rule not in RATE_RULES:
        common["aggregation"] = _choice(definition, "aggregation", AGGREGATIONS, "average")
    return Rule(**common)


def _parse_composed(definition: Mapping[str, Any], common: dict[str, Any]) -> Rule:
    try:
        when = alert_expression.parse(_text(definition, "when"))
    except InvalidRecord as error:
        raise InvalidRule(str(error)) from None
    runs = definition.get("runs")
    if runs is not None and not isinstance(runs, str):
        raise InvalidRule(f"runs must be text, not {runs!r}"[:200])
    del common["frequency"]
    common["clear_after"] = common["clear_after"] or 0.0
    return Rule(**common, when=when, runs=runs)


def _parse_reference(definition: Mapping[str, Any], common: dict[str, Any]) -> Rule:
    aggregation = _choice(definition, "aggregation", tuple(a for a in AGGREGATIONS if a != "sum"), "average")
    return Rule(
        **common, high=0.0, aggregation=aggregation, reference=_text(definition, "reference"),
        tolerance=_seconds(definition, "tolerance") or 0.0, relative_tolerance=_seconds(definition, "relative_tolerance") or 0.0,
        by_time=_choice(definition, "xaxis", AXES, "step") == "time",
    )  # fmt: skip


def message_matcher(pattern: str) -> Callable[[str], bool]:
    """Return what says whether a message matches: text contained in it, or, after `re:`, an RE2 expression (linear time).

    Raises InvalidRule for an expression that RE2 does not have.
    """
    if not pattern.startswith("re:"):
        return lambda message: pattern in message
    import re2

    options = re2.Options()
    options.max_mem = _PATTERN_MEMORY
    options.log_errors = False
    try:
        search = re2.compile(pattern[3:], options).search
    except UnicodeError:
        raise InvalidRule(f"pattern {pattern!r} has characters that no text has"[:400]) from None
    except re2.error as error:
        why = error.args[0].decode(errors="replace") if error.args and isinstance(error.args[0], bytes) else str(error)
        raise InvalidRule(f"pattern {pattern!r} is no RE2 expression ({why}): no look-around and no back references"[:400]) from None

    def matches(message: str) -> bool:
        text = message if message.isascii() else message.encode(errors="replace").decode()
        return search(text[:_LONGEST_MESSAGE]) is not None

    return matches
