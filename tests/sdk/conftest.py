"""Fixtures of the SDK's tests: an empty home, a spool of one's own, scripts in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simspool.spool import Tail, open_spool
from simspool.spool.frames import SEQ, STEP, MetricBatch
from simspool.spool.reader import read_drop_counts
from simspool.spool.records import label


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home and working folder, no settings from outside, and a spool in SIMSPOOL_DIR."""
    for name in list(os.environ):
        if name != "SIMSPOOL_AGENT" and name.startswith(("SIMSPOOL_", "SIMVUE_", "OMPI_", "PMI", "SLURM_")):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    work = tmp_path / "work"
    home.mkdir()
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("SIMSPOOL_DIR", str(tmp_path / "spool"))
    monkeypatch.chdir(work)
    return home


@pytest.fixture
def spool_dir(tmp_path: Path) -> Path:
    return tmp_path / "spool"


class Found:
    """What a spool holds of one run."""

    def __init__(self, spool_dir: Path, run: str | None) -> None:
        self.spool = open_spool(spool_dir)
        self.run_id = self.spool.find_run(run) if run else self.spool.run_ids()[-1]
        self.folder = self.spool.run(self.run_id)
        self.records: list[dict[str, Any]] = []
        self.damage: list[Any] = []
        self.drops: dict[str, int] = {}
        for writer in self.folder.writer_ids():
            with Tail(self.folder.writer(writer), self.run_id) as tail:
                for chunk in tail.read(dead=True):
                    self.damage += chunk.damage
                    for item in chunk.items:
                        if isinstance(item, MetricBatch):
                            self.records += [
                                {
                                    "kind": label(item.kind), "writer": writer, "seq": row[SEQ], "step": row[STEP],
                                    "values": item.values(row),
                                    "stamp": row[item.values_at - 1] if item.flags & 2 else None,
                                    "time": row[5] if item.flags & 1 else None,
                                }
                                for row in item.rows
                            ]
                        else:
                            self.records.append({"kind": label(item.kind), "writer": writer, "seq": item.seq, **(item.body or {})})
            for reason, count in read_drop_counts(self.folder.writer(writer)).items():
                self.drops[reason] = self.drops.get(reason, 0) + count

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [r for r in self.records if r["kind"] == kind]

    def only(self, kind: str) -> dict[str, Any]:
        (found,) = self.of(kind)
        return found


@pytest.fixture
def found(spool_dir: Path) -> Callable[..., Found]:
    """Read what the spool holds of a run (by default the newest)."""
    return lambda run=None, where=spool_dir: Found(where, run)


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script in a process of its own, in the test's working folder."""

    def run(text: str, *arguments: str, prefix: tuple[str, ...] = (), **env: str) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "script.py"
        path.write_text(textwrap.dedent(text))
        return subprocess.run(
            [*prefix, sys.executable, "-W", "error", str(path), *arguments], env={**os.environ, **env}, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip

    return run


@pytest.fixture
def background(tmp_path: Path) -> Any:
    """Start a script and leave it running; it is killed at the end."""
    started = []

    def start(text: str, *arguments: str) -> subprocess.Popen[str]:
        path = tmp_path / f"script{len(started)}.py"
        path.write_text(textwrap.dedent(text))
        process = subprocess.Popen([sys.executable, str(path), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
