"""A spool with one small run, made by the spool's own writer, and the `agent` command in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from simspool.agent.cli import main
from simspool.spool import Kind, RunFolder, Spool, Writer, atomic, blobs, ids, open_spool


@dataclass
class Result:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Its output as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


Agent = Callable[..., Result]


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    """An empty spool."""
    return open_spool(tmp_path / "spool", create=True)


@pytest.fixture
def agent(spool: Spool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Agent:
    """The command, on the spool, in an environment of its own."""
    for name in ("SIMSPOOL_URL", "SIMSPOOL_TOKEN", "SIMVUE_URL", "SIMVUE_TOKEN", "SIMSPOOL_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SIMSPOOL_DIR", spool.path)
    monkeypatch.setenv("HOME", str(Path(spool.path).parent))
    monkeypatch.chdir(Path(spool.path).parent)

    def call(*args: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in args], prog_name="agent")
        captured = capsys.readouterr()
        return Result(int(stop.value.code or 0), captured.out, captured.err)

    return call


class RunMaker:
    """Makes runs as the SDK does, with the spool's own writer."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool

    def open(self, name: str = "orbit") -> tuple[RunFolder, Writer]:
        """Begin a run; its writer is still open."""
        raw = ids.new_id()
        run = self.spool.run(ids.to_text(raw))
        atomic.make_folder(run.writers)
        atomic.write_json(run.path + "/run.json", {"id": run.id, "name": name})
        writer = Writer(run.writers, raw)
        writer.record(Kind.RUN, {"name": name, "status": "running"})
        return run, writer

    def closed(self, name: str = "orbit", points: int = 10, source: Path | None = None) -> RunFolder:
        """Make a whole run: metrics, an event, perhaps a file, closed."""
        run, writer = self.open(name)
        for i in range(points):
            writer.metrics({"x": i / 2, "n": i})
        writer.record(Kind.EVENT, {"message": "halfway"})
        if source is not None:
            blob = blobs.put_file(self.spool, run, str(source))
            body = {"name": source.name, "category": "output", "digest": blob.digest, "size": blob.size, "mime": "text/plain", "path": "f"}
            writer.record(Kind.ARTIFACT, body)
            blobs.publish(self.spool, run, [blob.digest])
        writer.close({"status": "completed"})
        return run


@pytest.fixture
def make(spool: Spool) -> RunMaker:
    """Makes runs in the spool."""
    return RunMaker(spool)
