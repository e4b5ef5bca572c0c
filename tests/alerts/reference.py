"""What docs/alerts.md says, computed as naively as possible: lists, everything anew for each point, no state that is carried along.

Written from that page alone, by other hands than the engine's: where both come to the same decisions, the page is what is built.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any, NamedTuple

FOREVER = math.inf
MOST_DECISIONS = 1000


@dataclass
class Rec:
    """A record. `moment`: run seconds. `kind`: metrics, resources, event, alert, state, close, survivor, run, attach."""

    seq: int
    moment: float
    kind: str
    body: dict[str, Any] = field(default_factory=dict)


@dataclass
class Writer:
    """A process's opening of the run. `role` as in its first record; `begun`: the wall time of the run's start by its clock, in µs."""

    id: str
    role: str
    records: list[Rec]
    host: str = "node"
    begun: int = 0


@dataclass
class History:
    """What was recorded of a run, and when the machine slept: spans of run seconds in which nothing is recorded."""

    writers: list[Writer]
    slept: list[tuple[float, float]] = field(default_factory=list)


class Decided(NamedTuple):
    """A decision, as far as the page fixes it."""

    alert: str
    stream: tuple[tuple[str, str], ...]
    state: str
    at: float
    trigger: tuple[str, int]


class Point(NamedTuple):
    """A point of one metric of one stream."""

    moment: float
    own: float
    value: float
    trigger: tuple[str, int]


Judgement = tuple[float, tuple[str, int], Callable[[bool], bool | None]]  # moment, trigger, verdict(is it firing?)


def decisions(history: History, until: float = FOREVER) -> list[Decided]:
    """Return all decisions whose moment is before `until`, stream by stream, each stream's in order."""
    out: list[Decided] = []
    for writer, record in alerts(history):
        out += _of_alert(history, writer, record)
    return sorted((d for d in out if d.at < until), key=lambda d: (d.alert, d.stream))


def alerts(history: History) -> list[tuple[Writer, Rec]]:
    """Return the alerts: of several of one name, the one that was recorded first."""
    found = [(r.moment, w.id, r.seq, w, r) for w in history.writers for r in w.records if r.kind == "alert"]
    first: dict[str, tuple[Writer, Rec]] = {}
    for _, _, _, w, r in sorted(found, key=lambda f: f[:3]):
        first.setdefault(r.body["name"], (w, r))
    return list(first.values())


def _of_alert(history: History, home: Writer, alert: Rec) -> list[Decided]:
    body = alert.body
    rule = body.get("alert", {})
    explicit = body.get("since")
    since = alert.moment if explicit is None else float(explicit)

    def counts(writer: Writer, record: Rec) -> bool:
        if explicit is None and writer is home:
            return record.seq > alert.seq
        return record.moment >= since

    if body["source"] == "user":
        return _said(history, body["name"])
    if body["source"] == "events":
        return _events(history, body["name"], rule, counts)
    if rule["rule"] == "no progress":
        return _no_progress(history, body["name"], rule, counts, since)
    out: list[Decided] = []
    for stream, points in _streams(history, rule["metric"], counts).items():
        spans = _spans(history, stream)
        judgements = _judge_at_multiples(rule, points, spans) if "frequency" in rule else _judge_at_once(rule, points)
        out += _walk(history, body["name"], stream, rule, judgements, spans)
    return out


# ---------------------------------------------------------------------- points


