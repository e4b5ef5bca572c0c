"""Two spools with a gap between them, and what is carried over it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlite_utils  # noqa: F401 - loaded here, so that not every catalog of a test needs a child process
from command import Command
from own_state import own_state  # noqa: F401 - autouse
from real_server import RealServer

from simspool.spool import Spool, open_spool

sys.path.insert(0, str(Path(__file__).parent))  # for `made`


@pytest.fixture
def origin(tmp_path: Path) -> Spool:
    """The spool that records."""
    return open_spool(tmp_path / "origin", create=True)


@pytest.fixture
def far(tmp_path: Path) -> Spool:
    """The spool on the other side."""
    return open_spool(tmp_path / "far", create=True)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RealServer]:
    """A real server, which only the far side is told of."""
    with RealServer(tmp_path / "data") as found:
        yield found


@pytest.fixture
def agent(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command; bundles and receipts are made in `tmp_path / "carried"`."""
    (tmp_path / "carried").mkdir()
    monkeypatch.chdir(tmp_path / "carried")
    return Command(capsys)
