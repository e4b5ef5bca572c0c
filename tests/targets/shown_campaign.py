"""One spool with real runs, drained at once to four targets while agent and servers are killed at random; then everybody counts.

    MLFLOW_PYTHON=.../bin/python python tests/targets/shown_campaign.py --minutes 5 --seed 1 [--json FILE]

The runs are those of examples/: the outer solar system with REBOUND (killed and resumed), a network trained on digits, and two writers that
log in small pieces. The targets: the embedded server, the Simvue stand-in, a real MLflow server, a directory. After the minutes of kills,
`agent sync` must end with 0, `agent verify --all` must find every target equal, and the published `simvue` Client (on the first two), the
`mlflow` client and plain `json` (on the directory) must count the points that the spool has.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from mlflow_bench import MLflowServer, python_with_mlflow
from real_server import RealServer
from standin import StandIn

_EXAMPLES = Path(__file__).parents[2] / "examples"
_LOGGER = """
import sys, time
from simspool.sdk import Run
with Run(mode="offline") as run:
    run.init(sys.argv[1], tags=["shown"], metadata={"solver": "none", "cells": 12})
    run.log_event("begun")
    end, step = time.monotonic() + float(sys.argv[2]), 0
    while time.monotonic() < end:
        run.log_metrics({"loss": 1.0 / (step + 1), "count": step, "odd name (x)": step % 7}, step=step)
        step += 1
        if step % 500 == 0:
            run.save_object({"step": step}, category="output", name=f"state-{step}")
        time.sleep(0.004)
"""
_SIMVUE = """
import json, sys, warnings
warnings.simplefilter("ignore")
from simvue import Client
found = {}
client = Client()
for name, metrics in json.loads(sys.argv[1]).items():
    run = client.get_run_id_from_name(name)
    found[name] = {m: len(client.get_metric_values([m], "step", output_format="dict", run_ids=[run], use_run_names=False, max_points=None)
                          .get(m, {})) for m in metrics}
print(json.dumps(found))
"""
_MLFLOW = """
import json, sys
from mlflow.tracking import MlflowClient
client = MlflowClient(sys.argv[1])
ids = [e.experiment_id for e in client.search_experiments()]
found = {}
for name, metrics in json.loads(sys.argv[2]).items():
    [run] = client.search_runs(ids, f"attributes.run_name = '{name}'")
    found[name] = {m: len(client.get_metric_history(run.info.run_id, m)) for m in metrics}
print(json.dumps(found))
"""


class Stage:
    """The spool, its four targets and its agent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = RealServer(folder / "server")
        self.server.start()
        self.standin = StandIn.start(folder)
        self.mlflow = MLflowServer(folder / "mlflow")
        self.directory = folder / "directory"
        self.agent: subprocess.Popen[bytes] | None = None
        (folder / "token").write_text(self.standin.token)
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("SIMSPOOL_", "SIMVUE_"))},
            **self.server.environment, "SIMSPOOL_DIR": str(folder / "spool"), "SIMSPOOL_STATE": str(folder / "state"),
            "XDG_RUNTIME_DIR": str(folder), "HOME": str(folder), "SIMSPOOL_AGENT": "off", "PYTHONUNBUFFERED": "1",
        }  # fmt: skip

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run an `agent` command."""
        return subprocess.run(
            [sys.executable, "-m", "simspool.agent", *arguments], env=self.environment,
            capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip

    def begin_agent(self) -> None:
        """Start `agent run`."""
        with open(self.folder / "agent.log", "ab") as log:
            self.agent = subprocess.Popen([sys.executable, "-m", "simspool.agent", "run"], env=self.environment, stderr=log, stdout=log)

    def kill_agent(self) -> None:
        """SIGKILL it, and start the next."""
        assert self.agent is not None
        self.agent.send_signal(signal.SIGKILL)
        self.agent.wait()
        self.begin_agent()

    def script(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a script that records."""
        return subprocess.Popen(
            [sys.executable, *arguments], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.folder
        )  # fmt: skip

    def close(self) -> None:
        """End everything."""
        if self.agent is not None:
            self.agent.terminate()
            self.agent.wait(60)
        self.server.kill(signal.SIGTERM)
        self.standin.kill()
        self.mlflow.close()


def disturb(stage: Stage, seconds: float, dice: random.Random) -> dict[str, int]:
    """Kill agent and servers at random for so long; returns how often each."""
    kills = {"agent": 0, "server": 0, "stand-in": 0, "mlflow": 0}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(dice.uniform(0.2, 3.0))
        what = dice.choices(["agent", "server", "stand-in", "mlflow"], [4, 2, 2, 1])[0]
        kills[what] += 1
        pause = dice.uniform(0.0, 1.5)
        if what == "agent":
            stage.kill_agent()
        elif what == "server":
            stage.server.kill()
            time.sleep(pause)
            stage.server.start()
        elif what == "stand-in":
            stage.standin.kill()
            time.sleep(pause)
            stage.standin.restart()
        else:
            stage.mlflow.kill()
            time.sleep(pause)
            stage.mlflow.start()
        print(f"  {sum(kills.values())} kills, {end - time.monotonic():.0f} s left", flush=True)
    return kills


