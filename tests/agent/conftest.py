"""A spool, local state and a real server for the agent's tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlite_utils  # noqa: F401 - loaded here, so that not every catalog of a test needs a child process
from own_state import own_state  # noqa: F401 - autouse
from shared_fixtures import server, spool  # noqa: F401

from simspool.agent.catalog import Catalog

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
