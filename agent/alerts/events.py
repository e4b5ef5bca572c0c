"""Event rules, and alerts that the script sets itself (docs/alerts.md, "Events")."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .decisions import Stream, TimedStream, Timeline
from .rules import Rule, message_matcher

_SHOWN = 300  # characters of a message


class EventStream(TimedStream):
    """Fires by a message that matches, `hold` seconds after the first; resolved `clear_after` seconds after the last."""

    def __init__(self, rule: Rule, key: Mapping[str, str], line: Timeline, since: float, after: int) -> None:
        super().__init__(rule, key, line, since, after)
        self._matches = message_matcher(rule.pattern or "")
        self._first = self._last = (("", 0), "")  # matches since the last judgement: record, message
        self._met, self._judged = 0.0, self._last  # when it was last found met, and by which match

    def message(self, moment: float, text: str, trigger: tuple[str, int]) -> None:
        """Take a message in."""
        if moment < self.since or trigger[1] <= self.after or self.ended or not self._matches(text):
            return
        self._arrive(moment)
        self.begin(moment, trigger)
        self._last = trigger, text[:_SHOWN]
        if self._evaluate_at == math.inf:
            self._first = self._last
        frequency = self.rule.frequency
        if frequency is None:
            self._judge_at(moment)
        else:
            self._judge_later(frequency, moment)

    def _judge_at(self, at: float) -> None:
        self._met, self._judged = at, self._last
        if self.firing:
            if self.rule.clear_after is not None:
                self._begin_clearing(at)
        else:
            self.judge(at, True, self._first[0], self._why_now)

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
            self.begin(moment, trigger)
            self.judge(moment, state == "critical", trigger, lambda: (f"the script said {state}", {}))
