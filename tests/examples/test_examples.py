"""The examples run as the README says: real codes, killed and resumed, synced while running and after, counted on the server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from real_server import RealServer

from simspool.sdk import Client

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home and working folder, with a spool and no server."""
    for name in [n for n in os.environ if n != "SIMSPOOL_AGENT" and n.startswith(("SIMSPOOL_", "SIMVUE_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SIMSPOOL_DIR", str(tmp_path / "spool"))
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RealServer]:
    """A server that runs."""
    found = RealServer(tmp_path / "server")
    found.start()
    yield found
    found.kill(signal.SIGTERM)


def start(name: str, *arguments: object) -> subprocess.Popen[str]:
    """Start an example."""
    return subprocess.Popen([sys.executable, str(EXAMPLES / name), *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def run_id(process: subprocess.Popen[str]) -> str:
    """Return the run's id that an example prints first."""
    assert process.stdout is not None
    return process.stdout.readline().split()[1]


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for an example; return the rest of what it prints."""
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    return out


def sync(server: RealServer) -> dict[str, Any]:
    """Run `agent sync` and return its report."""
    done = subprocess.run(
        [sys.executable, "-m", "simspool.agent", "sync", "--json"],
        env={**os.environ, **server.environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def steps(client: Client, run: str, name: str) -> list[int]:
    """Return all steps of a metric, as the client sees them."""
    found = client.get_metric_values([name], run_ids=[run]) or {name: {}}  # None: nothing is recorded yet
    return sorted(step for step, _ in found[name])


def test_orbits_killed_and_resumed_arrive_once(home: Path, server: RealServer) -> None:
    pytest.importorskip("rebound")
    script = start("orbits.py", "--years", 300, "--steps", 900, "--seconds", 12)
    run = run_id(script)
    spool = Client(spool=home / "spool")
    deadline = time.monotonic() + 60
    while len(steps(spool, run, "energy_error")) < 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    live = sync(server)
    assert live["live_runs"] == 1
    script.kill()
    script.communicate()
    resumed = start("orbits.py", "--years", 300, "--steps", 900, "--resume", run)
    assert run_id(resumed) == run
    assert "done: 900 steps" in finish(resumed)
    sync(server)
    on_server = Client(server_url=server.url, server_token=server.token)
    for client in (spool, on_server):
        assert steps(client, run, "energy_error") == list(range(1, 901))
        assert steps(client, run, "jupiter/x") == list(range(1, 901))
        assert client.get_run(run)["status"] == "completed"
    assert len(on_server.get_events(run)) == len(spool.get_events(run)) > 0
    again = sync(server)
    assert (again["sent_bytes"], again["sent_file_bytes"], again["sent_records"]) == (0, 0, 0)
    untouched = start("orbits.py", "--years", 300, "--steps", 900)
    other = run_id(untouched)
    finish(untouched)
    values = spool.get_metric_values(["energy_error"], run_ids=[run, other])["energy_error"]
    assert all(values[step, run] == values[step, other] for step in range(1, 901)), "resumed is not what an unbroken run is"


def test_training_is_synced_while_it_runs_and_after(home: Path, server: RealServer) -> None:
    pytest.importorskip("sklearn")
    script = start("train_digits.py", "--epochs", 4, "--pause", 0.01)
    run = run_id(script)
    time.sleep(1)
    assert sync(server)["records"] > 0
    assert "best accuracy 0." in finish(script)
    assert sync(server)["records_left"] == 0
    on_server = Client(server_url=server.url, server_token=server.token)
    assert steps(on_server, run, "loss") == list(range(176))
    assert len(steps(on_server, run, "accuracy")) == 4
    assert on_server.get_artifact(run, "confusion").sum() == 397


def test_lineage_stores_and_sends_equal_bytes_once(home: Path, server: RealServer) -> None:
    assert finish(start("lineage.py")) == ""
    assert sorted(os.listdir(home / "data")) == ["closest", "guesses"]
    blobs = [path for path in (home / "spool" / "blobs" / "sha256").rglob("*") if path.is_file()]
    assert len(blobs) == 2
    report = sync(server)
    assert (report["runs"], report["sent_files"]) == (2, 2)
