"""24 simulated hours of a log that `agent exec` follows, rotated by rename and by copytruncate: is each value recorded, once, in order?

    python tests/lines/rotation_campaign.py --gigabytes 10 --seed 1

Prints progress on stderr, and one line of JSON: bytes, lines and metrics, rotations of each kind, values that were wrong, MB/s, and
the memory of `agent exec` (MiB: the least, the median, the most; and how much it grew for each GB, in the second half).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

from simspool.spool import Kind, Tail, open_spool
from simspool.spool.frames import STEP, MetricBatch

HOURS = 24
BYTES_A_METRIC = 12_000
AHEAD = 64 << 20  # bytes that the writer may be ahead of the records
PATIENCE = 120.0  # s without any record while some must come
EXPRESSIONS = (r"step=(?P<step>\d+) t=(?P<time>\S+) residual=(?P<residual>\S+) mass=(?P<mass>\S+)", r"dt := adapted dt=(\S+)")
EVENTS = (r"^\S+ (?P<warning>WARNING.*)",)


class Records:
    """What is in the spool of the one run, looked at again and again."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._tails = folder, {}  # type: Path, dict[str, Tail]

    def new(self) -> list[tuple[int, float, float]]:
        """Return (step, residual, mass) of the metrics that have come since the last look."""
        found: list[tuple[int, float, float]] = []
        if not (self._folder / "SPOOL").exists():
            return found
        spool = open_spool(str(self._folder))
        for run in spool.run_ids():
            for writer in spool.run(run).writer_ids():
                if writer not in self._tails:
                    self._tails[writer] = Tail(spool.run(run).writer(writer), run)
        for tail in self._tails.values():
            for chunk in tail.read():
                for item in chunk.items:
                    if isinstance(item, MetricBatch) and item.kind == Kind.METRICS and "residual" in item.shape.names:
                        at = item.values_at
                        mass, residual = (at + item.shape.names.index(name) for name in ("mass", "residual"))
                        found += [(row[STEP], row[residual], row[mass]) for row in item.rows]
        return found

    def close(self) -> None:
        """Let go of the spool."""
        for tail in self._tails.values():
            tail.close()


def values(step: int) -> tuple[float, float]:
    """Return what the log says at a step: exact in a double, so that they can be compared."""
    return step / 8.0, struct.unpack("f", struct.pack("f", 1.0 / (step + 1)))[0]