def own_time(writer: Writer, record: Rec) -> float:
    """Return a point's own time: the given time, else its timestamp less the wall time of the run's start, else its moment."""
    given = record.body.get("time")
    if isinstance(given, float | int) and math.isfinite(given):
        return float(given)
    stamp = record.body.get("timestamp")
    if isinstance(stamp, str):
        try:
            when = datetime.fromisoformat(stamp)
        except ValueError:
            return record.moment
        when = when.replace(tzinfo=UTC) if when.tzinfo is None else when
        stamp = (when - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    if isinstance(stamp, int):
        return (stamp - writer.begun) / 1e6
    return record.moment


def number(value: Any) -> float | None:
    """Return a value as a floating point number, rounded to the nearest; None for what is no number."""
    if not isinstance(value, bool | int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def names_it(metric: str, name: str) -> bool:
    """Say whether a metric is meant: by name, or by a pattern."""
    return metric == name or fnmatch.fnmatchcase(name, metric)


def _streams(
    history: History, metric: str, counts: Callable[[Writer, Rec], bool]
) -> dict[tuple[tuple[str, str], ...], list[Point]]:
    found: dict[tuple[tuple[str, str], ...], list[tuple[float, str, int, Point]]] = {}
    for w in history.writers:
        for r in w.records:
            if r.kind not in {"metrics", "resources"} or not counts(w, r):
                continue
            if w.role == "agent" and not any(begun <= r.moment <= ended for begun, ended, _ in lives(history)):
                continue
            for name, raw in r.body["values"].items():
                value = number(raw)
                if value is not None and names_it(metric, name):
                    who = ("host", w.host) if w.role == "agent" else ("writer", w.id)
                    point = Point(r.moment, own_time(w, r), value, (w.id, r.seq))
                    found.setdefault(tuple(sorted([who, ("metric", name)])), []).append((r.moment, w.id, r.seq, point))
    return {stream: [p[3] for p in sorted(points, key=lambda p: p[:3])] for stream, points in found.items()}


def _kept(points: list[Point], count: int, window: float) -> list[Point]:
    """Return those of the first `count` arrivals that are kept after the last of them."""
    kept: list[Point] = []
    for n in range(count):
        kept.append(points[n])
        before = min(points[n].own, points[max(n - 1, 0)].own)
        kept = [p for p in kept if before - p.own < 2 * window]
    return kept


def _window(kept: list[Point], end: float, window: float) -> list[Point]:
    return [p for p in kept if p.own <= end and end - p.own < window]


# ---------------------------------------------------------------------- verdicts


def exact_sum(values: list[float]) -> float:
    """Return the sum, exactly rounded; NaN and infinities as floating point has them."""
    if any(math.isnan(v) for v in values) or {math.inf, -math.inf} <= set(values):
        return math.nan
    infinite = [v for v in values if math.isinf(v)]
    if infinite:
        return infinite[0]
    total = sum((Fraction(v) for v in values), Fraction(0))
    try:
        return float(total)
    except OverflowError:
        return math.inf if total > 0 else -math.inf


def met_by(rule: dict[str, Any], value: float) -> bool:
    """Say whether a number meets the rule's condition."""
    kind = rule["rule"]
    if kind.endswith("above"):
        return value > rule["threshold"]
    if kind.endswith("below"):
        return value < rule["threshold"]
    inside = rule["range_low"] <= value <= rule["range_high"]
    return bool(inside if kind == "is inside range" else not inside)


def good_by(rule: dict[str, Any], value: float) -> bool:
    """Say whether a number ends what fires."""
    kind, h = rule["rule"], rule.get("hysteresis", 0)
    if math.isnan(value):
        return False
    if kind.endswith("above"):
        return bool(value <= rule["threshold"] - h)
    if kind.endswith("below"):
        return bool(value >= rule["threshold"] + h)
    if kind == "is inside range":
        return not rule["range_low"] - h <= value <= rule["range_high"] + h
    return bool(rule["range_low"] + h <= value <= rule["range_high"] - h)


def verdict(rule: dict[str, Any], window: list[Point], firing: bool) -> bool | None:
    """Judge one window: True when the condition is met, False when not, None without a verdict. `window` is in order of arrival."""
    kind = rule["rule"]
    if kind == "is not finite":
        return not math.isfinite(window[-1].value)

    def meets(value: float) -> bool:
        return not good_by(rule, value) if firing else met_by(rule, value)

    values = [p.value for p in window]
    if kind.startswith("rate"):
        first, last = min(p.own for p in window), max(p.own for p in window)
        if first == last:
            return None
        v1 = [p.value for p in window if p.own == first][-1]
        v2 = [p.value for p in window if p.own == last][-1]
        return meets((v2 - v1) / (last - first))
    aggregation = rule.get("aggregation", "average")
    if aggregation == "at least one":
        return any(meets(v) for v in values)
    if aggregation == "all":
        return all(meets(v) for v in values)
    total = exact_sum(values)
    return meets(total if aggregation == "sum" else total / len(values))


def _judge_at_once(rule: dict[str, Any], points: list[Point]) -> Iterator[Judgement]:
    length = rule.get("window", 5)
    for n, new in enumerate(points):
        kept = _kept(points, n + 1, length)
        ends = {p.own for p in kept if new.own <= p.own and p.own - new.own < length}
        windows = [_window(kept, end, length) for end in ends]

        def judge(firing: bool, windows: list[list[Point]] = windows) -> bool | None:
            found = [v for w in windows if (v := verdict(rule, w, firing)) is not None]
            return any(found) if found else None

        yield new.moment, new.trigger, judge


def multiple_after(moment: float, frequency: float) -> float:
    """Return the next moment after this one that is a whole multiple of the frequency."""
    k = math.floor(moment / frequency) - 2
    while k * frequency <= moment:
        k += 1
    return k * frequency


def _judge_at_multiples(rule: dict[str, Any], points: list[Point], spans: list[tuple[float, float]]) -> Iterator[Judgement]:
    length = rule.get("window", 5)
    for n, last in enumerate(points):
        at = multiple_after(last.moment, rule["frequency"])
        if n + 1 < len(points) and multiple_after(points[n + 1].moment, rule["frequency"]) == at:
            continue  # another arrives before that moment
        if not any(begun <= last.moment and at <= ended for begun, ended in spans):
            continue  # the run has ended in between, and what was pending with it
        window = _window(_kept(points, n + 1, length), last.own, length)

        def judge(firing: bool, window: list[Point] = window) -> bool | None:
            return verdict(rule, window, firing)

        yield at, last.trigger, judge


# ---------------------------------------------------------------------- firing and resolving


def later(history: History, moment: float, wait: float) -> float:
    """Return the moment when `wait` seconds after `moment` have passed in which the machine was awake."""
    end = moment + wait
    if not wait:
        return end
    for a, b in sorted(history.slept):
        if end > a and b > moment:
            end += b - max(a, moment)
    return end


def _spans(history: History, stream: tuple[tuple[str, str], ...]) -> list[tuple[float, float]]:
    """Return when a stream's state may change: until its writer ends; for samples of agents, while a process records."""
    who = dict(stream)
    if "host" in who:
        return [(begun, ended) for begun, ended, _ in lives(history)]
    return [(-FOREVER, end_of(history, w)) for w in history.writers if w.id == who["writer"]]


def _walk(
    history: History,
    name: str,
    stream: tuple[tuple[str, str], ...],
    rule: dict[str, Any],
    judgements: Iterator[Judgement],
    spans: list[tuple[float, float]],
) -> list[Decided]:
    hold, clear = rule.get("hold", 0), rule.get("clear_after", 0)
    out: list[Decided] = []
    firing = False
    since: tuple[float, tuple[str, int]] | None = None  # what is pending, and its trigger: firing, or, while firing, resolved

    def due(before: float) -> None:
        nonlocal firing, since
        if since is not None:
            at = later(history, since[0], clear if firing else hold)
            if at < before:
                out.append(Decided(name, stream, "resolved" if firing else "firing", at, since[1]))
                firing, since = not firing, None

    def end(span: tuple[float, float]) -> None:
        nonlocal since
        due(span[1])
        since = None

    ahead = list(spans)
    for moment, trigger, judge in judgements:
        while ahead and ahead[0][1] < moment:
            end(ahead.pop(0))
        if not ahead or moment < ahead[0][0]:
            continue
        due(moment)
        met = judge(firing)
        if met is None:
            continue
        if met is firing:
            since = None  # as it is: what was pending is off
        elif since is None:
            since = (moment, trigger)
            if not (clear if firing else hold):
                due(FOREVER)
    for span in ahead:
        end(span)
    return out[:MOST_DECISIONS]


# ---------------------------------------------------------------------- events


def event_matches(pattern: str, message: Any) -> bool:
    """Say whether a message meets a pattern."""
    if not isinstance(message, str):
        return False
    return re.search(pattern[3:], message) is not None if pattern.startswith("re:") else pattern in message


def _events(history: History, name: str, rule: dict[str, Any], counts: Callable[[Writer, Rec], bool]) -> list[Decided]:
    out: list[Decided] = []
    hold, clear = rule.get("hold", 0), rule.get("clear_after")
    for w in history.writers:
        matches: list[tuple[float, tuple[str, int], tuple[str, int]]] = []  # moment, its first match, its last
        for r in w.records:
            if r.kind == "event" and counts(w, r) and event_matches(rule["pattern"], r.body.get("message")):
                at = multiple_after(r.moment, rule["frequency"]) if "frequency" in rule else r.moment
                if "frequency" in rule and matches and matches[-1][0] == at:
                    matches[-1] = (at, matches[-1][1], (w.id, r.seq))
                else:
                    matches.append((at, (w.id, r.seq), (w.id, r.seq)))
        decided: list[Decided] = []
        stream, ended = (("writer", w.id),), end_of(history, w)
        matches = [m for m in matches if m[0] <= ended]
        while matches:
            begin, trigger, _ = matches[0]
            fires = later(history, begin, hold)
            if hold and fires >= ended:
                break
            decided.append(Decided(name, stream, "firing", fires, trigger))
            if clear is None:
                break
            last, ends = matches.pop(0), 0.0
            while True:
                ends = max(fires, later(history, last[0], clear))
                if not matches or matches[0][0] > ends:
                    break
                last = matches.pop(0)
            if ends >= ended:
                break
            decided.append(Decided(name, stream, "resolved", ends, last[2]))
        out += decided[:MOST_DECISIONS]
    return out


def _said(history: History, name: str) -> list[Decided]:
    """What scripts say themselves, in each writer: critical fires, ok resolves."""
    out = []
    for w in history.writers:
        firing, decided = False, []
        for r in w.records:
            if r.kind == "state" and r.body["alert"] == name and w.role != "agent" and firing is not (r.body["state"] == "critical"):
                firing = not firing
                decided.append(Decided(name, (("writer", w.id),), "firing" if firing else "resolved", r.moment, (w.id, r.seq)))
        out += decided[:MOST_DECISIONS]
    return out


# ---------------------------------------------------------------------- no progress


def _progress(history: History, rule: dict[str, Any], counts: Callable[[Writer, Rec], bool]) -> list[tuple[float, tuple[str, int]]]:
    metric = rule.get("metric")
    records = sorted(
        ((r.moment, w.id, r.seq, r) for w in history.writers if w.role != "agent" for r in w.records if counts(w, r)), key=lambda f: f[:3]
    )
    out, steps = [], []
    for moment, writer, seq, r in records:
        if metric is None:
            if r.kind == "metrics":
                if all(r.body["step"] > s for s in steps):
                    out.append((moment, (writer, seq)))
                steps.append(r.body["step"])
        elif r.kind == "metrics" and any(names_it(metric, n) and number(v) is not None for n, v in r.body["values"].items()):
            out.append((moment, (writer, seq)))
    return out


def end_of(history: History, writer: Writer) -> float:
    """Return when a writer ended: at its close, else when it was seen dead, else at its last record; infinite while it is open."""
    for r in writer.records:
        if r.kind == "close":
            return r.moment
    said = [r for w in history.writers for r in w.records if r.kind == "survivor" and r.body["writer"] == writer.id]
    return float(said[0].body.get("ended", writer.records[-1].moment)) if said else FOREVER


def lives(history: History) -> list[tuple[float, float, tuple[str, int]]]:
    """Return the spans (from, to, opening record) in which a process recorded: from an opening to the end of the last that was open."""
    out: list[tuple[float, float, tuple[str, int]]] = []
    for opened, name, ended in sorted((w.records[0].moment, w.id, end_of(history, w)) for w in history.writers if w.role != "agent"):
        if out and opened <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], ended), out[-1][2])
        else:
            out.append((opened, ended, (name, 1)))
    return out


