"""Retention: nothing goes without receipts and grace; what was killed in the middle is finished, or taken back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

import pytest
from in_process import sync
from memory_target import MemoryTarget
from recorded import add_file, begin, fill, whole

from simspool.agent.catalog import Catalog
from simspool.agent.catalog.store import catalog_path
from simspool.agent.journal import Journal
from simspool.agent.retention import Retention
from simspool.agent.status import overview
from simspool.agent.truth.known import KnownTarget
from simspool.spool import Kind, Spool, Writer, ids, layout


class Opened:
    """A spool's catalog, journal and retention, as an agent has them."""

    def __init__(self, spool: Spool, grace: float) -> None:
        self.catalog = Catalog(catalog_path(spool))
        self.journal = Journal(spool, self.catalog)
        self.unknown: list[str] = []
        self.retention = Retention(spool, self.catalog, self.journal, grace, unknown=self.unknown.append)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.journal.close()
        self.catalog.close()


def with_file(spool: Spool, path: Path, name: str = "run") -> tuple[str, str]:
    run, writer = begin(spool, name)
    fill(writer, 10)
    digest = add_file(spool, run, writer, path)
    writer.close({"status": "completed"})
    return run, digest


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "f.bin"
    path.write_bytes(os.urandom(5000))
    return path


def test_nothing_goes_without_receipts_for_all_records_and_files(spool: Spool, file: Path) -> None:
    run, digest = with_file(spool, file)
    live, writer = begin(spool, "live")
    fill(writer, 5)
    target = MemoryTarget()
    target.blobs.add("other")
    assert sync(spool, target).state == "done"
    with Opened(spool, 0.0) as o:
        assert o.retention.eligible("another-server") == []
        assert o.retention.eligible("memory") == [run]  # not the live one
        o.catalog.connection.execute("DELETE FROM uploads WHERE digest = ?", (digest,))
        assert o.retention.eligible("memory") == []
        assert o.retention.prune(run, "memory") is None
    assert os.path.isdir(spool.run(run).path)
    assert live


def test_grace_counts_from_the_last_receipt(spool: Spool) -> None:
    run = whole(spool)
    sync(spool, MemoryTarget())
    with Opened(spool, 3600.0) as o:
        assert o.retention.eligible("memory") == []
        o.catalog.connection.execute("UPDATE cursors SET at = at - 3700")
        assert o.retention.eligible("memory") == [run]


def test_a_pruned_run_is_gone_counted_and_wanted_by_no_sync(spool: Spool, file: Path) -> None:
    run, digest = with_file(spool, file)
    target = MemoryTarget()
    sync(spool, target)
    pool = spool.pool_path(digest)
    os.makedirs(os.path.dirname(pool), exist_ok=True)
    if not os.path.exists(pool):
        os.link(os.path.join(spool.run(run).blobs, digest), pool)
    with Opened(spool, 0.0) as o:
        freed = o.retention.prune(run, "memory")
        assert freed is not None
        assert freed > 5000
        assert not os.path.exists(spool.run(run).path)
        assert not os.path.exists(pool)
        assert o.retention.prune(run, "memory") is None
        found = overview(o.catalog, spool, [KnownTarget("server", "", "memory://", True, "memory")])["records"]
        assert (found["recorded"], found["acknowledged"], found["waiting"]) == (13, 13, 0)
        other = overview(o.catalog, spool, [KnownTarget("server", "", "another://", True, "another")])["records"]
        assert (other["waiting"], other["pruned"]) == (0, 13)
    assert sync(spool, target).state == "done"
    fresh = MemoryTarget()  # a server that comes later gets what is still there: the pruned past is a gap
    os.unlink(catalog_path(spool))
    assert sync(spool, fresh).state == "done"


