"""`agent abort`: without an agent, beside one, and what it says of what became of the run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from real_server import agent

from simspool.spool import Spool
from simspool.spool.control import requests

SHORT = "[abort]\nanswer_grace = 0.5\ncallback_grace = 5\nterm_grace = 0.5\n"


@pytest.fixture
def short(tmp_path: Path) -> None:
    """Short graces, for commands and agents of this test."""
    (tmp_path / "simspool.toml").write_text(SHORT)


@pytest.fixture
def daemon(spool: Spool, short: None, tmp_path: Path):
    """A real agent."""
    log = (tmp_path / "agent.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "simspool.agent", "run", "--json"], stdout=subprocess.PIPE, stderr=log, text=True
    )  # fmt: skip
    while "serving" not in process.stdout.readline():
        assert process.poll() is None, (tmp_path / "agent.log").read_text()
    yield process
    process.send_signal(signal.SIGTERM)
    process.stdout.read()
    process.wait(20)
    process.stdout.close()
    log.close()


def test_without_an_agent_the_file_is_there(world) -> None:
    victim = world.victim("silent")
    done = agent("abort", victim.run, "--reason", "too hot", "--json", check=True)
    told = json.loads(done.stdout)
    assert (told["agent"], told["writers"], told["exit_code"]) == (False, [victim.writer], 0)
    [request] = requests(world.spool.run(victim.run))
    assert (request.id, request.reason, request.by, request.writers) == (told["id"], "too hot", "user", (victim.writer,))
    assert not victim.is_gone


def test_wait_without_an_agent_sees_it_through(world, short: None) -> None:
    victim = world.victim("hung-stubborn", children=1)
    done = agent("abort", victim.run, "--wait", "--json", check=True)
    told = json.loads(done.stdout)
    [process] = told["processes"]
    assert (process["pid"], process["outcome"], process["writers"]) == (victim.pid, "killed", [victim.writer])
    assert victim.tree_is_gone
    assert [s for s in world.states(victim.run) if s != "gone"] == ["requested", "unanswered", "signalled", "killed", "killed"]


def test_wait_says_how_each_process_ended(world, short: None) -> None:
    victim = world.victim("answers")
    goes_on = world.victim("stays", mode="run")
    ignores = world.victim("ignores", mode="ignore")
    assert json.loads(agent("abort", victim.run, "--wait", "--json", check=True).stdout)["processes"][0]["outcome"] == "ended"
    assert json.loads(agent("abort", goes_on.run, "--wait", "--json", check=True).stdout)["processes"][0]["outcome"] == "closed"
    done = agent("abort", ignores.run, "--wait")
    assert done.returncode == 1
    assert f"process {ignores.pid} " in done.stdout
    assert "ignores aborts" in done.stdout
    assert victim.is_gone
    assert not goes_on.is_gone
    assert not ignores.is_gone


def test_beside_an_agent_that_agent_does_it(world, daemon: object) -> None:
    victim = world.victim("hung", children=2)
    done = agent("abort", victim.run, "--reason", "hung", "--wait", "--json", check=True)
    told = json.loads(done.stdout)
    assert (told["agent"], told["processes"][0]["outcome"]) == (True, "signalled")
    assert victim.tree_is_gone


def test_a_run_that_has_ended_and_a_run_that_is_not_there(world) -> None:
    victim = world.victim("silent")
    os.kill(victim.pid, signal.SIGKILL)
    victim.popen.wait(10)
    done = agent("abort", victim.run)
    assert done.returncode == 1
    assert "has ended: there is nothing to abort" in done.stderr
    assert requests(world.spool.run(victim.run)) == []
    done = agent("abort", "nothing-of-the-kind")
    assert done.returncode == 9
    assert "no run 'nothing-of-the-kind'" in done.stderr


def test_sticky_stops_what_opens_the_run_later(world, daemon: object) -> None:
    first = world.victim("silent")
    os.kill(first.pid, signal.SIGKILL)
    first.popen.wait(10)
    agent("abort", first.run, "--sticky", check=True)
    later = world.victim("silent", run=first.run)
    world.until(lambda: later.is_gone)
