"""What the benchmarks share: a figure with its reference and bar, a scratch folder, the commands in processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_MADV_POPULATE_WRITE = 23
AGENT = [sys.executable, "-m", "simspool.agent"]
# Peak memory is read by the command itself: what the kernel reports to a parent includes the parent's own pages at the fork.
_MEASURED = """
import sys
from simspool.agent.cli import main
try:
    main(sys.argv[2:], prog_name="agent")
finally:
    peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
    open(sys.argv[1], "w").write(peak)
"""


@dataclass
class Figure:
    """One line of the results page.

    `value` is held against `bar` (`<=` when `lower`, else `>=`). `reference` is what was measured beside it in the same run, `detail`
    what else one should know, `n` how often it was measured.
    """

    name: str
    value: float
    unit: str
    bar: float | None = None
    lower: bool = True
    reference: str = ""
    detail: str = ""
    n: str = ""

    @property
    def verdict(self) -> str:
        """`met`, `missed`, or empty where there is no bar."""
        if self.bar is None:
            return ""
        return "met" if (self.value <= self.bar if self.lower else self.value >= self.bar) else "**missed**"


@dataclass
class Plan:
    """How much to measure, and where the scratch folder lies."""

    quick: bool
    folder: Path
    say: Callable[[str], None] = field(default=lambda text: print(text, file=sys.stderr, flush=True))

    def scale(self, full: int, quick: int) -> int:
        """Return one of two sizes."""
        return quick if self.quick else full


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def percentile(values: Sequence[float], p: float) -> float:
    """Return a percentile of unsorted values."""
    return sorted(values)[min(len(values) - 1, int(len(values) * p / 100))]


@contextlib.contextmanager
def scratch(plan: Plan, name: str) -> Iterator[Path]:
    """A folder that goes away."""
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=plan.folder))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Return an environment without the user's own configuration."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SIMSPOOL_", "SIMVUE_", "XDG_", "PYTHON"))}
    return kept | {"HOME": str(folder), "SIMSPOOL_DIR": str(folder / "spool"), "SIMSPOOL_AGENT": "off"} | more


def python(program: str, folder: Path, *arguments: object, **more: str) -> Any:
    """Run a program text in a new interpreter; return the JSON that it prints last."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment(folder, **more), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"benchmark program failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


@dataclass(frozen=True)
class Ran:
    """A command that has ended: its wall time (s), peak memory (bytes), output."""

    seconds: float
    peak: int
    code: int
    out: str

    @property
    def last(self) -> dict[str, Any]:
        """The last line of JSON."""
        value = json.loads(self.out.strip().splitlines()[-1])
        return value if isinstance(value, dict) else {"value": value}


def agent(folder: Path, *arguments: str, ok: Sequence[int] = (0,), **more: str) -> Ran:
    """Run an `agent` command to its end."""
    peak = folder / "command.peak"
    command = [sys.executable, "-c", _MEASURED, str(peak), *arguments]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment(folder, **more), capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode not in ok:
        raise RuntimeError(f"agent {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return Ran(seconds, int(peak.read_text()) * 1024, done.returncode, done.stdout)


@contextlib.contextmanager
def server(folder: Path) -> Iterator[dict[str, str]]:
    """An embedded server in a process of its own; yields the environment that leads to it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data, url = folder / "server", f"http://127.0.0.1:{port}"
    log = (folder / "server.log").open("wb")
    process = subprocess.Popen([*AGENT, "serve", "--data", str(data), "--port", str(port)], env=environment(folder), stdout=log, stderr=log)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/api/version", timeout=1):
                break
            if process.poll() is not None:
                raise RuntimeError((folder / "server.log").read_text()[-4000:])
            time.sleep(0.1)
        yield {"SIMSPOOL_URL": url, "SIMSPOOL_TOKEN": (data / "token").read_text().strip(), "server_pid": str(process.pid)}
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def warm_memory(size: int) -> None:
    """Touch this much memory once, in a process of its own.

    A virtual machine gets each page from its host at the first touch, several times slower than a file is copied later on.
    """
    program = f"import mmap; mmap.mmap(-1, {size}).madvise({_MADV_POPULATE_WRITE})"
    subprocess.run([sys.executable, "-c", program], check=False)


def stored_bytes(*folders: Path) -> int:
    """Return the bytes of the files below some folders, each inode once.

    Not the allocated blocks: ext4 counts a file's extent tree among them, which grows when the disk is written back.
    """
    seen: dict[tuple[int, int], int] = {}
    for folder in folders:
        for base, _, files in os.walk(folder):
            for name in files:
                info = os.lstat(os.path.join(base, name))
                seen[info.st_dev, info.st_ino] = info.st_size
    return sum(seen.values())


def raise_file_limit() -> None:
    """Let this process and its children have as many open files as the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
