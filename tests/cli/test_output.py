"""Tables, JSON lines and progress."""

from __future__ import annotations

import io
import json
import math

import pytest

from simspool.agent.cli import output


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("größe 大", "größe 大"),
        ("\x1b[31m", "\\x1b[31m"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x9b1m", "\\x9b1m"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("\u2028", "\\u2028"),
        ("\udc80", "\\udc80"),
        ("\x00", "\\x00"),
    ],
)
def test_safe_escapes_what_steers_a_terminal(text: str, shown: str) -> None:
    assert output.safe(text) == shown


def test_json_lines_are_strict_and_ascii() -> None:
    line = output.json_line({"a": math.nan, "b": [math.inf, {"c": -math.inf}], "d": "ü\x1b"})
    assert line.isascii()
    assert "\x1b" not in line
    assert json.loads(line, parse_constant=pytest.fail) == {"a": "NaN", "b": ["Infinity", {"c": "-Infinity"}], "d": "ü\x1b"}


def test_tables_align_and_escape() -> None:
    lines = output.table(("name", "n"), [("a\x1b", 1), ("大", 23), ("b", None)])
    assert lines == ["NAME    N", "a\\x1b   1", "大     23", "b       -"]
    assert output.table(("name",), []) == ["NAME"]


def test_pairs_leave_out_what_is_not_there() -> None:
    assert output.pairs([("id", "x"), ("status", "running"), ("gone", None)]) == ["id      x", "status  running"]


@pytest.mark.parametrize(("count", "shown"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_960, "1.0 MB"), (4.2e12, "4.2 TB")])
def test_human_bytes(count: int, shown: str) -> None:
    assert output.human_bytes(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.42, "0.4 s"), (59, "59 s"), (200, "3 min 20 s"), (18180, "5 h 03 min"), (1_051_200, "12 d 4 h")],
)
def test_human_seconds(seconds: float, shown: str) -> None:
    assert output.human_seconds(seconds) == shown


def test_iso_times_survive_the_absurd() -> None:
    assert output.iso_ns(1_700_000_000_123_456_789) == "2023-11-14T22:13:20.123456Z"
    assert output.iso_ns(-1_000) == "1969-12-31T23:59:59.999999Z"
    assert output.iso_ns(1 << 80) == str(1 << 80)


def test_progress_off_a_terminal_is_plain_lines_now_and_then() -> None:
    stream = io.StringIO()
    with output.Progress("sync\x1b", 100, stream=stream) as progress:
        for i in range(100):
            progress.update(i)
    assert stream.getvalue() == ""
    with output.Progress("sync", 100, stream=stream, every=0) as progress:
        progress.update(50, note="run\n1")
        progress.finish("done")
    assert stream.getvalue() == "sync: 50 of 100, run\\n1\ndone\n"


def test_progress_on_a_terminal_is_one_line_that_goes_away() -> None:
    stream = _Terminal()
    with output.Progress("sync", 100, stream=stream, every=0) as progress:
        progress.advance(50)
    text = stream.getvalue()
    assert "sync [##########..........] 50 of 100" in text
    assert text.endswith("\r\x1b[K")
    assert "\n" not in text


def test_progress_can_be_quiet() -> None:
    stream = _Terminal()
    with output.Progress("sync", 1, stream=stream, every=0, quiet=True) as progress:
        progress.advance()
        progress.finish("done")
    assert stream.getvalue() == ""
