"""Event rules, and alerts that the script sets itself (docs/alerts.md, "Events")."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .decisions import Stream, Timeline, next_multiple
from .rules import Rule, message_matcher

_INF = math.inf
_SHOWN = 300  # characters of a message


class EventStream(Stream):
    """Fires by a message that matches, `hold` seconds after the first; resolved `clear_after` seconds after the last."""

    def __init__(self, rule: Rule, key: Mapping[str, str], line: Timeline, since: float, after: int) -> None:
        super().__init__(rule, key, line)
        self.since, self.after = since, after
        self._matches = message_matcher(rule.pattern or "")
        self._evaluate_at = _INF
        self._first = self._last = (("", 0), "")  # matches since the last judgement: record, message
        self._met, self._judged = 0.0, self._last  # when it was last found met, and by which match

    @property
    def next_due(self) -> float:
        """The next moment at which time alone may change something."""
        return min(self.due, self._evaluate_at)

    def message(self, moment: float, text: str, trigger: tuple[str, int]) -> None:
        """Take a message in."""
        if moment < self.since or trigger[1] <= self.after or self.ended or not self._matches(text):
            return
        self.advance(moment)
        if self._evaluate_at == moment:
            self._evaluate()
        self._last = trigger, text[:_SHOWN]
        if self._evaluate_at == _INF:
            self._first = self._last
        frequency = self.rule.frequency
        if frequency is None:
            self._meet(moment)
        elif self._evaluate_at == _INF:
            self._evaluate_at = next_multiple(frequency, moment)
            self._line.wake = min(self._line.wake, self._evaluate_at)

    def advance(self, now: float) -> None:
        """See Stream; also judges at the multiples of `frequency` that are over."""
        if self._evaluate_at < now:
            self._evaluate()
        while self.due < now:
            super().advance(now)

    def _evaluate(self) -> None:
        at, self._evaluate_at = self._evaluate_at, _INF
        self._meet(at)

    def pause(self, moment: float) -> None:
        """See Stream; what is to be judged at this very moment is."""
        if self._evaluate_at <= moment:
            self._evaluate()
        super().pause(moment)
        self._evaluate_at = _INF

    def _meet(self, moment: float) -> None:
        while self.due < moment:
            super().advance(moment)
        self._met, self._judged = moment, self._last
        if self.firing:
            if self.rule.clear_after is not None:
                self._begin_clearing(moment)
        else:
            self.judge(moment, True, self._first[0], self._why_now)

    def _begin_clearing(self, at: float) -> None:
        """Resolve `clear_after` seconds after it was last met, but not before `at`."""
        assert self.rule.clear_after is not None
        self._base = self._met
        self._trigger, message = self._judged
        self._why = f"no further match for {self.rule.clear_after:g} s", {"message": message}
        self._set_due(max(self._line.due(self._base, self.rule.clear_after), at))

    def _change(self, at: float) -> None:
        super()._change(at)
        if self.firing and self.rule.clear_after is not None:
            self._begin_clearing(at)

    def _why_now(self) -> tuple[str, dict[str, Any]]:
        message = self._first[1]
        return f"an event contains {self.rule.pattern!r}: {message!r}", {"message": message}


class UserStream(Stream):
    """The state that `log_alert` said last, in one writer."""

    def said(self, moment: float, state: str, trigger: tuple[str, int]) -> None:
        """The script said a state."""
        if not self.ended:
            self.judge(moment, state == "critical", trigger, lambda: (f"the script said {state}", {}))
