"""A real MLflow server as a bench. It is counted through its REST API and its folder of artifacts, with the standard library only."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from conformance import Counted, Fault, Number, Promise
from faulty_proxy import FaultyProxy

from simspool.agent.targets.settings import TargetSettings
from simspool.spool import Spool, Writer

_HOST = Path(__file__).parent / "mlflow_host.py"
_API = "/api/2.0/mlflow"
_LARGEST = 1.7976931348623157e308
_STATUS = {"completed": "FINISHED", "failed": "FAILED", "terminated": "KILLED", "lost": "KILLED", "running": "RUNNING"}


def python_with_mlflow() -> str:
    """Return a Python that has mlflow; skips the test without one.

    It is that of MLFLOW_PYTHON, or of `.venv-mlflow` in the project, or this one.
    """
    places = [os.environ.get("MLFLOW_PYTHON"), str(Path(__file__).parents[2] / ".venv-mlflow/bin/python"), sys.executable]
    for place in places:
        if place and os.path.exists(place):
            code = "import importlib.util as u, sys; sys.exit(u.find_spec('mlflow') is None)"
            if subprocess.run([place, "-c", code], capture_output=True, check=False).returncode == 0:
                return place
    pytest.skip("no MLflow: make a venv with `pip install mlflow==3.17.2`, and set MLFLOW_PYTHON to its Python")


class MLflowServer:
    """MLflow's own server on one port, with an SQLite database and a folder of artifacts (or where `artifacts` says).

    `start` after `kill` goes on with the same.
    """

    def __init__(self, folder: Path, artifacts: str = "", **env: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        with open(folder / "log", "w") as log:
            self._host = subprocess.Popen(
                [python_with_mlflow(), str(_HOST), str(folder), str(self.port), *([artifacts] if artifacts else [])],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder, env={**os.environ, **env},
            )  # fmt: skip
        self._answer("ready")
        self.start()

    def _answer(self, wanted: str) -> None:
        assert self._host.stdout is not None
        for line in self._host.stdout:
            if line.strip() == wanted:
                return
        raise AssertionError(f"MLflow did not start: {(self.folder / 'log').read_text()[-2000:]}")

    def _tell(self, word: str) -> None:
        assert self._host.stdin is not None
        self._host.stdin.write(word + "\n")
        self._host.stdin.flush()
        self._answer("done")

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._tell("start")
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    break
            except OSError:
                assert time.monotonic() < deadline, (self.folder / "log").read_text()[-2000:]
                time.sleep(0.05)
        self.call("POST", "/experiments/search", {"max_results": 1})  # the first one that needs the database makes its tables

    def kill(self) -> None:
        """SIGKILL it."""
        self._tell("kill")

    def close(self) -> None:
        """End all of it."""
        assert self._host.stdin is not None
        assert self._host.stdout is not None
        self._host.stdin.close()
        self._host.wait(30)
        self._host.stdout.close()

    def call(self, method: str, path: str, value: Any = None, **query: str) -> Any:
        """Make a request of the API; None for a 404."""
        url = f"{self.url}{_API}{path}?{urllib.parse.urlencode(query)}"
        data = None if value is None else json.dumps(value).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise AssertionError(f"{method} {path}: {error.code} {error.read().decode()}") from None

    def runs(self, run: str) -> list[Any]:
        """Return all runs, of any experiment, with the tag of ours."""
        experiments = self.call("POST", "/experiments/search", {"max_results": 1000, "view_type": "ALL"})["experiments"]
        body = {
            "experiment_ids": [e["experiment_id"] for e in experiments], "filter": f"tags.`simspool.run` = '{run}'", "run_view_type": "ALL",
        }  # fmt: skip
        found: list[Any] = self.call("POST", "/runs/search", body).get("runs", [])
        return found

    def run(self, run: str) -> Any:
        """Return the only run with the tag of ours, None without one."""
        found = self.runs(run)
        assert len(found) < 2, f"{len(found)} runs in MLflow for one: {found}"
        return found[0] if found else None

    def points(self, run: Any, metric: str) -> list[tuple[int, float, int]]:
        """Return (step, value, ms) of a metric."""
        found, query = [], {"run_id": run["info"]["run_id"], "metric_key": metric, "max_results": "5000"}
        while True:
            page = self.call("GET", "/metrics/get-history", **query)
            found += [(m.get("step", 0), float(m["value"]), m["timestamp"]) for m in page.get("metrics", [])]
            if not page.get("next_page_token"):
                return found
            query["page_token"] = page["next_page_token"]

    def artifacts(self, run: Any) -> Path:
        """Return where the artifacts of a run lie."""
        return self.folder / "artifacts" / run["info"]["artifact_uri"].partition(":/")[2]

    def lines(self, run: Any) -> list[Any]:
        """Return the records that are not points, without those that are there twice."""
        found = {}
        for path in sorted(self.artifacts(run).glob("simspool/records/*.jsonl")):
            for text in path.read_text().splitlines():
                line = json.loads(text)
                found[line["writer"], line["seq"]] = line
        return [found[key] for key in sorted(found)]


class _Proxy(FaultyProxy):
    """One that refuses large bodies as well, and all but one `Authorization` where it wants one."""

    largest = 1 << 30
    wanted = ""

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if self.wanted and request.headers.get("Authorization") != self.wanted:
            return web.Response(status=401, text="who are you?")
        if request.path.endswith(("log-batch", ".jsonl")) and len(await request.read()) > self.largest:
            return web.Response(status=413, text="too large")
        return await super()._handle(request)


class MLflowBench:
    """See conformance.Bench. Faults come from a proxy in front of it."""

    name = "mlflow"
    supports: frozenset[Fault] = frozenset({"kill", "backup", "temporary", "lost-reply", "poison-record", "poison-run", "small-bodies"})

    def __init__(self, folder: Path) -> None:
        self.server = MLflowServer(folder)
        self._fault: tuple[str, int] = ("ok", 0)
        self._up = True
        self.proxy = _Proxy(self.server.url, self._choose)
        self.proxy.__enter__()
        self.promise = Promise(value=_kept, metric=_metric, file=lambda name: f"output/{name}", status=_STATUS.get)

    def close(self) -> None:
        self.proxy.__exit__()
        self.server.close()

    def _choose(self, method: str, path: str, _n: int) -> str:
        fault, left = self._fault
        if left <= 0 or (fault == "lose-reply" and (method == "GET" or path.endswith("search"))):
            return "ok"
        self._fault = (fault, left - 1)
        return fault

    def settings(self) -> TargetSettings:
        return TargetSettings("ml", "mlflow", self.proxy.url, options={"experiment": "conformance"})

    def has(self, run: str) -> Counted | None:
        self.heal()
        there = self.server.run(run)
        if there is None:
            return None
        keys = [m["key"] for m in there["data"].get("metrics", [])]
        metrics: dict[str, list[tuple[int, Any]]] = {key: [p[:2] for p in self.server.points(there, key)] for key in keys}
        events = [line["record"]["message"] for line in self.server.lines(there) if line["kind"] == "event"]
        root = self.server.artifacts(there)
        files: dict[str, str | int] = {}
        for path in root.rglob("*"):
            name = str(path.relative_to(root))
            if path.is_file() and (not name.startswith("simspool/") or name.startswith("simspool/files/")):
                files[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        return Counted(metrics, events, files, there["info"]["status"])

    def heal(self) -> None:
        self._fault = ("ok", 0)
        self.proxy.largest, self.proxy.wanted = 1 << 30, ""
        if not self._up:
            self.restart()

    def kill(self) -> None:
        self.server.kill()
        self._up = False

    def restart(self) -> None:
        self.server.start()
        self._up = True

    def backup(self) -> Path:
        copy = self.server.folder.with_name("copy")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.server.folder / "artifacts", copy / "artifacts")
        with sqlite3.connect(self.server.folder / "mlflow.db") as db, sqlite3.connect(copy / "mlflow.db") as to:
            db.backup(to)
        db.close()
        to.close()
        return copy

    def restore(self, copy: Path) -> None:
        if self._up:
            self.kill()
        for old in self.server.folder.glob("mlflow.db*"):
            old.unlink()
        shutil.rmtree(self.server.folder / "artifacts")
        shutil.copytree(copy, self.server.folder, dirs_exist_ok=True)
        self.restart()

    def refuse(self, status: int, times: int, after: float | None = None) -> None:
        self._fault = (str(status), times)

    def lose_replies(self, times: int) -> None:
        self._fault = ("lose-reply", times)

    def poison(self, writer: Writer) -> int:
        """A step that MLflow stores as another number."""
        assert writer.metrics({"loss": 1.0, "fine": 2.0}, step=2**70)
        return 1

    def refuse_run(self, spool: Spool, run: str) -> None:
        """Somebody puts it into MLflow's bin."""
        self.server.call("POST", "/runs/delete", {"run_id": self.server.run(run)["info"]["run_id"]})

    def limit_bodies(self, size: int) -> None:
        self.proxy.largest = size


def _metric(name: str) -> str:
    return name.replace("resources/", "system/")


def _kept(value: Number) -> Any:
    """Infinite values are the largest number there; all numbers are doubles."""
    number = float(value)
    return max(-_LARGEST, min(number, _LARGEST)) if number == number else number
