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
AGENTS = ("agent", "inbox")  # roles of writers that an agent opened


@dataclass
class Rec:
    """A record. `moment`: run seconds. `kind`: metrics, resources, event, alert, state, close, survivor, run, attach, decision (a note),
    inbox (the position in a file).
    """

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
    """What was recorded of a run, and when the machine slept: spans of run seconds in which nothing is recorded.

    `curves`: the reference curves, by digest, as points (x, value) in order of x.
    """

    writers: list[Writer]
    slept: list[tuple[float, float]] = field(default_factory=list)
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)


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


Stream = tuple[tuple[str, str], ...]
Trigger = tuple[str, int]
Judgement = tuple[float, Trigger, Callable[[bool], bool | None]]  # moment, trigger, verdict(is it firing?)


class Told(NamedTuple):
    """All changes of an alert's streams, each stream's in order, and by stream its first point: moment and trigger."""

    changes: list[Decided]
    begun: dict[Stream, tuple[float, Trigger]]


def decisions(history: History, until: float = FOREVER) -> list[Decided]:
    """Return all decisions whose moment is before `until`, stream by stream, each stream's in order."""
    found, out = alerts(history), []
    told = {r.body["name"]: _of_alert(history, w, r) for w, r in found if r.body["source"] != "alerts"}
    for w, r in found:
        changes = told[r.body["name"]].changes if r.body["source"] != "alerts" else composed(history, w, r, told)
        for stream in {d.stream for d in changes}:
            out += [d for d in changes if d.stream == stream][:MOST_DECISIONS]
    return sorted((d for d in out if d.at < until), key=lambda d: (d.alert, d.stream))


def alerts(history: History) -> list[tuple[Writer, Rec]]:
    """Return the alerts: of several of one name, the one that was recorded first."""
    found = [(r.moment, w.id, r.seq, w, r) for w in history.writers for r in w.records if r.kind == "alert"]
    first: dict[str, tuple[Writer, Rec]] = {}
    for _, _, _, w, r in sorted(found, key=lambda f: f[:3]):
        first.setdefault(r.body["name"], (w, r))
    return list(first.values())


def since_of(alert: Rec) -> float:
    """Return from when on an alert counts."""
    explicit = alert.body.get("since")
    return alert.moment if explicit is None else float(explicit)


def _of_alert(history: History, home: Writer, alert: Rec) -> Told:
    body = alert.body
    rule = body.get("alert", {})
    explicit, since = body.get("since"), since_of(alert)

    def counts(writer: Writer, record: Rec) -> bool:
        if explicit is None and writer is home:
            return record.seq > alert.seq
        return record.moment >= since

    if body["source"] == "user":
        return _said(history, body["name"])
    if body["source"] == "events":
        return _events(history, body["name"], rule, counts)
    if rule["rule"] == "no progress":
        return Told(_no_progress(history, body["name"], rule, counts, since), {})
    out = Told([], {})
    for stream, points in _streams(history, rule, counts).items():
        spans = _spans(history, stream)
        judgements = _judge_at_multiples(rule, points, spans) if "frequency" in rule else _judge_at_once(rule, points)
        out.begun[stream] = points[0].moment, points[0].trigger
        out.changes.extend(_walk(history, body["name"], stream, rule, judgements, spans))
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


def source_of(writer: Writer, record: Rec) -> tuple[str, str]:
    """Return whose streams a record is for: a writer's, a host's, or those of an inbox file."""
    if writer.role == "inbox":
        return "inbox", [r.body["file"] for r in writer.records if r.kind == "inbox" and r.seq < record.seq][-1]
    return ("host", writer.host) if writer.role == "agent" else ("writer", writer.id)


def deviation(rule: dict[str, Any], curve: list[tuple[float, float]], x: float, value: float) -> float | None:
    """Return how far a point is beyond what a reference curve allows; None where the curve does not say."""
    if not curve or not curve[0][0] <= x <= curve[-1][0]:
        return None
    here = [r for at, r in curve if at == x]
    if here:
        r = here[0]
    else:
        x0, r0 = [p for p in curve if p[0] < x][-1]
        x1, r1 = next(p for p in curve if p[0] > x)
        r = r0 + (r1 - r0) * ((x - x0) / (x1 - x0))
    if not math.isfinite(r):
        return None
    if not math.isfinite(value):
        return math.inf
    return abs(value - r) - (rule.get("tolerance", 0.0) + rule.get("relative_tolerance", 0.0) * abs(r))


