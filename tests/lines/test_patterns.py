"""Metrics and events out of text."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simspool.agent.lines.patterns import Event, InvalidPattern, Metrics, Patterns


def scanned(text: str | bytes, metrics: list[str], events: list[str] | None = None) -> list[Any]:
    patterns = Patterns(metrics, events or [])
    return list(patterns.scan(text.encode() if isinstance(text, str) else text))


def test_named_groups_are_metrics() -> None:
    text = "start\nstep=7 loss=0.25 acc=9D-01\nnothing\nstep=8 loss=nan acc=1\n"
    first, second = scanned(text, [r"step=(?P<step>\d+) loss=(?P<loss>\S+) acc=(?P<acc>\S+)"])
    assert first == Metrics({"loss": 0.25, "acc": 0.9}, 7, None)
    assert (second.step, second.values["acc"]) == (8, 1.0)
    assert math.isnan(second.values["loss"])


def test_the_values_of_a_line_are_one_record_whoever_found_them() -> None:
    expressions = [r"acc=(?P<acc>\S+)", r"step=(?P<step>\d+)", r"loss/train := loss=(\S+)", r"t=(?P<time>\S+)"]
    text = "acc=0.9 step=7 loss=0.3 t=1.5\nloss=0.2\nstep=9 acc=1\n"
    assert scanned(text, expressions) == [
        Metrics({"acc": 0.9, "loss/train": 0.3}, 7, 1.5),
        Metrics({"loss/train": 0.2}, 7, 1.5),
        Metrics({"acc": 1.0}, 9, None),
    ]


def test_a_name_or_a_step_that_comes_again_in_a_line_begins_another_record() -> None:
    assert scanned("a=1 a=2 b=3\n", [r"a=(?P<a>\d)", r"b=(?P<b>\d)"]) == [Metrics({"a": 1.0}), Metrics({"a": 2.0, "b": 3.0})]
    assert scanned("s=1 a=1 s=2 b=5\n", [r"s=(?P<step>\d)", r"a=(?P<a>\d)", r"b=(?P<b>\d)"]) == [
        Metrics({"a": 1.0}, 1), Metrics({"b": 5.0}, 2),
    ]  # fmt: skip


def test_a_step_of_its_own_line_holds_for_those_that_follow() -> None:
    expressions = [r"^Step (?P<step>\d+)", r"^t = (?P<time>\S+)", r"r=(?P<r>\S+)"]
    # In either order of step and time; what was used ends when the other comes alone.
    text = "r=0\nStep 1\nt = 0.1\nr=1\nr=2\nt = 0.2\nStep 2\nr=3\nStep 3\nr=4\nt = 0.5\nr=5\n"
    found = [(one.values["r"], one.step, one.time) for one in scanned(text, expressions)]
    assert found == [(0, None, None), (1, 1, 0.1), (2, 1, 0.1), (3, 2, 0.2), (4, 3, None), (5, None, 0.5)]


def test_names_made_of_the_text() -> None:
    text = "Solving for Ux, residual = 0.1\nSolving for p_rgh[0], residual = 2\n"
    assert [one.values for one in scanned(text, [r"residual/{field} := Solving for (?P<field>[^,]+), residual = (\S+)"])] == [
        {"residual/Ux": 0.1}, {"residual/p_rgh(0)": 2.0},
    ]  # fmt: skip


def test_alternatives_that_were_not_taken_say_nothing() -> None:
    assert scanned("b=2\n", [r"a=(?P<a>\d)|b=(?P<b>\d)"]) == [Metrics({"b": 2.0})]


def test_events_and_their_levels() -> None:
    text = "all well\nWARNING: hot\n[ERR] disk: gone\nfatal: x\nboth\n"
    events = [r"^(?P<warning>WARNING.*)", r"^\[(?P<level>\w+)\] (?P<message>.*)", "^fatal", "bo", "th"]
    assert scanned(text, [], events) == [
        Event("WARNING: hot", "warning"), Event("disk: gone", "error"), Event("fatal: x", "info"), Event("both", "info"),
    ]  # fmt: skip


def test_metrics_and_events_come_in_the_order_of_the_text() -> None:
    found = scanned("a=1\nboom a=2\nboom\na=3\n", [r"a=(?P<a>\d)"], ["boom"])
    assert found == [Metrics({"a": 1.0}), Metrics({"a": 2.0}), Event("boom a=2", "info"), Event("boom", "info"), Metrics({"a": 3.0})]


def test_what_is_no_number_is_counted_and_the_rest_is_kept() -> None:
    patterns = Patterns([r"loss=(?P<loss>\S+) acc=(?P<acc>\S+)", r"step (?P<step>\S+)"])
    assert list(patterns.scan(b"loss=***** acc=0.5\nstep x\nloss=n/a acc=1\n")) == [Metrics({"acc": 0.5}), Metrics({"acc": 1.0})]
    assert (patterns.refused, patterns.first_refused) == (3, "loss = '*****'")


def test_another_text_begins_anew() -> None:
    patterns = Patterns([r"step=(?P<step>\d+)", r"a=(?P<a>\S+)", "preset:table"])
    list(patterns.scan(b"step=4\na=x\nu v\n1 2\n"))
    other = patterns.fresh()
    assert (other.refused, list(other.scan(b"3 4\na=1\n"))) == (0, [Metrics({"a": 1.0})])
    assert list(patterns.scan(b"3 4\n")) == [Metrics({"u": 3.0, "v": 4.0}, 4)]


def test_bytes_that_are_not_utf8_are_replaced_and_hide_nothing() -> None:
    assert scanned(b"T = 300 \xb0C loss=2 \xff\nu=1\xe9\n", [r"T = (?P<T>\d+) .*loss=(?P<loss>\S+)"], [r"u=1"]) == [
        Metrics({"T": 300.0, "loss": 2.0}), Event("u=1�", "info"),
    ]  # fmt: skip


def test_a_match_lies_in_one_line() -> None:
    assert scanned("a=1\nb=2\n", [r"a=(?P<a>\d)\s+b=(?P<b>\d)"]) == []
    assert scanned("a=1\nb=2\n", [r"a=(?P<a>[^b]+)"]) == [Metrics({"a": 1.0})]


def test_ever_new_names_are_bounded() -> None:
    patterns = Patterns([r"{n} := (?P<n>\w+)=(\d+)"])
    block = b"".join(b"n%d=1\n" % i for i in range(10_050))
    assert sum(1 for _ in patterns.scan(block)) == 10_000
    assert patterns.refused == 50
    assert "10000 names" in patterns.first_refused
    assert list(patterns.scan(b"n7=2\n")) == [Metrics({"n7": 2.0})]


@pytest.mark.parametrize(
    ("expression", "message", "at"),
    [
        ("loss=(\\d+", "missing )", 5),
        ("loss=[0-9", "missing ]", 5),
        ("loss=**", "bad repetition operator", 5),
        ("(?P<a>x)\\1", "back-references are not available", 8),
        ("(?=x)(?P<a>y)", "look-around and back-references", 0),
        ("loss=(\\S+)", r"name it, as in 'loss=(?P<loss>\S+)', or write 'loss := loss=(\S+)'", None),
        ("loss", "write (?P<loss>", None),
        ("a := (x)(y)", "there are 2", None),
        ("a := x", "there are 0", None),
        ("a{b} := (x)", "no group (?P<b>", 1),
        ("a := (x)(?P<b>y)", "write {b} in the name", None),
        ("a := (x", "missing )", 5),
        ("ä := (x)", "metric name", 0),
        ("(?P<a>x)|(?P<a>y)", "two groups are named 'a'", 12),
        ("(?P<a>x*)", "matches an empty line", None),
        ("preset:gromax", "preset:table, preset:lammps, preset:openfoam", 7),
        ("(?P<a>x)\ud800", "not UTF-8", None),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_place(expression: str, message: str, at: int | None) -> None:
    with pytest.raises(InvalidPattern, match=re.escape(message)) as refused:
        Patterns([expression])
    assert refused.value.at == at
    if at is not None:
        *_, text, mark = str(refused.value).split("\n")
        assert text == "  " + expression
        assert mark == " " * (at + 2) + "^"


def test_an_event_expression_is_checked_too() -> None:
    with pytest.raises(InvalidPattern, match="the event expression") as refused:
        Patterns([], ["fine", "not ("])
    assert refused.value.expression == "not ("


WORDS = (
    b"\n", b"loss=", b"1 2 3\n", b"a b c\n", b"step=", b"7", b"Loop time of ", b"Per MPI rank memory allocation\n",
    b"---- Step 7 ----- CPU = 1 (sec) ----\n", b"E = 4\n", b"  - [1, 2, ]\n", b"keywords: ['a', 'Step', ]\n",
)  # fmt: skip


@given(st.binary(max_size=300), st.lists(st.sampled_from(WORDS)))
@settings(max_examples=150, deadline=None)
def test_no_bytes_hurt(rubbish: bytes, words: list[bytes]) -> None:
    presets = ["preset:table", "preset:lammps", "preset:openfoam"]
    patterns = Patterns([*presets, r"loss=(?P<loss>.*)", r"step=(?P<step>\S*)", r"{n}x := (?P<n>.)(\d)"], ["(?P<message>lo)?s"])
    middle = len(words) // 2
    for block in (rubbish, b"".join(words[:middle]), rubbish.join(words), b"".join(words[middle:]), b"\n", b""):
        for found in patterns.scan(block):
            assert isinstance(found, Metrics | Event)


LINES = (b"step=1", b"step=2 a=1", b"a=3", b"a=1 b=2", b"x y", b"1 2", b"3 4", b"x y z", b"1 2 3", b"WARN", b"", b"t=5 a=0")
lines = st.lists(st.sampled_from(LINES), max_size=30)


@given(lines, st.sets(st.integers(0, 30)))
@settings(max_examples=150, deadline=None)
def test_where_blocks_are_cut_makes_no_difference(text: list[bytes], cuts: set[int]) -> None:
    patterns = Patterns([r"step=(?P<step>\d)", r"a=(?P<a>\d)", r"b=(?P<b>\d)", r"t=(?P<time>\d)", "preset:table"], ["WARN"])
    whole = list(patterns.fresh().scan(b"".join(line + b"\n" for line in text)))
    parts: list[Any] = []
    block = b""
    for at, line in enumerate(text):
        block += line + b"\n"
        if at in cuts:
            parts += patterns.scan(block)
            block = b""
    assert [*parts, *patterns.scan(block)] == whole
