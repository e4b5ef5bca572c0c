"""Bringing what another spool recorded: always a prefix of it, byte for byte, and in the end all of it; or a reason and no change."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from carrying import Parcel, bring, differences, pack, put, segments_of, settle, tree
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import add_file, begin, fill, killed, whole
from sides import A, Side

from simspool.agent.carry import carried, outgoing
from simspool.agent.carry.carried import Carried
from simspool.agent.carry.incoming import Incoming
from simspool.agent.carry.parts import HEAD, NotTaken, Position, RunPart, SegmentPart
from simspool.spool import Kind, Locked, Spool, Writer, atomic, ids, layout, segment
from simspool.spool.segment_header import Drop


def rotate(writer: Writer) -> None:
    """Record so much that the writer goes on in a segment of its own after this one."""
    for n in range(12):
        assert writer.record(Kind.EVENT, {"message": f"{n} " + "x" * 750_000})


def noted(spool: Spool, run: str) -> Carried:
    """Return what a run says of how it came here."""
    found = carried.read(spool.run(run))
    assert found is not None
    return found


def findings(side: Side) -> list[tuple[Any, ...]]:
    return side.catalog.rows('SELECT writer, segment, kind, start, "end", "first", "last" FROM damage ORDER BY 1, 2, 4')


def known(side: Side) -> list[tuple[Any, ...]]:
    """Return what a spool's catalog knows of all writers of scripts and agents."""
    return side.catalog.rows("SELECT id, run, sequence, chain, closed, complete, drops FROM writers ORDER BY 1")


# ---------------------------------------------------------------------- what arrives


def test_a_run_arrives_as_it_is_in_parts_as_it_grows(origin: Side, far: Spool, tmp_path: Path) -> None:
    run, writer = begin(origin.spool, "growing")
    info = {"id": run, "name": "growing", "origin": {"wall": 1, "boot": 2, "boot_id": "00"}}
    atomic.write_json(os.path.join(origin.spool.run(run).path, "run.json"), info)
    (tmp_path / "out.h5").write_bytes(b"bytes")
    for step in range(5):
        fill(writer, 20, start=20 * step)
        if step == 2:
            add_file(origin.spool, run, writer, tmp_path / "out.h5")
        settle(origin)
        assert bring(far, pack(origin))[1] == []
        assert differences(origin.spool, far, run, whole=False) == []
        assert not noted(far, run).is_final(writer.id_text)
    assert writer.close({"status": "completed"})
    settle(origin)
    assert bring(far, pack(origin))[1] == []
    assert differences(origin.spool, far, run, whole=True) == []
    assert far.run(run).info() == info
    assert far.find_run("growing") == run
    there = noted(far, run)
    assert (there.origin, there.via, there.is_final(writer.id_text)) == (origin.spool.id, "bundle", True)
    assert list(there.files.values()) == [5]
    position, [data] = there.writers[writer.id_text], [data for data, _ in segments_of(far.run(run)).values()]
    assert position == Position(1, len(data), hashlib.sha256(data[HEAD:]).hexdigest(), final=True)
    with Side(Path(far.path)) as there_taken:
        settle(there_taken)
        assert known(there_taken) == known(origin)


