"""Fixtures for conftest files: an empty spool, and one real server for a room's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from real_server import RealServer

from simspool.spool import Spool, open_spool


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spool:
    """An empty spool, also in the environment."""
    monkeypatch.setenv("SIMSPOOL_DIR", str(tmp_path / "spool"))
    return open_spool(tmp_path / "spool", create=True)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """One real server for all tests: runs have ids of their own."""
    with RealServer(tmp_path_factory.mktemp("server") / "data") as found:
        yield found
