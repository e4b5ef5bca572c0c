"""Power cuts: what is on the disk of what returned True? (FORMAT.md W9, W10; fault F3). Needs root and loop devices.

    python tests/faults/powercut_campaign.py --cuts 20 --seed 1 [--pause 10] [--agent]

An ext4 image is mounted with a commit interval of five minutes. A script records on it; the image file is copied while it is mounted
(what really reached "the disk", as after a power cut), the copy is mounted and read. Under `each`, all calls that had
returned True before the copy began must be there. Under `interval`, the script falls silent, with `maintain` called once a second,
and after the pause (at least two such calls) all must be there. With `--agent`, the script's own upkeep never runs, as when native code
holds its interpreter: a running agent has to do it.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from simspool.sdk.agent_start import serving_agent
from simspool.spool import Durability, Kind, Writer, blobs, ids, open_spool
from simspool.spool.frames import MetricBatch
from simspool.spool.reader import Tail

RUN = bytes(range(16))


def usable() -> str:
    """Return why power cuts cannot be played here; empty when they can."""
    if os.geteuid() != 0:
        return "power cuts need root: loop devices and mounts"
    missing = [tool for tool in ("mkfs.ext4", "mount", "umount") if shutil.which(tool) is None]
    if missing:
        return f"power cuts need {', '.join(missing)}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            with Disk(Path(folder), 8):
                return ""
        except subprocess.CalledProcessError as error:
            return f"loop mounts do not work here: {error.stderr.decode(errors='replace').strip()}"


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


class Disk:
    """An ext4 file system in an image file, mounted."""

    def __init__(self, folder: Path, mebibytes: int) -> None:
        self.folder, self.image, self.mount = folder, folder / "image", folder / "mount"
        with self.image.open("wb") as f:
            f.truncate(mebibytes << 20)
        self.mount.mkdir()
        _run("mkfs.ext4", "-q", "-F", str(self.image))

    def __enter__(self) -> Self:
        _run("mount", "-o", "loop,commit=300", str(self.image), str(self.mount))
        return self

    def __exit__(self, *_: object) -> None:
        for _attempt in range(50):
            if subprocess.run(["umount", str(self.mount)], check=False, capture_output=True).returncode == 0:
                return
            time.sleep(0.1)
        _run("umount", "-l", str(self.mount))

    def cut(self, name: str) -> Path:
        """Copy what is on the disk now, and mount the copy read-only after its journal was replayed."""
        copy, at = self.folder / f"{name}.image", self.folder / name
        _run("cp", "--sparse=always", str(self.image), str(copy))
        at.mkdir()
        _run("mount", "-o", "loop", str(copy), str(at))
        return at

    def drop(self, at: Path) -> None:
        """Forget a copy."""
        _run("umount", str(at))
        at.rmdir()
        at.with_suffix(".image").unlink()


def script(spool_path: str, board: mmap.mmap, durability: Durability, mapped: bool, calls: int, upheld: bool) -> None:
    """Record, with the figures of what returned True in the board. Runs in the victim."""
    from simspool.spool import segment

    segment.SEGMENT_MAX = 1 << 17
    counters = memoryview(board).cast("q")  # one store each, so that it may be read at any moment
    spool = open_spool(spool_path, create=True)
    run = spool.run(ids.to_text(RUN))
    writer = Writer(run.writers, RUN, mapped=mapped, durability=durability)

    def upkeep() -> None:
        while True:
            time.sleep(1)
            writer.maintain()
            counters[2] += 1
            damaged = blobs.publish(spool, run, os.listdir(run.blobs)) if os.path.isdir(run.blobs) else []
            assert not damaged

    if upheld:
        threading.Thread(target=upkeep, daemon=True).start()
    for n in range(1, calls + 1):
        kept = writer.metrics({"n": n, "x": n * 0.5}) if n % 10 else writer.record(Kind.EVENT, {"n": n, "pad": "x" * (n % 3000)})
        if kept:
            counters[0] = n
    blobs.put_bytes(spool, run, b"blob" * 1000)
    counters[1] = 1
    while True:
        time.sleep(1)


def start_agent(disk: Disk) -> subprocess.Popen[bytes]:
    """Start `agent run` on the spool, with its state on another disk."""
    state = {"SIMSPOOL_STATE": str(disk.folder / "state"), "XDG_RUNTIME_DIR": str(disk.folder), "HOME": str(disk.folder)}
    command = [sys.executable, "-m", "simspool.agent", "run", "--spool", str(disk.mount / "spool")]
    disk.folder.chmod(0o700)
    return subprocess.Popen(command, env={**os.environ, **state}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def one_cut(choice: random.Random, base: str, durability: Durability, pause: float, *, beside: bool = False) -> dict[str, int]:
    """Cut the power once, perhaps beside an agent; return the counts."""
    mapped = choice.random() < 0.5
    with tempfile.TemporaryDirectory(dir=base) as name:
        folder = Path(name)
        with Disk(folder, 64) as disk:
            board = mmap.mmap(-1, 24)
            agent = start_agent(disk) if beside else None
            pid = os.fork()
            if pid == 0:
                try:
                    calls = 1 << 40 if durability is Durability.EACH else choice.randrange(100, 20_000)
                    script(str(disk.mount / "spool"), board, durability, mapped, calls, not beside)
                finally:
                    os._exit(1)
            try:
                if durability is Durability.EACH:
                    time.sleep(choice.uniform(0.2, 1.0))
                else:
                    _wait_until(lambda: board[8] != 0)
                    rounds = _rounds(board)
                    if beside:  # on a busy machine, an agent is long in coming
                        _wait_until(lambda: serving_agent(str(disk.mount / "spool")) is not None)
                    time.sleep(pause)
                    _wait_until(lambda: beside or _rounds(board) >= rounds + 2)
                promised = struct.unpack("<q", board[:8])[0]
                at = disk.cut("after")
            finally:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                if agent is not None:
                    agent.kill()
                    agent.wait()
            try:
                return check(at / "spool", promised) | {"mapped": int(mapped)}
            finally:
                disk.drop(at)


def _rounds(board: mmap.mmap) -> int:
    """Return how often the script's upkeep has been through."""
    return int(struct.unpack("<q", board[16:24])[0])


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def check(spool_path: Path, promised: int) -> dict[str, int]:
    """Compare what was promised with what reached the disk."""
    out = {"promised": promised, "lost": 0, "damaged": 0, "bad_blobs": 0}
    seen: set[int] = set()
    runs = spool_path / "runs" / ids.to_text(RUN) / "w"
    for writer in os.listdir(runs):
        with Tail(str(runs / writer), ids.to_text(RUN)) as tail:
            for chunk in tail.read(dead=True):
                for item in chunk.items:
                    if isinstance(item, MetricBatch):
                        seen.update(int(row[-3]) for row in item.rows)
                    elif item.body is not None and "n" in item.body:
                        seen.add(item.body["n"])
                # a chunk's damage lies behind its items; behind all that was promised, it is of what was being written
                last = max(seen, default=0)
                out["damaged"] += sum(d.kind in {"corrupt", "loss", "missing"} and last < promised for d in chunk.damage)
    out["lost"] = sum(n not in seen for n in range(1, promised + 1))
    for pooled in (spool_path / "blobs" / "sha256").glob("*/*"):
        try:
            blobs.verify(str(pooled), pooled.name)
        except Exception:
            out["bad_blobs"] += 1
    return out


