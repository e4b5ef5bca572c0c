"""Following a writer: live, across rotations, from stored positions (FORMAT.md R1, R2)."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simspool.spool import DamagedSegment, Durability, Kind, NewerFormat, Writer, frames, ids, layout, segment, segment_header
from simspool.spool.reader import Tail
from simspool.spool.salvage import Salvager
from simspool.spool.segment_header import seed

RUN = bytes(range(16))
RUN_ID = ids.to_text(RUN)
Read = Callable[..., Any]


def test_a_live_reader_beside_a_writer_that_grows_rotates_and_seals(
    tmp_path: Path, mapped: bool, monkeypatch: pytest.MonkeyPatch, read: Read
) -> None:
    monkeypatch.setattr(segment, "SEGMENT_MAX", 1 << 18)
    w = Writer(str(tmp_path / "w"), RUN, mapped=mapped, durability=Durability.LAZY)
    w.metrics({"a": 0, "b": 0.5})
    total = 30_000

    def record() -> None:
        for n in range(1, total):
            w.metrics({"a": n, "b": 0.5}) if n % 50 else w.record(Kind.EVENT, {"message": "x" * (n % 5000)})
            if n % 3000 == 0:
                w.maintain()
        w.close({"status": "completed"})

    thread = threading.Thread(target=record)
    thread.start()
    seen = 0
    with Tail(w.folder, RUN_ID) as tail:
        while not tail.complete:
            for chunk in tail.read():
                assert not chunk.damage
                assert not chunk.gaps
                assert chunk.first == seen + 1
                seen = chunk.last
    thread.join()
    assert seen == total + 1
    assert tail.segment > 3


def test_a_position_may_be_stored_and_given_again(tmp_path: Path, mapped: bool, monkeypatch: pytest.MonkeyPatch, read: Read) -> None:
    monkeypatch.setattr(segment, "SEGMENT_MAX", 1 << 16)
    w = Writer(str(tmp_path / "w"), RUN, mapped=mapped, durability=Durability.LAZY)
    position: dict[str, int] = {}
    seen: list[int] = []
    for n in range(3000):
        w.metrics({f"s{n % 7}": n, "b": True})
        if n % 200 == 0:
            with Tail(w.folder, RUN_ID, **position) as tail:
                for chunk in tail.read():
                    assert not chunk.damage
                    assert not chunk.gaps
                    seen += [row[1] for item in chunk.items if isinstance(item, frames.MetricBatch) for row in item.rows]
                position = {"segment": tail.segment, "offset": tail.offset, "sequence": tail.sequence}
    w.close()
    rest = read(w.folder, tail=Tail(w.folder, RUN_ID, **position))
    assert seen + rest.sequences == list(range(1, 3001))
    assert not rest.damage


def test_a_limit_ends_the_reading_between_chunks(tmp_path: Path) -> None:
    w = Writer(str(tmp_path / "w"), RUN, mapped=True, durability=Durability.LAZY)
    for n in range(40):
        w.record(Kind.EVENT, {"message": "x" * 200_000, "n": n})
    with Tail(w.folder, RUN_ID) as tail:
        assert sum(c.end - c.start for c in tail.read(limit=1 << 20)) < 3 << 20
        assert 0 < tail.sequence < 40
        list(tail.read())
        assert tail.sequence == 41
    w.close()


def test_frames_of_exactly_one_mebibyte_and_borders_of_chunks(writer: Writer, read: Read) -> None:
    largest = (1 << 20) - 28 - 14
    for size in (largest, 10, largest, 0, largest - 8, largest):
        assert writer.record(Kind.EVENT, {"message": "x" * size})
    for live in (True, False):
        got = read(writer.folder, dead=not live)
        assert got.sequences == [1, 2, 3, 4, 5, 6]
        assert not got.damage


def test_a_missing_segment_is_a_named_gap(writer: Writer, monkeypatch: pytest.MonkeyPatch, read: Read) -> None:
    monkeypatch.setattr(segment, "SEGMENT_MAX", 1 << 16)
    for n in range(6000):
        writer.metrics({"a": n})
    writer.close()
    files = layout.segments(writer.folder)
    firsts = [segment_header.SegmentHeader.unpack(Path(f.path).read_bytes()[:256]).first for f in files]
    os.unlink(files[1].path)
    got = read(writer.folder)
    assert got.gaps == [(firsts[1], firsts[2] - 1, "missing")]
    assert [(d.kind, d.segment, d.first, d.last) for d in got.damage] == [("missing", 2, firsts[1], firsts[2] - 1)]
    assert len(got.sequences) + len(got.missing) == 6000
    os.unlink(files[0].path)
    got = read(writer.folder)
    assert got.gaps == [(1, firsts[2] - 1, "missing")]
    os.unlink(files[-1].path)
    live = Tail(writer.folder, RUN_ID)
    list(live.read())
    assert not live.complete
    list(live.read(dead=True))
    assert live.complete


def test_records_that_a_lost_tail_had_are_a_gap_even_before_the_next_segment_has_any(
    tmp_path: Path, mapped: bool, read: Read
) -> None:
    w = Writer(str(tmp_path / "w"), RUN, mapped=mapped, durability=Durability.LAZY)
    w.metrics({"a": 1})
    w.metrics({"a": 2})
    w._stream.open_next()
    w._stream.seal_retired()
    first = Path(layout.segment_path(w.folder, 1, "seg"))
    data = first.read_bytes()
    first.write_bytes(data[: segment_header.SIZE])
    got = read(w.folder, dead=False)
    assert got.gaps == [(1, 2, "lost")]
    assert [d.kind for d in got.damage] == ["torn"]
    w.close()


def test_frames_whose_sequence_was_read_before_are_skipped_and_reported(tmp_path: Path, read: Read) -> None:
    w = Writer(str(tmp_path / "w"), RUN, mapped=True, durability=Durability.LAZY)
    for n in range(3):
        w.metrics({"a": n})
    path = layout.segments(w.folder)[0].path
    data = Path(path).read_bytes()
    at = w._stream.now.pos
    w.close()
    frame = data[at - 48 : at]
    Path(path.replace(".open", ".seg")).unlink()
    Path(path).write_bytes(data[:at] + frame + frame)
    got = read(w.folder)
    assert got.sequences == [1, 2, 3]
    assert {d.kind for d in got.damage} == {"repeated"}


def test_a_newer_major_is_refused_and_left_untouched(tmp_path: Path) -> None:
    w = Writer(str(tmp_path / "w"), RUN, mapped=False, durability=Durability.LAZY)
    w.metrics({"a": 1})
    w.close()
    path = Path(layout.segments(w.folder)[0].path)
    data = bytearray(path.read_bytes())
    data[8] = 2
    import zlib

    data[252:256] = zlib.crc32(data[:252]).to_bytes(4, "little")
    path.write_bytes(data)
    for _ in range(2):
        with pytest.raises(NewerFormat, match="upgrade"):
            list(Tail(w.folder, RUN_ID).read(dead=True))
    assert path.read_bytes() == bytes(data)


def test_names_that_are_no_segments_are_ignored(writer: Writer, read: Read) -> None:
    writer.metrics({"a": 1})
    writer.close()
    for name in ("000000.open", "99999999999.open", "1.open", "0000002.open", "000002.1.next", "000002.next", "x.seg", "000003.seg.bak",
                 "٠٠٠٠٠٢.seg"):  # fmt: skip
        Path(writer.folder, name).write_bytes(b"x")
    assert [s.number for s in layout.segments(writer.folder)] == [1]
    assert not read(writer.folder).damage


def test_the_sealed_form_counts_where_both_exist(writer: Writer, read: Read) -> None:
    writer.metrics({"a": 1})
    writer.close()
    Path(layout.segment_path(writer.folder, 1, "open")).write_bytes(b"")
    assert [(s.number, s.sealed) for s in layout.segments(writer.folder)] == [(1, True)]
    assert read(writer.folder).sequences == [1]


def test_the_shapes_before_a_position(writer: Writer) -> None:
    writer.metrics({"a": 1})
    end = writer._stream.now.pos
    writer.metrics({"b": 1.0, "c": True})
    writer.close()
    path = layout.segments(writer.folder)[0].path
    with open(path, "rb") as f:
        salvager = Salvager(f.fileno(), seed(writer.id, 1))
        assert [s.names for s in salvager.definitions(end).values()] == [("a",)]
        assert [s.names for s in salvager.definitions(1 << 20).values()] == [("a",), ("b", "c")]


def test_a_folder_that_is_not_there_reads_as_empty(tmp_path: Path, read: Read) -> None:
    got = read(str(tmp_path / ids.to_text(ids.new_id())))
    assert (got.records, got.complete) == ([], True)
    with pytest.raises(ValueError):
        Tail(str(tmp_path / "not-an-id"), "x")


def test_a_listed_segment_that_vanishes_again_and_again_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(tmp_path / ids.to_text(ids.new_id()))
    monkeypatch.setattr(layout, "segments", lambda _: [layout.SegmentFile(1, folder + "/000001.seg", True)])
    with pytest.raises(DamagedSegment, match="cannot be opened"):
        list(Tail(folder, RUN_ID).read())
