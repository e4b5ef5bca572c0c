"""Running somebody else's program once: bounded time, bounded output, no shell, no secrets in its environment."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence

_KEPT = 2000  # bytes of output
_TOKENS = ("SIMSPOOL_TOKEN", "SIMSPOOL_TOKEN_FILE", "SIMVUE_TOKEN", "CREDENTIALS_DIRECTORY")
_SERVICE = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Program:
    """Runs a program; `stop` ends what runs, from another thread, and lets nothing begin any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def run(self, argv: Sequence[str], given: bytes, environment: Mapping[str, str], timeout: float) -> tuple[int | None, str]:
        """Return (exit status, the end of its output); None in place of a status when it took longer than `timeout` (s) and was killed.

        Raises OSError when it cannot be started.
        """
        kept = {k: v for k, v in os.environ.items() if k not in _TOKENS + _SERVICE}
        with tempfile.TemporaryFile() as file:  # a file, not a pipe: a program that does not read cannot hold anybody up
            file.write(given)
            file.seek(0)
            with self._lock:
                if self._stopped:
                    raise InterruptedError(errno.EINTR, "the agent stops")
                process = self._running = subprocess.Popen(
                    list(argv), stdin=file, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**kept, **environment}, cwd="/",
                    start_new_session=True,
                )  # fmt: skip
        try:
            assert process.stdout is not None
            return self._wait(process, process.stdout.fileno(), time.monotonic() + timeout)
        finally:
            with self._lock:
                if process.returncode is None:
                    _kill(process)
                self._running = None
            process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def _wait(self, process: subprocess.Popen[bytes], output: int, deadline: float) -> tuple[int | None, str]:
        os.set_blocking(output, False)
        ended = os.pidfd_open(process.pid)
        try:
            poll, tail, is_open = select.poll(), b"", True
            poll.register(output, select.POLLIN)
            poll.register(ended, select.POLLIN)
            while True:
                left = deadline - time.monotonic()
                ready = dict(poll.poll(left * 1000)) if left > 0 else {}
                if is_open and output in ready:
                    data = _read(output)
                    tail = (tail + data)[-_KEPT:]
                    if not data:
                        poll.unregister(output)
                        is_open = False
                if ended in ready:  # what it has left in the pipe; a child of its own that holds the pipe is not waited for
                    for _ in range(64 if is_open else 0):
                        data = _read(output)
                        if not data:
                            break
                        tail = (tail + data)[-_KEPT:]
                    return process.wait(), tail.decode(errors="replace").strip()
                if left <= 0:
                    return None, tail.decode(errors="replace").strip()
        finally:
            os.close(ended)

    def stop(self) -> None:
        """End what runs."""
        with self._lock:
            self._stopped = True
            if self._running is not None and self._running.returncode is None:
                _kill(self._running)


def _read(descriptor: int) -> bytes:
    with contextlib.suppress(BlockingIOError):
        return os.read(descriptor, 65536)
    return b""


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill it and what it started. It is not reaped yet, so the group's number is its own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