def _streams(history: History, rule: dict[str, Any], counts: Callable[[Writer, Rec], bool]) -> dict[Stream, list[Point]]:
    metric, deviates = rule["metric"], rule["rule"] == "deviates from reference"
    found: dict[Stream, list[tuple[float, str, int, Point]]] = {}
    for w in history.writers:
        for r in w.records:
            if r.kind not in {"metrics", "resources"} or not counts(w, r):
                continue
            if w.role == "agent" and not any(begun <= r.moment <= ended for begun, ended, _ in lives(history)):
                continue
            for name, raw in r.body["values"].items():
                value = number(raw)
                if value is not None and deviates:
                    x = own_time(w, r) if rule.get("xaxis") == "time" else float(r.body["step"])
                    value = deviation(rule, history.curves[rule["reference"]], x, value)
                if value is not None and (metric == name if deviates else names_it(metric, name)):
                    point = Point(r.moment, own_time(w, r), value, (w.id, r.seq))
                    stream = tuple(sorted([source_of(w, r), ("metric", name)]))
                    found.setdefault(stream, []).append((r.moment, w.id, r.seq, point))
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
    if kind == "deviates from reference":
        return value > 0
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
    if kind == "deviates from reference":
        return value <= 0
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


def _spans(history: History, stream: Stream) -> list[tuple[float, float]]:
    """Return when time may change a stream's state: until its writer ends; for samples and inbox files, while a process records."""
    who = dict(stream)
    if "writer" not in who:
        return [(begun, ended) for begun, ended, _ in lives(history)]
    return [(-FOREVER, end_of(history, w)) for w in history.writers if w.id == who["writer"]]


def _walk(
    history: History,
    name: str,
    stream: Stream,
    rule: dict[str, Any],
    judgements: Iterator[Judgement],
    spans: list[tuple[float, float]],
) -> list[Decided]:
    hold, clear = rule.get("hold", 0), rule.get("clear_after", 0)
    out: list[Decided] = []
    firing = False
    since: tuple[float, Trigger] | None = None  # what is pending, and its trigger: firing, or, while firing, resolved
    behind = "inbox" in dict(stream)  # what was copied after the run's end is judged, but nothing waits there

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
        awake = bool(ahead) and moment >= ahead[0][0]
        if not awake and not behind:
            continue
        due(moment)
        met = judge(firing)
        if met is None:
            continue
        if met is firing:
            since = None  # as it is: what was pending is off
        elif since is None and (awake or not (clear if firing else hold)):
            since = (moment, trigger)
            if not (clear if firing else hold):
                due(FOREVER)
    for span in ahead:
        end(span)
    return out


# ---------------------------------------------------------------------- events


def event_matches(pattern: str, message: Any) -> bool:
    """Say whether a message meets a pattern."""
    if not isinstance(message, str):
        return False
    return re.search(pattern[3:], message) is not None if pattern.startswith("re:") else pattern in message


def _by_source(history: History, means: Callable[[Writer, Rec], bool]) -> dict[Stream, list[tuple[float, str, int, Rec]]]:
    """Return the records that are meant, by writer or inbox file, each in the order of its moments."""
    found: dict[Stream, list[tuple[float, str, int, Rec]]] = {}
    for w in history.writers:
        for r in w.records:
            if means(w, r):
                found.setdefault((source_of(w, r),), []).append((r.moment, w.id, r.seq, r))
    return {stream: sorted(records, key=lambda f: f[:3]) for stream, records in found.items()}


def _events(history: History, name: str, rule: dict[str, Any], counts: Callable[[Writer, Rec], bool]) -> Told:
    def means(w: Writer, r: Rec) -> bool:
        return r.kind == "event" and w.role != "agent" and counts(w, r) and event_matches(rule["pattern"], r.body.get("message"))

    out = Told([], {})
    for stream, records in _by_source(history, means).items():
        out.begun[stream] = records[0][0], records[0][1:3]
        spans = _spans(history, stream)
        matches: list[tuple[float, Trigger, Trigger]] = []  # moment, its first match, its last
        for moment, writer, seq, _ in records:
            at = multiple_after(moment, rule["frequency"]) if "frequency" in rule else moment
            if "frequency" in rule and not any(begun <= moment and at <= ended for begun, ended in spans):
                continue
            if "frequency" in rule and matches and matches[-1][0] == at:
                matches[-1] = (at, matches[-1][1], (writer, seq))
            else:
                matches.append((at, (writer, seq), (writer, seq)))
        out.changes.extend(_walk_matches(history, name, stream, rule, matches, spans))
    return out


