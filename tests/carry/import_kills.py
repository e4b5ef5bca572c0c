"""Kill an import at its k-th write, fsync, rename, link ...; what is there is a prefix then, and a plain import makes it whole.

    python tests/carry/import_kills.py --seed 1 [--all]

strace delivers SIGKILL on entry to the k-th call of a kind. Two imports are tried: into an empty spool, and of what came since.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
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

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from carrying import bring, differences, pack, settle
from recorded import add_file, begin, fill, killed, whole
from sides import Side

from simspool.agent.carry import carried
from simspool.spool import Spool, open_spool

SYSCALLS = ("write", "pwrite64", "fdatasync", "fsync", "rename", "link", "unlink", "ftruncate", "mkdir", "chmod", "flock", "fcntl")


class Case:
    """An origin with two parcels packed: early, and late, and a far spool's state before each of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        os.environ["SIMSPOOL_STATE"] = str(folder / "state")
        with Side(folder / "origin") as origin:
            self.origin: Spool = origin.spool
            (folder / "one").write_bytes(b"1" * 3000)
            (folder / "two").write_bytes(random.Random(2).randbytes((9 << 20) + 1))  # large enough for direct I/O
            growing, writer = begin(origin.spool, "growing")
            fill(writer, 50)
            add_file(origin.spool, growing, writer, folder / "one")
            other = killed(origin.spool)
            origin.take_in()
            early = pack(origin)
            fill(writer, 50, start=50)
            add_file(origin.spool, growing, writer, folder / "two")
            writer.close({"status": "completed"})
            self.runs = [growing, other, whole(origin.spool)]
            for _ in range(2):
                settle(origin)
            late = pack(origin)
        self.parcels = {"early": early, "late": late}
        self.befores: dict[str, Path] = {}
        state = open_spool(folder / "far", create=True)
        for name, parcel in self.parcels.items():
            self.befores[name] = folder / f"before-{name}"
            shutil.copytree(state.path, self.befores[name])
            (folder / name).write_bytes(pickle.dumps(parcel))
            assert bring(state, parcel)[1] == []
        self.state = state

    def far(self, name: str, folder: Path) -> Spool:
        """Return a far spool of its own as it is before a parcel comes."""
        shutil.copytree(self.befores[name], folder / "far")
        return open_spool(folder / "far")

    def bring(self, name: str, far: Spool, *before: str) -> int:
        """Import in a process of its own, under a tracer perhaps; return its exit status."""
        command = [*before, sys.executable, __file__, "--import", str(self.folder / name), far.path]
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode

    def violations(self, name: str, far: Spool) -> list[str]:
        """Say what is wrong after a kill, and after the import that follows."""
        found = [f"after the kill: {text}" for run in self.runs for text in differences(self.origin, far, run, whole=False)]
        for run in far.run_ids():
            folder = far.run(run)
            if os.path.isdir(folder.writers) and carried.read(folder) is None:
                found.append(f"run {run} has writers and does not say that it is foreign")
            found += [f"after the kill: {text}" for text in _wrong_blobs(folder.blobs)]
        for prefix in os.listdir(far.pool) if os.path.isdir(far.pool) else ():
            found += [f"after the kill: {text}" for text in _wrong_blobs(os.path.join(far.pool, prefix))]
        refused = bring(far, self.parcels[name])[1]
        found += [f"the import after the kill: {text}" for text in refused]
        if name == "early":
            bring(far, self.parcels["late"])
        for run in self.runs:
            found += [f"in the end: {text}" for text in differences(self.origin, far, run, whole=True)]
            if carried.read(far.run(run)) != carried.read(self.state.run(run)):
                found.append(f"in the end: run {run} is noted as {carried.read(far.run(run))}")
        return found


def _wrong_blobs(folder: str) -> list[str]:
    names = [n for n in os.listdir(folder) if len(n) == 64] if os.path.isdir(folder) else []
    return [f"{folder}/{n} has other bytes" for n in names if hashlib.sha256(Path(folder, n).read_bytes()).hexdigest() != n]


def counts(case: Case, name: str) -> dict[str, int]:
    """Return how often an undisturbed import makes each call."""
    with tempfile.TemporaryDirectory(prefix="ik-") as folder:
        log = Path(folder) / "trace"
        done = case.bring(name, case.far(name, Path(folder)), "strace", "-f", "-qq", "-o", str(log), "-e", "trace=" + ",".join(SYSCALLS))
        assert done == 0
        calls = Counter(m[1] for line in log.read_text(errors="replace").splitlines() if (m := re.match(r"\d+ +(\w+)\(", line)))
    return {call: calls[call] for call in SYSCALLS}


def try_point(case: Case, name: str, syscall: str, k: int) -> tuple[bool, list[str]]:
    """Kill one import; return whether it was killed, and what was wrong then."""
    with tempfile.TemporaryDirectory(prefix="ik-") as folder:
        far = case.far(name, Path(folder))
        tracer = ("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={syscall}", "-e", f"inject={syscall}:signal=SIGKILL:when={k}")
        done = case.bring(name, far, *tracer)
        return done != 0, [f"{name} {syscall} {k}: {text}" for text in case.violations(name, far)]


def campaign(seed: int, *, everything: bool, seconds: float = 1e9) -> tuple[int, int, list[str]]:
    """Try all points, or a random sample for some seconds. Returns points tried, imports killed, violations."""
    with tempfile.TemporaryDirectory(prefix="ik-") as folder, ThreadPoolExecutor(2) as pool:
        case = Case(Path(folder))
        points = [(name, call, k) for name in case.parcels for call, n in counts(case, name).items() for k in range(1, n + 1)]
        random.Random(seed).shuffle(points)
        deadline = time.monotonic() + seconds

        def one(point: tuple[str, str, int]) -> tuple[bool, list[str]] | None:
            return try_point(case, *point) if everything or time.monotonic() < deadline else None

        results = [result for result in pool.map(one, points) if result is not None]
    return len(results), sum(dead for dead, _ in results), [text for _, found in results for text in found]


def main() -> int:
    """Run a campaign and print its figures."""
    if sys.argv[1:2] == ["--import"]:
        return 1 if bring(open_spool(sys.argv[3]), pickle.loads(Path(sys.argv[2]).read_bytes()))[1] else 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--all", action="store_true", help="every point, not a sample of 40 s")
    options = parser.parse_args()
    if shutil.which("strace") is None:
        print("strace is not installed: apt-get install strace", file=sys.stderr)
        return 2
    began = time.monotonic()
    tried, dead, violations = campaign(options.seed, everything=options.all, seconds=40)
    for text in violations:
        print(text)
    took = time.monotonic() - began
    print(f"{tried} points tried, {dead} imports killed, {len(violations)} violations, {took:.0f} s, seed {options.seed}")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
