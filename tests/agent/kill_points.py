"""Kill `agent sync` at its k-th write, fsync, rename, send ...; then a plain `agent sync` must bring the server to exact counts.

    python tests/agent/kill_points.py --seed 1 [--all]

strace delivers SIGKILL on entry to the k-th call of a kind. It counts by thread: k goes up to the busiest thread's last call.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from real_server import RealServer
from recorded import add_file, begin, fill, killed, whole

from simspool.agent.catalog import Catalog
from simspool.agent.catalog.store import place_key
from simspool.spool import Spool, open_spool

SYSCALLS = (
    "write", "pwrite64", "fdatasync", "fsync", "rename", "unlink", "unlinkat", "ftruncate", "fallocate", "sendto", "sendmsg",
)  # fmt: skip
POINTS = 40


class Case:
    """A spool with a whole run, a killed one, and a run with a file; and what the server must have at the end."""

    def __init__(self, folder: Path, server: RealServer) -> None:
        self.server = server
        self.spool: Spool = open_spool(folder / "spool", create=True)
        self.environment = {
            **os.environ, **server.environment, "SIMSPOOL_DIR": self.spool.path, "SIMSPOOL_STATE": str(folder / "state"),
            "XDG_RUNTIME_DIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip
        self.whole = whole(self.spool, points=POINTS, events=2)
        self.killed = killed(self.spool, points=POINTS)
        self.with_file, writer = begin(self.spool, "with-file")
        fill(writer, POINTS)
        self.bytes = os.urandom(3000)
        (folder / "data.bin").write_bytes(self.bytes)
        add_file(self.spool, self.with_file, writer, folder / "data.bin")
        writer.close({"status": "completed"})
        # an empty catalog is there: what makes one is a child process, which has nothing of ours to lose
        Catalog(str(folder / "state" / place_key(self.spool) / "catalog.db")).close()

    def sync(self, *before: str) -> subprocess.CompletedProcess[str]:
        """Run `agent sync`, under a tracer perhaps."""
        command = [*before, sys.executable, "-m", "simspool.agent", "sync", "--json"]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120, check=False)

    def violations(self) -> list[str]:
        """Sync plainly, twice, and say what is not as it should be."""
        found = []
        done = self.sync()
        if done.returncode != 0:
            found.append(f"the sync after the kill ended with {done.returncode}: {done.stdout[-300:]}{done.stderr[-500:]}")
        expected = [(step, step / 2) for step in range(POINTS)]
        for name in ("whole", "killed", "with_file"):
            if self.server.points(getattr(self, name), "loss") != expected:
                found.append(f"{name}: not the points that were recorded")
        statuses = [(self.server.get(f"/runs/{run}") or {}).get("status") for run in (self.whole, self.killed, self.with_file)]
        if statuses != ["completed", "lost", "completed"]:
            found.append(f"statuses {statuses}")
        if self.server.events(self.whole) != ["event 0", "event 1"]:
            found.append("not the events that were recorded")
        files = self.server.get(f"/runs/{self.with_file}/artifacts")
        if [(f["name"], f["size"]) for f in files] != [("data.bin", 3000)]:
            found.append(f"files {files}")
        again = self.sync()
        report = json.loads(again.stdout or "{}")
        if (again.returncode, report.get("sent_records"), report.get("sent_files")) != (0, 0, 0):
            found.append(f"a second sync sent {report.get('sent_records')} records, {report.get('sent_files')} files")
        return found


def counts(server: RealServer) -> dict[str, int]:
    """Return how often the busiest thread of an undisturbed sync makes each call."""
    with tempfile.TemporaryDirectory(prefix="kp-") as folder:
        case = Case(Path(folder), server)
        log = Path(folder) / "trace"
        done = case.sync("strace", "-f", "-qq", "-o", str(log), "-e", "trace=" + ",".join(SYSCALLS))
        assert done.returncode == 0, done.stderr
        calls = Counter(
            match.groups() for line in log.read_text(errors="replace").splitlines() if (match := re.match(r"(\d+) +(\w+)\(", line))
        )
    return {name: max((n for (_, call), n in calls.items() if call == name), default=0) for name in SYSCALLS}


def try_point(server: RealServer, syscall: str, k: int) -> tuple[bool, list[str]]:
    """Kill one sync; return whether it was killed, and what was wrong after the next one."""
    with tempfile.TemporaryDirectory(prefix="kp-") as folder:
        case = Case(Path(folder), server)
        done = case.sync(
            "strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={syscall}", "-e", f"inject={syscall}:signal=SIGKILL:when={k}"
        )
        return done.returncode != 0, [f"{syscall} {k}: {text}" for text in case.violations()]


def campaign(server: RealServer, seed: int, *, everything: bool, seconds: float = 1e9, side_by_side: int = 2) -> tuple[int, int, list[str]]:
    """Try all points, or a random sample for some seconds. Returns points tried, syncs killed, violations."""
    # a few more than were counted: how often the network is written to differs from run to run
    points = [(name, k) for name, n in counts(server).items() for k in range(1, n + 3 if n else 1)]
    rng = random.Random(seed)
    rng.shuffle(points)
    deadline = time.monotonic() + seconds
    tried = killed_syncs = 0
    violations: list[str] = []

    def one(point: tuple[str, int]) -> tuple[bool, list[str]] | None:
        return try_point(server, *point) if everything or time.monotonic() < deadline else None

    with ThreadPoolExecutor(side_by_side) as pool:
        for result in pool.map(one, points):
            if result is not None:
                tried += 1
                killed_syncs += result[0]
                violations += result[1]
    return tried, killed_syncs, violations


def main() -> int:
    """Run a campaign and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--all", action="store_true", help="every point, not a sample of 40 s")
    options = parser.parse_args()
    if shutil.which("strace") is None:
        print("strace is not installed: apt-get install strace", file=sys.stderr)
        return 2
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    with tempfile.TemporaryDirectory(prefix="kp-") as folder, RealServer(Path(folder) / "server") as server:
        began = time.monotonic()
        tried, dead, violations = campaign(server, options.seed, everything=options.all, seconds=40)
    for text in violations:
        print(text)
    print(f"{tried} points tried, {dead} syncs killed, {len(violations)} violations, {time.monotonic() - began:.0f} s, seed {options.seed}")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
