"""Metric rules over windows of the points' own time (docs/alerts.md, "Windows" and "Conditions")."""

from __future__ import annotations

import math
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Mapping
from fractions import Fraction
from itertools import count
from typing import Any

from simspool.spool.alert_definition import REFERENCE_RULE

from .decisions import TimedStream, Timeline
from .rules import RATE_RULES, Rule

MOST_POINTS = 100_000
_COMPACT = 4096
_INF = math.inf
_EPSILON = 2.0**-52

Predicate = Callable[[float], bool]


def predicates(rule: Rule) -> tuple[Predicate, Predicate]:
    """Return (met while ok, met while firing): the second has the hysteresis on the good side, and NaN is not good."""
    low, high, h = rule.low, rule.high, rule.hysteresis
    kind = rule.rule.removeprefix("rate ")
    if kind in {"is above", REFERENCE_RULE}:
        good = high - h
        return (lambda x: x > high), (lambda x: not x <= good)
    if kind == "is below":
        good = low + h
        return (lambda x: x < low), (lambda x: not x >= good)
    if kind == "is inside range":
        below, above = low - h, high + h
        return (lambda x: low <= x <= high), (lambda x: not (x < below or x > above))
    first, last = low + h, high - h
    return (lambda x: not low <= x <= high), (lambda x: not first <= x <= last)


