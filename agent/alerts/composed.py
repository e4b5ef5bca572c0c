"""Alerts about other alerts: what the streams of a run do, put in the order of moments and judged together (docs/alerts.md, "Composed")."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from simspool.spool.alert_expression import ALL

from .decisions import Stream, Timeline
from .facts import Fact, Facts
from .rules import Rule

Source = tuple[str, str]  # "writer", "host" or "inbox", and which; of `no progress`, the run
_OPEN, _START, _CHANGE, _BEGIN, _NOTE, _END = range(6)  # ends come last at one moment
_RUN: Source = ("run", "")
_SHOWN = 8  # sources that a reason names


def source_of(stream: Stream) -> Source:
    """Return the source of a stream: streams of one source count once."""
    for part in ("writer", "host", "inbox"):
        if part in stream.key:
            return part, stream.key[part]
    return _RUN


class _Operand:
    """The streams of one alert, as far as they are judged."""

    def __init__(self) -> None:
        self.firing: dict[Source, int] = {}  # how many streams of each source fire
        self.live: set[Source] = set()  # sources with a stream that have not ended

    def change(self, source: Source, by: int) -> None:
        count = self.firing.pop(source, 0) + by
        if count:
            self.firing[source] = count

    def holds(self, count: int) -> bool:
        if count == ALL:
            return bool(self.firing) and self.live <= self.firing.keys()
        return len(self.firing) >= count


class ComposedStream(Stream):
    """A composed alert. `note` is the agent's last one, for a rule about several runs."""

    def __init__(self, rule: Rule, line: Timeline) -> None:
        super().__init__(rule, {}, line)
        assert rule.when is not None
        self.when = rule.when
        self.waited_for = frozenset(name for name, count in rule.when.operands if count == ALL)
        self.is_across = rule.runs is not None
        self.is_on = False  # its beginning is over
        self.changed_at = -math.inf
        self.note: Mapping[str, Any] = {}

    def evaluate(self, moment: float, trigger: tuple[str, int], operands: Mapping[str, _Operand]) -> None:
        """Judge the states that the operands have after all of a moment."""

        def truth(name: str, count: int) -> bool:
            return _noted(self.note.get(name), count) if self.is_across else name in operands and operands[name].holds(count)

        self.judge(moment, self.when.holds(truth), trigger, lambda: self._say(operands))

    def _change(self, at: float) -> None:
        super()._change(at)
        self.changed_at = at

    def _say(self, operands: Mapping[str, _Operand]) -> tuple[str, dict[str, Any]]:
        firing: dict[str, list[str]] = {}
        for name in sorted(self.when.names):
            found = _firing(self.note.get(name)) if self.is_across else [s for _, s in operands[name].firing] if name in operands else []
            firing[name] = sorted(found)
        said = "; ".join(f"{name} fires in {_listed(found)}" if found else f"{name} does not fire" for name, found in firing.items())
        return f"{self.rule.describe()}{' holds no longer' if self.firing else ''}: {said}", {"firing": firing}


