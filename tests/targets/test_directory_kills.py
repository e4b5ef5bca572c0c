"""The directory target, killed before every call that changes the disk, and in the middle of every write: each record is there once."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import in_process
import pytest
from conformance import Recording, check
from directory_bench import DirectoryBench
from memory_target import MemoryTarget

from simspool.agent.targets import directory_tree
from simspool.agent.targets.directory_run import RunFiles
from simspool.agent.targets.port import File, Limits, Range
from simspool.spool import Kind, Spool, runstate

CHANGES = ("open", "pwrite", "fsync", "ftruncate", "link", "rename", "unlink", "mkdir")


class Deadly:
    """`os`, of which the n-th call that changes something kills the process before it does; with `half`, the n-th write is torn."""

    def __init__(self, n: int, *, half: bool) -> None:
        self._left, self._half = n, half

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CHANGES or (self._half and name != "pwrite"):
            return real

        def call(*args: Any, **options: Any) -> Any:
            self._left -= name != "open" or bool(args[1] & os.O_CREAT)
            if self._left == 0:
                if self._half:
                    real(args[0], bytes(args[1])[: len(args[1]) // 2], args[2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        return call


def ranges_of(spool: Spool) -> list[Range]:
    """Return all that a spool has to send, in several ranges."""
    found: list[Range] = []

    def keep(ranges: Sequence[Range]) -> None:
        found.extend(ranges)

    target = MemoryTarget(Limits(decoded=70_000))
    target.before_send = keep  # type: ignore[assignment]
    assert in_process.sync(spool, target, timeout=30.0).state == "done"
    return found


def deliver(root: Path, ranges: Sequence[Range], state: dict[str, Any], file: File, content: bytes) -> None:
    """Do what the target does with a run's ranges and its file."""
    run = RunFiles(str(root), file.run, "jsonl")
    for one in ranges:
        [verdict] = run.store([one], state)
        assert verdict.kind == "accepted"
    if run.lacks([file]):
        temporary = (".simspool", "tmp", f"copy-{os.getpid()}")
        with directory_tree.folder(str(root), temporary[:-1], make=True):
            pass
        os.write(fd := directory_tree.create(str(root), temporary), content)
        os.close(fd)
        run.adopt(file, temporary, state)


@pytest.mark.parametrize("half", [False, True])
def test_killed_at_every_change_of_the_disk(spool: Spool, tmp_path: Path, half: bool) -> None:
    run = Recording.begin(spool, "killed", writers=2).points(500).say(5).save("a.txt", b"bytes").close()
    ranges = ranges_of(spool)
    assert len(ranges) >= 2
    state = runstate.empty()
    runstate.apply(state, run.writers[0].id_text, 1, Kind.RUN, 1, {"name": "killed", "folder": "/", "status": "completed"})
    writer = run.writers[0].id_text
    digest, size = run.files["a.txt"]
    file = File(f"{writer}.999", digest, size, run.id, writer, 999, "a.txt", "output", "text/plain")
    deaths = n = 0
    while True:
        n += 1
        bench = DirectoryBench(tmp_path / "results")
        child = os.fork()
        if child == 0:
            try:
                directory_tree.os = Deadly(n, half=half)  # type: ignore[attr-defined]
                deliver(bench.folder, ranges, state, file, b"bytes")
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        deliver(bench.folder, ranges, state, file, b"bytes")
        check(bench, run)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        deaths += 1
        shutil.rmtree(bench.folder)
    assert deaths > (4 if half else 40)