def _walk_matches(
    history: History,
    name: str,
    stream: Stream,
    rule: dict[str, Any],
    matches: list[tuple[float, Trigger, Trigger]],
    spans: list[tuple[float, float]],
) -> list[Decided]:
    hold, clear = rule.get("hold", 0), rule.get("clear_after")
    out: list[Decided] = []
    pending: tuple[float, Trigger] | None = None
    last: tuple[float, Trigger] | None = None  # the match from which a clearing counts
    fired: float | None = None

    def due(before: float) -> None:
        nonlocal pending, last, fired
        if pending is not None and later(history, pending[0], hold) < before:
            fired = later(history, pending[0], hold)
            out.append(Decided(name, stream, "firing", fired, pending[1]))
            pending = None
        if fired is not None and last is not None and clear is not None:
            ends = max(fired, later(history, last[0], clear))
            if ends < before:
                out.append(Decided(name, stream, "resolved", ends, last[1]))
                fired = last = None

    ahead = list(spans)
    for moment, first, latest in [*matches, (FOREVER, ("", 0), ("", 0))]:
        while ahead and ahead[0][1] < moment:
            due(ahead.pop(0)[1])
            pending = last = None
        if moment == FOREVER:
            due(FOREVER)
            break
        awake = bool(ahead) and moment >= ahead[0][0]
        due(moment)
        if fired is None and pending is None and not hold:
            fired = moment
            out.append(Decided(name, stream, "firing", moment, first))
        elif fired is None and pending is None and awake:
            pending = (moment, first)
        if awake:
            last = (moment, latest)
    return out


def _said(history: History, name: str) -> Told:
    """What scripts say themselves, in each writer or inbox file: critical fires, ok resolves."""

    def means(w: Writer, r: Rec) -> bool:
        return r.kind == "state" and r.body["alert"] == name and w.role != "agent"

    out = Told([], {})
    for stream, records in _by_source(history, means).items():
        firing = False
        out.begun[stream] = records[0][0], records[0][1:3]
        for moment, writer, seq, r in records:
            if firing is not (r.body["state"] == "critical"):
                firing = not firing
                out.changes.append(Decided(name, stream, "firing" if firing else "resolved", moment, (writer, seq)))
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
    for opened, name, ended in sorted((w.records[0].moment, w.id, end_of(history, w)) for w in history.writers if w.role not in AGENTS):
        if out and opened <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], ended), out[-1][2])
        else:
            out.append((opened, ended, (name, 1)))
    return out


def _no_progress(history: History, name: str, rule: dict[str, Any], counts: Callable[[Writer, Rec], bool], since: float) -> list[Decided]:
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
    return out


# ---------------------------------------------------------------------- composed


Word = tuple[str, bool]  # what is written, and whether it stood in quotes
Truth = Callable[[str, str], bool]  # of ("any", "all" or a number; an alert's name)


def words_of(when: str) -> list[Word]:
    """Return the words, quoted names and parentheses of an expression."""
    found = re.findall(r"""([()])|'([^']*)'|"([^"]*)"|([^\s()'"]+)""", when)
    return [(mark or plain, False) if mark or plain else (one or two, True) for mark, one, two, plain in found]


def _cut(words: list[Word], at: str) -> list[list[Word]]:
    """Cut an expression at each `at` that is in no parenthesis."""
    parts: list[list[Word]] = [[]]
    depth = 0
    for word in words:
        depth += {("(", False): 1, (")", False): -1}.get(word, 0)
        if word == (at, False) and not depth:
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def true_of(words: list[Word], truth: Truth) -> bool:
    """Evaluate an expression: first cut at what binds least."""
    for at, joined in (("or", any), ("and", all)):
        parts = _cut(words, at)
        if len(parts) > 1:
            return joined([true_of(part, truth) for part in parts])
    if words[0] == ("not", False):
        return not true_of(words[1:], truth)
    if words[0] == ("(", False):
        return true_of(words[1:-1], truth)
    return truth(words[0][0] if len(words) > 1 else "any", words[-1][0])


