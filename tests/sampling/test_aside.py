"""Questions that hang do not stop the asker."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from simspool.agent.sampling.aside import Aside, Unanswered


def test_an_answer() -> None:
    assert Aside().ask("a", lambda: 5, 10.0) == 5


def test_a_failure_is_told_and_may_be_asked_again(tmp_path: Path) -> None:
    aside = Aside()
    with pytest.raises(Unanswered, match="No such file"):
        aside.ask("a", lambda: os.statvfs(tmp_path / "nothing"), 10.0)
    assert aside.ask("a", lambda: 1, 10.0) == 1


def test_one_that_hangs_is_asked_once_and_the_others_are_answered(tmp_path: Path) -> None:
    """A read of a pipe that nobody writes to hangs in the kernel, as a mount whose server is gone does."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    asked = []

    def hang() -> bytes:
        asked.append(1)
        return pipe.read_bytes()

    aside = Aside()
    for _ in range(5):
        with pytest.raises(Unanswered, match="no answer"):
            aside.ask("disk", hang, 0.01)
        assert aside.ask("other", lambda: 1, 10.0) == 1
    assert asked == [1]
    assert sum(t.name == "simspool-aside" for t in threading.enumerate()) == 1
    pipe.write_bytes(b"late")
    assert aside.ask("disk", hang, 10.0) == b"late", "the late answer is given at the next call"
    assert asked == [1]
