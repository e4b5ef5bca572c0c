"""`no progress`: one state for a run, whoever makes the progress (docs/alerts.md)."""

from __future__ import annotations

import heapq
import math
from typing import Any

from .decisions import Stream, Timeline
from .rules import Rule

_INF = math.inf
_OPEN, _PROGRESS, _END = 0, 1, 2  # what counts first at one moment
Fact = tuple[float, int, str, int, float]  # moment, what, writer, sequence, step


class ProgressStream(Stream):
    """Takes facts in any order, and judges them in the order of their moments once `advance` says that none before is missing."""

    def __init__(self, rule: Rule, line: Timeline, since: float) -> None:
        super().__init__(rule, {}, line)
        self.since = since
        # in the writer that defined it, the records after it count
        self._own, self._after = rule.origin if rule.body.get("since") is None else ("", 0)
        self.by_step = rule.metric is None
        self.matches = rule.matcher()
        self._facts: list[Fact] = []
        self._open: set[str] = set()
        self._step = -_INF
        self._last: tuple[float, tuple[str, int]] | None = None
        self._held: dict[str, tuple[Fact, bool]] = {}  # a writer's latest progress, and whether it is among the facts
        self._kept: dict[str, float] = {}  # the moment of the latest that is
        self._highest: dict[str, float] = {}  # steps, by writer
        self.silent = 0.0  # records before this moment came too late: a decision has been made without them

    # ------------------------------------------------------------------ facts

    def opened(self, moment: float, writer: str) -> None:
        """A writer's first record."""
        self._put((moment, _OPEN, writer, 1, 0.0))

    def closed(self, moment: float, writer: str) -> None:
        """A writer's end."""
        self.settle(writer)
        self._put((moment, _END, writer, 0, 0.0))

    def progress(self, moment: float, writer: str, sequence: int, step: float) -> None:
        """A record that may be progress. `settle` follows when this read of the writer is done."""
        if sequence <= self._after if writer == self._own else moment < self.since:
            return
        if self.by_step:
            if not step > self._highest.get(writer, -_INF):
                return
            self._highest[writer] = step
        fact = (moment, _PROGRESS, writer, sequence, step)
        held = self._held.get(writer)
        if held is None:
            self._keep(fact)
            return
        # of records close to each other, those are enough that leave no silence as long as the window
        before, is_kept = held
        if self.by_step and len(self._held) > 1:  # which of several writers is ahead is seen when all are judged
            self._keep(fact)
            return
        if not is_kept and moment - self._kept[writer] >= self.rule.window:
            self._keep(before)
        if moment - before[0] >= self.rule.window:
            self._keep(fact)
        else:
            self._held[writer] = fact, False

    def _keep(self, fact: Fact) -> None:
        self._put(fact)
        self._held[fact[2]], self._kept[fact[2]] = (fact, True), fact[0]

    def settle(self, writer: str) -> None:
        """The writer was read as far as it goes now."""
        held = self._held.get(writer)
        if held is not None and not held[1]:
            self._keep(held[0])

    def _put(self, fact: Fact) -> None:
        if fact[0] <= self.silent:
            fact = (math.nextafter(self.silent, _INF), *fact[1:])
        heapq.heappush(self._facts, fact)
        prompt = self.firing or self.due != _INF or fact[1] == _END
        self._line.wake = min(self._line.wake, fact[0] if prompt else fact[0] + self.rule.window)

    # ------------------------------------------------------------------ judging

    @property
    def next_due(self) -> float:
        """The next moment at which time alone may change something."""
        return min(self.due, self._silence(), *(f[0] for f in self._facts[:1]))

    def _silence(self) -> float:
        """When the condition will be met, if nothing comes."""
        if self._last is None or not self._open or self.firing == (self.due == _INF):
            return _INF  # it is met already, or was found met
        return self._line.due(self._last[0], self.rule.window)

    def advance(self, now: float) -> None:
        """Judge everything before `now`."""
        while self._facts and self._facts[0][0] < now:
            fact = heapq.heappop(self._facts)
            self._pass(fact[0])
            self._take(fact)
        self._pass(now)

    def _pass(self, moment: float) -> None:
        """Time goes on to `moment`, exclusive; nothing is heard."""
        at = self._silence()
        if at < moment and self._last is not None:
            self.judge(at, True, self._last[1], self._why_now)
        super().advance(moment)

    def _take(self, fact: Fact) -> None:
        moment, what, writer, sequence, step = fact
        if what == _END:
            self._open.discard(writer)
            if not self._open:
                self._stop(moment)
        elif what == _OPEN:
            if not self._open:
                self._last = max(moment, self.since), (writer, sequence)
            self._open.add(writer)
        elif not self.by_step or step > self._step:
            self._step = max(step, self._step)
            if not self._open:  # what is copied from an inbox behind the run's end
                return
            self._last = moment, (writer, sequence)
            self.judge(moment, False, (writer, sequence), self._why_now)

    def _stop(self, moment: float) -> None:
        """The run has ended (all before is judged): what is pending is dropped, until a writer opens it again."""
        self.due = _INF

    def _change(self, at: float) -> None:
        super()._change(at)
        if self._line.cursor is not None:
            self.silent = max(self.silent, at)

    def _why_now(self) -> tuple[str, dict[str, Any]]:
        last = self._last[0] if self._last is not None else 0.0
        what = "step" if self.by_step else f"point of {self.rule.metric}"
        inputs: dict[str, Any] = {"last": last}
        if self.by_step and self._step > -_INF:
            inputs["step"] = self._step
        said = f"there is a new {what}" if self.firing else f"no new {what} since {last:.3f} s, {self.rule.window:g} s long"
        return said, inputs