def campaign(cuts: int, seed: int, pause: float, base: str | None = None, *, beside: bool = False, show: bool = False) -> dict[str, Any]:
    """Cut so many times, `each` and `interval` in turn (beside an agent: `interval` only); return the figures."""
    choice = random.Random(seed)
    total: dict[str, Counter[str]] = {"each": Counter(), "interval": Counter()}
    with tempfile.TemporaryDirectory(prefix="simspool-cuts-", dir=base) as folder:
        for n in range(cuts):
            durability = (Durability.EACH, Durability.INTERVAL)[1 if beside else n % 2]
            counts = one_cut(choice, folder, durability, pause, beside=beside)
            total[durability.name.lower()].update(counts | {"cuts": 1})
            if show:
                print(n + 1, durability.name.lower(), counts, file=sys.stderr, flush=True)
    return {"seed": seed, "pause_s": pause, **{k: dict(v) for k, v in total.items()}}


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pause", type=float, default=10, help="seconds of silence before a cut under `interval`")
    parser.add_argument("--agent", action="store_true", help="the script has no upkeep of its own, an agent runs beside it")
    parser.add_argument("--folder", help="where the images lie (default: the temporary folder)")
    options = parser.parse_args()
    reason = usable()
    if reason:
        print(reason, file=sys.stderr)
        return 2
    figures = campaign(options.cuts, options.seed, options.pause, options.folder, beside=options.agent, show=True)
    print(json.dumps(figures, indent=1))
    return int(any(figures[k].get(x) for k in ("each", "interval") for x in ("lost", "damaged", "bad_blobs")))


if __name__ == "__main__":
    sys.exit(main())
