"""What the rules decide, and when: the state machine that every rule shares (docs/alerts.md, "Firing")."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from simspool.spool import records

from .rules import Rule

MOST_DECISIONS = 1000  # of one stream
_FOREVER = math.inf


@dataclass(frozen=True, slots=True)
class Decision:
    """One change of a stream's state. `at` is run seconds, `trigger` (writer, sequence); `cursor` is there where time decided."""

    id: str
    run: str
    rule: Rule
    state: str
    stream: Mapping[str, str]
    at: float
    trigger: tuple[str, int]
    inputs: Mapping[str, Any]
    reason: str
    cursor: Mapping[str, int] | None = None

    @property
    def alert(self) -> str:
        """The alert's name."""
        return self.rule.name

    @property
    def abort(self) -> bool:
        """Whether the run is to be aborted for it."""
        return self.rule.abort and self.state == "firing"

    def body(self) -> dict[str, Any]:
        """Return the decision's record."""
        body = {
            "id": self.id, "alert": self.rule.name, "rule": self.rule.id, "state": self.state, "stream": dict(self.stream), "at": self.at,
            "trigger": list(self.trigger), "inputs": dict(self.inputs), "reason": self.reason,
        }  # fmt: skip
        if self.rule.notification != "none":
            body["notification"] = self.rule.notification
        return body if self.cursor is None else body | {"cursor": dict(self.cursor)}


def decision_id(run: str, rule: str, stream: Mapping[str, str], state: str, trigger: tuple[str, int], at: float | None = None) -> str:
    """Return the id of a decision: whoever makes it, and however often, it is one. `at`: where one record may trigger two of a stream."""
    made_of: dict[str, Any] = {"run": run, "rule": rule, "stream": dict(stream), "state": state, "trigger": list(trigger)}
    if at is not None:
        made_of["at"] = at
    return hashlib.sha256(records.encode(made_of)).hexdigest()[:32]


def next_multiple(step: float, moment: float) -> float:
    """Return the smallest multiple of `step` that is greater than `moment`."""
    k = math.floor(moment / step) + 1
    while k * step <= moment:
        k += 1
    while (k - 1) * step > moment:
        k -= 1
    return k * step


Tell = Callable[["Stream", float, tuple[str, int], int], None]
"""Told of a stream: the moment, the record, and 1 where it fires, -1 where it is resolved, 0 for its first record."""


@dataclass(slots=True)
class Timeline:
    """What all streams of a run share: its id, when the machine was suspended, where decisions go.

    `cursor` is set while time alone decides. Before `wake`, time alone changes nothing. `tell` hears of streams' first records and changes.
    """

    run: str
    suspended: list[tuple[float, float]] = field(default_factory=list)
    decided: list[Decision] = field(default_factory=list)
    cursor: Mapping[str, int] | None = None
    wake: float = _FOREVER
    tell: Tell | None = None

    def due(self, base: float, span: float) -> float:
        """Return when `span` seconds awake have passed since `base`."""
        due = base + span
        for start, end in self.suspended if span else ():  # what needs no time does not wait
            if start < due and end > base:
                due += end - max(start, base)
        return due


Why = Callable[[], tuple[str, dict[str, Any]]]


