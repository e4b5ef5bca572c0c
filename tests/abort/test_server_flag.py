"""The server's abort flag: raised by the published client, seen by the agent, acted on once, and never by a later life of the run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_server import RealServer, agent

from simspool.agent.server import schema
from simspool.spool import Spool, ids
from simspool.spool.control import requests


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    with RealServer(tmp_path_factory.mktemp("server") / "data") as found:
        yield found


@contextlib.contextmanager
def daemon(server: RealServer) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-m", "simspool.agent", "run", "--json"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, **server.environment},
    )  # fmt: skip
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def raise_flag(server: RealServer, run: str, reason: str) -> None:
    request = urllib.request.Request(
        f"{server.url}/api/runs/{run}/abort", json.dumps({"reason": reason}).encode(), method="PUT",
        headers={"Authorization": f"Bearer {server.token}", "Content-Type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200


def test_a_flag_aborts_the_run_once(world, server: RealServer, spool: Spool) -> None:
    victim = world.victim("answers", mode="run")
    agent("sync", env=server.environment, check=True)
    raise_flag(server, victim.run, "seen on the screen")
    folder = spool.run(victim.run)
    with daemon(server):
        world.until(lambda: "done" in world.states(victim.run))
    [request] = requests(folder)
    assert (request.by, request.reason, request.writers) == ("server", "seen on the screen", (victim.writer,))
    assert server.get(f"/runs/{victim.run}/abort")["status"] is True


def test_a_restarted_agent_does_not_make_it_again(world, server: RealServer, spool: Spool) -> None:
    victim = world.victim("silent", mode="ignore")
    agent("sync", env=server.environment, check=True)
    raise_flag(server, victim.run, "again and again")
    for _ in range(2):
        with daemon(server):
            world.until(lambda: requests(spool.run(victim.run)))
            world.rest(1.0)
    assert len(requests(spool.run(victim.run))) == 1
    assert world.states(victim.run).count("requested") == 1


def test_an_old_flag_does_not_stop_who_opens_the_run_again(world, server: RealServer, spool: Spool) -> None:
    victim = world.victim("silent")
    agent("sync", env=server.environment, check=True)
    raise_flag(server, victim.run, "old")
    os.kill(victim.pid, signal.SIGKILL)  # it ends before any agent sees the flag
    victim.popen.wait(10)
    agent("sync", env=server.environment, check=True)
    later = world.victim("silent", run=victim.run)
    agent("sync", env=server.environment, check=True)
    with daemon(server):
        world.rest(3.0)
        assert not later.is_gone
        assert requests(spool.run(victim.run)) == []
    raise_flag(server, victim.run, "new")
    with daemon(server):
        world.until(lambda: requests(spool.run(victim.run)))
    assert requests(spool.run(victim.run))[0].reason == "new"


PUBLISHED = """
import sys
from simvue import Client
Client().abort_run(sys.argv[1], reason="by the published client")
"""


def test_the_published_client_raises_it(world, server: RealServer, spool: Spool, tmp_path: Path) -> None:
    victim = world.victim("answers", mode="run")
    agent("sync", env=server.environment, check=True)
    env = {**os.environ, "SIMVUE_URL": server.url, "SIMVUE_TOKEN": server.token}
    done = subprocess.run([sys.executable, "-c", PUBLISHED, victim.run], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    with daemon(server):
        world.until(lambda: "done" in world.states(victim.run))
    assert requests(spool.run(victim.run))[0].reason == "by the published client"


def test_a_flag_for_a_run_that_is_not_here_is_left_alone(world) -> None:
    aborts = world.begin()
    assert not aborts.flagged("server", "no such run", {"reason": "x"})
    assert not aborts.flagged("server", ids.to_text(ids.new_id()), {"reason": "x"})


def test_a_database_of_before_gets_the_column(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "server.db", isolation_level=None)
    schema.migrate(connection)
    connection.execute("ALTER TABLE runs DROP COLUMN abort_writers")
    connection.execute("PRAGMA user_version = 1")
    schema.migrate(connection)
    assert "abort_writers" in {row[1] for row in connection.execute("PRAGMA table_info(runs)")}
    assert connection.execute("PRAGMA user_version").fetchone()[0] == schema.VERSION
    connection.close()
