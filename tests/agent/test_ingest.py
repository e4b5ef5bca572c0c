"""Ingest: what writers append becomes positions and summaries in the catalog."""

from __future__ import annotations

import json
import os
import time
import zlib
from pathlib import Path

import pytest
from recorded import add_file, begin, fill, killed, whole

from simspool.agent.catalog import Catalog
from simspool.agent.catalog.store import catalog_path
from simspool.agent.ingest import Ingest
from simspool.agent.status import overview, show_run
from simspool.spool import Kind, Spool, Writer, atomic, frames, ids, layout, segment_header


def take_all(spool: Spool, catalog: Catalog) -> Ingest:
    ingest = Ingest(spool, catalog)
    for _ in range(3):
        ingest.scan()
        while ingest.read().more:
            pass
        ingest.read()
        if not ingest.bury():
            break
    return ingest


def table(catalog: Catalog, name: str) -> list[tuple[object, ...]]:
    return sorted(catalog.rows(f"SELECT * FROM {name}"), key=repr)


def test_a_live_run_is_followed_while_it_is_written(spool: Spool) -> None:
    catalog = Catalog(None)
    run, writer = begin(spool)
    ingest = Ingest(spool, catalog)
    assert ingest.scan() == 1
    fill(writer, 10)
    assert ingest.read().records == 21
    fill(writer, 5, start=10)
    assert ingest.read().records == 10
    assert show_run(catalog, spool, run, "")["status"] == "running"
    assert writer.close({"status": "completed"})
    ingest.read()
    shown = show_run(catalog, spool, run, "")
    assert shown["status"] == "completed"
    assert shown["metrics"]["loss"] == {"count": 15, "last": 7.0, "step": 14}
    assert ingest.active == []