class Stream:
    """One state of one rule: ok or firing, with a change that is pending until `due`."""

    def __init__(self, rule: Rule, key: Mapping[str, str], line: Timeline) -> None:
        self.rule, self.key, self._line = rule, key, line
        self.firing = False
        self.due = _FOREVER
        self.ended = False
        self._begun = False
        self._base = 0.0
        self._trigger = ("", 0)
        self._why: tuple[str, dict[str, Any]] = ("", {})
        self._count = 0

    def judge(self, moment: float, met: bool, trigger: tuple[str, int], why: Why) -> None:
        """Take a judgement: the condition is met, or not."""
        if self.due < moment:
            self.advance(moment)
        if self.ended:
            return
        if met == self.firing:
            self.due = _FOREVER
        elif self.due == _FOREVER:
            span = self.rule.clear_after if self.firing else self.rule.hold
            if span is None:
                return
            self._base, self._trigger, self._why = moment, trigger, why()
            if span == 0:
                self._change(moment)
            else:
                self._set_due(self._line.due(moment, span))

    def begin(self, moment: float, trigger: tuple[str, int]) -> None:
        """Have it told that the stream has its first record, once."""
        if not self._begun:
            self._begun = True
            if self._line.tell is not None:
                self._line.tell(self, moment, trigger, 0)

    @property
    def next_due(self) -> float:
        """The next moment at which time alone may change something."""
        return self.due

    def _set_due(self, due: float) -> None:
        self.due = due
        self._line.wake = min(self._line.wake, due)

    def advance(self, now: float) -> None:
        """Let what is due before `now` happen."""
        if self.due < now:
            at, self.due = self.due, _FOREVER
            self._change(at)

    def end(self, moment: float) -> None:
        """The stream's writer ended: what was due before happens, and nothing more."""
        self.pause(moment)
        self.ended = True

    def pause(self, moment: float) -> None:
        """The run has ended: what was due before happens, the rest is dropped until records come again."""
        self.advance(moment)
        self.due = _FOREVER

    def suspended(self) -> None:
        """The machine was suspended: what is pending waits for as long."""
        if self.due != _FOREVER:
            self.due = self._line.due(self._base, (self.rule.clear_after or 0.0) if self.firing else self.rule.hold)

    def _change(self, at: float) -> None:
        self.firing = not self.firing
        self._count += 1
        line, rule = self._line, self.rule
        if line.tell is not None:
            line.tell(self, at, self._trigger, 1 if self.firing else -1)
        if self._count > MOST_DECISIONS:
            return
        state = "firing" if self.firing else "resolved"
        reason, inputs = self._why
        span = rule.hold if self.firing else rule.clear_after
        if span:
            reason += f", for {span:g} s"
        if self._count == MOST_DECISIONS:
            reason += f" (it changed {MOST_DECISIONS} times: no more is decided here)"
        name = decision_id(line.run, rule.id, self.key, state, self._trigger, at if rule.source == "alerts" else None)
        line.decided.append(Decision(name, line.run, rule, state, self.key, at, self._trigger, inputs, reason, line.cursor))


class TimedStream(Stream, ABC):
    """A stream of records that are judged as they come, or, with a `frequency`, at its multiples.

    `since` (run seconds) and `after` (sequence) bound which records count.
    """

    def __init__(self, rule: Rule, key: Mapping[str, str], line: Timeline, since: float, after: int) -> None:
        super().__init__(rule, key, line)
        self.since, self.after = since, after
        self._evaluate_at = _FOREVER

    @property
    def next_due(self) -> float:
        """See Stream."""
        return min(self.due, self._evaluate_at)

    def advance(self, now: float) -> None:
        """See Stream; also judges at the multiples of `frequency` that are over."""
        if self._evaluate_at < now:
            self._evaluate()
        while self.due < now:
            super().advance(now)

    def pause(self, moment: float) -> None:
        """See Stream; what is to be judged at this very moment is."""
        if self._evaluate_at <= moment:
            self._evaluate()
        super().pause(moment)
        self._evaluate_at = _FOREVER

    def _arrive(self, moment: float) -> None:
        """Before a record is taken in: what is due by then happens. A record at a multiple belongs to the next one."""
        if self._evaluate_at <= moment:
            self._evaluate()
        if self.due < moment:
            self.advance(moment)

    def _judge_later(self, frequency: float, moment: float) -> None:
        """Have what came at `moment` judged at the next multiple."""
        if self._evaluate_at == _FOREVER:
            self._evaluate_at = next_multiple(frequency, moment)
            self._line.wake = min(self._line.wake, self._evaluate_at)

    def _evaluate(self) -> None:
        at, self._evaluate_at = self._evaluate_at, _FOREVER
        self.advance(at)
        self._judge_at(at)

    @abstractmethod
    def _judge_at(self, at: float) -> None:
        """Judge what has come since the last multiple."""
