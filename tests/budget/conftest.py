"""A spool, local state, and small segments: what is sealed quickly can be shed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import sqlite_utils  # noqa: F401 - loaded here, so that not every catalog of a test needs a child process
from own_state import own_state  # noqa: F401 - autouse
from shared_fixtures import spool  # noqa: F401

from simspool.spool import segment

sys.path.insert(0, str(Path(__file__).parent))  # for shedding.py


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotation at 64 KiB."""
    monkeypatch.setattr(segment, "SEGMENT_MAX", 1 << 16)
