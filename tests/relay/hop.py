"""The relay's commands, as processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self


class Process:
    """An `agent` command that goes on; its output is kept in `log`."""

    def __init__(
        self, log: Path, *arguments: object, env: dict[str, str] | None = None, cwd: Path | None = None, alone: bool = False
    ) -> None:
        """`env` goes on top of the environment, or takes its place where it is `alone`."""
        self.log, self._arguments, self._cwd = log, [str(a) for a in arguments], cwd
        self._env = {**({} if alone else os.environ), **(env or {})}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it (again)."""
        with open(self.log, "ab") as log:
            command = [sys.executable, "-m", "simspool.agent", *self._arguments]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=self._env, cwd=self._cwd)
        return self

    def kill(self, number: int = signal.SIGKILL) -> int:
        """End it by a signal; returns its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(30)
        self.process = None
        return code

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.kill(signal.SIGTERM)


def until(true: Callable[[], Any], what: str, seconds: float = 60.0, log: Path | None = None) -> Any:
    """Wait until something is so; returns it."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        if time.monotonic() > deadline:
            said = log.read_text()[-2000:] if log is not None and log.exists() else ""
            raise AssertionError(f"not within {seconds} s: {what}\n{said}")
        time.sleep(0.1)
    return found
