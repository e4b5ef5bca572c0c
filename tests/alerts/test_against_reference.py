"""The engine against the brute-force reference, on histories of all kinds, in all ways that they may arrive.

`python tests/alerts/rule_campaign.py` does the same with many more.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import pytest
from feeding import ordered
from histories import WALL, curve_text, histories, writer_id
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import Decided, History, Rec, Writer, decisions
from rule_campaign import WAYS, by_way

ME = writer_id(1)
NAN, INF = math.nan, math.inf


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(histories(), st.integers(0, 1 << 32))
def test_random_histories(history: History, number: int) -> None:
    expected = ordered(decisions(history))
    for way in WAYS:
        assert by_way(history, way, number) == expected, way


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


CURVE = [(1.0, 0.0), (3.0, 4.0), (4.0, NAN), (5.0, 2.0)]
DIGEST = hashlib.sha256(curve_text(CURVE)).hexdigest()
OFF = X | {"rule": "deviates from reference", "reference": DIGEST, "tolerance": 1.0, "window": 0.5}


@pytest.mark.parametrize(
    ("definition", "records", "expected"),
    [  # a point's step is its number, from 0
        (OFF, points((1, 99), (2, 1), (3, 3)), []),  # no curve at step 0, then as far as is allowed
        (OFF, points((1, 99), (2, 1.5), (3, 3), (4, 5.5)), [("firing", 2, 4), ("resolved", 3, 5), ("firing", 4, 6)]),
        (OFF, points((1, 0), (2, NAN), (3, INF), (4, 4), (5, 99)), [("firing", 2, 4), ("resolved", 4, 6)]),  # none where the curve is NaN
        (OFF, points((1, 0), (2, 0), (3, 0), (4, 4), (5, 4), (6, 2), (7, 9)), [("firing", 3, 5), ("resolved", 4, 6)]),  # nor behind it
        (OFF | {"relative_tolerance": 0.5}, points((1, 0), (2, 0), (3, 4), (4, 7.5)), [("firing", 4, 6)]),
        (OFF | {"xaxis": "time"}, points((0.5, 99), (1, 0), (2, 3.5), (3, 4)), [("firing", 2, 5), ("resolved", 3, 6)]),
        (OFF | {"window": 5.0, "aggregation": "all"}, points((1, 99), (2, 0), (3, 9), (6.5, 9), (7.5, 9), (8, 9)), [("firing", 8, 8)]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("way", WAYS)
def test_what_the_page_says_of_curves(
    way: str, definition: dict[str, Any], records: list[Rec], expected: list[tuple[str, float, int]]
) -> None:
    told = history(definition, records)
    told.curves[DIGEST] = CURVE
    assert said(decisions(told)) == expected
    assert said(by_way(told, way, 1)) == expected


def crowd(when: str, *ranks: list[Rec], inbox: tuple[Rec, ...] = (), runs: bool = False, **rule: float) -> History:
    """Ranks whose x above 1 is the alert `a`, ERROR `e`, what they say `u`; `c` is made of these. A rank's first record has sequence 2."""
    made = {"when": when, **rule} | ({"runs": "tag=all"} if runs else {})
    first = [Rec(0, 0.0, "run", {"name": "r"})]
    above = ABOVE | {"metric": "x*", "window": 0.5}
    given = ("a", "metrics", above), ("u", "user", {}), ("c", "alerts", made), ("e", "events", {"pattern": "ERROR", "clear_after": 1.5})
    for n, (name, source, of) in enumerate(given):
        alert = {"id": writer_id(90 + n), "name": name, "source": source, "alert": of, "by": "site", "since": 0.0}
        first.append(Rec(0, 0.0, "alert", alert))
    writers = [Writer(writer_id(8), "agent", [Rec(0, 0.0, "attach", {"reason": "agent"}), *first[1:]], begun=WALL)]
    for n, records in enumerate(ranks):
        opening = first[0] if n == 0 else Rec(0, min(records[0].moment, 1000.0), "attach", {"reason": "attach"})
        writers.append(Writer(writer_id(n + 1), "attach" if n else "creator", [opening, *records], begun=WALL))
    if inbox:
        position = Rec(0, inbox[0].moment, "inbox", {"file": "f", "epoch": 0, "offset": 0})
        opening = Rec(0, inbox[0].moment, "attach", {"reason": "inbox"})
        writers.append(Writer(writer_id(9), "inbox", [opening, position, *inbox], begun=WALL))
    for w in writers:
        for n, record in enumerate(w.records, 1):
            record.seq = n
    return History(writers)


