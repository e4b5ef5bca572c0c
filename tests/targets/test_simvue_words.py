"""What becomes of records, states and counts in Simvue's words, without a server."""

from __future__ import annotations

import json
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from simspool.agent.targets.simvue_api import Rejected
from simspool.agent.targets.simvue_books import MARK, SENDING, Books, Part
from simspool.agent.targets.simvue_state import alert_body
from simspool.agent.targets.simvue_words import metric_there, moment, name_there, word_there
from simspool.spool.alert_definition import define

METRIC, NAME, WORD = r"[a-zA-Z0-9\-_\s/.:=><+()%]+", r"[a-zA-Z0-9\-_\s/.:]+", r"[\w\-\s.]+"


@given(st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=2, unique=True))
def test_names_fit_and_never_meet(names: list[str]) -> None:
    for there, form in ((metric_there, METRIC), (name_there, NAME), (word_there, WORD)):
        first, second = map(there, names)
        assert re.fullmatch(form, first)
        assert first != second


def test_names_that_fit_stay_but_our_own_keys_are_ours() -> None:
    assert metric_there("a/b.c (x=1) 5%") == "a/b.c (x=1) 5%"
    assert word_there("a.b-c d") == "a.b-c d"
    assert not word_there("simspool.run").startswith("simspool.")


def test_times_have_microseconds_and_no_zone() -> None:
    assert moment(1_700_000_000_000_000) == "2023-11-14T22:13:20.000000"
    assert moment(-1) == "1969-12-31T23:59:59.999999"
    assert moment(1 << 62) is None


def test_rules_that_simvue_would_judge_otherwise_are_user_alerts() -> None:
    for given_, source in (
        ({"rule": "is above", "metric": "x", "threshold": 0.0}, "metrics"),
        ({"rule": "is above", "metric": "x", "threshold": 1.0, "window": 0.5}, "user"),
        ({"rule": "is above", "metric": "x", "threshold": float("inf")}, "user"),
        ({"rule": "is above", "metric": "x", "threshold": 1.0, "hysteresis": 0.1}, "user"),
        ({"rule": "is inside range", "metric": "x", "range_low": 0.0, "range_high": 1.0}, "metrics"),
        ({"rule": "rate is above", "metric": "x", "threshold": 1.0}, "user"),
        ({"rule": "no progress", "window": 60.0}, "user"),
    ):
        made = alert_body("a", define("a", trigger_abort=True, **given_))
        assert (made["source"], made["abort"]) == (source, True)
        assert ("alert" in made) == (source == "metrics")
        assert (made["description"] is not None) == (source == "user")


def test_a_server_that_names_what_it_refuses_is_believed_only_when_it_names_all() -> None:
    one = {"type": "value_error", "loc": ["body", "metrics", 3, "values", "x"], "msg": "no"}
    assert Rejected(422, [one]).named("metrics", 5) == {3: "values.x: no"}
    assert Rejected(422, [one]).named("metrics", 3) == {}
    assert Rejected(422, [one]).named("events", 5) == {}
    assert Rejected(422, [one, {"loc": ["body", "metrics"], "msg": "none"}]).named("metrics", 5) == {}
    assert Rejected(422, "text").named("metrics", 5) == {}


@settings(max_examples=300)
@given(st.data())
def test_the_books_tell_what_arrived_of_any_request(data: st.DataObject) -> None:
    """Requests are cut into batches, some of which arrive; whoever reads the books afterwards knows exactly which."""
    draw = data.draw
    there, marks, left = 0, {"a": 0, "b": 0, "c": 0}, {}
    metadata = {SENDING: Books().note()}
    stored = dict.fromkeys(marks, 0)
    for _ in range(draw(st.integers(1, 6))):
        books = Books.read(metadata, there, 0)
        assert {w: books.mark(w) for w in marks} == marks
        assert {w: one.points for w, one in books.left.items() if one.points} == {w: n for w, n in left.items() if n}
        writers = draw(st.lists(st.sampled_from(sorted(marks)), min_size=1, unique=True))
        parts = []
        for writer in writers:  # records of one point each: a writer's range goes on where what is there ends
            more = draw(st.integers(0, 5))
            had = left.get(writer, 0)
            parts.append(Part(writer, marks[writer] + 1, marks[writer] + had + more, more, 0))
        total = sum(part.points for part in parts)
        cuts = sorted({*draw(st.lists(st.integers(1, total), max_size=4)), total}) if total else []
        metadata[SENDING] = books.note(parts, (cuts, []))
        arrived = draw(st.sampled_from([0, *cuts]))
        there += arrived
        rest = arrived
        for part in parts:
            stored[part.writer] += min(rest, part.points)
            rest -= min(rest, part.points)
        if arrived == total and draw(st.booleans()):
            books.points = there
            for part in parts:
                had = left.pop(part.writer, 0)
                if part.last > marks[part.writer]:
                    books.settle(part.writer, part.last, 0, had, 0)
                    metadata[MARK + part.writer] = books.written(part.writer)
                    marks[part.writer] = part.last
                elif had:
                    left[part.writer] = had
            metadata[SENDING] = books.note()
        left = {writer: stored[writer] - marks[writer] for writer in marks}


def test_numbers_that_do_not_fit_are_doubtful_and_nothing_is_left_out() -> None:
    note = Books(10, 2).note([Part("a", 1, 8, 8, 0), Part("b", 1, 4, 4, 2)], ([6, 12], [2]))
    for points, events, a, b in (
        (10, 2, (0, 0, 0), (0, 0, 0)),
        (16, 2, (6, 0, 0), (0, 0, 0)),
        (22, 4, (8, 0, 0), (4, 2, 0)),
        (19, 2, (6, 0, 2), (0, 0, 1)),  # more than a batch, less than two
        (23, 2, (0, 0, 8), (0, 0, 4)),  # somebody else's
        (9, 2, (0, 0, 8), (0, 0, 4)),  # some were deleted
        (-1, 4, (0, 0, 8), (0, 2, 4)),  # nobody says how many there are
    ):
        left = Books.read({SENDING: note}, points, events).left
        found = [(left[w].points, left[w].events, left[w].doubtful) for w in "ab"]
        assert found == [a, b], (points, events)


def test_what_was_posted_in_halves_is_doubtful_as_a_whole() -> None:
    note = json.loads(Books(10, 2).note([Part("a", 1, 8, 8, 0)], ([6, 8], [])))
    left = Books.read({SENDING: json.dumps({**note, "halves": True})}, 16, 2).left["a"]
    assert (left.points, left.doubtful) == (0, 6)


def test_books_that_make_no_sense_count_as_not_written() -> None:
    for text in ("", "[]", "{", '{"parts": 3}', '{"points": "x"}', '{"parts": [[1]]}', '{"left": []}', "null", "1"):
        books = Books.read({SENDING: text, MARK + "w": "garbage", MARK + "v": "5 7", MARK + "u": None}, 3, 4)
        assert (books.points, books.events, books.marks, books.left) == (3, 4, {"v": (5, 7)}, {})
