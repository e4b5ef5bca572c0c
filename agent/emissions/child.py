"""The agent's side of the measuring process: start it, ask it, notice its end, start it again ever later, end it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

_MODULE = "simspool.agent.emissions.measuring"
_PATIENCE = 60.0  # s for an answer; the first takes several on a busy machine
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 300.0  # s until it is started again
_STEADY = 600.0  # s after which a start counts as one that went well
_EMPTY = "/proc"  # a folder in which nobody can have put a file, and nobody can put one
_KEPT = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "PYTHONNOUSERSITE", "LANG", "LC_ALL")

Line = dict[str, Any]


class Child:
    """The measuring process, at most one. For one thread. `generation` counts its lives, `problem` says why it is not there."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._waiting = b""
        self._asked = self._born = self._not_before = 0.0
        self._open = 0
        self._pause = _FIRST_PAUSE
        self.generation = 0
        self.problem = ""

    @property
    def pid(self) -> int | None:
        """Its pid, None while there is none."""
        return None if self._process is None else self._process.pid

    @property
    def is_free(self) -> bool:
        """Whether it runs and has answered everything."""
        return self._process is not None and self._open == 0

    def fileno(self) -> int | None:
        """Return what becomes readable when it answers or ends."""
        return None if self._process is None or self._process.stdout is None else self._process.stdout.fileno()

    def tend(self) -> None:
        """Start it where it is not there and a start is due; end one that does not answer."""
        now = time.monotonic()
        if self._process is not None:
            if self._open and now - self._asked > _PATIENCE:
                self._lost(f"it has not answered for {_PATIENCE:.0f} s")
        elif now >= self._not_before:
            self._start(now)

    def _start(self, now: float) -> None:
        environment = {k: v for k in _KEPT if (v := os.environ.get(k)) is not None}
        environment |= {"HOME": _EMPTY, "PYTHONDONTWRITEBYTECODE": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-W", "ignore", "-m", _MODULE, str(os.getpid())]
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=_EMPTY, env=environment,
                start_new_session=True, bufsize=0,
            )  # fmt: skip
        except OSError as error:
            self._put_off(str(error))
            return
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        self._process, self._waiting, self._open = process, b"", 1  # it says that it is ready
        self._asked = self._born = now
        self.generation += 1

    def ask(self, **question: Any) -> None:
        """Send a question; nothing happens while it is not there."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
        except OSError:
            return  # it has ended: `answers` notices
        if not self._open:
            self._asked = time.monotonic()
        self._open += 1

    def answers(self) -> list[Line]:
        """Return the answers that have come, in their order."""
        process = self._process
        if process is None or process.stdout is None:
            return []
        found: list[Line] = []
        while self._process is process:
            try:
                data = os.read(process.stdout.fileno(), 65536)
            except BlockingIOError:
                break
            if not data:
                self._lost(self.problem or "it ended")
                break
            *lines, self._waiting = (self._waiting + data).split(b"\n")
            for line in lines:
                self._take(line, found)
        return found

    def _take(self, line: bytes, found: list[Line]) -> None:
        self._open, self._asked = max(self._open - 1, 0), time.monotonic()
        answer = json.loads(line)
        if "problem" in answer:
            self._lost(str(answer["problem"]))
        elif self._process is not None:
            self.problem = ""
            found.append(answer)

    def _lost(self, why: str) -> None:
        code = self._stop()
        how = f" ({signal.Signals(-code).name})" if why == "it ended" and code is not None and code < 0 else ""
        self._put_off(f"{why}{how}")

    def _put_off(self, why: str) -> None:
        now = time.monotonic()
        if self._born and now - self._born > _STEADY:
            self._pause = _FIRST_PAUSE
        self.problem = f"the measuring process: {why}"
        self._not_before = now + self._pause
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    def _stop(self) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        ended = process.poll()
        if ended is None:
            process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        code = process.wait()
        return code if ended is None else ended

    def end(self) -> None:
        """End it; it holds nothing that would have to be kept."""
        self._stop()
        self.problem = ""
        self._pause, self._not_before = _FIRST_PAUSE, 0.0
