"""Composed alerts: what `when` may say, what it means of one run's records, and that a note of other runs is all that `runs` needs."""

from __future__ import annotations

from typing import Any

import pytest
from feeding import live, ordered
from histories import RUN, arrivals, writer_id
from reference import History, Rec, Writer, decisions

from simspool.agent.alerts.composed import source_of
from simspool.agent.alerts.decisions import Stream, Timeline
from simspool.agent.alerts.elsewhere import Seen, gist, told
from simspool.agent.alerts.rules import parse_rule
from simspool.spool import InvalidRecord, alert_definition, alert_expression, run_filter, runstate


@pytest.mark.parametrize(
    ("text", "firing", "holds"),
    [
        ("a", "a", True), ("a", "b", False), ("any a", "a", True), ("not a", "a", False), ("not a", "", True), ("not not a", "a", True),
        ("a and b", "a", False), ("a and b", "ab", True), ("a or b", "b", True), ("a or b and c", "a", True),
        ("(a or b) and c", "a", False), ("not a or b", "b", True), ("not (a or b)", "b", False), ("not a and b", "b", True),
        ("a or not b", "b", False), ("2 of a", "aa", True), ("2 of a", "a", False), ("all a", "a", True), ("'a' and \"b\"", "ab", True),
        ("(a)and(b)", "ab", True), ("a and not (b or 3 of c)", "acc", True), ("a and not (b or 3 of c)", "accc", False),
    ],
)  # fmt: skip
def test_what_an_expression_means(text: str, firing: str, holds: bool) -> None:
    found = alert_expression.parse(text)
    assert found.holds(lambda name, count: firing.count(name) >= max(count, 1)) is holds


def test_names_in_quotes_are_any_names() -> None:
    found = alert_expression.parse("""'disk is full' or "it's" and not 'all' or all '12' or warm-up/x.y:1""")
    assert found.operands == {("disk is full", 1), ("it's", 1), ("all", 1), ("12", alert_expression.ALL), ("warm-up/x.y:1", 1)}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "position 1, not the end"), ("a b", "position 3, not 'b'"), ("a and", "position 6, not the end"), ("(a", "`)` expected"),
        ("a)", "position 2, not ')'"), ("3 a", "`of`"), ("12", "`of`"), ("0 of a", "count of 1"), ("9" * 20 + " of a", "count of 1"),
        ("'a", "position 1 is not closed"), ("all of a", "position 5, not 'of'"), ("''", "position 2"), ("and", "position 1"),
        ("not", "position 4"), ("not " * 200 + "a", "nested more than 100 deep"), ("(" * 200 + "a", "nested more than 100 deep"),
    ],
)  # fmt: skip
def test_what_is_no_expression_is_refused_with_its_position(text: str, says: str) -> None:
    with pytest.raises(InvalidRecord, match="^when: ") as error:
        alert_expression.parse(text)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "needs when"), ({"when": ""}, "when must be text"), ({"when": "a b"}, "alert 'x': when: `and`"),
        ({"when": "a", "rule": "is above"}, "no use for rule"), ({"when": "a", "frequency": 1}, "no use for frequency"),
        ({"when": "a", "runs": "colour=red"}, "runs: there is no 'colour'"), ({"when": "a", "runs": 'name="x'}, "runs: "),
        ({"when": "a" * 5000}, "4096"), ({"when": 3}, "when must be text"), ({"when": "a", "hold": -1}, "hold"),
    ],
)  # fmt: skip
def test_what_a_composed_definition_needs(given: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRecord) as error:
        alert_definition.define("x", "alerts", **given)
    assert says in str(error.value)


def test_a_filter_of_runs_is_parsed_once_for_all() -> None:
    assert run_filter.parse('folder=/a tag=x tag=y name="orbit *" metadata.k=v') == run_filter.RunFilter(
        "/a", ("x", "y"), ("orbit *",), (("k", "v"),)
    )


# ---------------------------------------------------------------------- one run's records

