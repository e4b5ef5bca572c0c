"""A real server, a spool, and the environment in which our SDK records offline and the published package reads back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_server import RealServer


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """One real server for all tests."""
    with RealServer(tmp_path_factory.mktemp("server") / "data") as found:
        yield found


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, server: RealServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n != "SIMSPOOL_AGENT" and n.startswith(("SIMSPOOL_", "SIMVUE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SIMSPOOL_DIR", str(tmp_path / "spool"))
    monkeypatch.setenv("SIMSPOOL_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SIMVUE_URL", server.url)
    monkeypatch.setenv("SIMVUE_TOKEN", server.token)
    monkeypatch.setenv("SIMVUE_OFFLINE_DIRECTORY", str(tmp_path / "simvue"))
    for name in ("ENVIRONMENT", "GIT", "SYSTEM"):
        monkeypatch.setenv(f"SIMVUE_DISABLE_{name}_METRICS", "1")
    monkeypatch.chdir(tmp_path)
