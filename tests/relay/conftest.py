"""Two spools, a place between them, and an SSH server of the test's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlite_utils  # noqa: F401 - loaded here, so that not every catalog of a test needs a child process
from command import Command
from own_state import own_state  # noqa: F401 - autouse
from two_spools import far, origin, server  # noqa: F401 - fixtures

sys.path.insert(0, str(Path(__file__).parent))  # for `ssh_server` and `hop`

from ssh_server import SshServer


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The folder between them."""
    path = tmp_path / "place"
    path.mkdir(mode=0o700)
    return path


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
