"""Agents that scripts started: found by the spool in their command line, and ended with the test."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from simspool.sdk.agent_start import serving_agent

LOG = "agent/on-demand.log"


def agents_of(folder: Path) -> list[int]:
    """Return the pids of agents on demand whose spool lies in a folder; those that are starting too."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                command = Path(f"/proc/{entry}/cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if "--on-demand" in command and any(part.startswith(str(folder)) for part in command):
                found.append(int(entry))
    return found


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 40.0) -> Any:
    """Wait until a condition holds, and return its value."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)
    return found


def served(spool: Path) -> int:
    """Wait until an agent serves a spool, and return its pid."""
    return int(wait_for(lambda: serving_agent(str(spool)), "an agent that serves").pid)


def starts(spool: Path) -> int:
    """Return how many agents came to serve a spool, as their log has it."""
    path = spool / LOG
    return path.read_text().count("serving ") if path.is_file() else 0


def note_of(spool: Path) -> dict[str, Any]:
    """Return the start note of this host."""
    (path,) = (spool / "agent" / "hosts").glob("*.start")
    return dict(json.loads(path.read_text()))


@contextmanager
def ended_after(folder: Path) -> Iterator[None]:
    """End every agent on demand whose spool lies in a folder."""
    try:
        yield
    finally:
        for _ in range(3):
            for pid in agents_of(folder):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            time.sleep(0.02)
