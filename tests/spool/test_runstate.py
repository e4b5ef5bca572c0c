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
    st.tuples(st.sampled_from(sorted(runstate.FOLDED_KINDS)), st.dictionaries(
        st.sampled_from(["set", "tags", "op", "status", "reason", "rank", "writer", "metadata", "fields", "drops", "name"]), odd,
        max_size=5)),
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
