"""Fixtures: two spools with a gap between them, and a server beyond it. A conftest imports what its room uses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from real_server import RealServer

from simspool.spool import Spool, open_spool


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
