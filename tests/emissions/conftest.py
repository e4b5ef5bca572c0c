"""Real runs that ask for emissions, real codecarbon; nothing of this user's settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from emitting import AgentProcess, Script
from own_state import own_state

from simspool.spool import Spool, open_spool

__all__ = ["own_state"]


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spool:
    """An empty spool, also in the environment; the working folder has no settings."""
    monkeypatch.setenv("SIMSPOOL_DIR", str(tmp_path / "spool"))
    monkeypatch.setenv("SIMSPOOL_EMISSIONS_EVERY", "1")
    monkeypatch.delenv("SIMSPOOL_COUNTRY", raising=False)
    monkeypatch.chdir(tmp_path)
    return open_spool(tmp_path / "spool", create=True)


@pytest.fixture
def script() -> Iterator[Callable[..., Script]]:
    """Start a script; all end with the test."""
    started: list[Script] = []

    def start(*arguments: str, **environment: str) -> Script:
        started.append(Script(*arguments, **environment))
        return started[-1]

    yield start
    for one in started:
        one.end()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Callable[..., AgentProcess]]:
    """Start an agent; all end with the test."""
    started: list[AgentProcess] = []

    def start(*before: str, **environment: str) -> AgentProcess:
        started.append(AgentProcess(tmp_path / f"agent{len(started)}.log", *before, **environment))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.kill()
