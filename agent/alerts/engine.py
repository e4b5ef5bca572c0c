"""All rules of one run: fed with records, they give decisions (docs/alerts.md). No input or output of its own, and no clock.

The same records give the same decisions, in whatever pieces they come, so that live and replay agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from simspool.spool import Kind
from simspool.spool.alert_definition import REFERENCE_RULE
from simspool.spool.frames import BOOT, HAS_TIME, HAS_TIMESTAMP, SEQ, STEP, MetricBatch, Record
from simspool.spool.own_time import as_float, own_time
from simspool.spool.runstate import AGENTS
from simspool.spool.segment_header import SegmentHeader

from .composed import Composed
from .curves import Curve, Curves, ReferenceStream
from .decisions import Decision, Stream, Timeline
from .events import EventStream, UserStream
from .gathered import Gathered
from .progress import ProgressStream
from .rules import PROGRESS_RULE, InvalidRule, Rule, parse_rule
from .sinks import Point, as_deviations, in_order, with_beginning
from .windows import PointStream, make_stream

_INF = math.inf
_METRIC_KINDS = frozenset({Kind.METRICS_JSON, Kind.RESOURCES_JSON})
_RESOURCE_KINDS = frozenset({Kind.RESOURCES, Kind.RESOURCES_JSON})
_MOST_TEXT = 1000
_INBOX = "inbox"  # the role of writers that hold lines of inbox files
_HELD_BACK = 0.1  # s between looks, while the end of a writer that is gone is not recorded yet
_Columns = tuple[list[tuple[int, Point]], list[tuple[int, Point]]]  # where in a row, and what takes it; those that take the step too


class _Writer:
    """What is known of one writer of the run."""

    __slots__ = ("by_file", "columns", "ended", "events", "file", "last", "opened", "role", "sequence", "streams")

    def __init__(self, role: str) -> None:
        self.role = role
        self.sequence = 0
        self.opened = _INF
        self.last = -_INF  # the moment of its last record
        self.ended = False
        self.streams: dict[tuple[str, str], PointStream] = {}  # by rule and metric
        self.file = ""  # of an inbox writer: from where its records are
        self.columns: dict[tuple[Any, ...], _Columns] = {}
        self.by_file = {"": self.columns}
        self.events: list[EventStream] = []

    def read_from(self, file: str) -> None:
        """The records that follow are from another inbox file."""
        self.file, self.columns = file, self.by_file.setdefault(file, {})


class RunRules:
    """The rules of a run, and the state of each.

    `known` are rules that are known from the beginning (for a second reading, see `stale`); `curves` gets what `deviates from reference`
    compares with. Feed each writer's items in order; then `tick` with a moment before which nothing is missing.
    """

    def __init__(self, run: str, known: Iterable[Rule] = (), curves: Curves | None = None) -> None:
        self.run = run
        self.rules: dict[str, Rule] = {}
        self.problems: dict[str, str] = {}
        self.across: dict[str, Rule] = {}  # those about several runs
        self.stale = False  # a rule came too late for records that it is to judge: read everything again, with `known=rules.values()`
        self._line = Timeline(run)
        self._writers: dict[str, _Writer] = {}
        self._dead: dict[str, tuple[float, float | None]] = {}  # said by survivor records: after which sequence a writer ended, and when
        self._hosts = Gathered(self._line, lives_on=False)
        self._inbox = Gathered(self._line, lives_on=True)
        self._composed = Composed(self._line)
        self._line.tell = self._composed.told
        self._get_curve = curves
        self._curves: dict[str, Curve] = {}  # by rule
        self._names: dict[str, Rule] = {}
        self._users: dict[tuple[str, str], UserStream] = {}
        self._unknown: list[tuple[str, str, str, float, str, int]] = []  # user states of alerts that are not known yet
        self._progress: dict[str, ProgressStream] = {}
        self._matchers: dict[str, Callable[[str], bool]] = {}
        self._metric_rules: list[Rule] = []
        self._event_rules: list[Rule] = []
        for rule in known:
            self._add(rule)

    # ------------------------------------------------------------------ rules

    def add(self, rule: Rule, moment: float = 0.0) -> None:
        """Add a rule that was defined at `moment`. Sets `stale` when it is to judge what has been fed already.

        One name is one alert: of several, the one that was defined first counts.
        """
        since = moment if rule.since is None else rule.since
        rule = replace(rule, since=since, moment=moment)
        known = self._names.get(rule.name)
        if known is not None:
            if known.id != rule.id:
                self.problems[rule.name[:200]] = f"defined twice, as {known.describe()!r} and as {rule.describe()!r}: the first counts"
            if (moment, *rule.origin) < (known.moment, *known.origin):
                del self.rules[known.id]
                self.rules[rule.id] = self._names[rule.name] = rule
                self.stale = True
            return
        if rule.when is not None and any(s.rule.name in rule.when.names for s in self._all()):
            self.stale = True  # what those did so far was told to nobody
        if rule.source == "user" and rule.name in self._composed.names and any(said[2] in {rule.name, rule.id} for said in self._unknown):
            self.stale = True  # composed alerts may have been judged without what was said of it before
        self._add(rule)
        for name, fed in self._writers.items():
            others = name != rule.origin[0] or rule.body.get("since") is not None
            if others and fed.last >= since and rule.source != "user":
                self.stale = True

    def _add(self, rule: Rule) -> None:
        self.rules[rule.id] = self._names[rule.name] = rule
        if rule.source == "user":
            unknown, self._unknown = self._unknown, []
            for said in unknown:
                self._user_state(*said)
            return
        if rule.source == "events":
            self._event_rules.append(rule)
            for name, writer in self._writers.items():
                self._listen(rule, name, writer)
            return
        if rule.source == "alerts":
            self._composed.add(rule)
            if rule.runs is not None:
                self.across[rule.id] = rule
            return
        if rule.rule == REFERENCE_RULE and not self._fetch(rule):
            return
        self._matchers[rule.id] = rule.matcher()
        if rule.rule == PROGRESS_RULE:
            self._watch_progress(rule)
        else:
            self._metric_rules.append(rule)
        for writer in self._writers.values():
            for columns in writer.by_file.values():
                columns.clear()

    def _fetch(self, rule: Rule) -> bool:
        """Get the curve that a rule compares with; False where it cannot be had, and the rule has no verdict."""
        try:
            if self._get_curve is None:
                raise LookupError("no curves are read here")
            self._curves[rule.id] = self._get_curve(rule.reference)
        except LookupError as error:
            self.problems[rule.name[:200]] = f"it is not judged, its reference cannot be read: {error.args[0]}"
            return False
        return True

    def _watch_progress(self, rule: Rule) -> None:
        stream = self._progress[rule.id] = ProgressStream(rule, self._line, rule.since or 0.0)
        for name, writer in self._writers.items():
            if writer.role in AGENTS:
                continue
            stream.opened(writer.opened, name)
            if writer.ended:
                stream.closed(writer.last, name)

    def _listen(self, rule: Rule, name: str, writer: _Writer) -> None:
        if writer.role == _INBOX:
            return
        since, after = _bounds(rule, name)
        writer.events.append(EventStream(rule, {"writer": name}, self._line, since, after))

    def follow(self) -> None:
        """From now on, the lines of inbox files come as they are copied: they are judged at once, and not with the next tick."""
        self._inbox.in_order = True

    # ------------------------------------------------------------------ feeding

    def feed(self, writer_id: str, header: SegmentHeader, item: MetricBatch | Record, role: str) -> None:
        """Take a writer's next item. `role` is how it opened the run: creator, attach, reconnect, fork, re-entrant, agent or inbox."""
        writer = self._writers.get(writer_id)
        if writer is None:
            writer = self._writers[writer_id] = _Writer(role)
            for rule in self._event_rules:
                self._listen(rule, writer_id, writer)
        elif writer.ended or item.last <= writer.sequence:
            return
        origin = header.origin_boot
        if isinstance(item, MetricBatch):
            first = (item.rows[0][BOOT] - origin) / 1e9
            self._open(writer, writer_id, first)
            self._feed_batch(writer, writer_id, header, item)
            writer.last = max(writer.last, (item.rows[-1][BOOT] - origin) / 1e9)
        else:
            moment = (item.boot_ns - origin) / 1e9
            self._open(writer, writer_id, moment)
            writer.last = max(writer.last, moment)
            self._feed_record(writer, writer_id, header, item, moment)
        writer.sequence = max(writer.sequence, item.last)
        self._survive(writer, writer_id)

    def _open(self, writer: _Writer, writer_id: str, moment: float) -> None:
        if writer.opened == _INF:
            writer.opened = moment
            if writer.role not in AGENTS:
                for part in (self._hosts, self._inbox, self._composed):
                    part.opened(moment, writer_id)
                for stream in self._progress.values():
                    stream.opened(moment, writer_id)

    def _feed_batch(self, writer: _Writer, writer_id: str, header: SegmentHeader, batch: MetricBatch) -> None:
        is_sample = batch.kind in _RESOURCE_KINDS
        names = batch.shape.names
        key = (names, is_sample, batch.values_at)
        found = writer.columns.get(key)
        if found is None:
            found = writer.columns[key] = self._columns(writer, writer_id, header, names, batch.values_at, is_sample)
        columns, stepped = found
        if columns or stepped:
            origin, rows = header.origin_boot, batch.rows
            timed, stamped = batch.flags & HAS_TIME, batch.flags & HAS_TIMESTAMP
            start = header.wall_ns(origin) if stamped else 0
            for row in rows:
                moment = time = (row[BOOT] - origin) / 1e9
                if timed:
                    time = row[5] if row[5] - row[5] == 0.0 else moment
                elif stamped:
                    time = (row[5] * 1000 - start) / 1e9
                trigger = (writer_id, row[SEQ])
                for at, point in columns:
                    point(moment, time, float(row[at]), trigger)
                if stepped:
                    for at, point in stepped:
                        point(moment, time, float(row[at]), trigger, row[STEP])
        if self._progress and not is_sample and writer.role != "agent":
            self._note_progress(writer_id, header, names, [(row[BOOT], row[SEQ], row[STEP]) for row in batch.rows])

    def _columns(
        self, writer: _Writer, writer_id: str, header: SegmentHeader, names: tuple[str, ...], values_at: int, is_sample: bool
    ) -> _Columns:
        plain: list[tuple[int, Point]] = []
        stepped: list[tuple[int, Point]] = []
        for at, name in enumerate(names, values_at):
            for point, with_step in self._points(writer, writer_id, header, name, is_sample):
                (stepped if with_step else plain).append((at, point))
        return plain, stepped

    def _points(
        self, writer: _Writer, writer_id: str, header: SegmentHeader, name: str, is_sample: bool
    ) -> list[tuple[Point, bool]]:
        """What takes a metric's points, and whether with the step: the streams of its writer, or of what agents gather."""
        gathered, key = None, {"writer": writer_id}
        if writer.role == _INBOX:
            gathered, key = self._inbox, {"inbox": writer.file}
        elif is_sample and writer.role == "agent":
            gathered, key = self._hosts, {"host": header.host}
        streams = writer.streams if gathered is None else gathered.streams(next(iter(key.values())))
        found: list[tuple[Point, bool]] = []
        for rule in self._metric_rules:
            bounds = _bounds(rule, writer_id)
            stream = streams.get((rule.id, name))
            if stream is None:
                if not self._matchers[rule.id](name):
                    continue
                stream = streams[rule.id, name] = self._make(rule, key | {"metric": name}, bounds if gathered is None else (-_INF, 0))
            assert isinstance(stream, PointStream)
            point, with_step = self._sink(stream)
            found.append((point if gathered is None else in_order(gathered, stream, point, bounds), with_step))
        return found

    def _make(self, rule: Rule, key: Mapping[str, str], bounds: tuple[float, int]) -> PointStream:
        curve = self._curves.get(rule.id)
        return make_stream(rule, key, self._line, *bounds) if curve is None else ReferenceStream(rule, key, self._line, *bounds, curve)

    def _sink(self, stream: PointStream) -> tuple[Point, bool]:
        """Return what takes a stream's points when their time has come, and whether it takes their step too."""
        point: Point = stream.point
        if stream.rule.name in self._composed.names:
            point = with_beginning(stream, point)
        if isinstance(stream, ReferenceStream):
            return as_deviations(stream, point), not stream.rule.by_time
        return point, False

    def _note_progress(
        self, writer_id: str, header: SegmentHeader, names: Iterable[str], records: list[tuple[int, int, Any]]
    ) -> None:
        for stream in self._progress.values():
            if stream.by_step or any(map(stream.matches, names)):
                for boot, sequence, step in records:
                    stream.progress((boot - header.origin_boot) / 1e9, writer_id, sequence, step)
                stream.settle(writer_id)

    def _feed_record(self, writer: _Writer, writer_id: str, header: SegmentHeader, record: Record, moment: float) -> None:
        body, kind = record.body, record.kind
        if body is None:
            return
        trigger = (writer_id, record.seq)
        if kind in _METRIC_KINDS:
            self._feed_json(writer, writer_id, header, record, body, moment)
        elif kind == Kind.EVENT:
            message = body.get("message")
            if isinstance(message, str):
                for stream in writer.events:
                    stream.message(moment, message, trigger)
                if writer.role == _INBOX:
                    self._inbox_message(writer.file, moment, message, trigger)
        elif kind == Kind.ALERT:
            try:
                self.add(parse_rule(body, trigger), moment)
            except InvalidRule as error:
                self.problems[str(body.get("name"))[:200]] = str(error)
        elif kind == Kind.ALERT_STATE and writer.role != "agent":
            name, state = body.get("alert"), body.get("state")
            if isinstance(name, str) and isinstance(state, str):
                self._user_state(writer.file, writer_id, name, moment, state, record.seq)
        elif kind == Kind.CLOSE:
            writer.sequence = record.seq
            self.ended(writer_id, moment)
        elif kind == Kind.INBOX:
            if writer.role == _INBOX:
                writer.read_from(str(body.get("file")))
        else:
            if kind == Kind.DECISION and writer.role == "agent":
                self._take_note(body, moment, trigger)
            self.foresee(kind, body)

    def _inbox_message(self, file: str, moment: float, message: str, trigger: tuple[str, int]) -> None:
        for rule in self._event_rules:
            stream = self._inbox.stream(file, rule.id, "", lambda rule=rule: EventStream(rule, {"inbox": file}, self._line, -_INF, 0))  # type: ignore[misc]
            since, after = _bounds(rule, trigger[0])
            if moment >= since and trigger[1] > after:
                self._inbox.later(stream, stream.message, moment, trigger, message, trigger)

    def _take_note(self, body: Mapping[str, Any], moment: float, trigger: tuple[str, int]) -> None:
        elsewhere = body.get("elsewhere")
        if isinstance(elsewhere, dict):
            rule, alerts = elsewhere.get("rule"), elsewhere.get("alerts")
            if isinstance(rule, str) and isinstance(alerts, dict):
                self._composed.noted(rule, alerts, moment, trigger)

    def foresee(self, kind: int, body: Mapping[str, Any]) -> None:
        """Take from an agent's record what is known of the run's time: suspensions, and the ends of writers that died.

        Whoever judges after the fact gives these first: they lie behind the moments that they are about.
        """
        if kind == Kind.DECISION:
            span = body.get("suspended")
            if isinstance(span, list) and len(span) == 2 and all(isinstance(x, (int, float)) and math.isfinite(as_float(x)) for x in span):
                self.suspended(float(span[0]), float(span[1]))
        elif kind == Kind.SURVIVOR:
            dead, last, at = body.get("writer"), body.get("last"), body.get("ended")
            if isinstance(dead, str) and isinstance(last, int):
                self._dead.setdefault(dead, (last, as_float(at) if isinstance(at, (int, float)) else None))
                if dead in self._writers:
                    self._survive(self._writers[dead], dead)

    def _feed_json(
        self, writer: _Writer, writer_id: str, header: SegmentHeader, record: Record, body: Mapping[str, Any], moment: float
    ) -> None:
        values = body.get("values")
        if not isinstance(values, dict):
            return
        is_sample, time = record.kind in _RESOURCE_KINDS, own_time(body, header, moment)
        step = body.get("step")
        reached = as_float(step) if isinstance(step, int) else -_INF
        for name, value in values.items():
            if isinstance(value, (int, float)):
                for point, with_step in self._points(writer, writer_id, header, name, is_sample):
                    point(moment, time, as_float(value), (writer_id, record.seq), *([reached] if with_step else ()))
        if not is_sample and writer.role != "agent":
            self._note_progress(writer_id, header, values, [(record.boot_ns, record.seq, reached)])

    def _user_state(self, file: str, writer_id: str, name: str, moment: float, state: str, sequence: int) -> None:
        """A state was said in a writer, or, where `file` is not empty, in a line of that inbox file."""
        rule = self._names.get(name) or self.rules.get(name)
        trigger = writer_id, sequence
        if rule is None:
            if len(self._unknown) < _MOST_TEXT:
                self._unknown.append((file, writer_id, name, moment, state, sequence))
        elif rule.source == "user" and file:
            gathered = self._inbox.stream(file, rule.id, "", lambda: UserStream(rule, {"inbox": file}, self._line))
            self._inbox.later(gathered, gathered.said, moment, trigger, state, trigger)
        elif rule.source == "user":
            stream = self._users.get((rule.id, writer_id))
            if stream is None:
                stream = self._users[rule.id, writer_id] = UserStream(rule, {"writer": writer_id}, self._line)
            stream.said(moment, state, trigger)

    # ------------------------------------------------------------------ time

    def _survive(self, writer: _Writer, writer_id: str) -> None:
        last, at = self._dead.get(writer_id, (_INF, None))
        if not writer.ended and writer.sequence >= last:
            self.ended(writer_id, writer.last if at is None else max(at, writer.last))

    def ended(self, writer_id: str, at: float) -> None:
        """A writer has ended: it recorded its close, or its process was seen gone (`at`: run seconds)."""
        writer = self._writers.get(writer_id)
        if writer is None or writer.ended:
            return
        writer.ended, writer.last = True, max(writer.last, at)
        for stream in [*writer.streams.values(), *writer.events]:
            stream.end(at)
        if writer.role in AGENTS:
            return
        self._hosts.closed(at, writer_id)
        self._inbox.closed(at, writer_id)
        self._composed.ended(at, writer_id, writer.sequence)
        for progress in self._progress.values():
            progress.closed(at, writer_id)

    @property
    def over(self) -> bool:
        """Whether all writers but the agents' have ended (and there was one)."""
        writers = [w for w in self._writers.values() if w.role not in AGENTS]
        return bool(writers) and all(w.ended for w in writers)

    def knows(self, name: str) -> bool:
        """Say whether there is an alert of this name."""
        return name in self._names

    def last_moment(self, writer: str) -> float:
        """Return the moment of a writer's last record that was fed; minus infinity when there was none."""
        known = self._writers.get(writer)
        return -_INF if known is None else known.last

    def ended_writers(self) -> set[str]:
        """Return the ids of the writers that have ended."""
        return {name for name, w in self._writers.items() if w.ended}

    def suspended(self, start: float, end: float) -> None:
        """The machine was suspended between these moments."""
        if start < end and (start, end) not in self._line.suspended:
            self._line.suspended.append((start, end))
            self._line.suspended.sort()
            for stream in self._all():
                stream.suspended()

    def _all(self) -> list[Stream]:
        return [*self._simple(), *self._composed.streams.values()]

    def _simple(self) -> list[Stream]:
        """All streams but those of composed alerts."""
        found: list[Stream] = [*self._progress.values(), *self._users.values()]
        for writer in self._writers.values():
            found += [*writer.streams.values(), *writer.events]
        return found + self._hosts.all() + self._inbox.all()

    @property
    def wake(self) -> float:
        """The moment before which a tick decides nothing that records do not; infinite when only records can."""
        return self._line.wake

    def tick(self, now: float, gone: Collection[str] = ()) -> None:
        """Let time alone decide: everything that was recorded before `now` has been fed.

        `gone` are writers whose process is gone, as far as anybody knows, without having said so: they decide nothing more.
        """
        line = self._line
        line.cursor = {name: w.sequence for name, w in self._writers.items() if w.role != "agent"}
        line.wake = _INF
        try:
            self._hosts.advance(now)
            self._inbox.advance(now)
            for stream in self._simple():
                if not stream.ended and stream.key.get("writer") not in gone:
                    stream.advance(now)
                    line.wake = min(line.wake, stream.next_due)
            # what a writer that is gone did last is known when its end is recorded
            known = min([now, *(self.last_moment(writer) for writer in gone)])
            self._composed.advance(known)
            if self._composed.streams:
                line.wake = min(line.wake, max(self._composed.next_due, known if known == now else now + _HELD_BACK))
        finally:
            line.cursor = None

    def take(self) -> list[Decision]:
        """Return what was decided since the last take, in the order of moments."""
        found, self._line.decided = self._line.decided, []
        return sorted(found, key=lambda d: (d.at, d.rule.id, d.trigger))

    def all_firing(self) -> set[str]:
        """Return the ids of the rules of which a stream is firing."""
        return {s.rule.id for s in self._all() if s.firing}

    def firing(self, rule: str) -> bool:
        """Say whether a stream of a rule (by id) is firing."""
        return any(s.firing for s in self._all() if s.rule.id == rule)


def _bounds(rule: Rule, writer: str) -> tuple[float, int]:
    """Return from which moment, and after which sequence, a writer's records are judged."""
    if rule.since is not None and rule.body.get("since") is not None:
        return rule.since, 0
    if rule.origin[0] == writer:
        return -_INF, rule.origin[1]
    return rule.since or 0.0, 0
