"""Spools on both sides of a gap, and the command."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlite_utils  # noqa: F401 - loaded here, so that not every catalog of a test needs a child process
from command import Command
from own_state import own_state  # noqa: F401 - autouse
from shared_fixtures import spool  # noqa: F401


@pytest.fixture
def agent(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return Command(capsys)