class Writer:
    """The program that writes the log, and whoever rotates it."""

    def __init__(self, folder: Path, total: int, seed: int) -> None:
        self.log, self.total, self.choice = folder / "run.log", total, random.Random(seed)
        self.steps = max(10, total // BYTES_A_METRIC)
        self.step = self.written = self.lines = 0
        self.rotations = {"rename": 0, "copytruncate": 0}
        self._folder, self._fd = folder, self._open()
        self._filler = [self._lines_between() for _ in range(20)]
        self._buffer = bytearray()
        self.old: deque[tuple[int, Path]] = deque()  # rotated files, and the step that must be recorded before one may go

    def _open(self) -> int:
        return os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def _lines_between(self) -> bytes:
        lines = []
        size = 0
        while size < BYTES_A_METRIC - 150:
            rank = self.choice.randrange(64)
            took = self.choice.random()
            lines.append(f"HH:MM:SS.mmm DEBUG solver.cpp:{rank * 7} rank {rank}: assembly {took:.4f} s, cache {rank}%, T = 300 \u00b0C\n")
            size += len(lines[-1]) + 1
        if self.choice.random() < 0.01:
            lines.append("HH:MM:SS.mmm WARNING: the mesh is poor\n")
        return "".join(lines).encode()

    def fill(self, size: int) -> None:
        """Make more of the log's text."""
        while len(self._buffer) < size:
            moment = self.step / self.steps * HOURS * 3600
            stamp = f"{int(moment // 3600):02}:{int(moment // 60) % 60:02}:{moment % 60:06.3f}"
            filler = self.choice.choice(self._filler)
            self._buffer += filler.replace(b"HH:MM:SS.mmm", stamp.encode())
            residual, mass = values(self.step)
            exact = f"{mass:.17E}".replace("E", "D")
            self._buffer += f"{stamp} INFO step={self.step} t={moment:.6f} residual={residual!r} mass={exact}\n".encode()
            self.lines += filler.count(b"\n") + 1
            self.step += 1

    def write(self, size: int | None = None) -> None:
        """Write so many bytes of it, wherever that ends in a line; or all that is made, to the end of a metric's line."""
        part = bytes(self._buffer[:size])
        del self._buffer[: len(part)]
        view = memoryview(part)
        while view:
            view = view[os.write(self._fd, view) :]
        self.written += len(part)

    def rename(self) -> None:
        """Rotate as logrotate does: the program writes on into the old file for a while, and then opens the new one."""
        self.rotations["rename"] += 1
        old = self._folder / f"run.log.{self.rotations['rename']}"
        self.log.rename(old)
        if self.choice.random() < 0.5:
            self.fill(self.choice.randrange(1, 300_000))
        self.write()
        os.close(self._fd)
        self._fd = self._open()
        self.old.append((self.step - 1, old))

    def truncate(self) -> None:
        """Empty the file. What was not read would be lost, as with every follower."""
        self.rotations["copytruncate"] += 1
        os.ftruncate(self._fd, 0)

    def close(self) -> None:
        """Close the log."""
        os.close(self._fd)


def memory_of(pid: int) -> float:
    """Return the resident memory in MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / (1 << 20)


def slope(points: list[tuple[float, float]]) -> float:
    """Return the least-squares slope of the second half of (x, y): what is held from the start on is no growth."""
    points = points[len(points) // 2 :]
    if len(points) < 2 or points[0][0] == points[-1][0]:
        return 0.0
    return statistics.linear_regression(*zip(*points, strict=True)).slope


class Campaign:
    """The writer, the follower, and the comparison."""

    def __init__(self, folder: Path, total: int, seed: int, *, progress: bool) -> None:
        self.writer = Writer(folder, total, seed)
        self.records = Records(folder / "spool")
        self.expected = self.wrong = 0
        self.examples: list[Any] = []
        self.memory: list[tuple[float, float]] = []
        self._progress, self._told, self._looked = progress, 0.0, time.monotonic()
        options = ["--follow", str(self.writer.log)]
        options += [part for text in EXPRESSIONS for part in ("--metric", text)] + [part for text in EVENTS for part in ("--event", text)]
        environment = {**os.environ, "SIMSPOOL_DIR": str(folder / "spool"), "SIMSPOOL_AGENT": "off"}
        command = [sys.executable, "-m", "simspool.agent", "exec", "--name", "rotation", *options, "--", "sh", "-c", "echo begun; cat"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder, env=environment)
        assert self.process.stdout is not None
        if self.process.stdout.readline() != b"begun\n":  # what was in the log before is not the command's
            raise RuntimeError("agent exec has not begun the command")

    def look(self) -> None:
        """Compare what is new, let go of files that are read, and take a sample of the memory."""
        for step, residual, mass in self.records.new():
            if (step, residual, mass) != (self.expected, *values(self.expected)):
                self.wrong += 1
                self.examples.append((self.expected, step, residual, mass))
            self.expected = step + 1
            self._looked = time.monotonic()
        while self.writer.old and self.writer.old[0][0] < self.expected:
            self.writer.old.popleft()[1].unlink()
        self.memory.append((self.writer.written / 1e9, memory_of(self.process.pid)))
        if self._progress and time.monotonic() - self._told > 2:
            self._told = time.monotonic()
            hours = self.expected / self.writer.steps * HOURS
            done = f"{hours:5.2f} of {HOURS} h, {self.writer.written / 1e9:.2f} GB, {self.memory[-1][1]:.1f} MiB"
            print(f"\r{done} ", end="", file=sys.stderr, flush=True)

    def wait_for(self, step: int) -> None:
        """Wait until this step is recorded."""
        self._looked = time.monotonic()
        while self.expected <= step:
            self.look()
            if self.process.poll() is not None:
                raise RuntimeError(f"agent exec ended with {self.process.returncode}")
            if time.monotonic() - self._looked > PATIENCE:
                raise RuntimeError(f"step {self.expected} is not recorded: the log has {self.writer.step}")
            time.sleep(0.005)

    def run(self) -> dict[str, Any]:
        """Write it all; returns the figures."""
        writer, choice = self.writer, self.writer.choice
        least, most = max(writer.total // 100, 100_000), max(writer.total // 25, 400_000)
        writer.fill(1)
        writer.write()
        self.wait_for(0)
        begun, next_rotation, number = time.monotonic(), choice.randrange(least, most), 0
        while writer.step < writer.steps:
            writer.fill(1 << 20)
            writer.write(choice.randrange(1, 1 << 20))  # the end of a write is anywhere in a line
            if writer.written >= next_rotation:
                if number % 2:
                    writer.write()
                    self.wait_for(writer.step - 1)
                    writer.truncate()
                else:
                    writer.rename()
                number, next_rotation = number + 1, writer.written + choice.randrange(least, most)
            self.look()
            behind = (writer.step - self.expected) * BYTES_A_METRIC - AHEAD
            if behind > 0:
                self.wait_for(self.expected + behind // BYTES_A_METRIC)
        writer.write()
        self.wait_for(writer.step - 1)
        seconds = time.monotonic() - begun
        assert self.process.stdin is not None
        self.process.stdin.close()
        code = self.process.wait(60)
        more = self.records.new()
        held = sorted(mib for _, mib in self.memory)
        return {
            "bytes": writer.written, "lines": writer.lines, "metrics": writer.step, "recorded": self.expected,
            "wrong": self.wrong + len(more), "examples": self.examples[:3] + more[:3], "rotations": writer.rotations, "exit": code,
            "seconds": round(seconds, 1), "MB/s": round(writer.written / 1e6 / seconds, 1),
            "MiB": [round(mib, 1) for mib in (held[0], statistics.median(held), held[-1])], "MiB/GB": round(slope(self.memory), 3),
        }  # fmt: skip

    def end(self) -> None:
        """Whatever happened, nothing is left."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.records.close()
        self.writer.close()


def campaign(total: int, seed: int, *, progress: bool = False) -> dict[str, Any]:
    """Write a log of so many bytes and have it followed; returns the figures."""
    folder = Path(tempfile.mkdtemp(prefix="rotation-"))
    try:
        made = Campaign(folder, total, seed, progress=progress)
        try:
            return {"seed": seed, "hours": HOURS, **made.run()}
        finally:
            made.end()
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    figures = campaign(int(given.gigabytes * 1e9), given.seed, progress=True)
    print(file=sys.stderr)
    print(json.dumps(figures))
    sys.exit(bool(figures["wrong"] or figures["recorded"] != figures["metrics"]))
