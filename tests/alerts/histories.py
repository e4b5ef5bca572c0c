"""Histories of runs for the alert rules: Hypothesis strategies, and how a history becomes what the spool gives the engine."""

from __future__ import annotations

import hashlib
import math
import os
import random
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from reference import AGENTS, History, Rec, Writer, end_of

from simspool.spool import Kind, RunFolder, frames, ids, segment_header
from simspool.spool.frames import HAS_TIME, HAS_TIMESTAMP, MetricBatch, Record, Shape
from simspool.spool.segment_header import SegmentHeader

RUN = ids.to_text(bytes([1] * 16))
BOOT, WALL = 5_000_000_000_000, 1_700_000_000_000_000  # the run's start: ns on the boot clock, µs since 1970
METRICS = ["loss", "loss", "train/*", "*", "train/[ab]", "lo?s", "nothing"]
MESSAGES = ["step done", "WARNING: slow", "ERROR 17: solver diverged", "converged", "ERROR"]
NAMES = ["alert 0", "hot", "all", "it's", "warm-up", "αβ", "x y"]  # of a history's alerts, in order
FILES = ["solver", "post.log"]
RUNS = ["first", "second", "third"]  # as notes of other runs name them
PATTERNS = ["ERROR", "diverged", "re:ERROR [0-9]+", "re:^(step|con)", "slow"]

gaps = st.sampled_from([0, 0, 0.125, 0.125, 0.25, 0.5, 1, 1, 2, 3, 6, 20])
spans = st.sampled_from([0.125, 0.5, 1, 1.5, 2, 3, 5, 8, 0.1, 0.3, 0.7])
scales = st.sampled_from([1, 1, 1, 0.1, 0.7])  # mostly eighths of a second, whose sums are exact: then many things happen at one moment
levels = st.sampled_from([-1, 0, 0, 1, 1.5, 2, 5])
odd = st.sampled_from(
    [math.nan, math.inf, -math.inf, True, False, 10**400, -(10**400), 1e308, 1.7e308, -1.7e308, 1e16, 0.1, 0.2, 0.3, 2**63]
)
numbers = st.one_of(st.integers(-3, 6), st.integers(-3, 6).map(float), st.sampled_from([0.5, 1.5, 2.5]), st.integers(0, 3), odd)


def writer_id(number: int) -> str:
    """Return the id of a history's writer."""
    return ids.to_text(bytes([2] * 15 + [number]))


def later(moment: float, gap: float) -> float:
    """Return a moment that is so much later, in whole nanoseconds as the boot clock has them."""
    return round((moment + gap) * 1e9) / 1e9


@st.composite
def definitions(draw: Any, *, lively: bool) -> dict[str, Any]:
    """Draw the definition and the source of an alert; `lively`: one that often changes its state."""
    source = draw(st.sampled_from(["metrics"] * 6 + ["events"] * 2 + ["user"] * 2))
    if source == "user":
        return {"source": "user", "alert": {}}
    short = st.sampled_from([0, 0.125, 0.5])
    timing = {
        "hold": short if lively else st.sampled_from([0, 0.5, 1, 2.5, 6]), "frequency": spans,
        "clear_after": short if lively else st.sampled_from([0, 0.5, 1, 4]),
    }  # fmt: skip
    if source == "events":
        return {"source": source, "alert": draw(st.fixed_dictionaries({"pattern": st.sampled_from(PATTERNS)}, optional=timing))}
    rule = draw(st.sampled_from(["is above", "is below", "is inside range", "is outside range", "is not finite", "rate is above",
                                 "rate is below", "no progress", "no progress"]))  # fmt: skip
    return {"source": source, "alert": draw(_metric_rule(rule, timing, lively=lively))}