def told_of(found: list[Decided], name: str = "c") -> list[tuple[str, float, int, int]]:
    """What is said of an alert, with the number and sequence of the trigger's writer."""
    numbers = {writer_id(n): n for n in range(1, 10)}
    return [(d.state, d.at, numbers[d.trigger[0]], d.trigger[1]) for d in found if d.alert == name]


def end(moment: float) -> Rec:
    return Rec(0, moment, "close", {"status": "completed"})


def word(moment: float, state: str) -> Rec:
    return Rec(0, moment, "state", {"alert": "u", "state": state})


def note(moment: float, firing: list[str], live: int, live_firing: int, rule: int = 92) -> Rec:
    alerts = {"a": {"firing": firing, "live": live, "live_firing": live_firing}}
    return Rec(0, moment, "decision", {"elsewhere": {"rule": writer_id(rule), "alerts": alerts}})


UP, DOWN = (1.0, 2.0), (2.0, 0.0)
LAST = end(100.0)
ERROR = Rec(0, 1.0, "event", {"message": "ERROR"})


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (crowd("a", [*points(UP, DOWN), LAST]), [("firing", 1, 1, 2), ("resolved", 2, 1, 3)]),
        (crowd("not a", [*points(UP, DOWN), LAST]), [("firing", 0, 1, 1), ("resolved", 1, 1, 2), ("firing", 2, 1, 3)]),
        (crowd("a and not missing or c", [*points(UP), LAST]), [("firing", 1, 1, 2)]),
        (crowd("not a and u", [word(1, "critical"), *points((2, 2)), LAST]), [("firing", 1, 1, 2), ("resolved", 2, 1, 3)]),
        (crowd("not (a and u)", [word(1, "critical"), *points((2, 2)), LAST]), [("firing", 0, 1, 1), ("resolved", 2, 1, 3)]),
        (crowd("a or a and u", [*points(UP), LAST]), [("firing", 1, 1, 2)]),
        (crowd("2 of a", [*points(UP), LAST], [*points((2, 2)), end(3)]), [("firing", 2, 2, 2)]),
        (crowd("all a", [*points(UP, (4, 2)), LAST], [*points((2, 0), (3, 2)), end(9)]),
            [("firing", 1, 1, 2), ("resolved", 2, 2, 2), ("firing", 3, 2, 3)]),
        (crowd("all a", [*points(UP), LAST], [*points((1, 0)), end(9)]), [("firing", 9, 2, 3)]),  # the good one has ended
        (crowd("all a", [*points(UP), end(5)], [*points((1, 0)), end(9)]), []),  # who ends with the run has not ended
        (crowd("a", [*points(UP, DOWN), LAST], hold=1.5), []),
        (crowd("a", [*points(UP), LAST], hold=1.5), [("firing", 2.5, 1, 2)]),
        (crowd("a", [*points(UP), end(2.5)], hold=1.5), []),
        (crowd("not a", [*points(UP, DOWN), end(3)], [Rec(0, 10, "event", {"message": ""}), LAST], hold=1.5), [("firing", 11.5, 2, 1)]),
        (crowd("a", [*points((1, 2), (2, 0), (3, 2), (5, 0)), LAST], clear_after=1.5), [("firing", 1, 1, 2), ("resolved", 6.5, 1, 5)]),
        (crowd("a or u", [word(1, "critical"), LAST], [*points(UP), LAST]), [("firing", 1, 1, 2)]),  # the smaller of one moment
        (crowd("u", [word(1, "critical"), word(1, "ok"), LAST]), []),  # after all changes of a moment
        (crowd("all u", [word(1, "critical"), LAST], [word(2, "ok"), LAST]), [("firing", 1, 1, 2), ("resolved", 2, 2, 2)]),
        (crowd("all e", [ERROR, LAST], [Rec(0, 2, "event", {"message": "ERROR"}), LAST]), [("firing", 1, 1, 2), ("resolved", 2.5, 1, 2)]),
        (crowd("all e", [ERROR, end(3)], [Rec(0, 1.5, "event", {"message": "ok"}), LAST]), [("firing", 1, 1, 2), ("resolved", 2.5, 1, 2)]),
        (crowd("2 of a", [Rec(0, 1, "metrics", {"values": {"x": 2, "x2": 2}, "step": 0}), LAST]), []),  # two streams of one source
        (crowd("2 of a", [*points(UP), LAST], inbox=tuple(points((2, 2)))), [("firing", 2, 9, 3)]),
        (crowd("2 of a", [*points(UP), end(3)], inbox=tuple(points((4, 2)))), []),
    ],
)  # fmt: skip
@pytest.mark.parametrize("way", WAYS)
def test_what_the_page_says_of_composed_alerts(way: str, told: History, expected: list[tuple[str, float, int, int]]) -> None:
    assert told_of(decisions(told)) == expected
    assert told_of(by_way(told, way, 1)) == expected