def names_in(words: list[Word], *, only_all: bool = False) -> set[str]:
    """Return the names of alerts in an expression; `only_all`: those that `all` stands before."""
    out = set()
    for n, (text, quoted) in enumerate(words):
        after_all = n > 0 and words[n - 1] == ("all", False)
        number_of = not quoted and n + 1 < len(words) and words[n + 1] == ("of", False)
        if (quoted or text not in {"and", "or", "not", "any", "all", "of", "(", ")"}) and not number_of and (after_all or not only_all):
            out.add(text)
    return out


def composed(history: History, home: Writer, alert: Rec, told: dict[str, Told]) -> list[Decided]:
    """Return what is decided of a composed alert. `told`: all other alerts, by name."""
    name, rule, since = alert.body["name"], alert.body["alert"], since_of(alert)
    words = words_of(rule["when"])
    if "runs" in rule:
        notes = _notes(history, alert.body["id"])
        marks = [(moment, (writer, seq)) for moment, writer, seq, _ in notes]
    else:
        operands = {n: told[n] for n in names_in(words) if n in told}
        marks = [(d.at, d.trigger) for t in operands.values() for d in t.changes]
        for n in names_in(words, only_all=True) & set(operands):
            marks += _comings_and_goings(history, operands[n])

    def true_at(moment: float) -> bool:
        if "runs" in rule:
            past = [alerts for at, _, _, alerts in notes if at <= moment]
            return true_of(words, lambda how, n: _elsewhere(past[-1].get(n) if past else None, how))
        return true_of(words, lambda how, n: n in operands and _here(history, operands[n], how, moment))

    def judgements() -> Iterator[Judgement]:
        for begun, ended, opener in lives(history):
            first = max(begun, since)
            if first > ended:
                continue
            for moment in sorted({first} | {m for m, _ in marks if first < m <= ended}):
                trigger = opener if moment == first else min(t for m, t in marks if m == moment)
                met = true_at(moment)
                yield moment, trigger, lambda firing, met=met: met

    return _walk(history, name, (), rule, judgements(), [(begun, ended) for begun, ended, _ in lives(history)])


def _comings_and_goings(history: History, of: Told) -> list[tuple[float, Trigger]]:
    """Return the first points of an alert's streams, and the ends of the writers that have one."""
    out = list(of.begun.values())
    for w in history.writers:
        begun = [m for stream, (m, _) in of.begun.items() if dict(stream).get("writer") == w.id]
        ended = end_of(history, w)
        if begun and min(begun) <= ended < FOREVER and has_ended(history, ("writer", w.id), ended):
            out.append((ended, (w.id, w.records[-1].seq)))
    return out


def has_ended(history: History, source: tuple[str, str], moment: float) -> bool:
    """Say whether a source of streams has ended by a moment at which the run is open: hosts, files and who ends with the run have not."""
    ended = min((end_of(history, w) for w in history.writers if source == ("writer", w.id)), default=FOREVER)
    return ended < moment or (ended == moment and all(moment != end for _, end, _ in lives(history)))


def _here(history: History, of: Told, how: str, moment: float) -> bool:
    """Say whether `any`, `all` or so many of an alert's sources are firing at a moment, after all that changed at it."""

    def source(stream: Stream) -> Stream:
        return tuple(part for part in stream if part[0] != "metric")

    last = {d.stream: d.state for d in of.changes if d.at <= moment}
    firing = {source(stream) for stream, state in last.items() if state == "firing"}
    if how == "any":
        return bool(firing)
    if how == "all":
        present = {source(stream) for stream, (begun, _) in of.begun.items() if begun <= moment}
        return bool(firing) and all(who in firing for who in present if not has_ended(history, who[0], moment))
    return len(firing) >= int(how)


def _notes(history: History, rule: str) -> list[tuple[float, str, int, dict[str, Any]]]:
    """Return what agents noted of other runs for a rule: moment, writer, sequence, alerts."""
    found = [
        (r.moment, w.id, r.seq, r.body["elsewhere"]["alerts"])
        for w in history.writers
        for r in w.records
        if r.kind == "decision" and r.body.get("elsewhere", {}).get("rule") == rule
    ]
    return sorted(found, key=lambda f: f[:3])


def _elsewhere(noted: dict[str, Any] | None, how: str) -> bool:
    if noted is None:
        return False
    if how == "all":
        return bool(noted["firing"]) and noted["live_firing"] == noted["live"]
    return len(noted["firing"]) >= (1 if how == "any" else int(how))
