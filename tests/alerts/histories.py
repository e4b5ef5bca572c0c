"""Histories of runs for the alert rules: Hypothesis strategies, and how a history becomes what the spool gives the engine."""

from __future__ import annotations

import math
import random
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from reference import History, Rec, Writer, end_of

from simspool.spool import Kind, RunFolder, frames, ids, segment_header
from simspool.spool.frames import HAS_TIME, HAS_TIMESTAMP, MetricBatch, Record, Shape
from simspool.spool.segment_header import SegmentHeader

RUN = ids.to_text(bytes([1] * 16))
BOOT, WALL = 5_000_000_000_000, 1_700_000_000_000_000  # the run's start: ns on the boot clock, µs since 1970
METRICS = ["loss", "loss", "train/*", "*", "train/[ab]", "lo?s", "nothing"]
MESSAGES = ["step done", "WARNING: slow", "ERROR 17: solver diverged", "converged", "ERROR"]
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
    source = draw(st.sampled_from(["metrics"] * 6 + ["events"] * 2 + ["user"]))
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
    return {"source": source, "alert": draw(st.fixed_dictionaries(given, optional=optional))}


@st.composite
def points(draw: Any, moment: float, begun: int, step: int, *, lively: bool) -> dict[str, Any]:
    """Draw the body of a metrics record: its own times are mostly its moment, else late, early, equal or odd."""
    if lively:
        values = {"loss": draw(st.sampled_from([-1, 0, 0.5, 1, 1.5, 2, 2.5, 3, 4, math.nan]))}
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

    Half of them are lively: one metric whose values cross the thresholds all the time, and no long silence.
    """
    lively, count, scale = draw(st.booleans()), draw(st.integers(1, 3)), draw(scales)
    pauses = st.sampled_from([0, 0.125, 0.125, 0.25, 0.5, 1]) if lively else gaps
    writers = []
    for n in range(count):
        begun = WALL + draw(st.sampled_from([0, 0, 0, 3_600_000_000, -500_000]))
        first = draw(st.sampled_from([0.0, 0.125])) if n == 0 else draw(st.sampled_from([0.0, 0.5, 2.0, 10.0]))
        kind = "run" if n == 0 else "attach"
        role = "creator" if n == 0 else draw(st.sampled_from(["attach", "fork"]))
        records = [Rec(1, first, kind, {"name": "r"} if n == 0 else {"reason": role})]
        moment, step = first, 0
        for _ in range(draw(st.sampled_from([2, 8, 20, 30])) // count):
            moment = later(moment, draw(pauses) * scale)
            step += draw(st.sampled_from([0, 1, 1, 1]))
            what = draw(st.sampled_from(["metrics"] * 9 + ["event"] * 3 + ["resources", "state"]))
            if what in {"metrics", "resources"}:
                body = draw(points(moment, begun, step, lively=lively))
            elif what == "event":
                body = {"message": draw(st.sampled_from(MESSAGES))}
            else:
                said = draw(st.sampled_from(["critical", "critical", "ok"]))
                body = {"alert": draw(st.sampled_from(["alert 0", "alert 1"])), "state": said}
            records.append(Rec(0, moment, what, body))
        if draw(st.booleans()):
            records.append(Rec(0, later(moment, draw(gaps)), "close", {"status": "completed"}))
        writers.append(Writer(writer_id(n + 1), role, records, begun=begun))
    agents = _agents(draw, writers)
    _define(draw, writers, agents, lively=lively)
    history = History(writers + agents)
    for w in history.writers:
        for seq, r in enumerate(w.records, 1):
            r.seq = seq
    lengths = {w.id: len(w.records) for w in history.writers}
    for r in (r for w in agents for r in w.records if r.kind == "survivor"):
        r.body["last"] = lengths[r.body["writer"]]
    _sleep(draw, history)
    return history


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


def _define(draw: Any, writers: list[Writer], agents: list[Writer], *, lively: bool) -> None:
    for n in range(draw(st.integers(1, 3))):
        body = draw(definitions(lively=lively)) | {"id": ids.to_text(bytes([3] * 15 + [n])), "name": f"alert {n}"}
        if n and draw(st.integers(0, 5)) == 0:
            body["name"] = f"alert {n - 1}"  # a name that has another definition: the first counts
        body |= {"abort": draw(st.booleans()), "notification": "none"}
        by = draw(st.sampled_from(["script", "script", "site", "user"]))
        homes = writers if by == "script" or not agents else agents
        home = draw(st.sampled_from(homes))
        body["by"] = by
        latest = len(home.records) - (home.records[-1].kind == "close")
        at = 1 if draw(st.booleans()) else draw(st.integers(1, latest))
        moment = home.records[at - 1].moment
        if by == "site":
            body["since"] = 0.0
        elif by == "user":
            body["since"] = draw(st.sampled_from([0.0, moment]))
        home.records.insert(at, Rec(0, moment, "alert", body))
        if by == "script" and draw(st.integers(0, 4)) == 0:  # another rank says the same
            other = draw(st.sampled_from(writers))
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
    "survivor": Kind.SURVIVOR, "decision": Kind.DECISION,
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
    return run


Step = tuple[str, Any]  # ("feed", (writer, records)), ("tick", now), ("suspended", (a, b)) or ("ended", (writer, at))


def arrivals(history: History, choice: random.Random, *, most: int = 6, ticks: int = 8) -> list[Step]:
    """Return an order in which an agent may come to see a history: writers interleaved, in pieces; what was recorded before a tick's
    moment was fed before it. Nothing overtakes an alert that several writers define: the first of them counts, and must be known.
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
    deaths = {w.id: end_of(history, w) for w in history.writers if w.role != "agent" and w.records[-1].kind != "close"}
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
            steps.append(("tick", now))
    return steps
