"""Every truncation and every bit flip of a small segment (FORMAT.md R1-R4; faults F6, F7)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simspool.spool import Durability, Kind, Writer, frames, ids, layout, segment_header
from simspool.spool.reader import Tail

RUN = bytes(range(16))
PADDING = 96  # of the never-written rest, so much stays in the specimen


def specimen(folder: Path, *, mapped: bool, sealed: bool) -> tuple[str, bytes, list[tuple[int, int, int]]]:
    """Make a small segment of all sorts; return its path, its bytes and (start, end, sequence) of its frames (0: definition or seal)."""
    w = Writer(str(folder / "w"), RUN, mapped=mapped, durability=Durability.LAZY)
    w.record(Kind.ATTACH, {"reason": "test", "rank": None})
    w.metrics({"loss": 0.5, "n": 3})
    w.record(Kind.EVENT, {"message": "one"})
    w.metrics({"loss": 0.25, "n": 4})
    w.metrics({"ok": True}, time=1.5)
    w.count_drop(segment_header.Drop.INVALID)
    w.count_drop(segment_header.Drop.INVALID)
    w.metrics({"loss": 0.125, "n": 5})
    if sealed:
        assert w.close()
    path = layout.segments(w.folder)[0].path
    data = Path(path).read_bytes()
    spans, at = [], segment_header.SIZE
    while (head := data[at : at + 24]).startswith(frames.MARKER_BYTES):
        _, _, _, length, seq, _ = frames.HEAD.unpack(head)
        spans.append((at, at + length, seq))
        at += length
    data = data[: at + PADDING]
    w.close()
    for name in os.listdir(w.folder):
        os.unlink(os.path.join(w.folder, name))
    return path, data, spans


@pytest.fixture(params=["sealed", "open"])
def sealed(request: pytest.FixtureRequest) -> bool:
    return request.param == "sealed"


def test_every_truncation_leaves_the_exact_prefix(tmp_path: Path, mapped: bool, sealed: bool, read: Callable[..., Any]) -> None:
    path, data, spans = specimen(tmp_path, mapped=mapped, sealed=sealed)
    folder = os.path.dirname(path)
    Path(path).write_bytes(data)
    whole = read(folder)
    assert whole.sequences == [1, 2, 3, 4, 5, 6]
    assert not whole.damage
    for cut in range(len(data)):
        Path(path).write_bytes(data[:cut])
        got = read(folder)
        expected = [s for start, end, s in spans if s and end <= cut]
        assert got.sequences == expected, cut
        assert got.records == whole.records[: len(expected)], cut
        inside = [s for s in spans if s[0] < cut < s[1]]
        if sealed or inside or cut < segment_header.STATIC_SIZE:
            assert got.damage, cut
        if inside and cut - inside[0][0] >= 2:
            assert got.damage[-1].kind == "torn", cut


def test_every_bit_flip_is_detected_and_costs_the_hit_frame_only(
    tmp_path: Path, mapped: bool, sealed: bool, read: Callable[..., Any]
) -> None:
    path, data, spans = specimen(tmp_path, mapped=mapped, sealed=sealed)
    folder = os.path.dirname(path)
    Path(path).write_bytes(data)
    whole = {r[0]: r for r in read(folder).records}
    undetected, bounds = [], []
    with open(path, "r+b", buffering=0) as f:
        for at in range(len(data)):
            hit = next((s for s in spans if s[0] <= at < s[1]), None)
            for bit in range(8):
                os.pwrite(f.fileno(), bytes((data[at] ^ 1 << bit,)), at)
                got = read(folder)
                expected = [s for s in whole if hit is None or s != hit[2]]
                assert got.sequences == expected, (at, bit)
                assert [whole[s] for s in expected] == got.records, (at, bit)
                if not got.damage:
                    undetected.append((at, bit))
                elif hit is not None and not any(d.start <= at < d.end for d in got.damage):
                    bounds.append((at, bit))
            os.pwrite(f.fileno(), data[at : at + 1], at)
    assert undetected == []
    assert bounds == []


def test_frames_written_over_with_zeros_are_a_loss_span(tmp_path: Path, mapped: bool, sealed: bool, read: Callable[..., Any]) -> None:
    path, data, spans = specimen(tmp_path, mapped=mapped, sealed=sealed)
    start, end = next((a, b) for a, b, s in spans if s == 3)
    Path(path).write_bytes(data[:start] + bytes(end - start) + data[end:])
    got = read(os.path.dirname(path))
    assert got.sequences == [1, 2, 4, 5, 6]
    assert [(d.kind, d.start, d.end, d.first, d.last) for d in got.damage] == [("loss", start, end, 3, 3)]
    assert got.gaps == [(3, 3, "lost")]


def test_a_live_reader_stops_at_the_first_frame_that_is_not_valid(tmp_path: Path, mapped: bool, read: Callable[..., Any]) -> None:
    """R1: it means "not yet"; when the frame is whole, reading goes on there."""
    path, data, spans = specimen(tmp_path, mapped=mapped, sealed=False)
    start, end = next((a, b) for a, b, s in spans if s == 3)
    Path(path).write_bytes(data[: start + 30].ljust(len(data), b"\0"))
    tail = Tail(os.path.dirname(path), ids.to_text(RUN))
    assert [c.last for c in tail.read()] == [2]
    assert list(tail.read()) == []
    Path(path).write_bytes(data)
    (chunk,) = tail.read()
    assert (chunk.first, chunk.last, chunk.damage, chunk.gaps) == (3, 6, [], [])
    assert not tail.complete
    tail.close()


def test_both_definitions_damaged_and_the_seal_has_them(tmp_path: Path, mapped: bool, read: Callable[..., Any]) -> None:
    """R4."""
    path, data, spans = specimen(tmp_path, mapped=mapped, sealed=True)
    broken = bytearray(data)
    for start, _, seq in spans[:-1]:
        if not seq:
            broken[start + 30] ^= 1
    Path(path).write_bytes(broken)
    got = read(os.path.dirname(path))
    assert got.sequences == [1, 2, 3, 4, 5, 6]
    assert {d.kind for d in got.damage} == {"corrupt"}
    again = read(os.path.dirname(path), tail=Tail(os.path.dirname(path), ids.to_text(RUN), segment=1, offset=spans[-3][0], sequence=5))
    assert again.sequences[-1] == 6


def test_both_definitions_damaged_without_a_seal_costs_the_frames_of_that_shape(
    tmp_path: Path, mapped: bool, read: Callable[..., Any]
) -> None:
    path, data, spans = specimen(tmp_path, mapped=mapped, sealed=False)
    broken = bytearray(data)
    for start, _, seq in [s for s in spans if not s[2]][:2]:
        assert not seq
        broken[start + 30] ^= 1
    Path(path).write_bytes(broken)
    got = read(os.path.dirname(path))
    assert got.sequences == [1, 3, 5]
    assert got.missing == {2, 4, 6}
    assert [(d.first, d.last) for d in got.damage] == [(0, 0), (2, 2), (4, 4), (6, 6)]


def test_a_damaged_header_is_reported_and_the_frames_are_read_with_the_path(
    tmp_path: Path, mapped: bool, sealed: bool, read: Callable[..., Any]
) -> None:
    """R4: clocks come from another segment of the writer."""
    path, data, _ = specimen(tmp_path, mapped=mapped, sealed=sealed)
    Path(path).write_bytes(bytes(256) + data[256:])
    folder = os.path.dirname(path)
    got = read(folder)
    assert got.sequences == [1, 2, 3, 4, 5, 6]
    assert [d.kind for d in got.damage] == ["header"]
    good = segment_header.SegmentHeader.unpack(data[:256])
    Path(layout.segment_path(folder, 2, "seg")).write_bytes(data)
    tail = Tail(folder, ids.to_text(RUN))
    first = next(iter(tail.read(dead=True)))
    assert first.header.anchor_wall == good.anchor_wall
    tail.close()


def test_bytes_of_another_file_do_not_validate(tmp_path: Path, mapped: bool, read: Callable[..., Any]) -> None:
    path, data, _ = specimen(tmp_path, mapped=mapped, sealed=True)
    other = layout.segment_path(os.path.dirname(path), 2, "seg")
    Path(other).write_bytes(data)
    got = read(os.path.dirname(path))
    assert got.sequences == []
    assert {d.kind for d in got.damage} == {"header", "drops", "corrupt"}


def test_salvage_of_hostile_bytes_ends(tmp_path: Path, read: Callable[..., Any]) -> None:
    """A15: a segment full of beginnings of huge frames, one every 8 bytes, and of markers that lead nowhere."""
    folder = tmp_path / "w" / ids.to_text(ids.new_id())
    folder.mkdir(parents=True)
    head = frames.HEAD.pack(frames.MARKER, 18, 0, 1 << 20, 1, 1)[:8]
    (folder / "000001.open").write_bytes(bytes(1024) + head * (1 << 18))
    got = read(str(folder))
    assert got.sequences == []
    assert got.damage


def test_alternating_good_and_bad_frames_cost_linear_time(tmp_path: Path, read: Callable[..., Any]) -> None:
    w = Writer(str(tmp_path / "w"), RUN, mapped=True, durability=Durability.LAZY)
    for n in range(20_000):
        w.record(Kind.EVENT, {"m": n})
    w.close()
    path = layout.segments(w.folder)[0].path
    data = bytearray(Path(path).read_bytes())
    at, bad = segment_header.SIZE, 0
    while data[at + 2] == Kind.EVENT:
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if bad % 2:
            data[at + 26] ^= 0x40
        bad += 1
        at += length
    Path(path).write_bytes(data)
    got = read(w.folder)
    assert len(got.sequences) == 10_000
    assert len(got.damage) == 10_000
    assert sorted(got.missing | set(got.sequences)) == list(range(1, 20_001))


def test_a_fifo_or_folder_in_a_segments_place_does_not_block(tmp_path: Path) -> None:
    from simspool.spool import DamagedSegment

    folder = tmp_path / "w" / ids.to_text(ids.new_id())
    folder.mkdir(parents=True)
    os.mkfifo(folder / "000001.open")
    with pytest.raises(DamagedSegment, match="regular"):
        list(Tail(str(folder), ids.to_text(RUN)).read())


def test_a_link_in_a_segments_place_is_not_followed(tmp_path: Path) -> None:
    """A2, A4."""
    folder = tmp_path / "w" / ids.to_text(ids.new_id())
    folder.mkdir(parents=True)
    (folder / "000001.open").symlink_to("/etc/passwd")
    with pytest.raises(OSError):
        list(Tail(str(folder), ids.to_text(RUN)).read())