@st.composite
def _metric_rule(draw: Any, rule: str, timing: dict[str, Any], *, lively: bool) -> dict[str, Any]:
    given: dict[str, Any] = {"rule": st.just(rule), "metric": st.sampled_from(["loss", "*"] if lively else METRICS)}
    optional: dict[str, Any] = {"window": st.sampled_from([0.125, 0.5, 1]) if lively else spans, **timing}
    if rule == "no progress":
        del given["metric"], optional["frequency"]
        optional["metric"] = st.sampled_from(METRICS)
    elif rule != "is not finite":
        optional["hysteresis"] = st.sampled_from([0, 0.5, 1, 2])
        if "range" in rule:
            low = draw(st.sampled_from([0, 0.5, 1] if lively else [-2, 0, 0.5]))
            given |= {"range_low": st.just(low), "range_high": st.just(low + draw(st.sampled_from([0.5, 1, 3])))}
        else:
            given["threshold"] = st.sampled_from([0, 1, 1.5, 2]) if lively else levels
        if not rule.startswith("rate"):
            optional["aggregation"] = st.sampled_from(["average", "sum", "at least one", "all"])
    return dict(draw(st.fixed_dictionaries(given, optional=optional)))


@st.composite
def deviations(draw: Any, curves: dict[str, list[tuple[float, float]]], *, lively: bool) -> dict[str, Any]:
    """Draw an alert that compares with a curve, and add the curve to `curves`."""
    timing = {key: st.sampled_from([0, 0.125, 0.5, 1]) for key in ("hold", "clear_after")}
    xaxis = draw(st.sampled_from(["step", "time"]))
    place = (
        st.integers(0, 20) if xaxis == "step" else st.one_of(st.integers(0, 80).map(lambda n: n / 8), st.sampled_from([-1e9, 0.1, 1.7e9]))
    )
    xs = sorted(draw(st.sets(place.map(float), min_size=1, max_size=draw(st.sampled_from([1, 3, 8])))))
    value = st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0]) if lively else numbers.filter(lambda v: not isinstance(v, int) or abs(v) < 1 << 70)
    curve = [(x, float(draw(value))) for x in xs]
    digest = hashlib.sha256(curve_text(curve)).hexdigest()
    curves[digest] = curve
    far = st.sampled_from([0.0, 0.25, 0.5, 1.0, 1e300] if not lively else [0.0, 0.25, 0.5])
    tolerance, relative = draw(st.tuples(far, far).filter(any))
    rule = {"rule": "deviates from reference", "metric": draw(st.sampled_from(["loss", "loss", "loss", "train/a"])), "reference": digest}
    rule |= {"xaxis": xaxis} if xaxis == "time" or draw(st.booleans()) else {}
    rule |= {key: far for key, far in (("tolerance", tolerance), ("relative_tolerance", relative)) if far}
    optional = {"window": st.sampled_from([0.125, 0.5, 1, 3]), "frequency": spans, **timing}
    optional["aggregation"] = st.sampled_from(["average", "at least one", "all"])
    return {"source": "metrics", "alert": rule | draw(st.fixed_dictionaries({}, optional=optional))}


def curve_text(curve: list[tuple[float, float]]) -> bytes:
    """Return a curve's text, as it is kept with a run."""
    return "".join(f"{x!r},{value!r}\n" for x, value in curve).encode()


def _written(name: str) -> st.SearchStrategy[str]:
    """Return ways to write a name in an expression."""
    quoted = [f"{q}{name}{q}" for q in "'\"" if q not in name]
    plain = [] if set(name) & set(" '\"()") or name in {"and", "or", "not", "any", "all", "of"} else [name]
    return st.sampled_from(plain * 2 + quoted)


@st.composite
def expressions(draw: Any, names: list[str], depth: int = 3) -> str:
    """Draw an expression of alerts, in brackets where it needs them, and sometimes where it does not."""
    form = draw(st.sampled_from(["name"] * 4 + ["all"] * 2 + ["not", "and", "and", "or", "or"] if depth else ["name", "all"]))
    if form in {"name", "all"}:
        name = draw(_written(draw(st.sampled_from(names))))
        before = "all " if form == "all" else draw(st.sampled_from(["", "", "any ", "1 of ", "2 of ", "3 of "]))
        out = before + name
    elif form == "not":
        out = "not " + draw(expressions(names, depth - 1))
    else:
        out = f" {form} ".join(draw(st.lists(expressions(names, depth - 1), min_size=2, max_size=3)))
    return f"({out})" if draw(st.integers(0, 3)) == 0 else out