def test_repeating_everything_changes_nothing(origin: Side, far: Spool, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    run, writer = begin(origin.spool)
    add_file(origin.spool, run, writer, tmp_path / "a.txt")
    fill(writer, 30)
    settle(origin)
    early = pack(origin)
    fill(writer, 30, start=30)
    writer.close({"status": "completed"})
    killed(origin.spool)
    settle(origin)
    late = pack(origin)
    for parcel in (early, late):
        assert bring(far, parcel)[0] > 0
    before = tree(far.path)
    for parcel in (early, late, early, late):
        assert bring(far, parcel) == (0, [])
    assert tree(far.path) == before


def test_segments_follow_each_other_and_a_gap_is_refused(origin: Side, far: Spool) -> None:
    run, writer = begin(origin.spool)
    rotate(writer)
    rotate(writer)
    writer.close({"status": "completed"})
    settle(origin)
    parcel = pack(origin)
    parts = [part for part, _ in parcel.segments]
    assert [part.number for part in parts] == [1, 2, 3]
    assert [(part.previous, part.previous_end) for part in parts] == [(0, 0), (1, parts[0].end), (2, parts[1].end)]
    lost = next(n for n, (kind, part, _) in enumerate(parcel.members()) if isinstance(part, SegmentPart) and part.number == 2)
    _, refused = bring(far, parcel, only=lambda n: n != lost)
    assert len(refused) == 1
    assert "segment 2 before it is not here" in refused[0]
    assert noted(far, run).writers[writer.id_text].segment == 1
    assert not noted(far, run).is_final(writer.id_text)
    assert bring(far, parcel)[1] == []
    assert differences(origin.spool, far, run, whole=True) == []
    assert noted(far, run).is_final(writer.id_text)


def test_a_large_segment_comes_in_parts(origin: Side, far: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "PART", 4096)
    run = whole(origin.spool, points=400)
    settle(origin)
    parcel = pack(origin)
    assert len(parcel.segments) > 3
    assert [part.sealed for part, _ in parcel.segments].count(True) == 1
    for upto in range(1, len(list(parcel.members()))):
        bring(far, parcel, upto=upto)
        assert differences(origin.spool, far, run, whole=False) == []
    assert bring(far, parcel) == (0, [])
    assert differences(origin.spool, far, run, whole=True) == []


ACTIONS = ("begin", "fill", "fill", "fill", "file", "close", "pack", "pack", "bring", "bring", "receipt", "apply")


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_whatever_is_lost_repeated_or_cut_off_what_is_there_is_a_prefix_and_in_the_end_all(data: st.DataObject) -> None:
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory() as folder,
        Side(Path(folder) / "origin") as origin,
        Side(Path(folder) / "far") as far,
    ):
        patch.setattr(segment, "SEGMENT_MAX", 1 << 14)  # several segments a run
        patch.setattr(outgoing, "PART", 1 << 13)
        far.serves(A)
        writers: dict[str, Writer] = {}
        parcels: list[Parcel] = []
        receipts: list[bytes] = []
        step = 0
        for action in data.draw(st.lists(st.sampled_from(ACTIONS), max_size=25)):
            if action == "begin" and len(writers) < 3:
                run, writer = begin(origin.spool)
                writers[run] = writer
            elif action in {"fill", "file", "close"} and (open_ones := {r: w for r, w in writers.items() if not w.closed}):
                run = data.draw(st.sampled_from(sorted(open_ones)))
                step += 100
                if action == "fill":
                    fill(open_ones[run], data.draw(st.sampled_from([1, 10, 100])), start=step)
                elif action == "file":
                    path = Path(folder) / f"file {step % 7}"
                    path.write_text("f" * (step % 7))
                    add_file(origin.spool, run, open_ones[run], path, f"{step}")
                else:
                    open_ones[run].close({"status": "completed"})
            elif action == "pack":
                settle(origin)
                parcels.append(pack(origin, full=data.draw(st.booleans())))
            elif action == "bring" and parcels:
                parcel = data.draw(st.sampled_from(parcels))
                count = len(list(parcel.members()))
                lost = data.draw(st.sets(st.integers(0, max(count - 1, 0)), max_size=2))
                bring(far.spool, parcel, only=lambda n, lost=lost: n not in lost, upto=data.draw(st.integers(0, count)))
            elif action == "receipt":
                settle(far)
                receipts.append(far.receipt(origin))
            elif action == "apply" and receipts:
                origin.apply(data.draw(st.sampled_from(receipts)))
            for run in writers:
                assert differences(origin.spool, far.spool, run, whole=False) == []
        for writer in writers.values():
            writer.close({"status": "completed"})
        settle(origin)
        _, refused = bring(far.spool, pack(origin))
        assert refused == []
        for run in writers:
            assert differences(origin.spool, far.spool, run, whole=True) == []
        settle(far)
        assert known(far) == known(origin)
        origin.apply(far.receipt(origin))
        assert pack(origin).runs == []


# ---------------------------------------------------------------------- damage of the origin comes along


