"""The reference, the histories and the helpers are modules beside the tests; a real agent on a spool of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from watching import wait_for

from simspool.spool.process import this_host


@pytest.fixture
def spool_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A spool of its own, with no agent."""
    monkeypatch.setenv("SIMSPOOL_DIR", str(tmp_path / "spool"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("SIMSPOOL_URL", raising=False)
    return tmp_path / "spool"


@pytest.fixture
def start_agent(spool_dir: Path, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Start `agent run` and wait until it serves; all are ended at the end."""
    started: list[subprocess.Popen[bytes]] = []
    log = (tmp_path / "agent.log").open("wb")

    def start() -> subprocess.Popen[bytes]:
        agent = subprocess.Popen([sys.executable, "-W", "error", "-m", "simspool.agent", "run"], stderr=log)
        started.append(agent)
        here = this_host()
        hosts = spool_dir / "agent" / "hosts" / f"{here.name}-{here.pid_namespace}.json"
        wait_for(lambda: hosts.exists() and json.loads(hosts.read_text())["pid"] == agent.pid)
        return agent

    yield start
    for agent in started:
        if agent.poll() is None:
            agent.send_signal(signal.SIGCONT)
            agent.terminate()
            assert agent.wait(20) == 0
    log.close()
    assert "stumbled" not in (tmp_path / "agent.log").read_text()