NAN = float("nan")
BAD = {"rule": "is not finite", "metric": "x"}


def alert(name: str, definition: dict[str, Any], source: str = "metrics", since: float | None = 0.0) -> dict[str, Any]:
    body = {"id": name + "-" * (22 - len(name)), "name": name, "source": source, "alert": definition, "by": "site", "since": since}
    return {k: v for k, v in body.items() if v is not None}


def rank(number: int, *records: tuple[float, Any], alerts: tuple[dict[str, Any], ...] = (), opened: float = 0.0, closed: float) -> Writer:
    """A rank with points of `x` (a number), messages (text) or other records (kind, body)."""
    found = [Rec(0, opened, "run" if number == 1 else "attach", {"name": "r"} if number == 1 else {"reason": "attach"})]
    found += [Rec(0, opened, "alert", body) for body in alerts]
    for moment, what in records:
        if isinstance(what, float):
            found.append(Rec(0, moment, "metrics", {"values": {"x": what}, "step": 0}))
        elif isinstance(what, str):
            found.append(Rec(0, moment, "event", {"message": what}))
        else:
            found.append(Rec(0, moment, *what))
    found.append(Rec(0, closed, "close", {"status": "completed"}))
    for n, record in enumerate(found, 1):
        record.seq = n
    return Writer(writer_id(number), "creator" if number == 1 else "attach", found)


def of_composed(*writers: Writer) -> list[tuple[str, float, str, int]]:
    """Return the decisions of the alert `all of it`: state, moment, and trigger (rank, sequence). The reference says the same."""
    import random

    history = History(list(writers))
    expected = ordered(decisions(history))
    for seed in range(3):
        assert live(history, arrivals(history, random.Random(seed), most=4), whole=seed > 0) == expected
    names = {writer_id(n): str(n) for n in range(1, 10)}
    found = [(d.state, d.at, names[d.trigger[0]], d.trigger[1]) for d in expected if d.alert == "all of it"]
    return sorted(found, key=lambda f: f[1])


