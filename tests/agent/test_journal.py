"""The journal: what it says survives the catalog, compaction and kills in the middle of either."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from simspool.agent.catalog import Catalog
from simspool.agent.catalog.store import catalog_path
from simspool.agent.journal import Cursor, Journal
from simspool.agent.journal import journal as module
from simspool.spool import Spool, ids

TABLES = ("cursors", "refused", "uploads", "pruned")


def contents(catalog: Catalog, *, times: bool = True) -> dict[str, list[tuple[object, ...]]]:
    found = {name: sorted(catalog.rows(f"SELECT * FROM {name}"), key=repr) for name in TABLES}
    if not times:
        found["cursors"] = [(*r[:6], r[7]) for r in found["cursors"]]
        found["uploads"] = [r[:4] for r in found["uploads"]]
    return found


def write_a_life(journal: Journal) -> None:
    """A bit of everything."""
    w = [ids.to_text(ids.new_id()) for _ in range(3)]
    journal.intend("S", [(w[0], 1, 10)])
    journal.receive(
        "S", 100.0, [Cursor(w[0], 10, 7, 1, 2048), Cursor(w[1], 5, 8, 1, 1500)], [(w[0], 3, "no such kind")], blobs=["d1", "d2"]
    )
    journal.receive("S", 110.0, refused_blobs=[("d3", "too large")], blocked=[(w[2], "conflict")])
    journal.receive("T", 120.0, [Cursor(w[0], 4, 9, 1, 1200)])
    journal.rewind("S", Cursor(w[1], 2, 3, 1, 1100))
    journal.prune("run", 130.0, {w[0]: 10})


def reopened(spool: Spool, *, delete: bool = True) -> tuple[Catalog, Journal]:
    if delete:
        for suffix in ("", "-wal", "-shm"):
            Path(catalog_path(spool) + suffix).unlink(missing_ok=True)
    catalog = Catalog(catalog_path(spool))
    return catalog, Journal(spool, catalog)


@pytest.mark.parametrize("clean", [True, False])
def test_a_deleted_catalog_is_built_again_from_the_journal(spool: Spool, clean: bool) -> None:
    catalog, journal = reopened(spool)
    write_a_life(journal)
    before = contents(catalog)
    assert {name: len(rows) for name, rows in before.items()} == {"cursors": 4, "refused": 1, "uploads": 3, "pruned": 1}
    if clean:
        journal.close()
    catalog.close()
    again, journal = reopened(spool)
    assert contents(again) == before
    journal.close()
    again.close()


def test_what_a_killed_agent_had_journaled_and_not_indexed_is_indexed_by_the_next(spool: Spool) -> None:
    catalog, journal = reopened(spool)
    write_a_life(journal)
    before = contents(catalog)
    catalog.close()
    shutil.copy(catalog_path(spool), catalog_path(spool) + ".old")
    catalog, journal = reopened(spool, delete=False)
    writer = ids.to_text(ids.new_id())
    journal.receive("S", 140.0, [Cursor(writer, 1, 1, 1, 1100)])
    after = contents(catalog)
    catalog.close()
    os.replace(catalog_path(spool) + ".old", catalog_path(spool))  # as if the commit had never come
    catalog, _ = reopened(spool, delete=False)
    assert contents(catalog) == after != before
    catalog.close()


def test_a_catalog_that_fails_once_gets_everything_with_the_next_receipt(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog, journal = reopened(spool)
    a, b = (ids.to_text(ids.new_id()) for _ in range(2))

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(journal, "_index", full)
        with pytest.raises(sqlite3.OperationalError):
            journal.receive("S", 1.0, [Cursor(a, 1, 1, 1, 1100)], [(a, 1, "no")])
    assert not catalog.connection.in_transaction
    journal.receive("S", 2.0, [Cursor(b, 1, 1, 1, 1100)])
    assert catalog.rows("SELECT writer FROM cursors ORDER BY writer") == sorted([(a,), (b,)])
    assert catalog.one("SELECT count(*) FROM refused") == (1,)
    journal.close()
    catalog.close()


def test_compaction_keeps_everything_that_counts(spool: Spool) -> None:
    catalog, journal = reopened(spool)
    write_a_life(journal)
    for n in range(30):
        journal.receive("S", 200.0 + n, [Cursor(ids.to_text(ids.new_id()), n + 1, n, 1, 1100)])
        journal.close()
    catalog.close()
    catalog, journal = reopened(spool, delete=False)  # more than 24 writers: it is compacted
    kept = contents(catalog, times=False)
    journal.close()
    catalog.close()
    assert len(os.listdir(Path(spool.agent) / "w")) == 1
    catalog, journal = reopened(spool)
    assert contents(catalog, times=False) == kept
    # a receipt may look younger than it is, never older: grace is kept
    assert catalog.one("SELECT min(at) FROM cursors") >= (100.0,)
    assert catalog.one("SELECT min(at) FROM uploads") >= (100.0,)
    journal.close()
    catalog.close()


@pytest.mark.parametrize("calls", [0, 1, 5, 9])
def test_compaction_killed_in_the_middle_loses_nothing(spool: Spool, monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    catalog, journal = reopened(spool)
    write_a_life(journal)
    for n in range(10):
        journal.close()
        journal.receive("S", 200.0 + n, [Cursor(ids.to_text(ids.new_id()), n + 1, n, 1, 1100)])
    journal.close()
    before = contents(catalog, times=False)
    left = [calls]
    real = shutil.rmtree

    def rmtree(path: str, **options: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt  # as a kill would, it leaves the rest
        real(path)

    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "rmtree", rmtree)
        with pytest.raises(KeyboardInterrupt):
            journal.compact()
    catalog.close()
    for delete in (False, True):
        catalog, journal = reopened(spool, delete=delete)
        assert contents(catalog, times=False) == before
        catalog.close()


def test_a_compacted_rewind_stays_rewound(spool: Spool) -> None:
    catalog, journal = reopened(spool)
    writer = ids.to_text(ids.new_id())
    journal.receive("S", 1.0, [Cursor(writer, 500, 5, 1, 9000)])
    journal.close()
    journal.rewind("S", Cursor(writer, 300, 3, 1, 5000))
    journal.close()
    real = shutil.rmtree
    try:
        shutil.rmtree = lambda *_, **__: None  # killed before the old ones are gone
        journal.compact()
    finally:
        shutil.rmtree = real
    catalog.close()
    catalog, journal = reopened(spool)
    assert catalog.one("SELECT mark, chain FROM cursors") == (300, 3)
    catalog.close()


def test_a_receipt_larger_than_a_frame_is_journaled_in_parts(spool: Spool) -> None:
    catalog, journal = reopened(spool)
    writer = ids.to_text(ids.new_id())
    journal.receive("S", 1.0, [Cursor(writer, 5000, 5, 1, 9000)], [(writer, n, "x" * 400) for n in range(1, 5001)])
    catalog.close()
    catalog, journal = reopened(spool)
    assert catalog.one("SELECT count(*) FROM refused") == (5000,)
    assert catalog.one("SELECT mark FROM cursors") == (5000,)
    journal.compact()
    assert catalog.one("SELECT count(*) FROM refused") == (5000,)
    catalog.close()


def test_the_journal_of_an_agent_that_still_writes_is_read_again_and_never_deleted(spool: Spool) -> None:
    """Locks of another machine are not ours: its agent may write on."""
    script = (
        "import sys; from simspool.spool import open_spool; from simspool.agent.catalog import Catalog;"
        "from simspool.agent.journal import Cursor, Journal; from simspool.spool import ids;"
        "spool = open_spool(sys.argv[1]); journal = Journal(spool, Catalog(None));\n"
        "for n in range(2):\n"
        "    journal.receive('S', 1.0, [Cursor(ids.to_text(ids.new_id()), 1, 1, 1, 1100)]); print(flush=True); sys.stdin.readline()"
    )
    other = subprocess.Popen([sys.executable, "-c", script, spool.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdin is not None
    assert other.stdout is not None
    with other:
        other.stdout.readline()
        catalog, journal = reopened(spool)
        assert catalog.one("SELECT count(*) FROM cursors") == (1,)
        journal.compact()
        journal.close()
        catalog.close()
        other.stdin.write("\n")
        other.stdin.flush()
        other.stdout.readline()
        catalog, journal = reopened(spool, delete=False)
        assert catalog.one("SELECT count(*) FROM cursors") == (2,)
        catalog.close()
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.wait(20) == 0
