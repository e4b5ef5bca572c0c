"""`agent exec` as a process of its own, and what it recorded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from simspool.agent.cli import main
from simspool.sdk.process_tree import Process, identify

EXEC = (sys.executable, "-m", "simspool.agent", "exec")


class Place:
    """A spool, a working folder, and the commands that are run there."""

    def __init__(self, folder: Path) -> None:
        self.spool, self.cwd = folder / "spool", folder / "work"
        self.cwd.mkdir()
        self.started: list[subprocess.Popen[bytes]] = []

    def run(self, *arguments: str, code: int | None = 0, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[bytes]:
        """Run `agent exec` with these arguments to its end."""
        options = {"capture_output": True, "cwd": self.cwd, **options}
        done = subprocess.run([*EXEC, *arguments], timeout=timeout, check=False, **options)
        assert code is None or done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """Begin `agent exec`; it is ended with the test."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": self.cwd, **options}
        process = subprocess.Popen([*EXEC, *arguments], **options)
        self.started.append(process)
        return process

    def end(self) -> None:
        """End what still runs."""
        for process in self.started:
            process.kill()
            process.wait(20)
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()

    def records(self, run: str | None = None, *kinds: str) -> list[dict[str, Any]]:
        """Return the records of a run (of the only one), or those of some kinds."""
        lines = [json.loads(line) for line in _agent("cat", run or self.only_run(), "--json").splitlines()]
        return [line for line in lines if not kinds or line.get("kind") in kinds]

    def only_run(self) -> str:
        """Return the id of the only run."""
        (found,) = (self.spool / "runs").iterdir()
        return found.name

    def bodies(self, kind: str, run: str | None = None) -> list[dict[str, Any]]:
        """Return the bodies of one kind."""
        return [r["body"] for r in self.records(run, kind)]

    def metrics(self, run: str | None = None) -> list[tuple[int, dict[str, Any]]]:
        """Return (step, values) of each record of metrics."""
        return [(r["step"], r["values"]) for r in self.records(run, "metrics")]

    def events(self, run: str | None = None) -> list[str]:
        """Return the messages."""
        return [r["message"] for r in self.records(run, "event")]

    def show(self, run: str | None = None) -> dict[str, Any]:
        """Return what `agent show` says."""
        return dict(json.loads(_agent("show", run or self.only_run(), "--json")))

    def ended(self, run: str) -> dict[str, Any]:
        """Wait until an agent beside it knows of the run's end; return what `agent show` says."""
        return dict(until(lambda: found if (found := self.show(run))["status"] != "running" else None, "the run's end"))

    def artifact(self, name: str, run: str | None = None) -> bytes:
        """Return a saved file's bytes, of several of one name the last one's."""
        body = [b for b in self.bodies("artifact", run) if b["name"] == name][-1]
        return (self.spool / "runs" / (run or self.only_run()) / "blobs" / body["digest"]).read_bytes()


def _agent(*arguments: str) -> str:
    """Run an `agent` command that only looks, in this process."""
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def until(condition: Callable[[], Any], what: str, seconds: float = 40) -> Any:
    """Wait until a condition holds, and return its value."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)
    return found


def who(pid: int) -> Process:
    """Return who has a pid now."""
    found = identify(pid)
    assert found is not None
    return found


def group_of(group: int) -> list[int]:
    """Return the living processes of a process group."""
    found = []
    for pid in (int(p) for p in os.listdir("/proc") if p.isdecimal()):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] not in "ZX":
            found.append(pid)
    return found
