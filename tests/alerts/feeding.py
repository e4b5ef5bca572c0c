"""The engine, fed as an agent feeds it, and what it decided in the reference's words."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from histories import RUN, Step, curve_text, header, item, joined, store
from reference import Decided, History

from simspool.agent.alerts.curves import Curve
from simspool.agent.alerts.decisions import Decision
from simspool.agent.alerts.engine import RunRules
from simspool.agent.alerts.replay import judge


class Watcher:
    """An agent's part: feeds, ticks, reads again where a rule came late. `decided` has each decision once, by its id."""

    def __init__(self, history: History, decided: dict[str, Decision] | None = None) -> None:
        self.decided: dict[str, Decision] = {} if decided is None else decided
        self._seen: list[Step] = []
        self._history = history
        self._rules = RunRules(RUN, curves=self._curve)
        self._follows = False

    def follow(self) -> None:
        """Take the lines of inbox files in as they are copied."""
        self._follows = True
        self._rules.follow()

    def do(self, step: Step, *, whole: bool = False) -> None:
        """Take a step of an arrival; `whole`: rows of one shape in one batch."""
        self._seen.append(step)
        self._pass(step, whole=whole)
        if self._rules.stale:
            self._again()
        self._take()

    def _pass(self, step: Step, *, whole: bool) -> None:
        what, of = step
        if what == "feed":
            writer, records = of
            items = [item(r) for r in records]
            for one in joined(items) if whole else items:
                self._rules.feed(writer.id, header(writer), one, writer.role)
        elif what == "tick":
            self._rules.tick(of)
        elif what == "suspended":
            self._rules.suspended(*of)
        else:
            self._rules.ended(*of)

    def _again(self) -> None:
        self._rules = RunRules(RUN, known=self._rules.rules.values(), curves=self._curve)
        for step in self._seen:
            self._pass(step, whole=True)
        if self._follows:
            self._rules.follow()
        assert not self._rules.stale

    def _curve(self, digest: str) -> Curve:
        return Curve(curve_text(self._history.curves[digest]))

    def _take(self) -> None:
        for decision in self._rules.take():
            assert self.decided.setdefault(decision.id, decision).at == decision.at


def live(history: History, steps: list[Step], *, whole: bool = False, restart: int | None = None) -> list[Decided]:
    """Return what is decided when a history arrives in these steps, with a new agent from step `restart` on."""
    watcher = Watcher(history)
    for n, step in enumerate(steps):
        if n == restart:
            watcher = _taken_over(history, watcher.decided, steps[:n])
        watcher.do(step, whole=whole)
    watcher.do(("tick", math.inf))
    return shown(watcher.decided)


def _taken_over(history: History, decided: dict[str, Decision], before: list[Step]) -> Watcher:
    """A new agent, which reads what was recorded so far in the order of moments, and sees who is gone."""
    read = [(r.moment, n, of[0], r) for n, (what, of) in enumerate(before) if what == "feed" for r in of[1]]
    order: list[tuple[float, int, Step]] = [(m, n, ("feed", (w, [r]))) for m, n, w, r in read]
    order += [(step[1][1], -1, step) for step in before if step[0] == "suspended"]
    watcher = Watcher(history, decided)
    for _, _, step in sorted(order, key=lambda o: o[:2]):
        watcher.do(step)
    for step in before:
        if step[0] == "ended":
            watcher.do(step)
    return watcher


def followed(history: History, steps: list[Step]) -> list[Decided]:
    """Return what is decided by an agent that is there while all is recorded: between two ticks, records come in the order of moments, and
    it hears of a process's end before anything that is later.
    """
    watcher = Watcher(history)
    watcher.follow()
    coming = Counter(of[0].id for what, of in steps if what == "feed")
    ends = sorted((step for step in steps if step[0] == "ended"), key=lambda step: float(step[1][1]))
    block: list[Step] = []

    def end(before: float) -> None:
        for step in [e for e in ends if e[1][1] < before and not coming[e[1][0]]]:
            ends.remove(step)
            watcher.do(step)

    for step in [*steps, ("tick", math.inf)]:
        if step[0] == "feed":
            block.append(step)
            continue
        for one in sorted(block, key=lambda s: (s[1][1][0].moment, s[1][0].id if s[1][0].role == "inbox" else "")):
            end(one[1][1][0].moment)
            coming[one[1][0].id] -= 1
            watcher.do(one)
        block = []
        if step[0] == "ended":
            end(math.inf)
        else:
            watcher.do(step)
    return shown(watcher.decided)


def replayed(history: History) -> list[Decided]:
    """Return what is decided when everything is read after the fact, from segments."""
    with tempfile.TemporaryDirectory() as folder:
        judged = judge(store(history, Path(folder)), now=math.inf)
    assert not judged.problems, judged.problems
    return shown({d.id: d for d in judged.decisions})


def shown(decided: dict[str, Decision]) -> list[Decided]:
    """Return decisions as the reference has them."""
    found = [Decided(d.alert, tuple(sorted(d.stream.items())), d.state, d.at, (d.trigger[0], d.trigger[1])) for d in decided.values()]
    return sorted(found, key=_order)


def ordered(decisions: list[Decided]) -> list[Decided]:
    """Return decisions in an order that does not depend on who made them."""
    return sorted(decisions, key=_order)


def _order(d: Decided) -> Any:
    return d.alert, d.stream, d.at, d.trigger, d.state