@st.composite
def compositions(draw: Any, names: list[str]) -> dict[str, Any]:
    """Draw an alert of other alerts; without brackets `not`, `and` and `or` bind as the page says, whatever was meant."""
    timing = {"hold": st.sampled_from([0, 0.125, 0.5, 1, 2.5]), "clear_after": st.sampled_from([0, 0.125, 0.5, 1, 4])}
    rule = draw(st.fixed_dictionaries({"when": expressions(names)}, optional=timing))
    return {"source": "alerts", "alert": rule | ({"runs": "folder=/campaign"} if draw(st.integers(0, 3)) == 0 else {})}


@st.composite
def points(draw: Any, moment: float, begun: int, step: int, *, lively: bool) -> dict[str, Any]:
    """Draw the body of a metrics record: its own times are mostly its moment, else late, early, equal or odd."""
    if lively:
        names = draw(st.sampled_from([["loss"], ["loss"], ["loss"], ["loss", "train/a"]]))
        values = {name: draw(st.sampled_from([-1, 0, 0.5, 1, 1.5, 2, 2.5, 3, 4, math.nan])) for name in names}
        return {"values": values, "step": step} | ({"time": moment - draw(spans)} if draw(st.integers(0, 9)) == 0 else {})
    names = draw(st.sampled_from([["loss"], ["loss"], ["loss"], ["train/a"], ["loss", "train/a"], ["train/b", "loss"]]))
    body: dict[str, Any] = {"values": {n: draw(numbers) for n in names}}
    body["step"] = draw(st.sampled_from([step, step, max(0, step - 2), 0, 7]))
    how = draw(st.sampled_from(["clock"] * 9 + ["late", "late", "equal", "ahead", "stamp", "text", "no time", "huge"]))
    if how == "late":
        body["time"] = moment - draw(spans)
    elif how == "ahead":
        body["time"] = moment + draw(spans)
    elif how == "equal":
        body["time"] = draw(st.sampled_from([0.0, 1.0, 5.0]))
    elif how == "stamp":
        body["timestamp"] = begun + int((moment - draw(st.sampled_from([0, 0.5, 3]))) * 1_000_000)
    elif how == "text":
        micros = begun + int((moment - draw(st.sampled_from([0, 0.5]))) * 1_000_000)
        when = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)
        body["timestamp"] = when.isoformat().replace("+00:00", draw(st.sampled_from(["+00:00", "", "Z"])))
    elif how == "no time":
        body["timestamp"] = draw(st.sampled_from(["yesterday", "12:30", "", "2026-13-45"]))
    elif how == "huge":
        body["time"] = draw(st.sampled_from([1.7e18, 1e300, -1e18, 1.7e9]))
    return body


