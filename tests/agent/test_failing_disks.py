"""Disks that fail, spools that vanish, catalogs that cannot be written: nothing is lost, nothing ends silently, all goes on by itself."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import shutil
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from in_process import drains_of, serve, sync, the_drain, total, until
from memory_target import MemoryTarget
from recorded import begin, fill, killed, whole

from simspool.agent.app import Agent
from simspool.agent.catalog import Catalog
from simspool.agent.catalog.store import catalog_path
from simspool.agent.drain.batch import Delivered
from simspool.agent.drain.files import FileSender
from simspool.agent.drain.uploads import Uploads
from simspool.agent.exit_codes import CommandError
from simspool.agent.ingest import Ingest
from simspool.agent.progress import Progress
from simspool.agent.status import show_run
from simspool.agent.targets.port import Limits, Range
from simspool.spool import Kind, Spool, layout

# ---------------------------------------------------------------------- the agent's own disks


def test_while_the_journal_cannot_be_written_nothing_is_sent_and_ingest_goes_on(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    target, reports = MemoryTarget(), []
    whole(spool, points=10)

    async def story(agent: Agent) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        append = agent.journal._append
        agent.journal._append = full
        await until(lambda: drains_of(agent) and "journal" in the_drain(agent).problem)
        second = whole(spool, "second", points=10)
        await until(lambda: agent.catalog.one("SELECT 1 FROM runs WHERE id = ? AND complete", (second,)))
        assert target.requests == []
        agent.journal._append = append
        await until(lambda: total(target) == 2 * 15)

    serve(spool, target, story, reports)
    assert target.twice == 0


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_journal_whose_receipts_fail_sends_again_and_nothing_counts_twice(
    spool: Spool, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = whole(spool, points=10)
    target = MemoryTarget()
    from simspool.agent.journal import Journal

    real, left = Journal.receive, [3]

    def receive(self: Journal, *args: object, **kwargs: object) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(code, os.strerror(code))
        real(self, *args, **kwargs)

    monkeypatch.setattr(Journal, "receive", receive)
    report = sync(spool, target, timeout=20.0)
    assert report.state == "done"
    assert run
    assert total(target) == 15


def test_a_catalog_that_cannot_be_written_stops_nothing_for_ever(spool: Spool) -> None:
    target, reports = MemoryTarget(), []
    run, writer = begin(spool)

    async def story(agent: Agent) -> None:
        fill(writer, 10)
        await until(lambda: total(target) == 11)
        real = agent.catalog.transaction

        def full() -> None:
            raise sqlite3.OperationalError("database or disk is full")

        agent.catalog.transaction = full
        fill(writer, 10, start=10)
        agent.ingest_loop.files_changed()
        await until(lambda: agent.ingest_loop.problem)
        agent.catalog.transaction = real
        fill(writer, 10, start=20)
        await until(lambda: total(target) == 31)
        assert not agent.ingest_loop.problem

    serve(spool, target, story, reports)
    assert any("disk is full" in text for text in reports)
    assert reports[-1] == "what is recorded is taken in again" or "taken in again" in " ".join(reports)
    catalog = Catalog(None)
    ingest = Ingest(spool, catalog)
    ingest.scan()
    ingest.read()
    assert show_run(catalog, spool, run, "")["metrics"]["loss"]["count"] == 30


def test_a_failed_pass_has_no_effect_and_the_next_takes_everything(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    run, writer = begin(spool)
    fill(writer, 10)
    catalog = Catalog(catalog_path(spool))
    ingest = Ingest(spool, catalog)
    ingest.scan()
    with monkeypatch.context() as patch:
        patch.setattr("simspool.agent.ingest.ingest.save_all", lambda *_: (_ for _ in ()).throw(sqlite3.OperationalError("disk I/O error")))
        with pytest.raises(sqlite3.OperationalError):
            ingest.read()
    assert not catalog.connection.in_transaction
    fill(writer, 10, start=10)
    ingest.read()
    shown = show_run(catalog, spool, run, "")
    assert shown["metrics"]["loss"] == {"count": 20, "last": 9.5, "step": 19}
    assert catalog.one('SELECT min("first"), max("last") FROM pieces') == (1, 21)
    catalog.close()


def test_a_locked_catalog_is_never_taken_for_a_damaged_one(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    Catalog(catalog_path(spool)).close()

    def locked(*_: object) -> None:
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr("simspool.agent.catalog.schema.migrate", locked)
    with pytest.raises(sqlite3.OperationalError):
        Catalog(catalog_path(spool))
    assert not os.path.exists(catalog_path(spool) + ".damaged")


def test_a_catalog_of_a_newer_version_is_set_aside(spool: Spool) -> None:
    catalog = Catalog(catalog_path(spool))
    catalog.connection.execute("PRAGMA user_version = 99")
    catalog.close()
    catalog = Catalog(catalog_path(spool))
    assert catalog.one("SELECT count(*) FROM runs") == (0,)
    catalog.close()
    assert os.path.exists(catalog_path(spool) + ".damaged")


def test_damage_found_in_use_ends_the_agent_with_an_error_and_the_next_start_rebuilds(spool: Spool) -> None:
    whole(spool, points=10)
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT

    async def story(agent: Agent) -> None:
        def broken() -> None:
            raise error

        agent.catalog.transaction = broken
        agent.ingest_loop.files_changed()
        await asyncio.Event().wait()

    with pytest.raises(CommandError, match="start again"):
        serve(spool, MemoryTarget(), story)
    target = MemoryTarget()
    assert sync(spool, target).state == "done"
    assert total(target) == 15


def test_an_error_nobody_foresaw_ends_the_agent_and_a_sync(spool: Spool) -> None:
    whole(spool, points=10)
    target = MemoryTarget()

    def broken(_: Sequence[Range]) -> None:
        raise KeyError("a bug")

    target.before_send = broken
    with pytest.raises(KeyError):
        sync(spool, target)

    async def story(_: Agent) -> None:
        await asyncio.Event().wait()

    with pytest.raises(KeyError):
        serve(spool, target, story)


# ---------------------------------------------------------------------- the spool under it


def test_a_run_folder_that_is_deleted_is_reported_forgotten_and_never_made_again(spool: Spool) -> None:
    run = killed(spool, points=10)
    other = whole(spool, points=10)
    reports: list[str] = []
    catalog = Catalog(None)
    ingest = Ingest(spool, catalog, report=reports.append)
    ingest.scan()
    ingest.read()
    shutil.rmtree(spool.run(run).path)
    ingest.read()
    ingest.read()
    ingest.bury()
    ingest.scan()
    assert not os.path.exists(spool.run(run).path)
    assert [r for (r,) in catalog.rows("SELECT id FROM runs")] == [other]
    assert run in " ".join(reports)
    target = MemoryTarget()
    assert sync(spool, target).state == "done"


def test_a_spool_that_vanishes_and_comes_back_is_reported_and_served_again(spool: Spool) -> None:
    target, reports = MemoryTarget(), []
    whole(spool, points=10)

    async def story(agent: Agent) -> None:
        await until(lambda: total(target) == 15)
        os.rename(spool.path, spool.path + ".away")
        agent.ingest_loop.files_changed()
        await until(lambda: agent.ingest_loop.problem)
        assert "is its disk mounted" in agent.ingest_loop.problem
        os.rename(spool.path + ".away", spool.path)
        whole(spool, "later", points=10)
        await until(lambda: total(target) == 30)

    serve(spool, target, story, reports)


def test_a_dead_writer_that_cannot_be_declared_lost_is_tried_again(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    run = killed(spool, points=10)
    good = killed(spool, "other", points=10)
    catalog = Catalog(None)
    ingest = Ingest(spool, catalog)
    ingest.scan()
    ingest.read()
    ingest.read()
    with monkeypatch.context() as patch:
        patch.setattr("simspool.agent.survivors.Survivors.declare", lambda *_: "No space left on device")
        assert ingest.bury() == 0
        assert set(ingest.problems) == {run, good}
    ingest.read()
    assert ingest.bury() == 4  # with the agent's own parts
    ingest.scan()
    ingest.read()
    assert show_run(catalog, spool, run, "")["status"] == "lost"
    assert ingest.problems == {}


def test_a_writer_that_stays_without_a_segment_for_an_hour_is_taken_in_when_it_comes(spool: Spool) -> None:
    run, writer = begin(spool)
    fill(writer, 3)
    folder = Path(writer.folder)
    hidden = folder.with_name("hidden")
    os.rename(folder, hidden)
    folder.mkdir()
    os.utime(folder, (time.time() - 7200, time.time() - 7200))
    catalog = Catalog(None)
    ingest = Ingest(spool, catalog)
    assert ingest.scan() == 1
    ingest.read()
    assert ingest.bury() == 1
    assert ingest.active == []
    for path in hidden.iterdir():
        os.rename(path, folder / path.name)
    assert ingest.scan() == 1
    ingest.read()
    assert show_run(catalog, spool, run, "")["metrics"]["loss"]["count"] == 3


def test_one_writer_with_records_that_cannot_be_stored_never_stops_the_others(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    from simspool.agent.ingest.summary import Summary

    bad, good = whole(spool, "bad", points=5), whole(spool, "good", points=5)
    real = Summary.record

    def record(self: Summary, run: str, *args: object) -> None:
        if run == bad:
            raise OverflowError("too large for SQLite")
        real(self, run, *args)

    monkeypatch.setattr(Summary, "record", record)
    catalog = Catalog(None)
    ingest = Ingest(spool, catalog)
    ingest.scan()
    ingest.read()
    assert set(ingest.problems) == {bad}
    assert show_run(catalog, spool, good, "")["metrics"]["loss"]["count"] == 5


def test_text_and_numbers_that_sqlite_has_no_form_for_are_taken_in(spool: Spool) -> None:
    run, writer = begin(spool, "na\ud800me", folder="/f\udfff", tags=["\ud800"], metadata={"k\ud800": "\udc00"})
    assert writer.metrics({"m\ud800": 1.0, "big": 1 << 80}, step=1 << 70)
    assert writer.record(Kind.EVENT, {"message": "\ud800 there"})
    assert writer.record(Kind.ARTIFACT, {"name": "\ud800", "category": "c\ud800", "digest": "0" * 64, "size": 1 << 90, "mime": "\ud800"})
    writer.close({"status": "completed"})
    catalog = Catalog(None)
    ingest = Ingest(spool, catalog)
    ingest.scan()
    ingest.read()
    assert ingest.problems == {}
    shown = show_run(catalog, spool, run, "")
    assert (shown["status"], shown["events"]["count"], len(shown["metrics"])) == ("completed", 1, 2)


def test_a_segment_that_is_no_file_leaves_its_run_out_and_the_others_go_on(spool: Spool) -> None:
    bad, good = whole(spool, "bad", points=5), whole(spool, "good", points=5)
    [path] = [p for p in layout.walk_files(spool.run(bad).writers) if p.endswith(".seg")]
    os.unlink(path)
    os.mkfifo(path)
    catalog = Catalog(None)
    ingest = Ingest(spool, catalog)
    ingest.scan()
    ingest.read()
    ingest.read()
    ingest.bury()
    assert set(ingest.problems) == {bad}
    assert show_run(catalog, spool, good, "")["metrics"]["loss"]["count"] == 5


def test_receipts_of_files_that_cannot_be_journaled_at_the_end_are_heard_of_by_somebody() -> None:
    """The session was cancelled, so nobody waits for them: no "exception was never retrieved"; the files are sent again, and recognised."""
    heard: list[object] = []

    async def story() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))
        began = asyncio.Event()

        async def worker(*_: object) -> None:
            began.set()
            await asyncio.sleep(0.05)
            raise sqlite3.OperationalError("database or disk is full")

        files = FileSender(
            MemoryTarget(), cast("Uploads", SimpleNamespace(settle=None, waiting=None)), Limits(), Delivered(), worker, Progress(), "files",
            idle=lambda _: asyncio.sleep(9), wake=lambda: None, settled=lambda: None,
        )  # fmt: skip
        files._stored = ["0" * 64]
        running = asyncio.create_task(files.run())
        await asyncio.sleep(0.02)
        running.cancel()
        await asyncio.sleep(0.02)
        running.cancel()  # in the middle of the last receipts
        await asyncio.gather(running, return_exceptions=True)
        await asyncio.sleep(0.1)
        gc.collect()

    asyncio.run(story())
    assert heard == []
