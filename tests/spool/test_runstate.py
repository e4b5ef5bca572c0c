"""What a run's records add up to, in whatever order its writers' ranges arrive."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from simspool.spool import Kind, runstate

WRITERS = ["w1", "w2", "w3"]
words = st.sampled_from(["a", "b", "c"])
statuses = st.sampled_from(["created", "running", "completed", "failed", "terminated", "lost", "nonsense"])
numbers = st.dictionaries(words, st.integers(), max_size=2)
odd = st.none() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2) | numbers
bodies = st.one_of(
    st.tuples(st.just(Kind.RUN), st.fixed_dictionaries(
        {}, optional={"name": words, "folder": words, "metadata": numbers, "tags": st.lists(words), "status": statuses})),
    st.tuples(st.just(Kind.ATTACH), st.fixed_dictionaries({"reason": st.sampled_from(["attach", "fork", "re-entrant", "reconnect"])},
                                                          optional={"rank": st.integers(0, 3)})),
    st.tuples(st.just(Kind.METADATA), st.fixed_dictionaries({"set": st.dictionaries(words, st.integers())})),
    st.tuples(st.just(Kind.CONFIG), st.fixed_dictionaries({"set": st.dictionaries(words, st.integers())})),
    st.tuples(st.just(Kind.TAGS), st.fixed_dictionaries({"op": st.sampled_from(["set", "add"]), "tags": st.lists(words)})),
    st.tuples(st.just(Kind.STATUS), st.fixed_dictionaries({"status": statuses})),
    st.tuples(st.just(Kind.CLOSE), st.fixed_dictionaries({"status": statuses}, optional={"drops": numbers})),
    st.tuples(st.just(Kind.SURVIVOR), st.fixed_dictionaries({"writer": st.sampled_from(WRITERS), "status": statuses})),
    st.tuples(st.just(Kind.ALERT), st.fixed_dictionaries({"name": words, "source": words}, optional={"alert": numbers})),
    st.tuples(st.just(Kind.ALERT_STATE), st.fixed_dictionaries({"alert": words, "state": st.sampled_from(["ok", "critical", "firing"])})),
    st.tuples(st.just(Kind.DECISION), st.fixed_dictionaries({"alert": words, "at": st.integers(0, 9) | st.floats(), "reason": words})),
    st.tuples(st.sampled_from(sorted(runstate.FOLDED_KINDS)), st.dictionaries(
        st.sampled_from(["set", "tags", "op", "status", "reason", "rank", "writer", "metadata", "fields", "drops", "name", "alert", "state",
                         "at"]), odd, max_size=5)),
)  # fmt: skip


@st.composite
def histories(draw: Any) -> list[tuple[str, int, Kind, int, dict[str, Any]]]:
    out = []
    for writer in WRITERS:
        for seq, (kind, body) in enumerate(draw(st.lists(bodies, max_size=6)), 1):
            out.append((writer, seq, kind, draw(st.integers(1, 20)), body))
    return out


def fold(records: list[tuple[str, int, Kind, int, dict[str, Any]]]) -> dict[str, Any]:
    state = runstate.empty()
    for writer, seq, kind, wall, body in records:
        runstate.apply(state, writer, seq, kind, wall, copy.deepcopy(body))
    return state


@given(histories(), st.randoms())
def test_the_fold_is_the_same_under_any_interleaving_of_writers(history: list[Any], choice: random.Random) -> None:
    queues = {w: [r for r in history if r[0] == w] for w in WRITERS}
    mixed = []
    while any(queues.values()):
        mixed.append(queues[choice.choice([w for w in WRITERS if queues[w]])].pop(0))
    assert json.loads(json.dumps(fold(mixed))) == json.loads(json.dumps(fold(history)))


@given(histories(), st.randoms())
def test_repeating_records_changes_nothing_and_no_body_raises(history: list[Any], choice: random.Random) -> None:
    again = history + choice.sample(history, len(history) // 2)
    state = fold(again)
    assert state == fold(history)
    runstate.status(state)
    runstate.tags(state)
    runstate.metadata(state)
    runstate.config(state)
    runstate.started(state)
    runstate.finished(state)
    runstate.alerts(state)


def test_the_status_is_the_worst_of_the_writers_unless_it_was_set() -> None:
    opening = [("w1", 1, Kind.RUN, 1, {"name": "n"}), ("w2", 1, Kind.ATTACH, 2, {"reason": "attach"})]
    closes = [("w1", 2, Kind.CLOSE, 3, {"status": "completed"}), ("w2", 2, Kind.CLOSE, 4, {"status": "failed"})]
    assert runstate.status(fold(opening)) == "running"
    assert runstate.status(fold(opening + closes[:1])) == "running"
    assert runstate.status(fold(opening + closes)) == "failed"
    assert runstate.status(fold([*opening, *closes, ("w1", 3, Kind.STATUS, 5, {"status": "terminated"})])) == "terminated"


def test_a_writers_own_close_counts_more_than_what_was_said_of_it() -> None:
    opening = [("w1", 1, Kind.RUN, 1, {"name": "n"})]
    said = ("w3", 1, Kind.SURVIVOR, 9, {"writer": "w1", "status": "lost"})
    close = ("w1", 2, Kind.CLOSE, 5, {"status": "completed"})
    for order in ([said, close], [close, said]):
        assert runstate.status(fold(opening + order)) == "completed"
        assert runstate.finished(fold(opening + order)) == 5


def test_an_alert_has_its_first_definition_its_last_state_and_its_last_decision() -> None:
    body = {"id": "i", "name": "hot", "source": "metrics", "abort": True, "alert": {"rule": "is above"}, "state": "critical"}
    records = [
        ("w1", 1, Kind.ALERT, 5, body), ("w2", 1, Kind.ALERT, 6, {"name": "hot", "source": "user"}),
        ("w3", 1, Kind.DECISION, 9, {"alert": "hot", "at": 7.5, "reason": "later"}),
        ("w3", 2, Kind.ALERT_STATE, 9, {"alert": "hot", "state": "critical"}),
        ("w2", 2, Kind.DECISION, 12, {"alert": "hot", "at": 3.0, "reason": "earlier, judged late"}),
        ("w2", 3, Kind.ALERT_STATE, 8, {"alert": "hot", "state": "ok"}), ("w2", 4, Kind.ALERT_STATE, 3, {"alert": "bare", "state": "ok"}),
    ]  # fmt: skip
    for order in (records, records[::-1]):
        found = runstate.alerts(fold(order))
        kept = {k: v for k, v in body.items() if k != "state"}
        assert found["hot"] == {"definition": kept, "state": "critical", "since": 9, "reason": "later"}
        assert found["bare"] == {"definition": None, "state": "ok", "since": 3, "reason": None}


def test_a_run_with_very_many_alerts_keeps_the_same_ones_in_any_order() -> None:
    records = [("w1", n + 1, Kind.ALERT, n, {"name": f"alert {n * 7919 % 3000:05}"}) for n in range(3000)]
    kept = runstate.alerts(fold(records))
    assert len(kept) == runstate.MOST_ALERTS
    assert kept == runstate.alerts(fold(records[::-1]))


def test_a_state_of_an_older_version_takes_alerts_in() -> None:
    state = runstate.empty()
    del state["alerts"]
    assert runstate.alerts(state) == {}
    runstate.apply(state, "w1", 1, Kind.ALERT, 1, {"name": "a"})
    assert list(runstate.alerts(state)) == ["a"]


def test_the_reason_is_that_of_the_status_that_counts() -> None:
    opening = [("w1", 1, Kind.RUN, 1, {"name": "n"}), ("w2", 1, Kind.ATTACH, 2, {"reason": "attach"})]
    died = ("w3", 1, Kind.SURVIVOR, 9, {"writer": "w1", "status": "failed", "reason": "it crashed"})
    later = ("w2", 2, Kind.CLOSE, 10, {"status": "failed", "reason": "ValueError"})
    assert runstate.reason(fold([*opening, died])) is None, "it runs still"
    assert runstate.reason(fold([*opening, died, later])) == "it crashed", "the first of those with the worst status"
    fine = ("w2", 2, Kind.CLOSE, 10, {"status": "completed", "reason": "done"})
    assert runstate.reason(fold([*opening, died, fine])) == "it crashed"
    own = ("w1", 2, Kind.CLOSE, 5, {"status": "terminated"})
    for order in ([died, own], [own, died]):
        assert runstate.reason(fold([*opening, *order, later])) == "ValueError", "its own close counts more"
    chosen = ("w2", 3, Kind.STATUS, 11, {"status": "terminated", "reason": "enough"})
    assert runstate.reason(fold([*opening, died, later, chosen])) == "enough"
    again = ("w4", 1, Kind.ATTACH, 20, {"reason": "reconnect"})
    assert runstate.reason(fold([*opening, died, later, again])) is None


def test_what_agents_note_later_does_not_move_the_end() -> None:
    ran = [("w1", 1, Kind.RUN, 1, {"name": "n"}), ("w1", 2, Kind.CLOSE, 5, {"status": "completed"})]
    agent = [("w2", 1, Kind.ATTACH, 50, {"reason": "agent"}), ("w2", 2, Kind.CLOSE, 90, {"status": None})]
    assert runstate.finished(fold(ran + agent)) == runstate.finished(fold(agent + ran)) == 5
    assert runstate.status(fold(ran + agent)) == "completed"
    assert runstate.status(fold(agent)) == "running", "of the script's own part nothing has come yet"
