"""A spool, local state and a real server for the agent's tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlite_utils  # noqa: F401 - loaded here, so that not every catalog of a test needs a child process
from own_state import own_state  # noqa: F401 - autouse
from real_server import RealServer

from simspool.agent.catalog import Catalog
from simspool.spool import Spool, open_spool

sys.path.insert(0, str(Path(__file__).parent))  # for the campaign's module


@pytest.fixture(autouse=True)
def _close_catalogs_in_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tests look at spools through catalogs in memory; Python 3.13 wants each closed. Those in files are the code's to close."""
    made: list[Catalog] = []
    real = Catalog.__init__

    def remember(self: Catalog, path: str | None, **options: Any) -> None:
        real(self, path, **options)
        if path is None:
            made.append(self)

    monkeypatch.setattr(Catalog, "__init__", remember)
    yield
    for catalog in made:
        catalog.close()


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
