"""Two spools with a gap between them, and what is carried over it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import sqlite_utils  # noqa: F401 - loaded here, so that not every catalog of a test needs a child process
from command import Command
from own_state import own_state  # noqa: F401 - autouse
from two_spools import far, origin, server  # noqa: F401 - fixtures

sys.path.insert(0, str(Path(__file__).parent))  # for `made`


@pytest.fixture
def agent(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command; bundles and receipts are made in `tmp_path / "carried"`."""
    (tmp_path / "carried").mkdir()
    monkeypatch.chdir(tmp_path / "carried")
    return Command(capsys)
