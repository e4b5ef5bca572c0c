"""A spool with a run that has an inbox; campaigns are modules beside the tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from own_state import own_state  # noqa: F401 - autouse
from real_server import RealServer

from simspool.spool import Spool, open_spool

sys.path.insert(0, str(Path(__file__).parent))


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