def test_a_writer_whose_coming_left_no_new_time_stamp_is_found(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Network disks show lists late, have another clock, and some have times of whole seconds: a folder is listed until it has rested."""
    monkeypatch.setattr("simspool.agent.ingest.ingest.is_network", lambda _: True)
    clock = [time.monotonic_ns()]
    monkeypatch.setattr(time, "monotonic_ns", lambda: clock[0])
    catalog = Catalog(None)
    run, writer = begin(spool)
    folder = spool.run(run).writers
    then = time.time() - 3600  # its clock is an hour behind

    def another_comes() -> None:
        Writer(folder, ids.from_text(run)).record(Kind.ATTACH, {"reason": "reconnect"})
        os.utime(folder, (then, then))

    os.utime(folder, (then, then))
    ingest = Ingest(spool, catalog)
    assert ingest.scan() == 1
    clock[0] += 119 * 10**9
    another_comes()
    assert ingest.scan() == 1
    changes = catalog.connection.total_changes
    assert ingest.scan() == 0
    assert catalog.connection.total_changes == changes  # looking again and finding nothing writes nothing
    clock[0] += 2 * 10**9
    assert ingest.scan() == 0
    another_comes()
    assert ingest.scan() == 0  # it has rested: only a new time tells of more
    ingest.look_again(run)  # or retention, which finds it
    assert ingest.scan() == 1
    writer.close({"status": "completed"})


def test_a_folder_that_is_a_day_old_has_rested_at_the_first_look(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simspool.agent.ingest.ingest.is_network", lambda _: True)
    catalog = Catalog(None)
    run = whole(spool)
    then = time.time() - 90_000
    os.utime(spool.run(run).writers, (then, then))
    take_all(spool, catalog)
    monkeypatch.setattr(layout, "list_writers", lambda _: pytest.fail("it was listed again"))
    assert Ingest(spool, catalog).scan() == 0


def test_the_catalog_is_rebuilt_with_no_loss_when_it_is_deleted(spool: Spool, tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("hello")
    run, writer = begin(spool, metadata={"alpha": 1.5})
    fill(writer, 50, events=4)
    add_file(spool, run, writer, note)
    writer.close({"status": "completed"})
    killed(spool)
    path = catalog_path(spool)
    first = Catalog(path)
    take_all(spool, first).close()
    names = ("writers", "pieces", "definitions", "metrics", "events", "artifacts")
    before = {name: table(first, name) for name in names}
    states = first.rows("SELECT id, name, status, metadata, complete FROM runs ORDER BY id")
    first.close()
    os.unlink(path)
    second = Catalog(path)
    take_all(spool, second).close()
    # how the pieces are cut depends on when they were read; what they cover does not
    covered = {(w, p[1]) for w, *p in second.rows('SELECT writer, min("first"), max("last") FROM pieces GROUP BY writer')}
    assert covered == {(w, p[1]) for w, *p in first_cover(before["pieces"])}
    for name in set(names) - {"pieces"}:
        assert table(second, name) == before[name], name
    assert second.rows("SELECT id, name, status, metadata, complete FROM runs ORDER BY id") == states
    second.close()


def first_cover(pieces: list[tuple[object, ...]]) -> list[tuple[object, int, int]]:
    found: dict[object, list[int]] = {}
    for writer, first, last, *_ in pieces:
        assert isinstance(first, int)
        assert isinstance(last, int)
        entry = found.setdefault(writer, [first, last])
        entry[0], entry[1] = min(entry[0], first), max(entry[1], last)
    return [(w, a, b) for w, (a, b) in found.items()]


def test_pieces_cover_every_record_once_with_the_chain_of_their_frames(spool: Spool) -> None:
    run, writer = begin(spool)
    fill(writer, 60_000)
    writer.close({"status": "completed"})
    catalog = Catalog(None)
    take_all(spool, catalog)
    rows = catalog.rows('SELECT "first", "last", segment, start, "end", chain FROM pieces ORDER BY "first"')
    assert len(rows) > 3
    expected, chain = 1, 0
    folder = spool.run(run).writer(writer.id_text)
    for first, last, segment, start, end, before in rows:
        assert (first, before) == (expected, chain)
        path = layout.segments(folder)[segment - 1].path
        with open(path, "rb") as f:
            f.seek(start)
            data = f.read(end - start)
        seed = segment_header.seed(writer.id, segment)
        found = frames.decode(data, seed, {0: frames.Shape(0, ("loss", "count"), "dq")})
        assert found.end == len(data)
        crcs = [c for item in found.items for c in (item.crcs if isinstance(item, frames.MetricBatch) else [item.crc])]
        assert len(crcs) == last - first + 1
        chain, expected = frames.extend_chain(chain, crcs), last + 1
    assert expected == writer.sequence + 1


def test_a_writer_whose_process_is_gone_is_closed_as_lost_with_the_evidence(spool: Spool) -> None:
    run = killed(spool, points=100)
    catalog = Catalog(None)
    take_all(spool, catalog)
    shown = show_run(catalog, spool, run, "")
    assert shown["status"] == "lost"
    assert shown["metrics"]["count"] == {"count": 100, "last": 99, "step": 99}
    assert [w["role"] for w in shown["writers"]] == ["creator", "agent"]
    state = json.loads(catalog.rows("SELECT state FROM runs WHERE id = ?", (run,))[0][0])
    assert "survivor" in state["writers"][shown["writers"][0]["id"]]


def test_burying_again_changes_nothing(spool: Spool) -> None:
    killed(spool)
    for _ in range(3):
        catalog = Catalog(None)
        take_all(spool, catalog)
        assert catalog.one("SELECT count(*) FROM writers") == (2,)


def test_a_live_writer_is_never_buried(spool: Spool) -> None:
    run, writer = begin(spool)
    fill(writer, 3)
    catalog = Catalog(None)
    ingest = take_all(spool, catalog)
    for _ in range(5):
        ingest.read()
        assert ingest.bury() == 0
    assert show_run(catalog, spool, run, "")["status"] == "running"
    assert ingest.live_runs() == [run]


def test_one_bad_run_never_stops_the_others(spool: Spool) -> None:
    bad = whole(spool, "bad", points=200)
    newer = whole(spool, "newer", points=5)
    good = whole(spool, "good", points=20)
    path = next(layout.walk_files(spool.run(bad).writers))
    data = bytearray(Path(path).read_bytes())
    data[5000] ^= 0xFF
    os.chmod(path, 0o600)
    Path(path).write_bytes(bytes(data))
    path = next(layout.walk_files(spool.run(newer).writers))
    data = bytearray(Path(path).read_bytes())
    data[8] = 9  # another major version, with a checksum that fits
    data[252:256] = zlib.crc32(bytes(data[:252])).to_bytes(4, "little")
    Path(path).write_bytes(bytes(data))
    catalog = Catalog(None)
    ingest = take_all(spool, catalog)
    assert show_run(catalog, spool, good, "")["metrics"]["loss"]["count"] == 20
    assert show_run(catalog, spool, bad, "")["metrics"]["loss"]["count"] == 199
    assert [d["kind"] for d in show_run(catalog, spool, bad, "")["damage"]] == ["corrupt"]
    assert set(ingest.problems) == {newer}
    assert "upgrade simspool" in ingest.problems[newer]
    assert overview(catalog, spool, [])["damage"] == 1


def test_a_run_that_is_opened_again_is_followed_again(spool: Spool) -> None:
    run = whole(spool, points=10)
    catalog = Catalog(None)
    ingest = take_all(spool, catalog)
    assert catalog.one("SELECT complete FROM runs") == (1,)
    again = Writer(spool.run(run).writers, ids.from_text(run))
    again.record(Kind.ATTACH, {"reason": "reconnect"})
    fill(again, 5, start=10)
    ingest.scan()
    ingest.read()
    assert catalog.one("SELECT complete FROM runs") == (0,)
    assert show_run(catalog, spool, run, "")["metrics"]["loss"]["count"] == 15
    assert show_run(catalog, spool, run, "")["status"] == "running"


def test_a_catalog_that_is_not_one_is_set_aside_and_rebuilt(spool: Spool) -> None:
    whole(spool, points=10)
    path = catalog_path(spool)
    atomic.make_folder(os.path.dirname(path))
    Path(path).write_bytes(b"this is no database at all, whatever the name says" * 100)
    catalog = Catalog(path)
    take_all(spool, catalog)
    assert catalog.one("SELECT count FROM metrics WHERE name = 'loss'") == (10,)
    assert os.path.exists(path + ".damaged")
    catalog.close()


def test_the_catalog_is_durable_wal_and_full(spool: Spool) -> None:
    catalog = Catalog(catalog_path(spool))
    assert catalog.one("PRAGMA synchronous") == (2,)
    assert catalog.one("PRAGMA journal_mode") == ("wal",)
    assert os.stat(catalog_path(spool)).st_mode & 0o777 == 0o600
    catalog.close()


@pytest.mark.parametrize("cut", [1, 7])
def test_every_read_in_small_steps_gives_the_same_chain(spool: Spool, cut: int) -> None:
    run, writer = begin(spool)
    catalog, other = Catalog(None), Catalog(None)
    ingest = Ingest(spool, catalog)
    ingest.scan()
    for step in range(0, 40, cut):
        fill(writer, cut, start=step)
        ingest.read()
    writer.close({"status": "completed"})
    ingest.read()
    take_all(spool, other)
    query = "SELECT id, sequence, chain, closed FROM writers"
    assert catalog.rows(query) == other.rows(query)
    assert run
