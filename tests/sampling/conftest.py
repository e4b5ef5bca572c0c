"""Real processes to be measured, and a spool to record into."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlite_utils  # noqa: F401 - loaded here, so that not every catalog of a test needs a child process
from shared_fixtures import server, spool  # noqa: F401

from simspool.spool.process import start_ticks


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SIMSPOOL_", "SIMVUE_", "SLURM_")):
            monkeypatch.delenv(name)
    runtime = tmp_path / "rt"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv("SIMSPOOL_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path))


class Program:
    """A Python program in a process of its own that says lines and is told lines."""

    def __init__(self, text: str, *arguments: object, **options: Any) -> None:
        command = [sys.executable, "-c", textwrap.dedent(text), *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)
        self.pid = self.process.pid

    @property
    def identity(self) -> tuple[int, int]:
        found = start_ticks(self.pid)
        assert found is not None
        return self.pid, found[0]

    def hear(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the program ended: {self.process.wait()}"
        return line.strip()

    def tell(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def end(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@pytest.fixture
def program() -> Iterator[Callable[..., Program]]:
    """Start a program; all are killed at the end."""
    started: list[Program] = []

    def start(text: str, *arguments: object, **options: Any) -> Program:
        started.append(Program(text, *arguments, **options))
        return started[-1]

    yield start
    for one in started:
        one.end()