@st.composite
def histories(draw: Any) -> History:
    """Draw a run: writers of several processes and agents, alerts from the start and defined in the middle, ends, sleeps.

    Most are lively: one metric whose values cross the thresholds all the time, and no long silence. Some of these are crowds: ranks that
    begin together, and alerts of all of them.
    """
    style, scale = draw(st.sampled_from(["odd", "odd", "lively", "lively", "crowd"])), draw(scales)
    lively, crowd = style != "odd", style == "crowd"
    count = draw(st.sampled_from([3, 4] if crowd else [1, 1, 2, 3, 3]))
    pauses = st.sampled_from([0, 0.125, 0.125, 0.25, 0.5, 1]) if lively else gaps
    writers = []
    for n in range(count):
        begun = WALL + draw(st.sampled_from([0, 0, 0, 3_600_000_000, -500_000]))
        ends = [w.records[-1].moment for w in writers]
        first = draw(st.sampled_from([0.0, 0.125])) if n == 0 else draw(st.sampled_from([0.0, 0.0, 0.5, 2.0, 10.0, max(ends) + draw(gaps)]))
        first = 0.0 if crowd else first
        kind = "run" if n == 0 else "attach"
        role = "creator" if n == 0 else draw(st.sampled_from(["attach", "fork", "re-entrant", "reconnect"]))
        records = [Rec(1, first, kind, {"name": "r"} if n == 0 else {"reason": role})]
        moment, step = first, 0
        for _ in range(draw(st.sampled_from([2, 4, 8, 12] if crowd else [2 // count, 8 // count, 20 // count, 30 // count]))):
            moment = later(moment, draw(pauses) * scale)
            step += draw(st.sampled_from([0, 1, 1, 1]))
            records.append(draw(_line(moment, begun, step, lively=lively)))
        if draw(st.integers(0, 2)):
            records.append(Rec(0, later(moment, draw(pauses if crowd else gaps)), "close", {"status": "completed"}))
        writers.append(Writer(writer_id(n + 1), role, records, begun=begun))
    agents = _agents(draw, writers)
    inboxes = _inboxes(draw, writers, pauses, scale, lively=lively)
    history = History(writers + agents + inboxes)
    _define(draw, history, lively=lively, crowd=crowd)
    _note_others(draw, history)
    for w in history.writers:
        for seq, r in enumerate(w.records, 1):
            r.seq = seq
    lengths = {w.id: len(w.records) for w in history.writers}
    for r in (r for w in agents for r in w.records if r.kind == "survivor"):
        r.body["last"] = lengths[r.body["writer"]]
    _sleep(draw, history)
    return history


@st.composite
def _line(draw: Any, moment: float, begun: int, step: int, *, lively: bool) -> Rec:
    what = draw(st.sampled_from(["metrics"] * 9 + ["event"] * 3 + ["resources", "state", "state"]))
    if what in {"metrics", "resources"}:
        body = draw(points(moment, begun, step, lively=lively))
    elif what == "event":
        body = {"message": draw(st.sampled_from(MESSAGES))}
    else:
        said = draw(st.sampled_from(["critical", "critical", "ok"]))
        body = {"alert": draw(st.sampled_from(NAMES[:4])), "state": said}
    return Rec(0, moment, what, body)


def _inboxes(draw: Any, writers: list[Writer], pauses: Any, scale: float, *, lively: bool) -> list[Writer]:
    """One inbox writer after the other, as one agent follows the other; each has lines of some files, also behind the run's end."""
    out: list[Writer] = []
    count = draw(st.sampled_from([0, 0, 1, 2, 3]))
    backwards = draw(st.booleans())  # ids need not be in the order of time
    lasts = [w.records[-1].moment - writers[0].records[0].moment for w in writers]
    moment, offset = later(writers[0].records[0].moment, draw(st.sampled_from([0, 0, 0.25, 1, 6, max(0, *lasts)]))), 0
    for n in range(count):
        records = [Rec(0, moment, "attach", {"reason": "inbox"})]
        for step in range(draw(st.sampled_from([1, 4, 10, 16])) // count + 1):
            moment = later(moment, draw(pauses) * scale)
            if step == 0 or draw(st.integers(0, 3)) == 0:
                offset += 40
                records.append(Rec(0, moment, "inbox", {"file": draw(st.sampled_from(FILES)), "epoch": 0, "offset": offset}))
            line = draw(_line(moment, WALL, step, lively=lively))
            if line.kind != "resources":
                records.append(line)
        if draw(st.booleans()):
            records.append(Rec(0, moment, "close", {"status": "completed"}))
        out.append(Writer(writer_id(30 + (-n if backwards else n)), "inbox", records, begun=WALL))
    return out


def _note_others(draw: Any, history: History) -> None:
    """Let agents note how alerts of other runs stand, for each alert that is about them, and for one that nobody has."""
    defined = {r.body["id"]: r.body for w in history.writers for r in w.records if r.kind == "alert" and "runs" in r.body["alert"]}
    for rule, body in defined.items():
        names = [name for name in NAMES if name in body["alert"]["when"]]
        for _ in range(draw(st.sampled_from([0, 1, 4, 8]))):
            alerts = {}
            for name in draw(st.lists(st.sampled_from(names or NAMES), unique=True, max_size=3)):
                live = draw(st.integers(0, 2))
                firing = draw(st.lists(st.sampled_from(RUNS), unique=True))
                burning = draw(st.integers(0, min(live, len(firing))))
                alerts[name] = {"firing": firing, "live": live, "live_firing": burning}
            note = {"elsewhere": {"rule": draw(st.sampled_from([rule] * 9 + [writer_id(98)])), "alerts": alerts}}
            told = [w for w in history.writers if w.role == "agent"]
            if not told:
                told = [
                    Writer(writer_id(10), "agent", [Rec(0, draw(st.sampled_from([0.0, 1.0])), "attach", {"reason": "agent"})], begun=WALL)
                ]
                history.writers.append(told[0])
            home = draw(st.sampled_from(told))
            at = draw(st.integers(1, len(home.records)))
            moment = home.records[at - 1].moment
            latest = home.records[at].moment if at < len(home.records) else moment + 5
            home.records.insert(at, Rec(0, later(moment, min(draw(gaps), latest - moment)), "decision", note))


def _agents(draw: Any, writers: list[Writer]) -> list[Writer]:
    """One agent after the other on each of two hosts: samples, and what they say of processes that died."""
    out = []
    end = max(w.records[-1].moment for w in writers)
    for host in draw(st.sampled_from([[], ["node"], ["node"], ["node", "other"]])):
        moment = draw(st.sampled_from([0.0, 0.5, 3.0]))
        for _ in range(draw(st.integers(1, 2))):
            number = 10 + len(out)
            records = [Rec(0, moment, "attach", {"reason": "agent"})]
            for step in range(draw(st.integers(0, 5))):
                moment += draw(gaps)
                records.append(Rec(0, moment, "resources", {"values": {"train/a": draw(numbers)}, "step": step}))
            out.append(Writer(writer_id(number), "agent", records, host=host, begun=WALL))
    dead = [w for w in writers if w.records[-1].kind != "close"]
    if out and dead and draw(st.booleans()):
        found = draw(st.sampled_from(dead))
        seen = later(max(end, out[-1].records[-1].moment), draw(gaps))
        body = {"writer": found.id, "status": "lost"} | ({"ended": seen} if draw(st.booleans()) else {})
        out[-1].records.append(Rec(0, later(seen, draw(gaps)), "survivor", body))
    return out


@st.composite
def _of_a_crowd(draw: Any) -> dict[str, Any]:
    """Draw an alert that many ranks meet, now and then."""
    source = draw(st.sampled_from(["metrics"] * 4 + ["events"] * 2 + ["user"]))
    rule: dict[str, Any] = {}
    if source == "metrics":
        rule = {"rule": "is above", "threshold": draw(st.sampled_from([1, 2, 3])), "window": 0.125}
        rule["metric"] = draw(st.sampled_from(["loss", "loss", "*"]))
    elif source == "events":
        rule = {"pattern": draw(st.sampled_from(["ERROR", "e"]))}
    timing = {key: st.sampled_from([0.125, 0.5]) for key in ("hold", "clear_after")}
    return {"source": source, "alert": rule if source == "user" else rule | draw(st.fixed_dictionaries({}, optional=timing))}


def _define(draw: Any, history: History, *, lively: bool, crowd: bool) -> None:
    """Define alerts: those of metrics, events and users, then some that are made of them."""
    by_role = {role: [w for w in history.writers if (w.role if w.role in AGENTS else "") == role] for role in ("", *AGENTS)}
    count, composed = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3] if crowd else [0, 0, 1, 2, 3]))
    for n in range(count + composed):
        if crowd and n == 0:
            body = draw(_of_a_crowd())
        elif n < count:
            body = draw(deviations(history.curves, lively=lively) if draw(st.integers(0, 3)) == 0 else definitions(lively=lively))
        else:
            body = draw(compositions([*NAMES[:count] * 3, NAMES[count], "missing"]))
            if crowd and draw(st.booleans()):
                body["alert"]["when"] = draw(st.sampled_from(["all", "all", "not all", "hot or all", "2 of", "3 of"])) + f" {NAMES[0]!r}"
        body |= {"id": ids.to_text(bytes([3] * 15 + [n])), "name": NAMES[n]}
        if n and draw(st.integers(0, 7)) == 0:
            body["name"] = NAMES[n - 1]  # a name that has another definition: the first counts
        body |= {"abort": draw(st.booleans()), "notification": "none"}
        by = draw(st.sampled_from(["script", "script", "site", "user"]))
        homes = (by_role[""] + by_role["inbox"][:1]) if by == "script" else by_role["agent"] or by_role[""]
        home = draw(st.sampled_from(homes))
        body["by"] = by
        latest = len(home.records) - (home.records[-1].kind == "close")
        at = 1 if draw(st.booleans()) else draw(st.integers(1, latest))
        if home.role == "inbox":
            at = max(2, at)  # behind the first position
        moment = home.records[at - 1].moment
        if by == "site":
            body["since"] = 0.0
        elif by == "user":
            body["since"] = draw(st.sampled_from([0.0, moment]))
        home.records.insert(at, Rec(0, moment, "alert", body))
        if by == "script" and draw(st.integers(0, 4)) == 0:  # another rank says the same
            other = draw(st.sampled_from(by_role[""]))
            place = draw(st.integers(1, max(1, len(other.records) - (other.records[-1].kind == "close"))))
            other.records.insert(place, Rec(0, other.records[place - 1].moment, "alert", body))


def _sleep(draw: Any, history: History) -> None:
    """Let the machine sleep: everything after a moment comes later, and an agent notes it."""
    if draw(st.integers(0, 2)):
        return
    start = draw(st.sampled_from([1.125, 3.625, 7.0625]))
    span = draw(st.sampled_from([0.5, 4.0, 100.0]))
    for w in history.writers:
        for r in w.records:
            if r.moment >= start:
                r.moment = later(r.moment, span)
                for key in ("since", "ended"):
                    if isinstance(r.body.get(key), float) and r.body[key] >= start:
                        r.body[key] = later(r.body[key], span)
    history.slept.append((start, start + span))
    note = Rec(2, start + span, "decision", {"suspended": [start, start + span]})
    history.writers.append(Writer(writer_id(20), "agent", [Rec(1, start + span, "attach", {"reason": "agent"}), note], begun=WALL))


# ---------------------------------------------------------------------- what the spool gives


def header(writer: Writer) -> SegmentHeader:
    """Return a segment header of a writer."""
    number = ids.from_text(writer.id)
    return SegmentHeader(
        writer=number, run=ids.from_text(RUN), number=1, first=1, durability=1, pid=100 + number[-1], start_ticks=7,
        anchor_boot=BOOT + 2_000_000_000, anchor_wall=writer.begun * 1000 + 2_000_000_000, origin_boot=BOOT, pid_namespace=1,
        boot_id=bytes(16), uid=0, rank=None, host=writer.host,
    )  # fmt: skip


_KINDS = {
    "run": Kind.RUN, "attach": Kind.ATTACH, "event": Kind.EVENT, "alert": Kind.ALERT, "state": Kind.ALERT_STATE, "close": Kind.CLOSE,
    "survivor": Kind.SURVIVOR, "decision": Kind.DECISION, "inbox": Kind.INBOX,
}  # fmt: skip


def item(record: Rec) -> MetricBatch | Record:
    """Return a record as the reader gives it: metrics that fit as a batch of one row, the rest as JSON."""
    boot = BOOT + round(record.moment * 1e9)
    if record.kind not in {"metrics", "resources"}:
        return Record(_KINDS[record.kind], 0, record.seq, boot, 0, record.body)
    resources = record.kind == "resources"
    given = record.body["values"]
    stamp = record.body.get("timestamp")
    if isinstance(stamp, str) or any(type(v) is int and not -(1 << 63) <= v < 1 << 63 for v in given.values()):
        return Record(Kind.RESOURCES_JSON if resources else Kind.METRICS_JSON, 0, record.seq, boot, 0, dict(record.body))
    types = "".join("?" if isinstance(v, bool) else "q" if isinstance(v, int) else "d" for v in given.values())
    flags = (HAS_TIME if "time" in record.body else 0) | (HAS_TIMESTAMP if stamp is not None else 0)
    extra = [record.body["time"]] if flags & HAS_TIME else []
    extra += [stamp] if flags & HAS_TIMESTAMP else []
    plain = [int(v) if isinstance(v, bool) else v for v in given.values()]
    row = (b"", record.seq, boot, 0, record.body["step"], *extra, *plain, 0)
    return MetricBatch(Kind.RESOURCES if resources else Kind.METRICS, Shape(0, tuple(given), types), flags, [row])


def joined(items: list[MetricBatch | Record]) -> list[MetricBatch | Record]:
    """Return consecutive rows of one shape as one batch, as a pass over a segment does."""
    out: list[MetricBatch | Record] = []
    for new in items:
        last = out[-1] if out else None
        if (
            isinstance(new, MetricBatch) and isinstance(last, MetricBatch)
            and (last.kind, last.flags, last.shape) == (new.kind, new.flags, new.shape)
        ):  # fmt: skip
            out[-1] = MetricBatch(last.kind, last.shape, last.flags, last.rows + new.rows)
        else:
            out.append(new)
    return out


def store(history: History, folder: Path) -> RunFolder:
    """Write a history as segments into a run's folder, and return it."""
    run = RunFolder(str(folder), RUN)
    for writer in history.writers:
        head = header(writer)
        shapes: dict[tuple[Any, ...], Shape] = {}
        data = bytearray(head.pack().ljust(segment_header.SIZE, b"\0"))
        for record in writer.records:
            one = item(record)
            if isinstance(one, Record):
                data += frames.encode_json(one.kind, one.seq, one.boot_ns, one.body or {}, head.seed)
                continue
            key = (one.shape.names, one.shape.types)
            if key not in shapes:
                shapes[key] = Shape(len(shapes), *key)
                data += frames.encode_definition(shapes[key], 0, head.seed)
            layout = shapes[key].layout(one.flags)
            row = one.rows[0]
            first = frames.HEAD.pack(frames.MARKER, one.kind, one.flags, layout.size, row[1], row[2])
            frame = layout.pack(first[:8], row[1], row[2], shapes[key].id, *row[4:])
            data += frame[:-4] + zlib.crc32(frame[:-4], head.seed).to_bytes(4, "little")
        where = Path(run.writer(writer.id))
        where.mkdir(parents=True)
        (where / "000001.open").write_bytes(data)
    for digest, curve in history.curves.items():
        os.makedirs(run.blobs, exist_ok=True)
        Path(run.blobs, digest).write_bytes(curve_text(curve))
    return run


Step = tuple[str, Any]  # ("feed", (writer, records)), ("tick", now), ("suspended", (a, b)) or ("ended", (writer, at))


def arrivals(history: History, choice: random.Random, *, most: int = 6, ticks: int = 8) -> list[Step]:
    """Return an order in which an agent may come to see a history: writers interleaved, in pieces; what was recorded before a tick's
    moment was fed before it. Nothing overtakes an alert that several writers define: the first of them counts, and must be known. Time
    decides nothing before an alert is known that counts from earlier on and that others are made of.
    """
    horizon = max(r.moment for w in history.writers for r in w.records) + 10
    drawn = {choice.randrange(int(horizon * 8)) / 8 for _ in range(choice.randrange(ticks))}
    asleep = history.slept
    moments = sorted({m for m in drawn if not any(a < m < b for a, b in asleep)} | {b for _, b in asleep})
    queues = {w.id: list(w.records) for w in history.writers}
    by_id = {w.id: w for w in history.writers}
    steps: list[Step] = []
    names = [r.body["name"] for w in history.writers for r in w.records if r.kind == "alert"]
    twice = {name for name in names if names.count(name) > 1}
    deaths = {w.id: end_of(history, w) for w in history.writers if w.role not in AGENTS and w.records[-1].kind != "close"}
    late = _known_late(history)
    for now in [*moments, math.inf]:
        waking = [(a, b) for a, b in asleep if b == now]
        while any(q and q[0].moment < now for q in queues.values()):
            told = [(r.moment, w, r.seq) for w, q in queues.items() for r in q if r.kind == "alert" and r.body["name"] in twice]
            first, teller, last = min(told, default=(math.inf, "", 0))
            free = {
                w: [r for r in q if r.moment < now and (r.moment < first or (w == teller and r.seq <= last))] for w, q in queues.items()
            }
            writer = choice.choice([w for w, records in free.items() if records])
            queue, taken = queues[writer], free[writer][: choice.randint(1, most)]
            del queue[: len(taken)]
            steps.append(("feed", (by_id[writer], taken)))
        if now < math.inf:
            steps += [("suspended", span) for span in waking]
            for dead in [w for w, at in deaths.items() if at < now]:
                steps.append(("ended", (dead, deaths.pop(dead))))
            if now > late:
                steps.append(("tick", now))
    return steps


def _known_late(history: History) -> float:
    """Return when the last alert is recorded that counts from before its record, while others are made of it."""
    alerts = [r for w in history.writers for r in w.records if r.kind == "alert"]
    made = " ".join(r.body["alert"]["when"] for r in alerts if r.body["source"] == "alerts")
    early = [r for r in alerts if r.body["source"] == "user" or r.body.get("since", r.moment) < r.moment]
    return max((r.moment for r in early if r.body["name"] in made), default=-math.inf)
