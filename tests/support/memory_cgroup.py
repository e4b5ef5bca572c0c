"""A real memory cgroup below our own, of whichever version this machine has; tests that need one skip loudly without."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def memory_cgroup(name: str, limit: int) -> Iterator[Path]:
    """Give a new group with a memory limit (bytes) and no swap; processes enter it by `enter(folder)`."""
    own = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    old = (ROOT / "memory").is_dir()
    folder = ROOT / "memory" / own.get("memory", "/").lstrip("/") if old else ROOT / own.get("", "/").lstrip("/")
    group = folder / name
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(limit))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"SKIPPED: no memory cgroup can be made here ({error})")
    try:
        yield group
    finally:
        (folder / "cgroup.procs").write_text(str(os.getpid()))
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                os.kill(int(pid), 9)
                os.waitpid(int(pid), 0)
        group.rmdir()


def enter(group: Path) -> Callable[[], None]:
    """Return what a process calls to move itself into the group."""

    def move() -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()))

    return move
