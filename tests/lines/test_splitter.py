"""However the bytes are cut, the lines are the same."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simspool.agent.lines.splitter import Lines

texts = st.lists(st.sampled_from([b"\n", b"\r", b"\r\n", b"a", b"loss=1", b"\0", b"\xff\xfe", b"x" * 30]), max_size=40).map(b"".join)


def expected(text: bytes, limit: int) -> bytes:
    """The rule in one line of another mechanism."""
    lines = re.split(rb"\r\n|\r|\n", text)
    last = lines.pop()
    return b"".join(line[:limit] + b"\n" for line in lines) + (last[:limit] + b"\n" if last else b"")


@given(texts, st.lists(st.integers(0, 200), max_size=8), st.sampled_from([1, 3, 10, 29, 30, 1000]))
@settings(max_examples=200, deadline=None)
def test_cuts_make_no_difference(text: bytes, cuts: list[int], limit: int) -> None:
    lines = Lines(limit)
    at, blocks = 0, []
    for cut in [*sorted(cut for cut in cuts if cut <= len(text)), len(text)]:
        blocks.append(lines.push(text[at:cut]))
        assert lines.pending <= limit
        at = cut
    assert all(not block or block.endswith(b"\n") for block in blocks)
    assert b"".join(blocks) + lines.flush() == expected(text, limit)
    assert lines.cut == sum(len(line) > limit for line in re.split(rb"\r\n|\r|\n", text))


def test_a_progress_bar_is_lines_at_once() -> None:
    lines = Lines()
    assert lines.push(b" 10%\r 20%\r") == b" 10%\n 20%\n"
    assert lines.push(b"\n100%\r\ndone") == b"100%\n"
    assert lines.flush() == b"done\n"
    assert lines.flush() == b""


def test_an_endless_line_takes_no_memory() -> None:
    lines = Lines(1000)
    for _ in range(100):
        assert lines.push(b"y" * 65536) == b""
    assert (lines.pending, lines.cut) == (1000, 1)
    assert lines.push(b"\nnext\n") == b"y" * 1000 + b"\nnext\n"
    assert lines.cut == 1


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 byte"):
        Lines(0)
