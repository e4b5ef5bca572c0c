"""Numbers of C, C++, Fortran, Python, MATLAB and shells."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simspool.agent.lines.numerals import number, whole_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1.0), ("+1", 1.0), ("-7", -7.0), ("1.", 1.0), (".5", 0.5), ("1e3", 1e3), ("1E-03", 1e-3), (" 2.5 ", 2.5),
        ("1.0D+00", 1.0), ("1.5d3", 1500.0), ("-.25Q-2", -0.0025), ("0.1234-101", 0.1234e-101), ("1.0+100", 1e100), ("1d5", 1e5),
        ("inf", math.inf), ("-Inf", -math.inf), ("+Infinity", math.inf), ("-INFINITY", -math.inf),
        ("0.3,", 0.3), ("(0.3)", 0.3), ("[1e-3]", 1e-3), ("'4'", 4.0), ("0.3;", 0.3), ("0.3.", 0.3), ("1.0D+00,", 1.0), ("inf,", math.inf),
        ("9007199254740993", 9007199254740993), ("-9223372036854775807", -9223372036854775807), ("1e400", math.inf),
        ("99999999999999999999", 1e20),
    ],
)  # fmt: skip
def test_what_is_a_number(text: str, value: float) -> None:
    found = number(text.encode())
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["nan", "NaN", "NAN", "-nan", "nan(ind)", "-nan(0x8000000000000)", "NaNQ", "nan,", "+NaN"])
def test_what_is_not_a_number_is_one(text: str) -> None:
    found = number(text.encode())
    assert found is not None
    assert math.isnan(found)


@pytest.mark.parametrize(
    "text",
    ["", " ", "*****", "1,234", "1_000", "0x10", "5%", "1.2.3", "e5", "D+00", "12:30", "n/a", "None", "--1", "1e", "1+10", "3s", "1" * 500,
     "∞"],
)  # fmt: skip
def test_what_is_none(text: str) -> None:
    assert number(text.encode()) is None


def test_steps() -> None:
    assert [whole_number(text) for text in (b"7", b"7.0", b"7e3", b"-1", b"9007199254740993")] == [7, 7, 7000, -1, 9007199254740993]
    assert [whole_number(text) for text in (b"7.5", b"nan", b"inf", b"x", b"1e300")] == [None] * 5


@given(st.binary(max_size=30))
def test_any_bytes_are_a_number_or_none(text: bytes) -> None:
    assert isinstance(number(text), float | int | None)
    assert isinstance(whole_number(text), int | None)


@given(st.floats(allow_nan=False))
def test_what_python_and_fortran_print_is_exact(value: float) -> None:
    assert number(repr(value).encode()) == value
    assert number(f"{value:.17e}".replace("e", "D").encode()) == value or math.isinf(value)
