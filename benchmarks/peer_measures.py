"""What is measured of every tool: an import, a call, the bytes on disk, what a SIGKILL loses, a file saved twice."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness import Plan, scratch
from peer_venvs import PROGRAMS, Environments, Mode, environment

Cell = dict[str, Any]
LIMIT = 180  # seconds for one process: what takes longer is said to


class Failed(Exception):
    """A measurement's process failed; the text says how."""


class Bench:
    """Runs measurements, each in a process of its own in its tool's environment, and remembers what failed."""

    def __init__(self, plan: Plan, environments: Environments, seed: int) -> None:
        self.plan, self.environments, self.random = plan, environments, random.Random(seed)

    def measure(self, mode: Mode, folder: Path, *arguments: object, **more: str) -> Cell:
        """Run one measurement, see `peer_programs/measure.py`. Raises `Failed` and `Unavailable`."""
        command = [str(self.environments.python(mode.tool)), str(PROGRAMS / "measure.py"), mode.name, *map(str, arguments)]
        return last_line(command, folder, environment(folder, **more))

    def turns(self, modes: list[Mode], rounds: int) -> list[tuple[int, Mode]]:
        """Return all modes in each round, in an order that changes, so that other load hits all of them alike."""
        return [(turn, mode) for turn in range(rounds) for mode in self.random.sample(modes, len(modes))]

    def tell(self, done: int, of: int, what: str = "measurements") -> None:
        """Say how far it is, about ten times a measure."""
        if of > 10 and done % max(1, of // 10) == 0:
            self.plan.say(f"  {done} of {of} {what}")


def last_line(command: list[str], folder: Path, env: dict[str, str]) -> Cell:
    """Run a program; return the JSON that it prints last. Raises `Failed`."""
    try:
        done = subprocess.run(command, cwd=folder / "data", env=env, capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        raise Failed(f"not done after {LIMIT} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise Failed(f"ended with {done.returncode}: {lines[-1][:200] if lines else 'and said nothing'}")
    value: Cell = json.loads(done.stdout.splitlines()[-1])
    return value


def occupied(folder: Path) -> tuple[int, int]:
    """Return the length of all files below a folder, and the disk blocks allocated to them, in bytes; each inode once."""
    seen: dict[tuple[int, int], tuple[int, int]] = {}
    for base, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                info = os.lstat(os.path.join(base, name))
                seen[info.st_dev, info.st_ino] = info.st_size, info.st_blocks * 512
    return sum(size for size, _ in seen.values()), sum(blocks for _, blocks in seen.values())


def occupied_by_tool(folder: Path) -> tuple[int, int]:
    """Return what a measurement's home and data folders hold: tools keep things in both."""
    pairs = [occupied(folder / name) for name in ("home", "data")]
    return pairs[0][0] + pairs[1][0], pairs[0][1] + pairs[1][1]


def _medians(rounds: list[Cell]) -> Cell:
    return {key: statistics.median(r[key] for r in rounds) for key in rounds[0]} | {"rounds": len(rounds)}


def imports(bench: Bench, modes: list[Mode]) -> dict[str, Cell]:
    """Time the import that a user writes; one mode per tool, the first round only warms the page cache."""
    tools = list({mode.tool: mode for mode in reversed(modes)}.values())
    found = _rounds(bench, tools, bench.plan.scale(5, 2), lambda folder, mode: bench.measure(mode, folder, "import"), warm=True)
    return {mode.name: found[other.name] for mode in modes for other in tools if other.tool == mode.tool}


def calls(bench: Bench, modes: list[Mode]) -> dict[str, Cell]:
    """Time log calls, and see what they leave on disk: above what a run of a single call leaves."""
    most, seconds = bench.plan.scale(20_000, 2_000), bench.plan.scale(2, 1)
    before: dict[str, tuple[int, int]] = {}

    def one(folder: Path, mode: Mode) -> Cell:
        if mode.name not in before:
            empty = _made(folder / "empty")
            bench.measure(mode, empty, "record", 1)
            before[mode.name] = occupied_by_tool(empty)
        cell = bench.measure(mode, folder, "calls", most, seconds)
        after = occupied_by_tool(folder)
        apparent, allocated = ((b - a) / cell["total"] for a, b in zip(before[mode.name], after, strict=True))
        return cell | {"apparent_bytes": apparent, "allocated_bytes": allocated}

    return _rounds(bench, modes, bench.plan.scale(3, 1), one)


def files(bench: Bench, modes: list[Mode]) -> dict[str, Cell]:
    """Save a file of 100 MB once, and in another process twice under two names."""
    size = bench.plan.scale(100, 8) * 1_000_000

    def one(folder: Path, mode: Mode) -> Cell:
        source = folder / "source.bin"
        _random_file(source, size)
        stored = []
        for times in (1, 2):
            inside = _made(folder / str(times))
            cell = bench.measure(mode, inside, "save", source, times)
            stored.append(occupied_by_tool(inside)[0] / 1e6)
        return {"first": cell["seconds"][0], "second": cell["seconds"][1], "stored_1": stored[0], "stored_2": stored[1], "size": size / 1e6}

    return _rounds(bench, modes, bench.plan.scale(3, 1), one)


def _random_file(path: Path, size: int) -> None:
    block = os.urandom(1_000_000)
    with path.open("wb") as file:
        for number in range(size // len(block)):
            file.write(number.to_bytes(8, "little") + block[8:])
        file.flush()
        os.fsync(file.fileno())


def _made(folder: Path) -> Path:
    environment(folder)
    return folder


def _rounds(bench: Bench, modes: list[Mode], rounds: int, one: Any, *, warm: bool = False) -> dict[str, Cell]:
    """Measure in turns and take medians. A tool that failed once is not tried again; its cell says why."""
    found: dict[str, list[Cell]] = {mode.name: [] for mode in modes}
    failed: dict[str, Cell] = {}
    turns = bench.turns(modes, rounds + warm)
    for number, (turn, mode) in enumerate(turns):
        bench.tell(number, len(turns))
        if mode.name in failed:
            continue
        with scratch(bench.plan, "peers") as folder:
            try:
                cell = one(_made(folder), mode)
            except Exception as error:
                failed[mode.name] = {"failed": str(error) or type(error).__name__}
                bench.plan.say(f"  {mode.name}: failed: {error}")
                continue
        if turn or not warm:
            found[mode.name].append(cell)
    return {name: failed.get(name) or _medians(cells) for name, cells in found.items()}


def kill_after(plan: Plan) -> tuple[float, float]:
    """Return the earliest and the latest moment of a kill, in seconds after the first call."""
    return (0.5, 1.0) if plan.quick else (1.0, 2.0)


def kills(bench: Bench, modes: list[Mode]) -> dict[str, Cell]:
    """Kill what logs, and count which acknowledged calls can be read back.

    Flat out one after the other; at 200 calls/s three at a time, as they hardly load the machine.
    """
    n = bench.plan.scale(3, 1)
    cells: dict[str, Cell] = {mode.name: {} for mode in modes}
    tried = [(mode, rate, tree) for rate in (0, 200) for tree in (True, False) for _, mode in bench.turns(modes, n)]
    delays = [bench.random.uniform(*kill_after(bench.plan)) for _ in tried]

    def one(index: int) -> tuple[Mode, str, Cell]:
        mode, rate, tree = tried[index]
        name = f"{'paced' if rate else 'flat'}_{'tree' if tree else 'process'}"
        folder = Path(tempfile.mkdtemp(prefix="peers-", dir=bench.plan.folder))
        try:
            return mode, name, _kill(bench, mode, folder, rate, tree, delays[index])
        except Exception as error:
            bench.plan.say(f"  {mode.name}: failed: {error}")
            return mode, name, {"failed": str(error) or type(error).__name__}
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    flat = [index for index, (_, rate, _) in enumerate(tried) if not rate]
    paced = [index for index, (_, rate, _) in enumerate(tried) if rate]
    finished = 0
    for some, at_once in ((flat, 1), (paced, 3)):
        with ThreadPoolExecutor(at_once) as pool:
            for mode, name, cell in pool.map(one, some):
                bench.tell(finished := finished + 1, len(tried), "kills")
                _add(cells[mode.name].setdefault(name, {"kills": 0, "acknowledged": 0, "found": 0, "repeated": 0}), cell)
    return cells


def _add(whole: Cell, cell: Cell) -> None:
    if "failed" in cell:
        whole["failed"] = cell["failed"]
        return
    whole["kills"] += 1
    for key in ("acknowledged", "found", "repeated"):
        whole[key] += cell[key]


def _kill(bench: Bench, mode: Mode, folder: Path, rate: int, tree: bool, delay: float) -> Cell:
    """One kill: of everything that carries the victim's environment, or of the process that logs alone."""
    env, counter = environment(folder), folder / "counter"
    counter.write_bytes(bytes(8))
    command = [str(bench.environments.python(mode.tool)), str(PROGRAMS / "measure.py"), mode.name, "victim", str(rate), str(counter)]
    with (folder / "output").open("wb") as output:
        victim = subprocess.Popen(command, cwd=folder / "data", env=env, stdout=output, stderr=output)
    try:
        end = time.monotonic() + LIMIT
        while counter.read_bytes() == bytes(8) and victim.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(delay)
        if victim.poll() is not None or counter.read_bytes() == bytes(8):
            raise Failed(f"logged nothing: {(folder / 'output').read_text(errors='replace').strip()[-200:]}")
        helpers = [pid for pid in _family(folder) if pid != victim.pid]
        for pid in (victim.pid, *(helpers if tree else ())):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        victim.wait()
        end = time.monotonic() + 8  # helpers that outlive the script may write what they have
        while not tree and _family(folder) and time.monotonic() < end:
            time.sleep(0.05)
    finally:
        while family := _family(folder):
            for pid in family:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            victim.poll()
            time.sleep(0.02)
    acknowledged = int.from_bytes(counter.read_bytes(), "little")
    return bench.measure(mode, folder, "found", acknowledged) | {"acknowledged": acknowledged}


def _family(folder: Path) -> list[int]:
    """Return the processes that carry a measurement's environment: helpers may have left the process tree and the session."""
    mark, found = f"PEERS_DATA={folder / 'data'}".encode(), []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):
                if mark in Path("/proc", entry, "environ").read_bytes().split(b"\0"):
                    found.append(int(entry))
    return found
