"""The Simvue stand-in of tests/standin as a process of its own, and what a test asks of it."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, Self

import jwt

SCRIPT = Path(__file__).parents[1] / "standin" / "serve.py"
FILE = "standin.sqlite"


class StandIn:
    """A stand-in on a free port of 127.0.0.1. `kill` and `restart` give the same state, port and token again.

    Attributes
    ----------
        url: Without "/api", as SIMVUE_URL has it.
        token: A JWT that does not expire soon, as the published client wants it.
        state: Folder with its database; `requests.jsonl` has one line for each request.

    """

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self.state, self.options, self.port = Path(folder) / "standin", options, 0
        self.token = jwt.encode({"exp": int(time.time()) + 10 * 365 * 86400}, "a stand-in's secret of 32 bytes or more")
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""

    @classmethod
    def start(cls, folder: Path, **options: Any) -> Self:
        """Start one with its state in a folder, and wait until it answers. Options are those of the module `simvue_server`."""
        new = cls(folder, options)
        new._start()
        return new

    def _start(self) -> None:
        self.state.mkdir(parents=True, exist_ok=True)
        (self.state / "url").unlink(missing_ok=True)
        with open(self.state / "log", "a") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(SCRIPT), "--port", str(self.port), "--token", self.token, "--state", str(self.state),
                 "--options", json.dumps(self.options), "--until-stdin-ends"],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while not (self.state / "url").exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"the stand-in did not start: {(self.state / 'log').read_text()[-2000:]}")
            time.sleep(0.02)
        self.url = (self.state / "url").read_text()
        self.port = int(self.url.rpartition(":")[2])

    @property
    def environment(self) -> dict[str, str]:
        """The variables that make the published client use it."""
        return {"SIMVUE_URL": self.url, "SIMVUE_TOKEN": self.token}

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End it by a signal."""
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.send_signal(number)
            self.process.wait(30)
            self.process.stdin.close()
            self.process = None

    def restart(self) -> None:
        """Kill it if it runs, and start it with the same state. Faults are forgotten."""
        self.kill()
        self._start()

    def backup(self, to: Path | None = None) -> Path:
        """Copy its state as it is now, whether it runs or not; return the copy."""
        to = to or self.state / f"backup-{time.time_ns()}.sqlite"
        source, target = sqlite3.connect(self.state / FILE), sqlite3.connect(to)
        try:
            source.backup(target)
        finally:
            source.close()
            target.close()
        return to

    def restore(self, copy: Path) -> None:
        """Kill it, put an old copy in the place of its state, and start it: what came after the copy is gone."""
        self.kill()
        for name in (FILE, f"{FILE}-wal", f"{FILE}-shm"):
            (self.state / name).unlink(missing_ok=True)
        (self.state / FILE).write_bytes(copy.read_bytes())
        self._start()

    def ask(self, method: str, path: str, body: Any = None, *, timeout: float = 60) -> Any:
        """Send a JSON request with the token; return the answer's JSON. Raises urllib's HTTPError for any but 2xx."""
        request = urllib.request.Request(
            self.url + path, method=method, data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return json.load(answer)

    def dump(self) -> dict[str, Any]:
        """Return all that it has.

        runs: by id: the run's fields, and `metrics` {name: [[step, time, timestamp, value], ..]} and `events` [{message, log_level,
        timestamp}] in the order of arrival, `artifacts` [{id, name, category, checksum, size, uploaded, stored_sha256, stored_bytes, ..}],
        `alerts` [{id, name, state, ..}], `grids`, `grid_metrics` {name: [[step, time, timestamp, grid, array], ..]}, `aborted`.
        folders, tags: by path and name. alerts, artifacts, grids, storage: by id. counts. faults: with how often each fired.
        requests: [{method, path, status, fault, bytes}] over all lives; status 0 where no whole answer went out.
        """
        return dict(self.ask("GET", "/_dump"))

    def counts(self) -> dict[str, int]:
        """Return how many objects of each kind, points, events and contents there are: cheap to ask often."""
        return dict(self.ask("GET", "/_counts"))

    def run(self, name: str) -> dict[str, Any]:
        """Return the one run of this name, as `dump` has it."""
        found = [run for run in self.dump()["runs"].values() if run["name"] == name]
        assert len(found) == 1, f"{len(found)} runs are called {name!r}"
        return dict(found[0])

    def requests(self, path: str = "") -> list[dict[str, Any]]:
        """Return the log of requests whose path begins so; it needs no running server."""
        log = self.state / "requests.jsonl"
        return [r for line in log.read_text().splitlines() if (r := json.loads(line))["path"].startswith(path)] if log.exists() else []

    def faults(self, *faults: dict[str, Any]) -> list[dict[str, Any]]:
        """Add faults; with none, return those that are set. Each is {"do": ..., "path": ..., "count": ...}; see the module `faults`.

        faults({"do": "lose-reply", "path": "POST /api/metrics$", "count": 2})
        faults({"do": "status", "status": 429, "retry_after": 1, "path": "POST /api", "count": 3})
        faults({"do": "status", "status": 504, "committed": True, "path": "POST /api/events"})
        faults({"do": "reject", "kind": "metric", "name": "drag"}, {"do": "body-limit", "bytes": 1000})
        """
        return list(self.ask("POST", "/_faults", list(faults)) if faults else self.ask("GET", "/_faults"))

    def heal(self) -> None:
        """Take all faults away."""
        self.ask("DELETE", "/_faults")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill(signal.SIGTERM)
