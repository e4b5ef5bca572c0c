"""Making bundles and applying receipts beside a running agent, and importing beside one on the far side."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import Command
from made import apply, create, receipt, take
from real_server import RealServer
from recorded import begin, fill, whole

from simspool.agent.cli.handover import agent_status, api_path
from simspool.spool import Spool


@contextlib.contextmanager
def running(spool: Spool, *options: str) -> Iterator[None]:
    """An `agent run` on the spool, in a process of its own."""
    with open(Path(spool.path).parent / "agent.log", "a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "simspool.agent", "run", "--spool", spool.path, *options], stdout=log, stderr=log
        )
        try:
            until(lambda: process.poll() is not None or (api_path(spool) is not None and agent_status(spool) is not None))
            assert process.poll() is None, Path(log.name).read_text()[-2000:]
            yield
        finally:
            process.terminate()
            process.wait(30)


def until(condition: object) -> None:
    deadline = time.monotonic() + 100
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.05)


@pytest.mark.timeout(240)
def test_agents(origin: Spool, far: Spool, server: RealServer, agent: Command, tmp_path: Path) -> None:
    """What is recorded the moment before is in the bundle; what is imported is sent at once; the receipt is applied by the agent."""
    token = tmp_path / "token"
    token.write_text(server.token)
    token.chmod(0o600)
    with running(origin), running(far, "--url", server.url, "--token-file", str(token)):
        first = whole(origin, points=50)
        run, writer = begin(origin, "live")
        fill(writer, 70)
        made = create(agent, origin)
        assert made["runs"] == 2
        take(agent, far, made["path"])
        until(lambda: server.get(f"/runs/{run}") and server.points(run, "loss") == [(n, n / 2) for n in range(70)])
        until(lambda: server.get(f"/runs/{first}") and len(server.points(first, "loss")) == 50)
        until(lambda: apply(agent, origin, receipt(agent, far, "--url", server.url))["complete"] == 1)
        fill(writer, 30, start=70)
        assert create(agent, origin)["runs"] == 1
        assert agent("bundle", "create", "--spool", origin.path, "nobody") == 9
    assert writer.close({"status": "completed"})