def test_a_blob_of_the_pool_stays_while_another_run_links_it(spool: Spool, file: Path) -> None:
    from simspool.spool import blobs

    run, digest = with_file(spool, file)
    blobs.publish(spool, spool.run(run), [digest])
    second, writer = begin(spool, "second")
    add_file(spool, second, writer, file)
    sync(spool, MemoryTarget())
    assert os.stat(spool.pool_path(digest)).st_nlink == 3
    with Opened(spool, 0.0) as o:
        assert o.retention.prune(run, "memory") is not None
        assert o.retention.sweep() == 0
    assert Path(spool.pool_path(digest)).read_bytes() == file.read_bytes()
    assert (Path(spool.run(second).blobs) / digest).read_bytes() == file.read_bytes()


def test_a_run_that_was_opened_again_is_kept_whole(spool: Spool) -> None:
    run = whole(spool)
    sync(spool, MemoryTarget())
    before = sorted(layout.walk_files(spool.run(run).path))
    again = Writer(spool.run(run).writers, ids.from_text(run))
    again.record(Kind.ATTACH, {"reason": "reconnect"})
    with Opened(spool, 0.0) as o:
        assert o.retention.prune(run, "memory") is None
        assert o.unknown == [run]
    assert set(before) < set(layout.walk_files(spool.run(run).path))
    again.close({"status": "completed"})


def test_damage_and_refused_records_keep_a_run(spool: Spool) -> None:
    damaged, refused = whole(spool, "damaged"), whole(spool, "refused")
    sync(spool, MemoryTarget())
    with Opened(spool, 0.0) as o:
        assert sorted(o.retention.eligible("memory")) == sorted([damaged, refused])
        [writer] = spool.run(damaged).writer_ids()
        o.catalog.connection.execute(
            'INSERT INTO damage(writer, segment, kind, start, "end", "first", "last") VALUES (?, 1, ?, 0, 9, 1, 1)', (writer, "loss")
        )
        [writer] = spool.run(refused).writer_ids()
        o.journal.receive("memory", 0.0, refused=[(writer, 2, "no")])
        assert o.retention.eligible("memory") == []


def test_a_prune_that_was_killed_after_its_record_is_finished(spool: Spool, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = with_file(spool, file)
    sync(spool, MemoryTarget())
    with Opened(spool, 0.0) as o, monkeypatch.context() as patch:
        patch.setattr(Retention, "_delete", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            o.retention.prune(run, "memory")
    going = Path(spool.runs) / f".pruned-{run}"
    assert going.is_dir()
    next(p for p in going.rglob("*") if p.is_file()).unlink()  # and a part was gone already
    assert sync(spool, MemoryTarget()).state == "done"  # any agent that starts finishes it
    assert not going.exists()
    assert not os.path.exists(spool.run(run).path)


def test_a_prune_that_was_killed_before_its_record_is_taken_back(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    run = whole(spool)
    sync(spool, MemoryTarget())
    with Opened(spool, 0.0) as o, monkeypatch.context() as patch:
        patch.setattr(Journal, "prune", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            o.retention.prune(run, "memory")
    assert not os.path.exists(spool.run(run).path)
    target = MemoryTarget()
    assert sync(spool, target).state == "done"
    assert os.path.isdir(spool.run(run).path)


def test_a_prune_that_cannot_be_journaled_deletes_nothing(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    run = whole(spool)
    sync(spool, MemoryTarget())
    with Opened(spool, 0.0) as o, monkeypatch.context() as patch:
        patch.setattr(Journal, "prune", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            o.retention.prune(run, "memory")
    assert os.path.isdir(spool.run(run).path)


def test_an_orphan_of_the_pool_is_swept(spool: Spool, file: Path) -> None:
    from simspool.spool import blobs

    run, digest = with_file(spool, file)
    blobs.publish(spool, spool.run(run), [digest])
    with Opened(spool, 0.0) as o:
        assert o.retention.sweep() == 0
        os.unlink(os.path.join(spool.run(run).blobs, digest))
        assert o.retention.sweep() == 5000
    assert not os.path.exists(spool.pool_path(digest))