def _listed(names: list[str]) -> str:
    shown = ", ".join(name or "the run" for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _firing(note: Any) -> list[str]:
    found = note.get("firing") if isinstance(note, dict) else None
    return [run for run in found if isinstance(run, str)] if isinstance(found, list) else []


def _noted(note: Any, count: int) -> bool:
    firing = len(_firing(note))
    return firing >= count if count != ALL else firing > 0 and note.get("live_firing") == note.get("live")


class Composed:
    """The composed alerts of a run. Facts come in any order; `advance` judges them, everything of one moment together."""

    def __init__(self, line: Timeline) -> None:
        self._line = line
        self.streams: dict[str, ComposedStream] = {}  # by rule
        self.names: set[str] = set()  # of the alerts that they are about, in this run
        self._operands: dict[str, _Operand] = {}
        self._facts = Facts()
        self._open: dict[str, None] = {}
        self._ended: set[str] = set()
        self._life: tuple[str, int] | None = None  # the record that opened the run, last
        self.judged = -math.inf  # before this moment, everything is
        self._silent = -math.inf
        self._notes: dict[str, Mapping[str, Any]] = {}  # by rule, also of rules that are not known yet

    def add(self, rule: Rule) -> None:
        """Take a rule in, with its `since`."""
        stream = self.streams[rule.id] = ComposedStream(rule, self._line)
        if not stream.is_across:
            self.names |= stream.when.names
        self._put(max(rule.since or 0.0, self.judged), _START, "", 0, stream)

    # ------------------------------------------------------------------ facts

    def opened(self, moment: float, writer: str) -> None:
        """A script's writer opened the run."""
        self._put(moment, _OPEN, writer, 1)

    def ended(self, moment: float, writer: str, last: int) -> None:
        """A script's writer has ended, `last` being its last record."""
        self._put(moment, _END, writer, last)

    def told(self, stream: Stream, at: float, trigger: tuple[str, int], change: int) -> None:
        """See decisions.Tell."""
        name = stream.rule.name
        if name in self.names and stream.rule.source != "alerts":
            self._put(at, _CHANGE if change else _BEGIN, *trigger, (name, source_of(stream), change))

    def noted(self, rule: str, alerts: Mapping[str, Any], moment: float, trigger: tuple[str, int]) -> None:
        """An agent noted what it sees of other runs."""
        self._put(moment, _NOTE, *trigger, (rule, alerts))

    def _put(self, moment: float, what: int, writer: str, sequence: int, more: Any = None) -> None:
        if moment <= self._silent:  # it came too late: a decision has been made without it
            moment = math.nextafter(self._silent, math.inf)
        self._facts.put(moment, what, writer, sequence, more)
        if self.streams:
            self._line.wake = min(self._line.wake, moment)

    # ------------------------------------------------------------------ judging

    @property
    def next_due(self) -> float:
        """The next moment at which something is to be judged, or time decides."""
        return min((self._facts.first, *(s.due for s in self.streams.values()))) if self.streams else math.inf

    def advance(self, now: float) -> None:
        """Judge everything before `now`."""
        while (moment := self._facts.first) < now:
            together = []
            while self._facts.first == moment:
                together.append(self._facts.take())
            self._take(moment, together)
        for stream in self.streams.values():
            stream.advance(now)
            self._silent = max(self._silent, stream.changed_at)
        self.judged = max(self.judged, now)

    def _take(self, moment: float, facts: Iterable[Fact]) -> None:
        """Take all of one moment in, and judge once."""
        opens = [f for f in facts if f.what == _OPEN]
        ends = [f for f in facts if f.what == _END]
        begins = {rule for rule, s in self.streams.items() if s.is_on} if opens and not self._open else set()
        if opens and not self._open:
            self._life = opens[0].writer, opens[0].sequence
        self._open |= dict.fromkeys(f.writer for f in opens)
        is_over = self._open.keys() <= {f.writer for f in ends}
        triggers: dict[str, tuple[str, int]] = {}
        for fact in facts:
            for rule in self._touched(fact, begins) if fact.what != _END else self._bury(fact.writer) if not is_over else ():
                trigger = fact.writer, fact.sequence
                triggers[rule] = min(trigger, triggers.get(rule, trigger))
        if self._open:
            for rule, stream in self.streams.items():
                found = self._life if rule in begins else triggers.get(rule)
                if stream.is_on and found is not None:
                    stream.evaluate(moment, found, self._operands)
        for fact in ends:
            self._bury(fact.writer)
            self._open.pop(fact.writer, None)
        if is_over and ends:
            for stream in self.streams.values():
                stream.pause(moment)

    def _touched(self, fact: Fact, begins: set[str]) -> list[str]:
        """Take a fact in that is no end; return the rules that it concerns. Rules that begin with it go into `begins`."""
        if fact.what == _CHANGE:
            name, source, by = fact.more
            self._operands.setdefault(name, _Operand()).change(source, by)
            return [rule for rule, s in self.streams.items() if not s.is_across and name in s.when.names]
        if fact.what == _BEGIN:
            name, source, _ = fact.more
            if source[0] == "writer" and source[1] in self._ended:
                return []
            self._operands.setdefault(name, _Operand()).live.add(source)
            return self._waiting(name)
        if fact.what == _NOTE:
            rule, alerts = fact.more
            self._notes[rule] = alerts
            stream = self.streams.get(rule)
            if stream is None or not stream.is_across:
                return []
            stream.note = alerts
            return [rule]
        if fact.what == _START:
            fact.more.is_on = True
            if fact.more.is_across:
                fact.more.note = self._notes.get(fact.more.rule.id, {})
            begins.add(fact.more.rule.id)
        return []

    def _waiting(self, name: str) -> list[str]:
        return [rule for rule, s in self.streams.items() if not s.is_across and name in s.waited_for]

    def _bury(self, writer: str) -> list[str]:
        """A source has ended; return the rules that may have waited for it."""
        self._ended.add(writer)
        found = []
        for name, operand in self._operands.items():
            if ("writer", writer) in operand.live:
                operand.live.discard(("writer", writer))
                found += self._waiting(name)
        return found