def main() -> int:
    """Run it; the exit status is 1 when anybody counts something else."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", help="write the figures to this file too")
    options = parser.parse_args()
    python_with_mlflow()
    dice, seconds = random.Random(options.seed), options.minutes * 60
    with tempfile.TemporaryDirectory(prefix="shown-") as folder:
        stage = Stage(Path(folder))
        try:
            figures = story(stage, seconds, dice)
        finally:
            stage.close()
    figures["seed"] = options.seed
    text = json.dumps(figures, indent=1)
    print(text)
    if options.json:
        Path(options.json).write_text(text)
    return 0 if figures["good"] else 1


def story(stage: Stage, seconds: float, dice: random.Random) -> dict[str, Any]:
    """Record, disturb, drain, count."""
    first = stage.script(str(_EXAMPLES / "orbits.py"), "--years", "2000", "--steps", "4000", "--seconds", "10")
    stage.begin_agent()
    for name, kind, where, *more in (
        ("simvue", "simvue", stage.standin.url, "--token-file", str(stage.folder / "token")),
        ("mlflow", "mlflow", stage.mlflow.url),
        ("files", "directory", str(stage.directory)),
    ):
        done = stage.command("target", "add", name, kind, where, *more)
        assert done.returncode == 0, done.stderr
    loggers = [stage.script("-c", _LOGGER, f"logger-{n}", str(seconds * 0.8)) for n in range(2)]
    digits = stage.script(str(_EXAMPLES / "train_digits.py"), "--epochs", "30")
    time.sleep(5)
    first.kill()
    assert first.stdout is not None
    run = next(line.split()[1] for line in first.stdout if line.startswith("run "))
    first.wait()
    resumed = stage.script(str(_EXAMPLES / "orbits.py"), "--years", "2000", "--steps", "4000", "--resume", run)
    kills = disturb(stage, seconds, dice)
    for process in (*loggers, digits, resumed):
        out, _ = process.communicate(timeout=600)
        assert process.returncode == 0, out
    began = time.monotonic()
    done = stage.command("sync", "--json", "--timeout", "600")
    synced = json.loads(done.stdout.splitlines()[-1])
    drained = round(time.monotonic() - began, 1)
    verified = stage.command("verify", "--all", "--json")
    counts = recorded(stage)
    others = {
        "simvue Client, embedded server": simvue(stage.server.url, stage.server.token, counts),
        "simvue Client, stand-in": simvue(stage.standin.url, stage.standin.token, counts),
        "mlflow client": mlflow(stage, counts),
        "json, directory": directory(stage, counts),
    }
    wrong = {who: {n: c for n, c in found.items() if c != counts[n]} for who, found in others.items()}
    status = json.loads(stage.command("status", "--json").stdout)
    return {
        "kills": kills, "sync": done.returncode, "drained_after_s": drained,
        "targets": {t["name"]: t["state"] for t in synced["targets"]}, "verify": verified.returncode,
        "points": sum(sum(c.values()) for c in counts.values()), "runs": len(counts), "wrong": {w: c for w, c in wrong.items() if c},
        "said": [line for line in (verified.stdout + verified.stderr).splitlines() if '"equal"' not in line][-20:],
        "status": {t["name"]: {k: t.get(k) for k in ("records", "files", "remarks")} for t in status["targets"]},
        "good": done.returncode == 0 and verified.returncode == 0 and not any(wrong.values()),
    }  # fmt: skip


def recorded(stage: Stage) -> dict[str, dict[str, int]]:
    """Return what the spool has: run name -> metric -> points."""
    found = {}
    for line in stage.command("ls", "--json").stdout.splitlines():
        shown = json.loads(stage.command("show", json.loads(line)["id"], "--json").stdout)
        found[shown["name"]] = {name: m["count"] for name, m in shown["metrics"].items() if not name.startswith("resources/")}
    return found


def _asked(python: str, code: str, *arguments: str, **environment: str) -> dict[str, dict[str, int]]:
    done = subprocess.run(
        [python, "-c", code, *arguments], env={**os.environ, **environment}, capture_output=True, text=True, timeout=600, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, dict[str, int]] = json.loads(done.stdout.splitlines()[-1])
    return found


def simvue(url: str, token: str, counts: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """Return what the published Client counts."""
    return _asked(sys.executable, _SIMVUE, json.dumps(counts), SIMVUE_URL=url, SIMVUE_TOKEN=token)


def mlflow(stage: Stage, counts: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """Return what the mlflow client counts, under our names."""
    theirs = {name: {_mlflow_name(m): m for m in metrics} for name, metrics in counts.items()}
    found = _asked(python_with_mlflow(), _MLFLOW, stage.mlflow.url, json.dumps({n: list(m) for n, m in theirs.items()}))
    return {name: {theirs[name][m]: n for m, n in metrics.items()} for name, metrics in found.items()}


def _mlflow_name(metric: str) -> str:
    from simspool.agent.targets.mlflow_words import name_there

    return name_there(metric)


def directory(stage: Stage, counts: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """Return what is in the directory's metrics.jsonl files."""
    found: dict[str, dict[str, int]] = {}
    for path in stage.directory.rglob("run.json"):
        name = json.loads(path.read_text())["name"]
        if name not in counts:
            continue
        of_run = found.setdefault(name, dict.fromkeys(counts[name], 0))
        for line in (path.parent / "metrics.jsonl").read_text().splitlines():
            for metric in json.loads(line)["values"]:
                if metric in of_run:
                    of_run[metric] += 1
    return found


if __name__ == "__main__":
    sys.exit(main())
