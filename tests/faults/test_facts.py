"""What campaigns find only by luck, or slowly: the promises that seeded defects break (`sensitivity.py`)."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest
from in_process import serve, sync, total, until
from memory_target import MemoryTarget
from real_server import RealServer
from real_server import agent as run_agent
from recorded import begin, fill, whole

from simspool.agent.app import Agent
from simspool.agent.catalog import Catalog
from simspool.agent.drain.batch import Batches
from simspool.agent.ingest import Ingest
from simspool.agent.journal import Cursor, Journal
from simspool.agent.retention import Retention
from simspool.agent.server import drain, ranges
from simspool.agent.server.database import Database
from simspool.agent.server.identity import Principal
from simspool.agent.targets.port import Limits
from simspool.spool import Kind, Spool, Tail, layout


def test_what_is_sent_of_an_open_segment_was_fdatasynced_before(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorder of a `lazy` run syncs nothing: a power cut must not leave the server with more than the disk has."""
    _, writer = begin(spool)
    fill(writer, 20)
    synced: set[int] = set()
    real = os.fdatasync

    def note(fd: int) -> None:
        real(fd)
        synced.add(os.fstat(fd).st_ino)

    monkeypatch.setattr(os, "fdatasync", note)
    target = MemoryTarget()
    [file] = layout.segments(writer.folder)
    inode = os.stat(file.path).st_ino

    def look(sent: object) -> None:
        assert inode in synced

    target.before_send = look
    assert sync(spool, target).state == "done"
    assert total(target) == 21
    writer.close({"status": "completed"})


def test_no_receipt_is_in_the_journal_before_the_answer(spool: Spool) -> None:
    whole(spool)
    target = MemoryTarget()
    seen: list[set[int]] = []

    def look(_: object) -> None:
        kinds = set()
        for writer in layout.list_writers(os.path.join(spool.agent, "w")):
            with Tail(os.path.join(spool.agent, "w", writer), spool.id) as tail:
                kinds |= {item.kind for chunk in tail.read() for item in chunk.items}
        seen.append(kinds)

    target.before_send = look
    assert sync(spool, target).state == "done"
    assert seen == [{Kind.CHECKPOINT, Kind.INTENT}]  # the first says whose turn it is (FORMAT.md section 14)


def test_a_server_that_loses_its_marks_between_two_answers_is_gone_back_to(spool: Spool) -> None:
    """In the middle of a connection: nobody asks what it has."""
    target = MemoryTarget()
    _, writer = begin(spool)

    async def story(agent: Agent) -> None:
        fill(writer, 10)
        await until(lambda: total(target) == 11)
        target.marks_of.clear()
        fill(writer, 10, start=10)
        agent.ingest_loop.files_changed()
        await until(lambda: total(target) == 21)

    serve(spool, target, story)
    writer.close({"status": "completed"})


def test_a_run_without_files_is_not_pruned_before_it_is_acknowledged(spool: Spool) -> None:
    whole(spool)
    catalog = Catalog(None)
    ingest = Ingest(spool, catalog)
    ingest.scan()
    ingest.read()
    journal = Journal(spool, catalog)
    assert Retention(spool, catalog, journal, 0.0).eligible("server") == []
    [(writer, last)] = catalog.rows("SELECT id, sequence - 1 FROM writers")
    journal.receive("server", 0.0, [Cursor(writer, last - 1, 0, 1, 0)])
    assert Retention(spool, catalog, journal, 0.0).eligible("server") == []
    journal.receive("server", 0.0, [Cursor(writer, last, 0, 1, 0)])
    assert len(Retention(spool, catalog, journal, 0.0).eligible("server")) == 1
    journal.close()
    catalog.close()


def test_what_is_put_off_is_asked_for_again_whatever_the_wall_clock_does(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    run = whole(spool)
    [writer] = spool.run(run).writer_ids()
    [file] = layout.segments(spool.run(run).writer(writer))
    catalog = Catalog(None)
    ingest = Ingest(spool, catalog)
    ingest.scan()
    ingest.read()
    journal = Journal(spool, catalog)
    batches = Batches(spool, catalog, journal, "server", Limits())
    away = file.path + ".away"
    os.rename(file.path, away)
    assert batches.take() is None
    os.rename(away, file.path)
    assert batches.take() is None  # it waits
    now, wall = time.monotonic(), time.time()
    monkeypatch.setattr(time, "monotonic", lambda: now + 11)
    monkeypatch.setattr(time, "time", lambda: wall - 3600)
    assert batches.take() is not None
    journal.close()
    catalog.close()


def test_equal_records_are_as_many_facts(spool: Spool, server: RealServer) -> None:
    """Records are told apart by who made them and when, not by what they say."""
    run, writer = begin(spool)
    for _ in range(3):
        assert writer.metrics({"loss": 0.5}, step=1, time=2.0, timestamp=1_700_000_000_000_000)
        assert writer.record(Kind.EVENT, {"message": "the same", "timestamp": 1_700_000_000_000_000})
    writer.close({"status": "completed"})
    run_agent("sync", env=server.environment, check=True)
    assert server.points(run, "loss") == [(1, 0.5)] * 3
    assert server.events(run) == ["the same"] * 3


def test_a_gap_in_the_middle_is_declared_and_what_follows_arrives(spool: Spool, server: RealServer) -> None:
    run = whole(spool, points=40)
    [writer] = spool.run(run).writer_ids()
    path = Path(layout.segments(spool.run(run).writer(writer))[0].path)
    data = bytearray(path.read_bytes())
    at = len(data) // 2
    path.chmod(0o600)
    data[at] ^= 0x10
    path.write_bytes(data)
    run_agent("sync", env=server.environment, check=True)
    steps = [step for step, _ in server.points(run, "loss")]
    assert len(steps) == 39
    assert steps == sorted(set(steps))
    assert run_agent("sync", "--json", env=server.environment).returncode == 0


def test_rows_and_mark_of_a_range_are_one_transaction(spool: Spool, tmp_path: Path) -> None:
    """What is rolled back, as a kill does it, leaves neither."""
    run = whole(spool)
    target = MemoryTarget()
    sync(spool, target)
    prepared = [ranges.prepare(raw) for sent in target.ranges for raw in ranges.split(sent.data)]

    class Killed(Exception):
        pass

    def apply(db: object) -> None:
        drain.apply_ranges(db, Principal("user", "tenant"), prepared)  # type: ignore[arg-type]
        raise Killed

    def left(db: object) -> dict[str, int]:
        tables = ("runs", "writers", "records", "events", "buffer", "chunks", "summaries")
        return {t: db.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in tables}  # type: ignore[attr-defined]

    async def work() -> dict[str, int]:
        database = Database(tmp_path / "server.db")
        try:
            with pytest.raises(Killed):
                await database.write(apply)
            return await database.read(left)
        finally:
            database.close()

    assert prepared
    assert run
    assert set(asyncio.run(work()).values()) == {0}