def damaged(side: Side, how: str) -> str:
    """Record a run that dies, and damage it."""
    if how == "torn":
        run = killed(side.spool, points=40)
        [segment] = layout.segments(side.spool.run(run).writer(side.spool.run(run).writer_ids()[0]))
        data = Path(segment.path).read_bytes()
        end = len(data.rstrip(b"\0"))
        with open(segment.path, "r+b") as f:
            f.seek(end - 40)
            f.write(bytes(60))
        return run
    if how == "marker":  # two bytes of a frame that was begun
        run = killed(side.spool, points=40)
        [segment] = layout.segments(side.spool.run(run).writer(side.spool.run(run).writer_ids()[0]))
        data = Path(segment.path).read_bytes()
        with open(segment.path, "r+b") as f:
            f.seek((len(data.rstrip(b"\0")) + 7) & ~7)
            f.write(b"\xf7\x5a")
        return run
    run = whole(side.spool, points=200)
    [segment] = layout.segments(side.spool.run(run).writer(side.spool.run(run).writer_ids()[0]))
    with open(segment.path, "r+b") as f:
        if how == "corrupt":
            f.seek(5000)
            f.write(b"\xff\xff\xff")
        elif how == "loss":
            f.seek(4096)
            f.write(bytes(512))
        elif how == "header":
            f.seek(100)
            f.write(b"\xff" * 10)
        elif how == "no-seal":
            f.truncate(os.path.getsize(segment.path) - 200)
    return run


@pytest.mark.parametrize("how", ["torn", "marker", "corrupt", "loss", "header", "no-seal"])
def test_what_is_damaged_in_the_origin_is_found_the_same_there(origin: Side, far: Spool, how: str) -> None:
    run = damaged(origin, how)
    settle(origin)
    parcel = pack(origin)
    assert (parcel.problems, bring(far, parcel)[1]) == ({}, [])
    assert differences(origin.spool, far, run, whole=True) == []
    with Side(Path(far.path)) as there:
        settle(there)
        assert findings(there) == findings(origin)
        assert findings(there)
        assert known(there) == known(origin)


def test_drop_counters_come_along_also_without_a_record(origin: Side, far: Spool) -> None:
    read, write = os.pipe()
    go_on, may = os.pipe()
    pid = os.fork()
    if pid == 0:
        run, writer = begin(origin.spool)
        fill(writer, 10)
        os.write(write, run.encode())
        os.read(go_on, 1)
        writer.count_drop(Drop.INVALID)
        os.kill(os.getpid(), 9)
    run = os.read(read, 100).decode()
    settle(origin)
    bring(far, pack(origin))
    with Side(Path(far.path)) as there:
        there.serves(A)
        settle(there)
        origin.apply(there.receipt(origin))
        os.write(may, b"x")
        os.waitpid(pid, 0)
        for fd in (read, write, go_on, may):
            os.close(fd)
        settle(origin)
        parcel = pack(origin)
        [(part, _)] = [one for one in parcel.segments if one[0].writer == origin.spool.run(run).writer_ids()[0]]
        assert part.start == part.end
        assert bring(far, parcel)[1] == []
        settle(there)
        assert known(there) == known(origin)
        assert '{"invalid": 1}' in [drops for *_, drops in known(there)]


# ---------------------------------------------------------------------- what is refused changes nothing


OTHER = ids.to_text(ids.new_id())


def wrong_runs(part: RunPart) -> Iterator[tuple[str, RunPart]]:
    for bad in ("", "..", "../" + part.run[:19], "/" + part.run[:21], part.run[:-1] + "\0", part.run + "x", "z" * 22, part.run.swapcase()):
        yield f"run {bad!r}", replace(part, run=bad)
    yield "another run.json", replace(part, info={**part.info, "id": OTHER})
    yield "a huge run.json", replace(part, info={"x": "x" * (2 << 20)})
    yield "no number", replace(part, info={"x": float("nan")})
    yield "shed", replace(part, shed={"segments": {ids.to_text(ids.new_id()): [[1]]}})
    yield "final", replace(part, final={"../x": (1, 2000)})


def wrong_parts(part: SegmentPart, data: bytes) -> Iterator[tuple[str, SegmentPart, bytes]]:
    def at(**changed: Any) -> SegmentPart:
        return replace(part, **changed)

    for bad in ("..", "a/b", "\0" * 22, OTHER[:-1] + "/", part.writer.swapcase()):
        yield f"writer {bad!r}", at(writer=bad), data
    yield "another writer", at(writer=OTHER), data
    yield "another run", at(run=OTHER), data
    yield "another number", at(number=2, previous=1), data
    yield "number 0", at(number=0), data
    yield "a huge number", at(number=1 << 33), data
    yield "behind itself", at(previous=1), data
    yield "too short", part, data[:-8]
    yield "too long", part, data + bytes(8)
    yield "other bytes", part, bytes((data[0] ^ 1,)) + data[1:]
    yield "before", at(before="0" * 64), data
    yield "after", at(after="0" * 64), data
    yield "no digest", at(after="x"), data
    yield "start in the head", at(start=0, end=part.end - HEAD), data
    yield "a gap", at(start=part.start + 800, end=part.end + 800), data
    yield "a huge segment", at(start=1 << 30, end=(1 << 30) + len(data)), data
    yield "a negative end", at(start=HEAD, end=-1), b""
    yield "short head", at(head=part.head[:-1]), data
    yield "another head", at(head=part.head[:52] + b"\xff" * 4 + part.head[56:]), data


