"""Runs that ask for emissions, agents that measure them, and what a spool then holds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from samples import samples

from simspool.agent.emissions.ledger import EMISSIONS, ENERGY
from simspool.sdk import Client
from simspool.spool import Spool

SCRIPT = """
    import select, sys
    from simspool.sdk import Run
    busy = sys.argv[1] == "spin"
    run = Run()
    run.config(enable_emission_metrics=True, disable_resources_metrics=True)
    run.init(sys.argv[1])
    exec(sys.argv[2] if len(sys.argv) > 2 else "")
    print(run.id, flush=True)
    while not select.select([0], [], [], 0.0 if busy else None)[0]:
        sum(range(100_000))
    run.close()
"""


class Script:
    """A script that spins or sleeps until it is told to end."""

    def __init__(self, how: str, *more: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SCRIPT), how, *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **environment},
        )  # fmt: skip
        self.pid = self.process.pid
        assert self.process.stdout is not None
        self.run = self.process.stdout.readline().strip()
        assert self.run

    def close(self) -> None:
        """Have it close its run and end."""
        assert self.process.stdin is not None
        if self.process.poll() is None:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            self.process.wait(60)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


class AgentProcess:
    """`agent run` in a process of its own, perhaps inside other commands."""

    def __init__(self, log: Path, *before: str, **environment: str) -> None:
        self.log = log
        with open(log, "a") as out:
            self.process = subprocess.Popen(
                [*before, sys.executable, "-m", "simspool.agent", "run"], stdout=out, stderr=out, env={**os.environ, **environment}
            )
        until(lambda: "serving" in log.read_text() or self.process.poll() is not None, "an agent that serves")
        assert self.process.poll() is None, log.read_text()

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.wait(30)


def until(condition: Callable[[], Any], what: str, seconds: float = 40.0) -> Any:
    """Wait until a condition holds, and return its value."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)
    return found


def measured(spool: Spool, run: str) -> list[tuple[int, float, float, float, float]]:
    """Return a run's samples: step, total and delta of energy, total and delta of emissions."""
    names = [f"{of}.{what}" for of in (ENERGY, EMISSIONS) for what in ("total", "delta")]
    found = [s for s in samples(spool, run) if names[0] in s.values]
    assert {s.by for s in found} <= {"agent"}
    return [(s.slot, *(s.values[name] for name in names)) for s in found]


def about(spool: Spool, run: str) -> dict[str, Any]:
    """Return what a run's metadata say of emissions."""
    found = Client(spool=spool.path).get_run(run)["metadata"]
    return {key.removeprefix("sustainability."): value for key, value in found.items()}


def events(spool: Spool, run: str) -> list[str]:
    """Return the messages of a run's events."""
    return [event["message"] for event in Client(spool=spool.path).get_events(run)]


def measuring_children(agent: int) -> list[int]:
    """Return the measuring processes of an agent, also orphaned ones."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                words = Path(f"/proc/{entry}/cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if "simspool.agent.emissions.measuring" in words and str(agent) in words:
                found.append(int(entry))
    return found
