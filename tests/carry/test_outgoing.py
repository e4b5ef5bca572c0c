"""What the other side lacks: that and nothing else, in an order that it can take; what cannot be read is named, and the rest goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from carrying import Parcel, bring, differences, pack, settle
from recorded import add_file, begin, fill, killed, whole
from sides import SERVER, A, Side

from simspool.agent.carry.outgoing import Outgoing
from simspool.agent.carry.parts import HEAD
from simspool.spool import Kind, Writer, frames, layout, segment_header


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Side]:
    with Side(tmp_path / "far") as made:
        made.serves(A)
        yield made


def acknowledge(origin: Side, far: Side) -> None:
    """Carry back what the far side says of itself."""
    settle(far)
    origin.apply(far.receipt(origin))


def size(parcel: Parcel) -> int:
    return sum(len(data) for _, data in parcel.segments) + sum(len(data) for *_, data in parcel.blobs)


def rotate(writer: Writer) -> None:
    for n in range(12):
        assert writer.record(Kind.EVENT, {"message": f"{n} " + "x" * 750_000})


def test_after_a_receipt_only_what_is_new_is_carried(origin: Side, far: Side, tmp_path: Path) -> None:
    (tmp_path / "big.bin").write_bytes(os.urandom(100_000))
    run, writer = begin(origin.spool)
    fill(writer, 500)
    add_file(origin.spool, run, writer, tmp_path / "big.bin")
    other = whole(origin.spool)
    settle(origin)
    first = pack(origin)
    assert {part.run for part in first.runs} == {run, other}
    bring(far.spool, first)
    assert size(pack(origin)) == size(first)  # nobody said that it has arrived
    acknowledge(origin, far)
    assert pack(origin).runs == []
    fill(writer, 5, start=500)
    settle(origin)
    second = pack(origin)
    assert [part.run for part in second.runs] == [run]
    assert second.blobs == []
    [(part, data)] = second.segments
    assert len(data) == part.end - part.start < 1000
    assert bring(far.spool, second)[1] == []
    assert differences(origin.spool, far.spool, run, whole=False) == []
    assert size(pack(origin, full=True)) > size(first)
    writer.close({"status": "completed"})


def test_what_is_delivered_counts_where_custody_was_not_noted(origin: Side) -> None:
    run, writer = begin(origin.spool)
    fill(writer, 50)
    settle(origin)
    origin.deliver(SERVER, run)
    assert pack(origin).runs == []
    fill(writer, 1, start=50)
    settle(origin)
    [(part, data)] = pack(origin).segments
    assert part.start > HEAD
    assert len(data) < 200
    writer.close({"status": "completed"})


def test_only_the_runs_that_were_asked_for(origin: Side) -> None:
    run, other = whole(origin.spool), whole(origin.spool)
    settle(origin)
    assert [part.run for part in pack(origin, [other]).runs] == [other]
    assert [part.run for part in pack(origin).runs] == sorted([run, other])


def test_what_was_recorded_after_the_look_is_for_the_next_carry(origin: Side) -> None:
    run, writer = begin(origin.spool)
    fill(writer, 10)
    settle(origin)
    out = Outgoing(origin.spool, origin.catalog, SERVER)
    assert [part.run for part in out.runs()] == [run]
    fill(writer, 10, start=10)
    writer.close({"status": "completed"})
    settle(origin)
    [(part, _)] = list(out.segments(run))
    assert not part.sealed
    [(all_of_it, _)] = pack(origin).segments
    assert all_of_it.sealed
    assert all_of_it.end > part.end


def test_what_is_carried_ends_with_a_whole_frame(origin: Side) -> None:
    """Also where the catalog is ahead of the disk: a power cut took the bytes."""
    run, writer = begin(origin.spool)
    fill(writer, 40)
    settle(origin)
    [file] = layout.segments(origin.spool.run(run).writer(writer.id_text))
    [(before, _)] = pack(origin).segments
    with open(file.path, "r+b") as f:
        f.seek(before.end - 200)
        f.write(bytes(200))
    [(part, data)] = pack(origin).segments
    assert part.end < before.end - 100
    at, seed = 0, segment_header.seed(writer.id, 1)
    while at < len(data):
        verdict, length = frames.check_frame(data, seed, at)
        assert verdict == "valid"
        at += length


def test_nothing_follows_a_segment_that_a_living_writer_has_not_sealed(origin: Side, far: Side) -> None:
    run, writer = begin(origin.spool)
    rotate(writer)
    fill(writer, 10)
    folder = origin.spool.run(run).writer(writer.id_text)
    assert writer.sync()
    writer.maintain()
    first = layout.segments(folder)[0]
    assert first.sealed
    sealed = Path(first.path).read_bytes()
    at = sealed.rfind(frames.MARKER_BYTES + bytes((Kind.SEAL,)))
    opened = Path(layout.segment_path(folder, 1, "open"))
    os.rename(first.path, opened)
    opened.write_bytes(sealed[:at] + sealed[at : at + 20].ljust(200_000, b"\0"))  # its seal is being written just now
    settle(origin)
    parts = [part for part, _ in pack(origin).segments]
    assert [(part.number, part.sealed, part.end) for part in parts][-1] == (1, False, at)
    assert {part.number for part in parts} == {1}
    assert bring(far.spool, pack(origin))[1] == []
    opened.write_bytes(sealed)
    os.rename(opened, first.path)
    settle(origin)
    assert bring(far.spool, pack(origin))[1] == []
    assert differences(origin.spool, far.spool, run, whole=False) == []
    assert [s.sealed for s in layout.segments(far.spool.run(run).writer(writer.id_text))][:1] == [True]
    writer.close({"status": "completed"})
    settle(origin)
    assert bring(far.spool, pack(origin))[1] == []
    assert differences(origin.spool, far.spool, run, whole=True) == []


def test_a_custody_that_does_not_fit_is_no_basis(origin: Side, far: Side) -> None:
    run = killed(origin.spool)
    settle(origin)
    settle(origin)
    bring(far.spool, pack(origin))
    acknowledge(origin, far)
    assert pack(origin).runs == []
    writer = origin.spool.run(run).writer_ids()[0]
    origin.journal.note_ids(SERVER, {f"{run}/carried/{writer}": f'[1, 2048, "{"0" * 64}", false]'})
    [(part, _)] = [one for one in pack(origin).segments if one[0].writer == writer]
    assert part.start == HEAD
    origin.journal.note_ids(SERVER, {f"{run}/carried/{writer}": f'[7, 2048, "{"0" * 64}", false]'})
    [(part, _)] = [one for one in pack(origin).segments if one[0].writer == writer]
    assert part.start == HEAD


def test_damaged_and_lost_files_are_named_and_the_others_go_on(origin: Side, tmp_path: Path) -> None:
    digests = []
    run, writer = begin(origin.spool)
    for name in ("whole", "damaged", "lost"):
        (tmp_path / name).write_text(name * 10)
        digests.append(add_file(origin.spool, run, writer, tmp_path / name))
    folder = origin.spool.run(run).blobs
    os.chmod(os.path.join(folder, digests[1]), 0o600)
    Path(folder, digests[1]).write_text("else")
    os.unlink(os.path.join(folder, digests[2]))
    other = whole(origin.spool)
    settle(origin)
    parcel = pack(origin)
    assert [blob.digest for _, blob, _ in parcel.blobs] == digests[:1]
    assert run in parcel.problems
    assert {part.run for part, _ in parcel.segments} == {run, other}
    writer.close({"status": "completed"})


def test_a_segment_that_cannot_be_read_stops_its_writer_only(origin: Side, far: Side) -> None:
    run, other = whole(origin.spool), whole(origin.spool)
    settle(origin)
    [writer] = origin.spool.run(run).writer_ids()
    path = layout.segment_path(origin.spool.run(run).writer(writer), 1, "seg")
    os.rename(path, path + ".aside")
    os.mkdir(path)
    parcel = pack(origin)
    assert list(parcel.problems) == [run]
    assert [part.run for part in parcel.runs] == [other]
    assert bring(far.spool, parcel)[1] == []
    os.rmdir(path)
    os.rename(path + ".aside", path)
    assert pack(origin).problems == {}


def test_a_run_that_was_deleted_is_passed_over(origin: Side) -> None:
    import shutil

    run, other = whole(origin.spool), whole(origin.spool)
    settle(origin)
    shutil.rmtree(origin.spool.run(run).path)
    parcel = pack(origin)
    assert [part.run for part in parcel.runs] == [other]


def test_carried_runs_go_on_to_a_third_spool(origin: Side, far: Side, tmp_path: Path) -> None:
    run = whole(origin.spool)
    dead = killed(origin.spool)
    settle(origin)
    settle(origin)
    bring(far.spool, pack(origin))
    settle(far)
    with Side(tmp_path / "third") as third:
        assert bring(third.spool, pack(far))[1] == []
        for one in (run, dead):
            assert differences(origin.spool, third.spool, one, whole=True) == []
        _, refused = bring(origin.spool, pack(far))
        assert len([text for text in refused if "was recorded in this spool" in text]) == 2