def test_what_is_wrong_is_not_taken_and_nothing_has_changed(origin: Side, far: Spool) -> None:
    run, writer = begin(origin.spool)
    fill(writer, 20)
    settle(origin)
    bring(far, pack(origin))
    mine = whole(far)
    fill(writer, 20, start=20)
    settle(origin)
    parcel = pack(origin)
    [state], [(part, data)] = parcel.runs, parcel.segments
    before = tree(far.path)
    tried = 0
    for what, wrong in wrong_runs(state):
        with Incoming(far, origin.spool.id, via="bundle") as incoming, pytest.raises(NotTaken):
            incoming.begin_run(wrong)
        assert tree(far.path) == before, what
        tried += 1
    for what, wrong_part, wrong_data in wrong_parts(part, data):
        with Incoming(far, origin.spool.id, via="bundle") as incoming:
            incoming.begin_run(state)
            with pytest.raises(NotTaken):
                assert incoming.segment(wrong_part, wrong_data), what
            incoming.end_run(replace(state, final={}))
        assert tree(far.path) == before, what
        tried += 1
    assert tried > 25
    with Incoming(far, origin.spool.id, via="bundle") as incoming, pytest.raises(NotTaken, match="without the run"):
        incoming.segment(part, data)
    with Incoming(far, origin.spool.id, via="bundle") as incoming, pytest.raises(NotTaken, match="recorded in this spool"):
        incoming.begin_run(RunPart(mine))
    with Incoming(far, OTHER, via="bundle") as incoming, pytest.raises(NotTaken, match="from the spool"):
        incoming.begin_run(state)
    with pytest.raises(NotTaken, match="this very spool"):
        Incoming(far, far.id, via="bundle")
    with pytest.raises(NotTaken, match="no spool's id"):
        Incoming(far, "../x", via="bundle")
    assert tree(far.path) == before
    assert bring(far, parcel)[1] == []
    assert differences(origin.spool, far, run, whole=False) == []


def test_a_writer_of_another_run_is_not_taken(origin: Side, far: Spool) -> None:
    run = whole(far)
    [writer] = far.run(run).writer_ids()
    forged, _ = begin(origin.spool)
    settle(origin)
    [state], [(part, data)] = (lambda parcel: (parcel.runs, parcel.segments))(pack(origin))
    assert state.run == forged
    head = Path(layout.segments(origin.spool.run(forged).writer(part.writer))[0].path).read_bytes()[:HEAD]
    broken = bytes(256) + head[256:]  # a head that is damaged says nothing of its ids
    before = None
    with Incoming(far, origin.spool.id, via="bundle") as incoming:
        incoming.begin_run(state)
        before = tree(far.path)
        with pytest.raises(NotTaken, match=f"writer {writer} of run {run} is here"):
            incoming.segment(replace(part, writer=writer, head=broken), data)
    assert tree(far.path) == before


def test_bytes_that_were_altered_here_are_not_overwritten(origin: Side, far: Spool) -> None:
    run, writer = begin(origin.spool)
    fill(writer, 20)
    settle(origin)
    bring(far, pack(origin))
    [segment] = layout.segments(far.run(run).writer(writer.id_text))
    with open(segment.path, "r+b") as f:
        f.seek(1500)
        f.write(b"\xff")
    fill(writer, 20, start=20)
    settle(origin)
    before = tree(far.path)
    for full in (False, True):
        assert "others here" in "".join(bring(far, pack(origin, full=full))[1])
    assert tree(far.path) == before