def exact_sum(values: list[float]) -> float:
    """Return the correctly rounded sum; NaN and infinities as in IEEE arithmetic, infinite where it overflows."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # an intermediate overflow, or inf - inf
        pass
    finite = [v for v in values if math.isfinite(v)]
    if len(finite) < len(values):
        return sum(v for v in values if not math.isfinite(v))
    exact = sum(map(Fraction, finite))
    try:
        return float(exact)
    except OverflowError:
        return _INF if exact > 0 else -_INF


class PointStream(TimedStream):
    """A stream that points of one metric come to."""

    _trigger_last = ("", 0)

    def point(self, moment: float, time: float, value: float, trigger: tuple[str, int]) -> None:
        """Take a point in."""
        if moment < self.since or trigger[1] <= self.after or self.ended:
            return
        if self._evaluate_at <= moment or self.due < moment:
            self._arrive(moment)
        frequency = self.rule.frequency
        if frequency is None:
            self._take(moment, time, value, trigger)
        else:
            self._keep(time, value)
            self._trigger_last = trigger
            self._judge_later(frequency, moment)

    def _judge_at(self, at: float) -> None:
        self._judge_last(at, self._trigger_last)

    @abstractmethod
    def _take(self, moment: float, time: float, value: float, trigger: tuple[str, int]) -> None:
        """Take a point in, and judge it."""

    @abstractmethod
    def _keep(self, time: float, value: float) -> None:
        """Take a point in, to be judged later."""

    @abstractmethod
    def _judge_last(self, at: float, trigger: tuple[str, int]) -> None:
        """Judge the point that was kept last."""


class FiniteStream(PointStream):
    """`is not finite`: judged by the last point alone."""

    _time, _last = 0.0, 0.0

    def _take(self, moment: float, time: float, value: float, trigger: tuple[str, int]) -> None:
        met = not math.isfinite(value)
        if met != self.firing or self.due != _INF:
            self._keep(time, value)
            self.judge(moment, met, trigger, self._why_now)

    def _keep(self, time: float, value: float) -> None:
        self._time, self._last = time, value

    def _judge_last(self, at: float, trigger: tuple[str, int]) -> None:
        self.judge(at, not math.isfinite(self._last), trigger, self._why_now)

    def _why_now(self) -> tuple[str, dict[str, Any]]:
        word = "is" if math.isfinite(self._last) else "is not finite:"
        return f"{self.key['metric']} {word} {self._last:g}", {"value": self._last, "time": self._time}


class WindowStream(PointStream):
    """Thresholds and ranges of an aggregate, and rates.

    Points in order cost a constant time each; a late one costs as much as the windows that contain it.
    """

    def __init__(self, rule: Rule, key: Mapping[str, str], line: Timeline, since: float, after: int) -> None:
        super().__init__(rule, key, line, since, after)
        self._met, self._met_firing = predicates(rule)
        self._times: list[float] = []
        self._values: list[float] = []
        self._orders: list[int] = []  # of arrival
        self._arrivals = count()
        self._before = _INF  # own time of the arrival before
        self._last = 0.0
        self._from = 0  # the first kept point
        self._low = 0  # the first point of the window that ends with the last
        self._is_rate = rule.rule in RATE_RULES
        self._by_sum = rule.aggregation in {"average", "sum"} and not self._is_rate
        self._stale = True
        self._sum = self._error = 0.0
        self._odd = 0  # values in the window that are not finite
        self._bad = self._bad_firing = 0
        self._judged: tuple[int, int] = (0, 0)

    # ------------------------------------------------------------------ points in order

    def _take(self, moment: float, time: float, value: float, trigger: tuple[str, int]) -> None:
        times = self._times
        if len(times) > self._from and time < times[-1]:
            self._take_late(moment, time, value, trigger)
            return
        times.append(time)
        self._values.append(value)
        self._orders.append(next(self._arrivals))
        verdict: bool | None
        if self._is_rate:
            self._advance_low(time)
            verdict = self._judge_range(self._low, len(times))
        else:
            if self._stale:
                self._recount(time)
            else:
                self._enter(value)
                self._leave(time)
            verdict = self._verdict()
        if verdict is not None and (verdict != self.firing or self.due != _INF):
            self._judged = (self._low, len(times))
            self.judge(moment, verdict, trigger, self._why_now)
        self._forget(time)

    def _advance_low(self, time: float) -> None:
        window, times, low = self.rule.window, self._times, self._low
        while not time - times[low] < window:  # ends at the point itself
            low += 1
        self._low = low

    def _enter(self, value: float) -> None:
        if self._by_sum:
            if value - value == 0.0:
                self._sum += value
                self._error += _EPSILON * (abs(self._sum) + abs(value))
            else:
                self._odd += 1
        else:
            self._bad += self._met(value)
            self._bad_firing += self._met_firing(value)

    def _leave(self, time: float) -> None:
        window, times, values, low = self.rule.window, self._times, self._values, self._low
        while not time - times[low] < window:  # ends at the point itself
            value = values[low]
            low += 1
            if self._by_sum:
                if value - value == 0.0:
                    self._sum -= value
                    self._error += _EPSILON * (abs(self._sum) + abs(value))
                else:
                    self._odd -= 1
            else:
                self._bad -= self._met(value)
                self._bad_firing -= self._met_firing(value)
        self._low = low

    def _recount(self, time: float) -> None:
        self._low = self._start(time)
        window = self._values[self._low :]
        if self._by_sum:
            finite = [v for v in window if v - v == 0.0]
            self._odd = len(window) - len(finite)
            self._sum = exact_sum(finite)
            self._error = _EPSILON * abs(self._sum)
        else:
            self._bad = sum(map(self._met, window))
            self._bad_firing = sum(map(self._met_firing, window))
        self._stale = False

    def _start(self, time: float) -> int:
        """Return the first kept point of the window that ends at an own time."""
        times, window = self._times, self.rule.window
        at = bisect_right(times, time - window, self._from)
        while at > self._from and time - times[at - 1] < window:  # rounding
            at -= 1
        while not time - times[at] < window:
            at += 1
        return at

    def _verdict(self) -> bool:
        """Judge the window that ends with the last point, from the running figures where they are certain."""
        n = len(self._times) - self._low
        met = self._met_firing if self.firing else self._met
        if not self._by_sum:
            bad = self._bad_firing if self.firing else self._bad
            return bad > 0 if self.rule.aggregation == "at least one" else bad == n
        if not self._odd:
            margin = self._error * 2.0
            low, high = self._sum - margin, self._sum + margin
            if self.rule.aggregation == "average":
                low, high = low / n, high / n
                low -= abs(low) * 2.0 * _EPSILON
                high += abs(high) * 2.0 * _EPSILON
            if high - low < _INF:
                verdict = met(low)
                # both ends on the same side, and for ranges on the same one of the two outsides
                if verdict == met(high) and (self.rule.high == _INF or self.rule.low == -_INF or self._same_side(low, high)):
                    return verdict
        self._recount(self._times[-1])
        return met(self._number(self._low, len(self._times)))

    def _same_side(self, low: float, high: float) -> bool:
        h = self.rule.hysteresis if self.firing else 0.0
        edges = (self.rule.low - h, self.rule.low, self.rule.low + h, self.rule.high - h, self.rule.high, self.rule.high + h)
        return not any(low <= e <= high for e in edges)

    # ------------------------------------------------------------------ late points, and any window

    def _take_late(self, moment: float, time: float, value: float, trigger: tuple[str, int]) -> None:
        at = self._insert(time, value)
        times, verdict = self._times, None
        n = len(times)
        self._judged = (0, 0)
        while at < n and times[at] - time < self.rule.window:
            end = bisect_right(times, times[at], at)
            start = self._start(times[at])
            found = self._judge_range(start, end)
            if found is not None and not verdict:
                verdict, self._judged = found, (start, end)
            if verdict:
                break
            at = end
        if verdict is not None:
            self.judge(moment, verdict, trigger, self._why_now)
        self._forget(time)

    def _insert(self, time: float, value: float) -> int:
        """Put a point where its own time belongs, after equal ones; returns its index."""
        at = bisect_right(self._times, time, self._from)
        self._times.insert(at, time)
        self._values.insert(at, value)
        self._orders.insert(at, next(self._arrivals))
        self._stale = True
        return at

    def _judge_range(self, start: int, end: int) -> bool | None:
        met = self._met_firing if self.firing else self._met
        if self.rule.aggregation in {"average", "sum"} or self._is_rate:
            number = self._number(start, end)
            return None if number is None else met(number)
        found = map(met, self._values[start:end])
        return any(found) if self.rule.aggregation == "at least one" else all(found)

    def _number(self, start: int, end: int) -> Any:
        """Return the aggregate of a window; None for a rate of one own time only."""
        if self._is_rate:
            return self._rate(start, end)
        total = exact_sum(self._values[start:end])
        return total / (end - start) if self.rule.aggregation == "average" else total

    def _rate(self, start: int, end: int) -> float | None:
        times, values = self._times, self._values
        first, last = times[start], times[end - 1]
        if first == last:
            return None
        at = bisect_right(times, first, start, end) - 1  # of equal times, the last arrived
        change, span = values[end - 1] - values[at], last - first
        return change / span

    def _keep(self, time: float, value: float) -> None:
        self._insert(time, value)
        self._last = time
        self._forget(time)

    def _judge_last(self, at: float, trigger: tuple[str, int]) -> None:
        end = bisect_right(self._times, self._last, self._from)
        start = self._start(self._last)
        verdict = self._judge_range(start, end)
        if verdict is not None:
            self._judged = (start, end)
            self.judge(at, verdict, trigger, self._why_now)

    # ------------------------------------------------------------------ memory

    def _forget(self, time: float) -> None:
        """Drop what no window can need: see docs/alerts.md, "Windows"."""
        base, span = min(time, self._before), 2.0 * self.rule.window
        self._before = time
        times, kept = self._times, self._from
        n = len(times)
        while not base - times[kept] < span:  # the latest arrival stays
            kept += 1
        self._from = kept
        if n - kept > MOST_POINTS:
            self._drop_oldest()
        if self._low < self._from:
            self._low, self._stale = self._from, True
        if self._from > _COMPACT and self._from * 2 > len(times):
            cut = self._from
            del times[:cut], self._values[:cut], self._orders[:cut]
            self._from, self._low = 0, self._low - cut

    def _drop_oldest(self) -> None:
        """Keep the later half of the arrivals, in the order of their own times."""
        start = self._from
        limit = sorted(self._orders[start:])[-(MOST_POINTS // 2)]
        kept = [i for i in range(start, len(self._orders)) if self._orders[i] >= limit]
        self._times = [self._times[i] for i in kept]
        self._values = [self._values[i] for i in kept]
        self._orders = [self._orders[i] for i in kept]
        self._from = self._low = 0
        self._stale = True

    def _why_now(self) -> tuple[str, dict[str, Any]]:
        start, end = self._judged
        rule, metric = self.rule, self.key["metric"]
        values, number = self._values[start:end], None
        inputs: dict[str, Any] = {"points": end - start, "from": self._times[start], "to": self._times[end - 1], "last": values[-1]}
        bad = not self.firing
        if rule.aggregation in {"average", "sum"} or self._is_rate:
            number = inputs["value"] = self._number(start, end)
            what = "rate" if self._is_rate else rule.aggregation
            unit = " per second" if self._is_rate else ""
            said = f"{metric}: {what} of {end - start} points over {rule.window:g} s is {number:g}{unit}"
        else:
            met = self._met_firing if self.firing else self._met
            hits = sum(map(met, values))
            inputs["met"] = hits
            said = f"{metric}: {hits} of {end - start} points over {rule.window:g} s, the last {values[-1]:g},"
        word = rule.condition().removeprefix("is ")
        return f"{said} {word}" if bad else f"{said} no longer {word}", inputs


def make_stream(rule: Rule, key: Mapping[str, str], line: Timeline, since: float, after: int) -> PointStream:
    """Return the stream of a metric rule (not of `no progress`)."""
    kind = FiniteStream if rule.rule == "is not finite" else WindowStream
    return kind(rule, key, line, since, after)