@pytest.mark.parametrize(
    ("when", "notes", "expected"),
    [
        ("a", [note(1, [], 3, 0), note(2, ["x"], 3, 1), note(3, [], 3, 0)], [("firing", 2, 8, 7), ("resolved", 3, 8, 8)]),
        ("2 of a", [note(1, ["x"], 3, 1), note(2, ["x", "y"], 2, 1)], [("firing", 2, 8, 7)]),
        ("all a", [note(1, [], 0, 0), note(2, ["x", "y"], 2, 1), note(3, ["x", "y"], 1, 1)], [("firing", 3, 8, 8)]),
        ("not a", [note(1, ["x"], 1, 1)], [("firing", 0, 1, 1), ("resolved", 1, 8, 6)]),
        ("a", [note(1, [], 1, 0), note(1, ["x"], 1, 1), note(200, [], 1, 0)], [("firing", 1, 8, 6)]),
        ("u", [note(1, ["x"], 1, 1)], []),  # this run's own do not count
        ("a", [note(1, ["x"], 1, 1, rule=91)], []),  # a note of another rule
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_what_the_page_says_of_other_runs(way: str, when: str, notes: list[Rec], expected: list[tuple[str, float, int, int]]) -> None:
    told = crowd(when, [word(1, "critical"), LAST], runs=True)
    told.writers[0].records += notes
    for n, record in enumerate(told.writers[0].records, 1):
        record.seq = n
    assert told_of(decisions(told)) == expected
    assert told_of(by_way(told, way, 1)) == expected


def test_what_the_page_says_of_inbox_files_behind_the_end() -> None:
    told = crowd("a", [end(3.0)], inbox=tuple(points((4, 2), (5, 0), (6, 2))))
    expected = [Decided("a", (("inbox", "f"), ("metric", "x")), state, at, (writer_id(9), n))
                for state, at, n in (("firing", 4, 3), ("resolved", 5, 4), ("firing", 6, 5))]  # fmt: skip
    held = crowd("a", [end(3.0)], inbox=tuple(points((2, 2), (4, 2))))
    for n, record in enumerate(r for r in held.writers[0].records if r.kind == "alert" and r.body["name"] == "a"):
        record.body["alert"] = ABOVE | {"hold": 1.5 + n}
    for way in WAYS:
        assert by_way(told, way, 1) == expected == decisions(told)
        assert by_way(held, way, 1) == [] == decisions(held)


@pytest.mark.parametrize("way", WAYS)
def test_states_beyond_a_thousand_decisions_count(way: str) -> None:
    turns = [word(1 + n / 8, "ok" if n % 2 else "critical") for n in range(1021)]
    told = crowd("u", [*turns, end(2000.0)], hold=10.0)
    expected = [("firing", 1 + 1020 / 8 + 10, 1, 1022)]
    assert told_of(decisions(told)) == expected
    assert told_of(by_way(told, way, 1)) == expected
    assert len(told_of(decisions(told), "u")) == 1000


@pytest.mark.parametrize("way", WAYS)
def test_what_was_said_before_its_alert_was_defined_counts_for_those_made_of_it(way: str) -> None:
    told = crowd("u", [word(1, "critical"), end(9)])
    records = told.writers[0].records
    late = next(r for r in records if r.body.get("name") == "u")
    records.remove(late)
    records.append(Rec(0, 10.0, "alert", late.body | {"since": 10.0}))
    for n, record in enumerate(records, 1):
        record.seq = n
    assert told_of(decisions(told)) == [("firing", 1, 1, 2)]
    assert told_of(by_way(told, way, 1)) == [("firing", 1, 1, 2)]
