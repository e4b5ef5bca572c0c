"""`agent target`: what is wrong is said before anything is written; what is added is drained to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from real_server import RealServer
from recorded import whole

from simspool.agent.targets.settings import targets_file
from simspool.spool import Spool

Agent = Callable[..., Any]



def test_a_target_is_added_listed_tried_and_removed(agent: Agent, spool: Spool, tmp_path: Path) -> None:
    whole(spool)
    added = agent("target", "add", "results", "directory", "results", "--format", "csv", "--bandwidth", "10 MB/s", "--uploads", 2)
    assert (added.code, added.err) == (0, "")
    assert json.loads(Path(targets_file(spool)).read_text())["targets"]["results"]["path"] == str(tmp_path / "results")
    [listed] = agent("target", "ls", "--json").lines
    assert listed["address"] == f"file://{tmp_path}/results"
    assert (listed["source"], listed["required"], listed["state"], listed["server"]) == ("spool", True, "no agent runs", "")
    assert listed["waiting"] > 100
    tried = agent("target", "test", "results", "--json")
    assert tried.code == 0
    assert tried.lines[0]["effect"] == "exactly-once"
    assert tried.lines[0]["server"].startswith("directory-")
    assert agent("sync").code == 0
    [listed] = agent("target", "ls", "--json").lines
    assert (listed["waiting"], listed["server"]) == (0, tried.lines[0]["server"])
    assert "directory" in agent("target", "ls").out
    assert len((tmp_path / "results" / "run" / "metrics.csv").read_text().splitlines()) == 201
    assert agent("target", "rm", "results").code == 0
    assert agent("target", "ls", "--json").lines == []
    assert (tmp_path / "results" / "run" / "run.json").exists()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["x", "directory", "/no/such/place"], "is its disk mounted"),
        (["x", "directory", "a file"], "is not a folder"),
        (["server", "directory", "here"], "a target's name is"),
        (["a/b", "directory", "here"], "a target's name is"),
        (["x", "mlflow", "localhost:5000"], "must begin with http"),
        (["x", "simvue", "https://x", "--token-file", "missing"], "cannot be read"),
        (["x", "directory", "here", "--experiment", "e"], "is a setting of kind 'mlflow'"),
        (["x", "directory", "here", "--bandwidth", "fast"], "is not a rate"),
        (["taken", "directory", "here"], "`agent target rm taken` removes it"),
        (["x", "directory", "taken"], "`agent target rm taken` removes it"),
        (["filed", "directory", "here"], "simspool.toml"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(agent: Agent, spool: Spool, tmp_path: Path, arguments: list[str], why: str) -> None:
    (tmp_path / "simspool.toml").write_text(f'[target.filed]\nkind = "directory"\npath = "{tmp_path}/filed"\n')
    (tmp_path / "a file").write_text("")
    assert agent("target", "add", "taken", "directory", "taken").code == 0
    before = Path(targets_file(spool)).read_bytes()
    found = agent("target", "add", *arguments)
    assert found.code == 2
    assert why in found.err
    assert Path(targets_file(spool)).read_bytes() == before
    assert not (tmp_path / "here").exists()


def test_only_the_spools_own_targets_are_removed(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "simspool.toml").write_text(f'[target.filed]\nkind = "directory"\npath = "{tmp_path}/filed"\n')
    found = agent("target", "rm", "filed")
    assert (found.code, str(tmp_path / "simspool.toml") in found.err) == (2, True)
    found = agent("target", "rm", "nobody")
    assert (found.code, "agent target ls" in found.err) == (2, True)


def test_trying_says_what_is_wrong_by_its_exit_code(agent: Agent, tmp_path: Path) -> None:
    assert agent("target", "test", "--all").code == 5
    assert agent("target", "test").code == 2
    assert agent("target", "add", "gone", "directory", "gone").code == 0
    assert agent("target", "add", "nobody", "simspool", "http://127.0.0.1:9").code == 0
    (tmp_path / "gone").rmdir()
    found = agent("target", "test", "--all", "--json")
    assert found.code == 3
    assert [line["exit_code"] for line in found.lines] == [3, 3]
    assert "is its disk mounted" in found.lines[0]["error"]
    (tmp_path / "gone").write_text("")
    assert agent("target", "test", "gone").code == 4
    assert agent("target", "test", "other").code == 2


def test_a_server_is_tried_with_its_token(agent: Agent, spool: Spool, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text("nonsense")
    with RealServer(tmp_path / "data") as server:
        token = str(tmp_path / "data" / "token")
        assert agent("target", "add", "good", "simspool", server.url, "--token-file", token).code == 0
        assert agent("target", "add", "bad", "simspool", server.url.replace("127.0.0.1", "localhost"), "--token-file", "wrong").code == 0
        found = {line["name"]: line for line in agent("target", "test", "--all", "--json").lines}
    good, bad = found["good"], found["bad"]
    assert good["version"]
    assert (good["exit_code"], good["limits"]["ranges"] > 0, good["round_trip"]["asked"]) == (0, True, 5)
    assert (bad["exit_code"], "token" in bad["error"]) == (4, True)
    assert server.token not in Path(targets_file(spool)).read_text()


def test_a_running_agent_takes_up_what_is_added_and_leaves_what_is_removed(agent: Agent, spool: Spool, tmp_path: Path) -> None:
    whole(spool, "early")
    environment = {**os.environ, "SIMSPOOL_DIR": spool.path, "SIMSPOOL_STATE": str(tmp_path / "state")}
    with open(tmp_path / "log", "w") as log:
        running = subprocess.Popen([sys.executable, "-m", "simspool.agent", "run"], env=environment, stdout=log, stderr=log)
    try:
        _wait(lambda: agent("status", "--json").lines[0]["agent"])
        assert agent("target", "add", "one", "directory", "one").code == 0
        assert agent("target", "add", "two", "directory", "two", "--best-effort").code == 0
        _wait(lambda: (tmp_path / "one" / "early" / "run.json").exists() and (tmp_path / "two" / "early" / "run.json").exists())
        assert agent("target", "rm", "one").code == 0
        _wait(lambda: [line["name"] for line in (agent("status", "--json").lines[0]["agent"] or {}).get("targets", [])] == ["two"])
        whole(spool, "late")
        _wait(lambda: (tmp_path / "two" / "late" / "run.json").exists())
        assert not (tmp_path / "one" / "late").exists()
        [listed] = agent("target", "ls", "--json").lines
        assert (listed["name"], listed["required"]) == ("two", False)
        assert listed["state"] != "no agent runs"
    finally:
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0


def _wait(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
