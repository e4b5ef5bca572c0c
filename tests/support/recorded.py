"""Runs in a spool, as scripts leave them: recorded with the writer itself, closed, killed or still open."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from simspool.spool import Durability, Kind, Spool, Tail, Writer, blobs, ids
from simspool.spool.frames import Record


def begin(spool: Spool, name: str = "run", **fields: object) -> tuple[str, Writer]:
    """Begin a run; returns its id and writer."""
    raw = ids.new_id()
    run = ids.to_text(raw)
    folder = spool.run(run)
    os.makedirs(folder.writers)
    writer = Writer(folder.writers, raw, durability=Durability.LAZY)
    assert writer.record(Kind.RUN, {"name": name, "status": "running", "folder": "/", "metadata": {}, "tags": [], **fields})
    return run, writer


def fill(writer: Writer, points: int, *, events: int = 0, start: int = 0) -> None:
    """Record `points` calls of two metrics (loss = step / 2, count = step) and some events."""
    for step in range(start, start + points):
        assert writer.metrics({"loss": step / 2, "count": step}, step=step)
    for n in range(events):
        assert writer.record(Kind.EVENT, {"message": f"event {n}"})


def add_file(spool: Spool, run: str, writer: Writer, path: Path, name: str | None = None) -> str:
    """Save a file with a run; returns its digest."""
    blob = blobs.put_file(spool, spool.run(run), str(path))
    assert writer.record(
        Kind.ARTIFACT,
        {
            "name": name or path.name,
            "category": "output",
            "digest": blob.digest,
            "size": blob.size,
            "mime": "text/plain",
            "path": str(path),
        },
    )
    return blob.digest


def whole(spool: Spool, name: str = "run", points: int = 100, events: int = 3, **fields: object) -> str:
    """Record a whole run and close it."""
    run, writer = begin(spool, name, **fields)
    fill(writer, points, events=events)
    assert writer.close({"status": "completed"})
    return run


def killed(spool: Spool, name: str = "killed", points: int = 100, **fields: object) -> str:
    """Record a run in a child process that is killed before it closes."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        run, writer = begin(spool, name, **fields)
        fill(writer, points)
        os.write(write, run.encode())
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    run = os.read(read, 100).decode()
    os.close(read)
    os.close(write)
    return run


def survivors(spool: Spool, run: str) -> list[dict[str, Any]]:
    """Return what agents recorded of a run's dead writers."""
    found: list[dict[str, Any]] = []
    folder = spool.run(run)
    for writer in folder.writer_ids():
        with Tail(folder.writer(writer), run) as tail:
            found += [i.body for c in tail.read() for i in c.items if isinstance(i, Record) and i.kind == Kind.SURVIVOR and i.body]
    return found
