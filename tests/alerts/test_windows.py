"""Windows: exact at the threshold, whatever was in them before, and bounded."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simspool.agent.alerts import windows
from simspool.agent.alerts.decisions import Timeline
from simspool.agent.alerts.rules import parse_rule
from simspool.agent.alerts.windows import WindowStream, exact_sum


def make(**definition: Any) -> tuple[WindowStream, Timeline]:
    """Return a stream of one rule, and where its decisions go."""
    rule = parse_rule({"id": "i", "name": "n", "source": "metrics", "alert": {"metric": "m", "rule": "is above", **definition}})
    line = Timeline("run")
    return WindowStream(rule, {"writer": "w", "metric": "m"}, line, 0.0, 0), line


def states(line: Timeline) -> list[tuple[str, float]]:
    """Return the decisions: state and moment."""
    return [(d.state, d.at) for d in line.decided]


odd = st.sampled_from([0.1, 0.2, 0.3, 1e16, -1e16, 1.0, 1e308, -1e308, 5e-324, math.inf, -math.inf, math.nan, 0.30000000000000004])


@settings(max_examples=200, deadline=None)
@given(st.lists(odd | st.floats(-2, 2), max_size=60), st.sampled_from(["average", "sum"]), st.sampled_from([0.0, 0.1, 0.2, 0.3, 1.0]))
def test_sums_are_judged_as_if_they_were_exact(values: list[float], aggregation: str, threshold: float) -> None:
    stream, line = make(aggregation=aggregation, threshold=threshold, window=5)
    firing, wanted = False, []
    for i, value in enumerate(values, 1):
        stream.point(float(i), float(i), value, ("w", i))
        window = values[max(0, i - 5) : i]
        number = exact_sum(window) / (len(window) if aggregation == "average" else 1)
        if (not number <= threshold if firing else number > threshold) != firing:
            firing = not firing
            wanted.append(("firing" if firing else "resolved", float(i)))
    assert states(line) == wanted


def test_a_threshold_of_zero_is_one() -> None:
    stream, line = make(threshold=0)
    stream.point(1.0, 1.0, 0.0, ("w", 1))
    stream.point(2.0, 2.0, 1e-300, ("w", 2))
    assert states(line) == [("firing", 2.0)]


def test_of_too_many_points_those_that_arrived_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "MOST_POINTS", 10)
    stream, line = make(threshold=8.5, aggregation="sum", window=100)
    for i in range(1, 11):
        stream.point(float(i), float(i), 0.8 if i < 10 else 0.0, ("w", i))
    assert states(line) == []
    stream.point(11.0, 11.0, 2.0, ("w", 11))  # 9.2 with all of them: judged before any goes
    assert states(line) == [("firing", 11.0)]
    stream.point(12.0, 12.0, 0.0, ("w", 12))  # the five that arrived last, and this one: 0.8 + 0.8 + 0 + 2 + ...
    assert states(line) == [("firing", 11.0), ("resolved", 12.0)]


def test_late_points_beyond_the_bound_do_not_disturb_those_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "MOST_POINTS", 10)
    stream, line = make(threshold=5.0, aggregation="at least one", window=100)
    for i in range(1, 40):
        stream.point(float(i), float(100 - i), 1.0, ("w", i))
    stream.point(40.0, 60.5, 9.0, ("w", 40))
    assert states(line) == [("firing", 40.0)]