def _no_progress(
    history: History, name: str, rule: dict[str, Any], counts: Callable[[Writer, Rec], bool], since: float
) -> list[Decided]:
    window, hold, clear = rule.get("window", 5), rule.get("hold", 0), rule.get("clear_after", 0)
    progress = _progress(history, rule, counts)
    out: list[Decided] = []
    firing = False
    for begun, ended, opener in lives(history):
        if since > ended:
            continue
        marks = [(max(begun, since), opener), *(p for p in progress if begun <= p[0] <= ended)]
        clearing: tuple[float, tuple[str, int]] | None = None
        for n, (moment, trigger) in enumerate(marks):
            following = marks[n + 1][0] if n + 1 < len(marks) else FOREVER
            if n and firing and clearing is None:
                clearing = (moment, trigger)
            if clearing is not None:
                stalls, resolves = later(history, moment, window), later(history, clearing[0], clear)
                stalled = stalls < following and stalls <= resolves and stalls < ended
                if clear == 0 or (not stalled and resolves < following and resolves < ended):
                    out.append(Decided(name, (), "resolved", resolves, clearing[1]))
                    firing, clearing = False, None
                elif stalled:
                    clearing = None
            if not firing:
                fires = later(history, later(history, moment, window), hold)
                if fires < following and fires < ended:
                    out.append(Decided(name, (), "firing", fires, trigger))
                    firing = True
    return out[:MOST_DECISIONS]