def composed(when: str, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return alert("bad", BAD), alert("all of it", {"when": when, **more}, "alerts")


def test_a_number_of_ranks() -> None:
    alerts = composed("2 of bad")
    found = of_composed(
        rank(1, (1.0, 0.0), (3.0, NAN), (8.0, 0.0), alerts=alerts, closed=20),
        rank(2, (1.0, 0.0), (5.0, NAN), closed=20),
        rank(3, (1.0, 0.0), (7.0, NAN), closed=20),
    )
    assert found == [("firing", 5.0, "2", 3)]  # rank 1 becomes good when three are bad: two are left


def test_all_ranks_waits_for_each_that_has_points_and_lives() -> None:
    alerts = composed("all bad")
    found = of_composed(
        rank(1, (3.0, NAN), (4.5, 1.0), (5.5, NAN), alerts=alerts, closed=20),
        rank(2, (4.0, 0.0), (5.0, NAN), closed=20),
        rank(3, (6.0, 0.0), closed=7.0),
        rank(4, closed=20),  # records no point, and is not waited for
    )
    assert found == [
        ("firing", 3.0, "1", 4), ("resolved", 4.0, "2", 2), ("firing", 5.5, "1", 6), ("resolved", 6.0, "3", 2), ("firing", 7.0, "3", 3)
    ]  # fmt: skip


def test_what_holds_long_enough() -> None:
    alerts = composed("bad", hold=2.0, clear_after=1.0)
    found = of_composed(rank(1, (1.0, NAN), (2.0, 1.0), (3.0, NAN), (9.0, 1.0), alerts=alerts, closed=20))
    assert found == [("firing", 5.0, "1", 6), ("resolved", 10.0, "1", 7)]


def test_without_is_true_from_the_beginning_and_again_when_the_run_is_opened_again() -> None:
    alerts = composed("not bad", hold=2.0)
    first = rank(1, (1.0, NAN), (1.5, 1.0), alerts=alerts, closed=2.0)
    again = rank(2, (11.0, 1.0), opened=10.0, closed=20.0)
    assert of_composed(first, again) == [("firing", 12.0, "2", 1)]


def test_changes_of_one_moment_are_judged_together() -> None:
    quiet = composed("bad and not good")
    bad, rule = quiet
    good = alert("good", {"pattern": "converged"}, "events")
    found = of_composed(rank(1, (5.0, NAN), alerts=(bad, rule, good), closed=20), rank(2, (5.0, "converged"), closed=20))
    assert found == []  # in no order of the two is there a moment with one of them only


def test_an_unknown_alert_and_a_composed_one_are_false() -> None:
    bad, rule = composed("not nothing and not other")
    other = alert("other", {"when": "bad or not bad"}, "alerts")
    assert of_composed(rank(1, (5.0, 1.0), alerts=(bad, rule, other), closed=20)) == [("firing", 0.0, "1", 1)]


def test_nothing_is_decided_behind_the_run_s_end() -> None:
    assert of_composed(rank(1, (9.0, NAN), alerts=composed("bad", hold=2.0), closed=10.0)) == []


def test_an_alert_that_is_composed_late_knows_what_was_before() -> None:
    bad, _ = composed("bad")
    late = alert("all of it", {"when": "bad"}, "alerts", since=None)
    found = of_composed(rank(1, (1.0, NAN), (4.0, ("alert", late)), (6.0, 1.0), alerts=(bad,), closed=20))
    assert found == [("firing", 4.0, "1", 1), ("resolved", 6.0, "1", 5)]


def test_the_sources_of_streams() -> None:
    rule = parse_rule(alert("bad", BAD))
    line = Timeline(RUN)
    keys = [{"writer": "w", "metric": "x"}, {"host": "h", "metric": "x"}, {"inbox": "f.jsonl", "metric": "x"}, {}]
    assert [source_of(Stream(rule, key, line)) for key in keys] == [("writer", "w"), ("host", "h"), ("inbox", "f.jsonl"), ("run", "")]


# ---------------------------------------------------------------------- several runs


def seen(run: str, firing: str = "", *, has: str = "ab", live: bool = True) -> Seen:
    return Seen(run, runstate.empty(), frozenset(has), frozenset(firing), live)


def test_what_is_noted_of_other_runs_and_when_it_matters() -> None:
    some = parse_rule(alert("x", {"when": "2 of a", "runs": ""}, "alerts"))
    every = parse_rule(alert("x", {"when": "all a and not b", "runs": ""}, "alerts"))
    runs = [seen("3", "a"), seen("1", "a", live=False), seen("2"), seen("4", has="b")]
    assert told(some, runs) == {"a": {"firing": ["1", "3"], "live": 2, "live_firing": 1}}
    assert told(every, runs)["b"] == {"firing": [], "live": 3, "live_firing": 0}
    assert gist(some, None) == gist(some, told(some, [seen("1"), seen("2")])) == {}  # that nothing fires is not worth a note
    assert gist(some, told(some, runs)) == gist(some, told(some, [*runs, seen("5")]))  # nor is one more run, where only a number counts
    assert gist(every, told(every, runs[:1])) != gist(every, told(every, [*runs[:1], seen("5")]))


def test_the_notes_alone_decide() -> None:
    rule = alert("all of it", {"when": "2 of diverged", "runs": "folder=/c"}, "alerts")

    def note(runs: list[str]) -> tuple[str, dict[str, Any]]:
        told = {"diverged": {"firing": runs, "live": 3, "live_firing": len(runs)}}
        return "decision", {"elsewhere": {"rule": rule["id"], "alerts": told}}

    agent = rank(3, (4.0, note(["one"])), (6.0, note(["one", "two"])), (8.0, note(["two"])), opened=1.0, closed=30.0)
    agent.role = "agent"
    agent.records[0].body["reason"] = "agent"
    assert of_composed(rank(1, alerts=(rule,), closed=20), agent) == [("firing", 6.0, "3", 3), ("resolved", 8.0, "3", 4)]
