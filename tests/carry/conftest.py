"""Spools on both sides of a gap, and the command."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlite_utils  # noqa: F401 - loaded here, so that not every catalog of a test needs a child process
from command import Command
from own_state import own_state  # noqa: F401 - autouse
from shared_fixtures import spool  # noqa: F401
from sides import Side
from two_spools import far  # noqa: F401


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[Side]:
    """The spool that records, and its agent's parts."""
    with Side(tmp_path / "origin") as made:
        yield made


@pytest.fixture
def agent(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return Command(capsys)
