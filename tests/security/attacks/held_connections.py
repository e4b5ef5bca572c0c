"""Holds thousands of connections to the embedded server while a spool is sent to it: what that costs the sync, and the server.

    python tests/security/attacks/held_connections.py [--connections 10000] [--runs 50] [--json FILE]

A third of the connections say nothing, a third send a header a byte at a time, a third a body; those that the server ends are opened again.
Prints how long `agent sync` takes without and with them, how many connections were opened in all, and the server's memory. Exit status 1
where a point is missing on the server, or the sync failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import selectors
import socket
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

from real_server import RealServer, agent
from recorded import begin

from simspool.spool import Spool, open_spool

_POINTS = 1000  # of each run
_BEGINNINGS = (
    b"", b"GET /api/runs HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
    b"POST /api/runs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n{",
)  # fmt: skip


@dataclass(slots=True)
class Outcome:
    """What a run of this gave; times are in seconds, `memory` is the server's largest, in bytes. `wrong` is empty when all is well."""

    connections: int
    held: int
    opened: int
    alone: float
    beside: float
    memory_alone: int
    memory_beside: int
    wrong: list[str]


class Flood:
    """Keeps so many connections open, from a thread of its own. A context manager; inside, all of them were opened once."""

    def __init__(self, port: int, count: int) -> None:
        self._port, self._count = port, count
        self._selector = selectors.DefaultSelector()
        self._end, self._full = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._hold)
        self.opened = 0

    @property
    def held(self) -> int:
        """How many are open now, as far as this side knows."""
        return len(self._selector.get_map() or ())

    def _open(self) -> bool:
        one = socket.socket()
        one.settimeout(10)
        try:
            one.connect(("127.0.0.1", self._port))
            one.sendall(_BEGINNINGS[self.opened % len(_BEGINNINGS)])
        except OSError:
            one.close()
            return False
        one.setblocking(False)
        self._selector.register(one, selectors.EVENT_READ)
        self.opened += 1
        return True

    def _hold(self) -> None:
        slow = time.monotonic()
        while not self._end.is_set():
            for _ in range(min(200, self._count - self.held)):
                if not self._open():
                    break
            if self.opened >= self._count:
                self._full.set()
            for key, _ in self._selector.select(0.02):
                with contextlib.suppress(BlockingIOError):
                    try:
                        if key.fileobj.recv(65536):  # type: ignore[union-attr]
                            continue
                    except ConnectionError:
                        pass
                    self._selector.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
            if time.monotonic() - slow > 5:
                slow = time.monotonic()
                for key in list(self._selector.get_map().values()):
                    with contextlib.suppress(OSError):
                        key.fileobj.send(b"a")  # type: ignore[union-attr]

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._full.wait(300):
            print(f"only {self.opened} connections could be opened", file=sys.stderr)
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()


def record(folder: Path, runs: int) -> tuple[Spool, list[str]]:
    """Make a spool with so many runs."""
    spool, found = open_spool(folder, create=True), []
    for number in range(runs):
        run, writer = begin(spool, f"run-{number}")
        for step in range(_POINTS):
            writer.metrics({"x": float(step)}, step)
        writer.close({"status": "completed"})
        found.append(run)
    return spool, found


def _send(folder: Path, name: str, server: RealServer, runs: int, wrong: list[str]) -> float:
    spool, found = record(folder / name, runs)
    began = time.monotonic()
    done = agent("sync", "--spool", spool.path, "--timeout", "300", env={**os.environ, **server.environment}, timeout=400)
    took = time.monotonic() - began
    if done.returncode:
        wrong.append(f"{name}: agent sync ended with {done.returncode}: {done.stderr[-500:]}")
    for run in found:
        count = len(_patiently(server, run))
        if count != _POINTS:
            wrong.append(f"{name}: run {run} has {count} points on the server, and not {_POINTS}")
    return took


def _patiently(server: RealServer, run: str) -> list[Any]:
    for _ in range(50):
        with contextlib.suppress(OSError):
            return server.points(run, "x")
        time.sleep(0.1)
    return []


def _peak(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0


def play(connections: int, runs: int, folder: Path) -> Outcome:
    """Send a spool alone, then another one beside the connections."""
    wrong: list[str] = []
    with RealServer(folder / "data") as server:
        assert server.process is not None
        alone = _send(folder, "alone", server, runs, wrong)
        memory = _peak(server.process.pid)
        with Flood(server.port, connections) as flood:
            beside = _send(folder, "beside", server, runs, wrong)
            held, opened = flood.held, flood.opened
        return Outcome(connections, held, opened, alone, beside, memory, _peak(server.process.pid), wrong)


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < options.connections + 100:
        parser.error(f"this shell allows {hard} open files: `ulimit -n` must be {options.connections + 100} at least")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, options.connections + 100), hard))
    os.environ["SIMSPOOL_AGENT"] = "off"
    with tempfile.TemporaryDirectory(prefix="simspool-held-") as folder:
        found = play(options.connections, options.runs, Path(folder))
    print(
        f"{found.connections:,} connections ({found.opened:,} opened, {found.held:,} held at the end): {options.runs} runs of {_POINTS:,} "
        f"points were sent in {found.beside:.1f} s, alone in {found.alone:.1f} s; the server's memory {found.memory_beside >> 20} MiB, "
        f"alone {found.memory_alone >> 20} MiB; {len(found.wrong)} wrong"
    )
    for text in found.wrong:
        print(f"WRONG: {text}")
    if options.json:
        options.json.write_text(json.dumps(asdict(found)))
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
