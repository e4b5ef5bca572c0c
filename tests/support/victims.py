"""Scripts that record a run and then die as a test tells them, and a site that watches: a spool, a server, a running agent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from real_server import RealServer, agent

from simspool.sdk import Client

VICTIM = """
import ctypes, os, resource, signal, sys, threading, time
from simspool.sdk import Run
run = Run(mode="online", agent="off")
run.init(sys.argv[1])
run.log_metrics({"x": 1.0})
print(run.id, flush=True)
exec(sys.stdin.readline())
"""


class Victim:
    """A script that has begun a run and waits for a line of Python. `process` is ours to reap."""

    def __init__(
        self, environment: Mapping[str, str], name: str = "victim", *, before: Callable[[], None] | None = None, inside: Sequence[str] = ()
    ) -> None:  # fmt: skip
        """`before` is called in its process before it begins; `inside` is a command that runs it."""
        self.process = subprocess.Popen(
            [*inside, sys.executable, "-c", VICTIM, name], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, preexec_fn=before,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.run = self.process.stdout.readline().strip()
        assert self.run, "the script did not begin"

    def tell(self, line: str) -> None:
        """Give it its line."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def end(self) -> None:
        """Make sure that it is gone, and reap it."""
        self.process.kill()
        self.process.wait(20)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


class Site:
    """A spool in a folder, a real server, and `agent run` in a process of its own."""

    def __init__(self, folder: Path, *, before: Callable[[], None] | None = None, **environment: str) -> None:
        """`before` is called in the agent's process, before it becomes one."""
        self._before = before
        runtime = folder / "rt"
        runtime.mkdir(mode=0o700)
        self.folder, self.spool = folder, folder / "spool"
        self.server = RealServer(folder / "data")
        places = {"SIMSPOOL_DIR": self.spool, "SIMSPOOL_STATE": folder / "state", "XDG_RUNTIME_DIR": runtime, "HOME": folder}
        own = {name: str(path) for name, path in places.items()}
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SIMSPOOL_", "SIMVUE_", "SLURM_"))}
        self.environment = {**kept, **own, "SIMSPOOL_AGENT": "off", **environment}
        self.agent: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.server.start()
            self.environment |= self.server.environment
            self.start_agent()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_agent()
        self.server.kill(signal.SIGTERM)

    def start_agent(self) -> None:
        """Start `agent run` and wait until it can be reached."""
        with open(self.folder / "agent.log", "ab") as log:
            self.agent = subprocess.Popen(
                [sys.executable, "-m", "simspool.agent", "run"], env=self.environment, stdout=log, stderr=log, preexec_fn=self._before
            )
        self.until(lambda: list(self.spool.glob("agent/hosts/*.json")) or None)

    def stop_agent(self, number: int = signal.SIGTERM) -> None:
        """End the agent by a signal."""
        if self.agent is not None:
            if self.agent.poll() is None:
                self.agent.send_signal(number)
            self.agent.wait(30)
            self.agent = None

    def until(self, condition: Callable[[], Any]) -> Any:
        """Wait for something that is not None, up to 40 s."""
        deadline = time.monotonic() + 40
        while (found := condition()) is None:
            log = self.folder / "agent.log"
            said = log.read_text()[-2000:] if log.exists() else ""
            assert time.monotonic() < deadline, f"it did not happen; the agent says: {said}"
            assert self.agent is None or self.agent.poll() is None, f"the agent ended: {said}"
            time.sleep(0.05)
        return found

    def client(self, where: str) -> Client:
        """Return a Client of the spool or of the server."""
        return Client(spool=self.spool) if where == "spool" else Client(self.server.token, self.server.url)

    def watched(self, victim: Victim) -> None:
        """Wait until the agent holds a pidfd of the script."""
        self.watched_pid(victim.process.pid)

    def watched_pid(self, pid: int) -> None:
        """Wait until the agent holds a pidfd of the process."""
        assert self.agent is not None
        folder, wanted = Path(f"/proc/{self.agent.pid}/fdinfo"), f"Pid:\t{pid}\n"

        def look() -> bool | None:
            for entry in folder.iterdir():
                try:
                    if wanted in entry.read_text():
                        return True
                except OSError:
                    continue
            return None

        self.until(look)

    def ended(self, run: str) -> dict[str, Any]:
        """Wait until the server has the run as ended; return it, as the server shows it."""

        def look() -> dict[str, Any] | None:
            found = self.server.get(f"/runs/{run}")
            return found if found and found["status"] not in {"running", "created"} else None

        return dict(self.until(look))

    def survivors(self, run: str) -> list[dict[str, Any]]:
        """Return the bodies of the run's survivor records."""
        done = agent("cat", run, "--json", env=self.environment, check=True)
        records = [json.loads(line) for line in done.stdout.splitlines()]
        return [r["body"] for r in records if r.get("kind") == "survivor"]

    def show(self, run: str) -> dict[str, Any]:
        """Return what `agent show` says."""
        return dict(json.loads(agent("show", run, "--json", env=self.environment, check=True).stdout))
