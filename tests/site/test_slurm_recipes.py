"""The recipes of examples/slurm, submitted to a real Slurm of four nodes: what was recorded is on the server, however the job ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import slurm as support
from real_server import RealServer, agent

RECIPES = Path(__file__).resolve().parents[2] / "examples" / "slurm"
POINTS = 200
SCRIPT = f"""
import os, sys, time
from simspool.sdk import Run
run = Run(mode="online")
run.init(sys.argv[1], metadata={{"node": os.environ["SLURMD_NODENAME"]}})
for step in range({POINTS}):
    assert run.log_metrics({{"x": float(step)}}, step=step)
with open(sys.argv[2], "w") as file:
    file.write(run.id + "\\n")
if sys.argv[3:] == ["wait"]:
    time.sleep(600)
run.close()
"""


class Lab:
    """A Slurm of four nodes that share a disk, a server, and an account that uses them."""

    def __init__(self, cluster: support.Slurm, server: RealServer, folder: Path) -> None:
        self.cluster, self.server, self.folder = cluster, server, folder
        (folder / "rt").mkdir(mode=0o700)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SIMSPOOL_", "SIMVUE_", "SLURM_"))}
        here = f"{sysconfig.get_path('scripts')}:{cluster.environment['PATH']}"
        own = {"SIMSPOOL_DIR": folder / "spool", "XDG_RUNTIME_DIR": folder / "rt", "HOME": folder, "TMPDIR": folder / "tmp"}
        (folder / "tmp").mkdir()
        self.environment = {
            **kept, **server.environment, **{k: str(v) for k, v in own.items()}, "SIMSPOOL_AGENT": "off",
            "SLURM_CONF": cluster.environment["SLURM_CONF"], "PATH": here,
        }  # fmt: skip
        self.script = folder / "record.py"
        self.script.write_text(SCRIPT)

    def submit(self, recipe: str, *words: str, options: tuple[str, ...] = ()) -> str:
        """Submit a recipe; returns the job."""
        command = ["sbatch", "--parsable", "--output", str(self.folder / "%A_%a-%j.out"), *options, str(RECIPES / recipe), *words]
        done = subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def record(self, name: str, *words: str) -> list[str]:
        """Return the command that records a run of this name."""
        return [sys.executable, str(self.script), name, str(self.folder / f"{name}.run"), *words]

    def ended(self, job: str) -> str:
        """Wait for a job's end; returns its state and exit code."""

        def look() -> str | None:
            said = self.cluster.run("scontrol", "show", "job", job, check=False)
            words = dict(w.partition("=")[::2] for w in said.split())
            state = words.get("JobState", "")
            return None if state in {"", "PENDING", "RUNNING", "COMPLETING", "CONFIGURING"} else f"{state} {words['ExitCode']}"

        return str(self.until(look))

    def run_id(self, name: str) -> str:
        """Wait until a run has recorded its points; returns its id."""
        path = self.folder / f"{name}.run"
        return str(self.until(lambda: path.read_text().strip() if path.exists() and path.read_text().endswith("\n") else None))

    def until(self, found: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + 90
        while (value := found()) is None:
            outputs = "\n".join(f"{p.name}: {p.read_text()[-1500:]}" for p in sorted(self.folder.glob("*.out")))
            assert time.monotonic() < deadline, f"{self.cluster.run('squeue', check=False)}\n{outputs}"
            time.sleep(0.1)
        return value

    def on_server(self, run: str) -> int:
        """Return how many points the server has of a run."""
        if self.server.get(f"/runs/{run}") is None:
            return 0
        points = self.server.points(run, "x")
        assert points == [(step, float(step)) for step in range(len(points))]
        return len(points)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, server: RealServer) -> Iterator[Lab]:
    with support.real_slurm(tmp_path_factory.mktemp("slurm"), nodes=4) as cluster:
        yield Lab(cluster, server, tmp_path_factory.mktemp("account"))


def test_recipes_are_bash_and_name_no_machine() -> None:
    recipes = sorted(RECIPES.iterdir())
    assert [p.name for p in recipes] == [
        "agent-in-job.sbatch", "array.sbatch", "epilog-sync.sh", "relay.sbatch", "sync-at-the-end.sbatch", "sync.sbatch",
    ]  # fmt: skip
    for path in recipes:
        subprocess.run(["bash", "-n", str(path)], check=True)


def test_an_array_on_four_nodes_writes_one_spool(lab: Lab) -> None:
    program = "import sys, time; time.sleep(2); print('case', sys.argv[1]); print('value =', 10 * int(sys.argv[1]))"
    command = [sys.executable, "-c", program]
    job = lab.submit("array.sbatch", *command, options=("--array=0-7", "--cpus-per-task=2"))
    after = lab.submit("sync.sbatch", "--tag", f"array-{job}", options=(f"--dependency=afterany:{job}",))
    assert lab.ended(after) == "COMPLETED 0:0"
    told = [dict(w.partition("=")[::2] for w in line.split()) for line in lab.cluster.run("scontrol", "-o", "show", "job").splitlines()]
    elements = [words for words in told if words.get("ArrayJobId") == job]
    assert {words["NodeList"] for words in elements} == set(lab.cluster.nodes)
    assert len({words["JobId"] for words in elements}) == 8, "each has a number of its own, so that is no key"
    found = {}
    for n in range(8):
        found[n] = body = json.loads(agent("show", f"scan-{job}_{n}", "--json", env=lab.environment, check=True).stdout)
        assert body["status"] == "completed"
        assert body["metadata"]["array"] == f"{job}_{n}"
        assert lab.server.get(f"/runs/{body['id']}")["status"] == "completed"
        assert [(f["name"], f["size"], f["sent"]) for f in body["artifacts"]] == [("stdout", len(f"case {n}\nvalue = {10 * n}\n"), True)]
    assert len({body["id"] for body in found.values()}) == 8


