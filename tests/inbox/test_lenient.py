"""Lines as programs print them: JSON as it is, numbers as C, Fortran and shells have them, and nothing that breaks the reader."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from producers import compiler

from simspool.agent.inbox.lenient import MAX_LINE, NotUnderstood, number, parse

TEXTS = st.text(max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=20,
)  # fmt: skip
PRINTED = [
    ("1", 1), ("+1", 1), ("-0", 0), ("007", 7), ("5.", 5.0), (".5", 0.5), ("-.5", -0.5), ("+.5e1", 5.0), ("1D3", 1000.0), ("1d-3", 0.001),
    ("1.5Q2", 150.0), ("0.10000000E+01", 1.0), ("1.0-101", 1e-101), ("1.0+101", 1e101), ("0x", None), ("1_000", None), ("--1", None),
    (".", None), ("e5", None), ("1e", None), ("1.2.3", None), ("+", None), ("0,5", None), ("True", None), ("\u0663", None),
    ("1e999", math.inf), ("-1D999", -math.inf), ("inf", math.inf),
    ("-Infinity", -math.inf), ("+INF", math.inf), ("infinit", None), ("nanx", None),
]  # fmt: skip


def same(a: Any, b: Any) -> bool:
    """Equal, NaN included, and of one type."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(TEXTS, VALUES, max_size=5))
def test_json_is_read_as_json(value: dict[str, Any]) -> None:
    assert same(parse(json.dumps(value).encode()), value)
    assert same(parse(json.dumps(value, indent=1, ensure_ascii=False).replace("\n", "\t").encode(errors="surrogatepass")), value) or any(
        0xD800 <= ord(c) < 0xE000 for c in json.dumps(value, ensure_ascii=False)
    )


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(TEXTS, VALUES, max_size=5))
def test_what_is_not_json_only_by_a_number_is_read_too(value: dict[str, Any]) -> None:
    text = json.dumps({"first": "?", "rest": value}).replace('"?"', "+1.D0", 1)
    assert same(parse(text.encode()), {"first": 1.0, "rest": value})


@pytest.mark.parametrize(("text", "value"), PRINTED)
def test_numbers_as_they_are_printed(text: str, value: float | None) -> None:
    if value is None:
        with pytest.raises(NotUnderstood):
            number(text)
        with pytest.raises(NotUnderstood):
            parse(f'{{"x": {text}}}'.encode())
    else:
        assert same(parse(f'{{"x": {text}}}'.encode())["x"], value)
        assert number(text) == value


@pytest.mark.parametrize("text", ["nan", "NaN", "-nan", "+NAN", "nan(0x7ff8)", "-nan(ind)"])
def test_nan_in_any_form(text: str) -> None:
    assert math.isnan(parse(f'{{"x":{text}}}'.encode())["x"])


@settings(max_examples=60, deadline=None)
@given(st.floats())
def test_what_c_prints_of_any_number(value: float) -> None:
    read = parse(f'{{"x": {value:+.17e}, "y": {value!r}}}'.encode())
    assert same(read, {"x": value, "y": value})


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200) | st.text('{}[],:"\\ \tnaif+-.0123456789eEdD', max_size=80).map(str.encode))
@example(b'{"a": "\\')
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000 + b"+1" + b"}" * 100_000)
@example(b'{"x": ' + b"1" * 5000 + b"}")
@example(b'{"x": "\xff"}')
def test_anything_is_understood_or_not(line: bytes) -> None:
    try:
        found: dict[str, Any] | str = parse(line)
    except NotUnderstood as error:
        found = str(error)
    assert isinstance(found, dict) or 0 < len(found) < 400


LONGEST = (b'{"x": +1, "s": "' + b"\\" * (MAX_LINE - 20), b'{"x": +1, ' + b'"a":1,' * 170_000, b"+" * MAX_LINE, b'"' * MAX_LINE)


@pytest.mark.parametrize("line", LONGEST, ids=["escapes", "entries", "signs", "quotes"])
def test_the_longest_odd_lines_are_refused(line: bytes) -> None:
    with pytest.raises(NotUnderstood):
        parse(line)


def test_a_field_that_was_too_narrow_is_named() -> None:
    with pytest.raises(NotUnderstood, match="wider format"):
        parse(b'{"metrics": {"x": ******}}')


def test_what_fortran_itself_prints(tmp_path: Path) -> None:
    source = tmp_path / "print.f90"
    source.write_text("""program printing
  use, intrinsic :: ieee_arithmetic
  implicit none
  double precision :: values(6)
  integer :: i
  values(1:3) = [1.5d0, -1d-101, 1d200]
  values(4) = ieee_value(1d0, ieee_quiet_nan)
  values(5:6) = [ieee_value(1d0, ieee_positive_inf), ieee_value(1d0, ieee_negative_inf)]
  do i = 1, size(values)
    print '(a,es12.4,a,es24.16e3,a,g0,a,f8.3,a)', &
      '{"x": ', values(i), ', "y":', values(i), ', "z": ', values(i), ', "w": ', 0.25d0, '}'
  end do
  write (*, '(a)', advance='no') '{"x": '
  write (*, *) values(1), ', "y": ', huge(1), '}'
end program
""")
    program = compiler("gfortran", source, tmp_path / "print")
    lines = subprocess.run([program], capture_output=True, check=True).stdout.splitlines()
    read = [parse(line) for line in lines]
    wanted = [1.5, -1e-101, 1e200, math.nan, math.inf, -math.inf]
    for found, value in zip(read[:6], wanted, strict=True):
        assert same(found, {"x": value, "y": value, "z": value, "w": 0.25}), lines
    assert read[6] == {"x": 1.5, "y": 2**31 - 1}
