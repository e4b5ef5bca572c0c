"""A spool, an SMTP server of the test's own, and what tells people without an agent around it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlite_utils  # noqa: F401 - loaded here, so that not every catalog of a test needs a child process
from own_state import own_state  # noqa: F401 - autouse

from simspool.spool import Spool, open_spool

sys.path.insert(0, str(Path(__file__).parent))

from mail_sink import MailSink


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spool:
    """An empty spool, also in the environment."""
    monkeypatch.setenv("SIMSPOOL_DIR", str(tmp_path / "spool"))
    monkeypatch.chdir(tmp_path)
    return open_spool(tmp_path / "spool", create=True)


@pytest.fixture
def sink() -> Iterator[MailSink]:
    """A mail server that takes everything."""
    with MailSink() as found:
        yield found
