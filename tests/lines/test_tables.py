"""Tables: names in a line, rows of numbers under it."""

from __future__ import annotations

import math

import pytest

from simspool.agent.lines.patterns import Metrics, Patterns


def table(text: str) -> list[Metrics]:
    return [found for found in Patterns(["preset:table"]).scan(text.encode()) if isinstance(found, Metrics)]


@pytest.mark.parametrize(
    "text",
    [
        "step,time,loss,acc [%]\n1,0.5,3e-1,90\n2,1.0,2e-1,91\n",
        "step;time;loss;acc [%]\n1;0.5;3e-1;90\n2;1.0;2e-1;91\n",
        '"step", "time", "loss", "acc [%]"\n1, 0.5, 3e-1, 90\n2, 1.0, 2e-1, 91,\n',
        "Log\n# step time loss acc[%]\n 1 0.5 3D-1 90\n 2 1.0 2D-1 91\n",
        "| step | time | loss | acc [%] |\n| 1 | 0.5 | 3e-1 | 90 |\n| 2 | 1.0 | 2e-1 | 91 |\n",
        "#! FIELDS step time loss acc[%]\n 1 0.5 0.3 90\n a warning between\n 2 1.0 0.2 91\n",
    ],
)
def test_the_usual_forms(text: str) -> None:
    found = table(text)
    assert [(one.step, one.time, one.values["loss"]) for one in found] == [(1, 0.5, 0.3), (2, 1.0, 0.2)]
    assert [[value for name, value in one.values.items() if name.startswith("acc")] for one in found] == [[90.0], [91.0]]


def test_prose_and_bare_numbers_are_no_table() -> None:
    assert table("It ran for 3 hours\n3 4 5\nresults\n1\n2 3\n") == []


def test_another_header_takes_over_and_other_rows_are_passed_over() -> None:
    text = "a b\n1 2\n1 2 3\n3 4\nx y\n5 6\n\n7 8\n"
    assert [one.values for one in table(text)] == [{"a": 1, "b": 2}, {"a": 3, "b": 4}, {"x": 5, "y": 6}, {"x": 7, "y": 8}]


def test_fields_that_overflowed_and_values_that_are_none() -> None:
    patterns = Patterns(["preset:table"])
    first, second = (found for found in patterns.scan(b"Iter res mass\n1 ***** 2\n2 NaN -inf\n") if isinstance(found, Metrics))
    assert first == Metrics({"mass": 2.0}, 1)
    assert math.isnan(second.values["res"])
    assert second.values["mass"] == -math.inf
    assert (patterns.refused, patterns.first_refused) == (1, "res = '*****'")


def test_equal_titles_and_odd_ones() -> None:
    assert table("v v c_1[2] a{b}\n1 2 3 4\n") == [Metrics({"v": 1.0, "v (2)": 2.0, "c_1(2)": 3.0, "a_b_": 4.0})]


def test_openfoam() -> None:
    text = """Time = 0.005s

Courant Number mean: 0.0976825 max: 0.585607
smoothSolver:  Solving for Ux, Initial residual = 0.160686, Final residual = 6.83031e-06, No Iterations 19
DICPCG:  Solving for p, Initial residual = 0.428925, Final residual = 0.0103739, No Iterations 22
time step continuity errors : sum local = 0.000110788, global = 3.77194e-19, cumulative = -2.72498e-20
ExecutionTime = 0.01 s  ClockTime = 0 s

Time = 0.01s

--> FOAM FATAL ERROR: Maximum number of iterations exceeded
"""
    *found, event = Patterns(["preset:openfoam"]).scan(text.encode())
    assert found == [
        Metrics({"Courant/mean": 0.0976825, "Courant/max": 0.585607}, None, 0.005),
        Metrics({"residual/Ux": 0.160686, "final residual/Ux": 6.83031e-06, "iterations/Ux": 19.0}, None, 0.005),
        Metrics({"residual/p": 0.428925, "final residual/p": 0.0103739, "iterations/p": 22.0}, None, 0.005),
        Metrics({"continuity/local": 0.000110788, "continuity/global": 3.77194e-19}, None, 0.005),
        Metrics({"ExecutionTime": 0.01}, None, 0.005),
    ]
    assert event == ("--> FOAM FATAL ERROR: Maximum number of iterations exceeded", "error")