@pytest.fixture(scope="module")
def limited(lab: Lab) -> str:
    """A job whose time is soon over; Slurm looks every half minute, so it begins before the others and is looked at last."""
    return lab.submit(
        "sync-at-the-end.sbatch", *lab.record("limited", "wait"), options=("--time=1", "--signal=B:TERM@50"),
    )  # fmt: skip


@pytest.mark.usefixtures("limited")
def test_the_agent_inside_the_job_sends_everything_and_goes(lab: Lab) -> None:
    job = lab.submit("agent-in-job.sbatch", *lab.record("inside"))
    assert lab.ended(job) == "COMPLETED 0:0"
    run = lab.run_id("inside")
    assert lab.on_server(run) == POINTS
    assert lab.server.get(f"/runs/{run}")["status"] == "completed"
    assert not list((lab.folder / "spool" / "agent" / "hosts").glob("*.json")), "the agent has gone with the job"


def test_stopped_before_the_time_limit_all_is_sent(lab: Lab) -> None:
    job = lab.submit("agent-in-job.sbatch", *lab.record("stopped", "wait"))
    run = lab.run_id("stopped")
    lab.until(lambda: True if lab.on_server(run) == POINTS else None)  # the agent has come to serve, and watches the process
    lab.cluster.run("scancel", "--signal=TERM", "--batch", job)  # what --signal=B:TERM@120 does in time
    assert lab.ended(job) == "FAILED 143:0"
    assert lab.on_server(run) == POINTS
    found = lab.server.get(f"/runs/{run}")
    assert (found["status"], found["reason"]) == ("terminated", "ended by SIGTERM")


def test_sync_at_the_end_keeps_the_commands_verdict(lab: Lab) -> None:
    command = ["bash", "-c", '"$@"; exit 7', "bash", *lab.record("at-the-end")]
    job = lab.submit("sync-at-the-end.sbatch", *command)
    assert lab.ended(job) == "FAILED 7:0"
    assert lab.on_server(lab.run_id("at-the-end")) == POINTS


def test_sync_at_the_end_also_when_it_is_stopped(lab: Lab) -> None:
    job = lab.submit("sync-at-the-end.sbatch", *lab.record("at-the-end-stopped", "wait"))
    run = lab.run_id("at-the-end-stopped")
    lab.cluster.run("scancel", "--signal=TERM", "--batch", job)
    assert lab.ended(job) == "FAILED 143:0"
    assert lab.on_server(run) == POINTS


def test_a_killed_job_loses_nothing_and_the_job_after_it_sends_it(lab: Lab) -> None:
    job = lab.submit("sync-at-the-end.sbatch", *lab.record("killed", "wait"))
    after = lab.submit("sync.sbatch", options=(f"--dependency=afterany:{job}",))
    run = lab.run_id("killed")
    lab.cluster.run("scancel", "--signal=KILL", "--full", job)  # as at the time limit, when the command goes on after SIGTERM
    assert lab.ended(job) == "CANCELLED 0:9"
    assert lab.ended(after) == "COMPLETED 0:0"
    assert lab.on_server(run) == POINTS
    found = lab.server.get(f"/runs/{run}")
    assert found["status"] in {"terminated", "lost"}, "nobody claims that it completed"


def test_an_agent_on_the_login_node_sends_while_the_job_computes(lab: Lab) -> None:
    with open(lab.folder / "login.log", "w") as log:
        watching = subprocess.Popen(
            [sys.executable, "-m", "simspool.agent", "run"], env={**lab.environment, "SIMSPOOL_STATE": str(lab.folder / "login-state")},
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        job = lab.submit("sync-at-the-end.sbatch", *lab.record("watched", "wait"))
        run = lab.run_id("watched")
        lab.until(lambda: True if lab.on_server(run) == POINTS else None)
        assert lab.server.get(f"/runs/{run}")["status"] == "running"
        lab.cluster.run("scancel", job)
        lab.ended(job)
    finally:
        watching.send_signal(signal.SIGTERM)
        watching.wait(30)


def test_the_signal_before_the_time_limit_leaves_time_to_send_it_all(lab: Lab, limited: str) -> None:
    assert lab.ended(limited) == "FAILED 143:0"
    assert lab.on_server(lab.run_id("limited")) == POINTS


def test_the_epilog_does_nothing_for_system_accounts() -> None:
    done = subprocess.run(
        ["bash", str(RECIPES / "epilog-sync.sh")], env={"SLURM_JOB_USER": "root", "SLURM_JOB_UID": "0", "PATH": os.environ["PATH"]},
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
