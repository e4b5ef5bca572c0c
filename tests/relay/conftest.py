"""Two spools, a place between them, and an SSH server of the test's own."""

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

sys.path.insert(0, str(Path(__file__).parent))  # for `ssh_server` and `hop`

from ssh_server import SshServer


@pytest.fixture
def origin(tmp_path: Path) -> Spool:
    """The spool that records."""
    return open_spool(tmp_path / "origin", create=True)


@pytest.fixture
def far(tmp_path: Path) -> Spool:
    """The spool on the other side."""
    return open_spool(tmp_path / "far", create=True)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The folder between them."""
    path = tmp_path / "place"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RealServer]:
    """A real server, which only the far side is told of."""
    with RealServer(tmp_path / "data") as found:
        yield found


@pytest.fixture
def agent(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command, in a folder without settings."""
    monkeypatch.chdir(tmp_path)
    return Command(capsys)


@pytest.fixture
def sshd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SshServer]:
    """A real sshd on a free port of this machine; nothing of this user's keys or agent is used."""
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with SshServer(tmp_path / "ssh") as found:
        yield found
