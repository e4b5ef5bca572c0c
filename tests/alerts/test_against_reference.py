"""The engine against the brute-force reference, on histories of all kinds, in all ways that they may arrive.

`python tests/alerts/campaign.py` does the same with many more.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
from campaign import WAYS, by_way
from feeding import ordered
from histories import WALL, histories, writer_id
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import Decided, History, Rec, Writer, decisions

MANY = settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
ME = writer_id(1)
NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("way", WAYS)
def test_random_histories(way: str) -> None:
    @MANY
    @given(histories(), st.integers(0, 1 << 32))
    def compare(history: History, number: int) -> None:
        assert by_way(history, way, number) == ordered(decisions(history))

    compare()


def history(definition: dict[str, Any], records: list[Rec], *, source: str = "metrics", closed: float = 1000.0) -> History:
    """One process with one alert from its first moment on."""
    alert = {"id": writer_id(99), "name": "a", "source": source, "alert": definition, "by": "script"}
    whole = [Rec(1, 0.0, "run", {"name": "r"}), Rec(2, 0.0, "alert", alert), *records, Rec(0, closed, "close", {"status": "completed"})]
    for n, record in enumerate(whole, 1):
        record.seq = n
    return History([Writer(ME, "creator", whole, begun=WALL)])


def points(*given: tuple[float, float] | tuple[float, float, float]) -> list[Rec]:
    """Points (moment, value) or (moment, value, own time) of `x`; the first has sequence 3."""
    return [
        Rec(0, p[0], "metrics", {"values": {"x": p[1]}, "step": n} | ({"time": p[2]} if len(p) == 3 else {})) for n, p in enumerate(given)
    ]


def said(found: list[Decided]) -> list[tuple[str, float, int]]:
    return [(d.state, d.at, d.trigger[1]) for d in found]


X = {"metric": "x"}
ABOVE = X | {"rule": "is above", "threshold": 1.0, "window": 1.0}


@pytest.mark.parametrize(
    ("definition", "records", "expected"),
    [
        (ABOVE, points((1, 2), (3, 0)), [("firing", 1, 3), ("resolved", 3, 4)]),
        (ABOVE | {"threshold": 0.0}, points((1, 0), (3, 1e-300)), [("firing", 3, 4)]),
        (ABOVE, points((1, 1), (2, NAN)), []),
        (ABOVE, points((1, 2), (3, NAN), (5, 1)), [("firing", 1, 3), ("resolved", 5, 5)]),
        (ABOVE | {"window": 5.0}, points((1, 5), (2, -9), (3, 8)), [("firing", 1, 3), ("resolved", 2, 4), ("firing", 3, 5)]),
        (ABOVE | {"aggregation": "sum", "window": 5.0}, points((1, 1), (2, 0.5), (6, 0)), [("firing", 2, 4), ("resolved", 6, 5)]),
        (ABOVE | {"aggregation": "all", "window": 5.0}, points((1, 0), (2, 2), (6.5, 2)), [("firing", 6.5, 5)]),
        (ABOVE | {"hold": 2.0}, points((1, 2), (3, 0), (4, 2)), [("firing", 6, 5)]),  # not met at the very end of the hold
        (ABOVE | {"hold": 2.0}, points((1, 2), (3.5, 0)), [("firing", 3, 3), ("resolved", 3.5, 4)]),
        (ABOVE | {"clear_after": 2.0}, points((1, 2), (2, 0), (4, 2), (5, 0)), [("firing", 1, 3), ("resolved", 7, 6)]),
        (ABOVE | {"hysteresis": 1.0}, points((1, 2), (3, 0.5), (5, 0)), [("firing", 1, 3), ("resolved", 5, 5)]),
        (ABOVE | {"frequency": 10.0}, points((1, 2), (9, 0), (10, 2)), [("firing", 20, 5)]),
        (ABOVE | {"window": 2.0, "aggregation": "at least one"}, points((1, 0, 1), (5, 0, 5), (6, 9, 4)), [("firing", 6, 5)]),
        (X | {"rule": "is inside range", "range_low": 1.0, "range_high": 2.0}, points((1, 2)), [("firing", 1, 3)]),
        (X | {"rule": "is outside range", "range_low": 1.0, "range_high": 2.0}, points((1, 2), (9, NAN)), [("firing", 9, 4)]),
        (X | {"rule": "is not finite"}, points((1, 1), (2, -INF), (3, 1)), [("firing", 2, 4), ("resolved", 3, 5)]),
        (X | {"rule": "rate is above", "threshold": 2.0, "window": 5.0}, points((1, 0), (2, 2), (3, 5)), [("firing", 3, 5)]),
        (X | {"rule": "no progress", "window": 5.0}, points((1, 0), (20, 0)), [("firing", 6, 3), ("resolved", 20, 4), ("firing", 25, 4)]),
        ({"rule": "no progress", "window": 5.0, "hold": 1.0}, points((1, 0), (7, 0), (12, 0)), [("firing", 18, 5)]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("way", WAYS)
def test_sentences_of_the_page(way: str, definition: dict[str, Any], records: list[Rec], expected: list[tuple[str, float, int]]) -> None:
    told = history(definition, records)
    assert said(decisions(told)) == expected
    assert said(by_way(told, way, 1)) == expected


@pytest.mark.parametrize("way", WAYS)
def test_no_more_than_a_thousand_decisions_of_a_stream(way: str) -> None:
    records = [Rec(0, float(n), "event", {"message": "ERROR"}) for n in range(600)]
    told = history({"pattern": "ERROR", "clear_after": 0.5}, records, source="events")
    expected = said(decisions(told))
    assert len(expected) == 1000
    assert expected[-1] == ("resolved", 499.5, 502)
    assert said(by_way(told, way, 1)) == expected