def test_zeros_that_a_power_cut_left_are_written_again(origin: Side, far: Spool) -> None:
    run, writer = begin(origin.spool)
    fill(writer, 20)
    settle(origin)
    bring(far, pack(origin))
    noted = Path(far.run(run).path, layout.CARRIED).read_bytes()
    [segment] = layout.segments(far.run(run).writer(writer.id_text))
    durable = os.path.getsize(segment.path)
    fill(writer, 20, start=20)
    settle(origin)
    parcel = pack(origin)
    bring(far, parcel)
    Path(far.run(run).path, layout.CARRIED).write_bytes(noted)
    size = os.path.getsize(segment.path)
    with open(segment.path, "r+b") as f:
        f.seek(durable + 100)
        f.write(bytes(size - durable - 100))
    assert bring(far, parcel) == (1, [])
    assert os.path.getsize(segment.path) == size
    assert differences(origin.spool, far, run, whole=False) == []


def test_one_carries_into_a_spool_at_a_time(origin: Side, far: Spool) -> None:
    with Incoming(far, origin.spool.id, via="bundle"), pytest.raises(Locked, match="another process carries"):
        Incoming(far, origin.spool.id, via="bundle")
    Incoming(far, origin.spool.id, via="bundle").close()


# ---------------------------------------------------------------------- what was pruned stays so


def test_a_run_that_was_pruned_here_comes_back_only_with_a_new_writer(origin: Side, far: Spool) -> None:
    runs = [whole(origin.spool, f"run {n}") for n in range(2)]
    settle(origin)
    parcel = pack(origin)
    bring(far, parcel)
    gone = {run: dict.fromkeys(far.run(run).writer_ids(), 3) for run in runs}
    for run in runs:
        shutil.rmtree(far.run(run).path)
    assert bring(far, parcel, pruned=gone.get) == (0, [])
    assert far.run_ids() == []
    raw = ids.from_text(runs[0])
    writer = Writer(origin.spool.run(runs[0]).writers, raw)
    assert writer.record(Kind.ATTACH, {"reason": "reconnect"})
    writer.close({"status": "completed"})
    settle(origin)
    assert bring(far, pack(origin), pruned=gone.get)[1] == []
    assert far.run_ids() == [runs[0]]
    assert far.run(runs[0]).writer_ids() == [writer.id_text]
    assert carried.read(far.run(runs[0])) is not None


def test_a_run_that_is_pruned_meanwhile_does_not_come_back_as_one_of_its_own(origin: Side, far: Spool) -> None:
    whole(origin.spool)
    settle(origin)
    [state], segments = (lambda parcel: (parcel.runs, parcel.segments))(pack(origin))
    with Incoming(far, origin.spool.id, via="bundle") as incoming:
        incoming.begin_run(state)
        shutil.rmtree(far.run(state.run).path)
        with pytest.raises(NotTaken, match="pruned or deleted in this moment"):
            incoming.segment(*segments[0])
    assert far.run_ids() == []


def test_what_was_shed_in_the_origin_is_no_damage_there(origin: Side, far: Spool) -> None:
    from simspool.spool import shed

    run, writer = begin(origin.spool)
    rotate(writer)
    rotate(writer)
    writer.close({"status": "completed"})
    settle(origin)
    first = layout.segments(origin.spool.run(run).writer(writer.id_text))[0]
    last = [part for part, _ in pack(origin).segments][0]
    assert last.number == 1
    with Side(Path(far.path)) as there:
        rows = origin.catalog.rows('SELECT min("first"), max("last") FROM pieces WHERE writer = ? AND segment = 1', (writer.id_text,))
        shed.note(origin.spool.run(run).path, {writer.id_text: [(1, *rows[0])]}, {})
        os.unlink(first.path)
        assert bring(far, pack(origin))[1] == []
        settle(there)
        assert findings(there) == []
        assert there.catalog.rows("SELECT gaps FROM pieces WHERE gaps IS NOT NULL") == [(f'[[1, {rows[0][1]}, "shed"]]',)]


def test_members_may_be_put_one_by_one(origin: Side, far: Spool) -> None:
    """`put` and `bring` are the same thing: nothing hangs on one Incoming doing all."""
    run = whole(origin.spool, points=50)
    settle(origin)
    parcel = pack(origin)
    for kind, part, data in parcel.members():
        with Incoming(far, parcel.origin, via="bundle") as incoming:
            if kind != "begin":
                incoming.begin_run(parcel.runs[0])
            put(incoming, kind, part, data)
    assert differences(origin.spool, far, run, whole=True) == []
    assert noted(far, run).writers == {}  # each Incoming notes what it has seen: the next whole carry does
    assert bring(far, parcel) == (0, [])
    assert all(position.final for position in noted(far, run).writers.values())
