"""The agent's share in durability: what a silent or busy script left in the page cache reaches the disk within about a second."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from recorded import add_file, fill

from simspool.agent.app import Agent, AgentConfig
from simspool.agent.catalog import Catalog
from simspool.agent.ingest import Ingest
from simspool.spool import Durability, Kind, Spool, Writer, ids


def begin(spool: Spool, durability: Durability) -> tuple[str, Writer]:
    raw = ids.new_id()
    folder = spool.run(ids.to_text(raw))
    os.makedirs(folder.writers)
    writer = Writer(folder.writers, raw, durability=durability)
    assert writer.record(Kind.RUN, {"name": "hard", "status": "running"})
    return ids.to_text(raw), writer


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The segments that are synced from now on."""
    paths: list[str] = []
    for name in ("fsync", "fdatasync"):

        def spy(fd: int, real: Callable[[int], None] = getattr(os, name)) -> None:
            path = os.readlink(f"/proc/self/fd/{fd}")
            if path.endswith(".open"):
                paths.append(path)
            real(fd)

        monkeypatch.setattr(os, name, spy)
    return paths


def test_new_records_of_an_open_segment_are_synced_once(spool: Spool, synced: list[str]) -> None:
    _, writer = begin(spool, Durability.INTERVAL)
    ingest = Ingest(spool, Catalog(None))
    fill(writer, 10)
    ingest.scan()
    ingest.read()
    assert ingest.hardener.harden() == 1
    ingest.read()
    assert ingest.hardener.harden() == 0
    fill(writer, 1, start=10)
    ingest.read()
    assert ingest.hardener.harden() == 1
    assert synced == [f"{writer.folder}/000001.open"] * 2
    ingest.close()


def test_lazy_writers_and_sealed_segments_are_left_alone(spool: Spool, synced: list[str]) -> None:
    _, lazy = begin(spool, Durability.LAZY)
    _, closed = begin(spool, Durability.INTERVAL)
    fill(lazy, 5)
    fill(closed, 5)
    assert closed.close({"status": "completed"})
    del synced[:]
    ingest = Ingest(spool, Catalog(None))
    ingest.scan()
    ingest.read()
    assert ingest.hardener.harden() == 0
    assert synced == []
    ingest.close()


def test_a_running_agent_syncs_what_a_silent_script_left(spool: Spool, synced: list[str]) -> None:
    _, writer = begin(spool, Durability.INTERVAL)
    fill(writer, 10)

    async def serve() -> None:
        stop = asyncio.Event()
        async with Agent(AgentConfig(spool)) as agent:
            serving = asyncio.create_task(agent.serve(stop))
            try:
                async with asyncio.timeout(10):
                    while f"{writer.folder}/000001.open" not in synced:
                        await asyncio.sleep(0.02)
            finally:
                stop.set()
                await serving

    asyncio.run(serve())


def test_the_files_of_a_killed_run_reach_the_pool(spool: Spool, tmp_path: Path) -> None:
    (tmp_path / "f.bin").write_bytes(b"bytes" * 100)
    pid = os.fork()
    if pid == 0:
        run, writer = begin(spool, Durability.INTERVAL)
        (tmp_path / "digest").write_text(add_file(spool, run, writer, tmp_path / "f.bin"))
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    digest = (tmp_path / "digest").read_text()
    assert not os.path.exists(spool.pool_path(digest))
    ingest = Ingest(spool, Catalog(None))
    ingest.scan()
    ingest.read()
    ingest.read()
    assert ingest.bury() == 2  # with the agent's own part
    assert os.stat(spool.pool_path(digest)).st_nlink == 2
    ingest.close()
