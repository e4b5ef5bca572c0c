"""The real embedded server in a process of its own, and what a test asks of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Self


class RealServer:
    """`agent serve` on a free port. `kill` and `start` give the same data and port again."""

    def __init__(self, data: Path) -> None:
        self.data, self.port = data, 0
        self.before: tuple[str, ...] = ()  # a program that starts it: a tracer
        self.python = sys.executable
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start and wait until it answers."""
        (self.data / "url").unlink(missing_ok=True)
        with open(f"{self.data}.log", "a") as log:
            self.process = subprocess.Popen(
                [*self.before, self.python, "-m", "simspool.agent", "serve", "--data", str(self.data), "--port", str(self.port)],
                stdout=subprocess.DEVNULL, stderr=log, text=True,
            )  # fmt: skip
        deadline = time.monotonic() + 30
        while True:
            try:
                url = (self.data / "url").read_text().strip()
                with urllib.request.urlopen(f"{url}/api/version", timeout=5):
                    break
            except (OSError, ValueError):
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"the server did not start: {Path(f'{self.data}.log').read_text()[-2000:]}") from None
                time.sleep(0.05)
        self.url = url
        self.port = urllib.parse.urlsplit(url).port or 0
        self.token = (self.data / "token").read_text().strip()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End it by a signal."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(20)
            self.process = None

    @property
    def environment(self) -> dict[str, str]:
        """The variables that make agent and SDK use this server."""
        return {"SIMSPOOL_URL": self.url, "SIMSPOOL_TOKEN": self.token}

    def get(self, path: str, **query: Any) -> Any:
        """GET a path of the dialect; query values that are not text go as JSON. Returns None for a 404."""
        text = urllib.parse.urlencode({k: v if isinstance(v, str) else json.dumps(v) for k, v in query.items()})
        request = urllib.request.Request(f"{self.url}/api{path}?{text}", headers={"Authorization": f"Bearer {self.token}"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def points(self, run: str, metric: str) -> list[tuple[Any, Any]]:
        """Return a metric's (step, value) as the server has them."""
        found = self.get("/metrics", runs=[run], metrics=[metric], xaxis="step")
        return [(p["step"], p["value"]) for p in (found.get(run) or {}).get(metric, [])]

    def events(self, run: str) -> list[str]:
        """Return all messages of a run."""
        found: list[str] = []
        while True:
            page = self.get("/events", run=run, start=len(found), count=1000)["data"]
            found += [e["message"] for e in page]
            if not page:
                return found

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill(signal.SIGTERM)


def agent(
    *arguments: str, env: dict[str, str] | None = None, check: bool = False, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run an `agent` command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "simspool.agent", *arguments], env={**os.environ, **(env or {})},
        capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip
    if check and done.returncode != 0:
        raise AssertionError(f"agent {' '.join(arguments)}: {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done
