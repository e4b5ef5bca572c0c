"""`agent check` finds what is damaged, says where, and changes nothing."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from simspool.agent.scrub import Totals, scrub
from simspool.spool import Drop, Kind, Spool, Writer, ids, layout, open_spool


def _snapshot(folder: str) -> dict[str, tuple[str, int]]:
    return {p: (hashlib.sha256(Path(p).read_bytes()).hexdigest(), os.stat(p).st_mtime_ns) for p in layout.walk_files(folder)}


def _segment(run: Any) -> Path:
    return Path(layout.segments(run.writer(run.writer_ids()[0]))[0].path)


def _blob(run: Any) -> Path:
    (name,) = os.listdir(run.blobs)
    return Path(run.blobs, name)


def test_a_sound_spool_passes_and_is_left_as_it_was(agent: Any, make: Any, tmp_path: Path) -> None:
    source = tmp_path / "out.txt"
    source.write_text("result")
    for name in ("a", "b"):
        make.closed(name, source=source)
    before = _snapshot(make.spool.path)
    result = agent("check", "--json")
    assert result.code == 0
    (summary,) = result.lines
    assert summary["damaged"] == 0
    assert (summary["runs"], summary["records"], summary["blobs"]) == (2, 28, 1)
    assert _snapshot(make.spool.path) == before


def test_a_flipped_bit_is_found_with_its_bounds(agent: Any, make: Any) -> None:
    run = make.closed()
    path = _segment(run)
    data = bytearray(path.read_bytes())
    data[1024 + 40] ^= 4
    path.write_bytes(data)
    result = agent("check", "--json")
    assert result.code == 8
    finding = result.lines[0]
    assert finding["kind"] in {"corrupt", "loss"}
    assert finding["path"] == str(path)
    assert finding["bytes"][0] <= 1064 < finding["bytes"][1]
    assert [line["sequences"] for line in result.lines if line["kind"] == "lost"] == [[1, 1]]
    assert agent("check").out.splitlines()[0].startswith("corrupt")


def test_a_cut_sealed_segment_is_found(agent: Any, make: Any) -> None:
    run = make.closed()
    path = _segment(run)
    os.truncate(path, path.stat().st_size - 100)
    assert agent("check").code == 8


def test_damaged_and_missing_blobs_are_named(agent: Any, make: Any, tmp_path: Path) -> None:
    source = tmp_path / "out.txt"
    source.write_text("result")
    damaged = make.closed("damaged", source=source)
    path = _blob(damaged)
    os.chmod(path, 0o600)
    path.write_text("r3sult")
    source.write_text("another result")
    missing = make.closed("missing", source=source)
    gone = _blob(missing)
    gone.unlink()
    Path(make.spool.pool_path(gone.name)).unlink()
    result = agent("check", "--json")
    assert result.code == 8
    kinds = {line["kind"]: line for line in result.lines}
    assert kinds["blob-damaged"]["run"] == damaged.id
    assert "'out.txt' are gone" in kinds["blob-missing"]["detail"]
    quick = agent("check", "--json", "--no-blobs").lines
    assert {line["kind"] for line in quick} == {"blob-missing", "summary"}
    assert agent("check", "damaged").code == 8
    assert agent("check", "nobody").code == 9


def test_drops_are_told_and_are_no_damage(agent: Any, make: Any) -> None:
    _, writer = make.open()
    writer.count_drop(Drop.DISK_FULL)
    writer.close()
    result = agent("check", "--json")
    assert result.code == 0
    assert result.lines[0]["kind"] == "dropped"
    assert result.lines[0]["counts"] == {"disk-full": 1}


def test_a_newer_segment_is_left_alone(agent: Any, make: Any) -> None:
    run = make.closed()
    path = _segment(run)
    data = bytearray(path.read_bytes())
    data[8] = 9
    body = bytes(data[:252])
    import zlib

    data[252:256] = zlib.crc32(body).to_bytes(4, "little")
    path.write_bytes(data)
    result = agent("check", "--json")
    assert result.code == 6
    assert result.lines[0]["kind"] == "newer"


def test_scrub_serves_programs_too(make: Any, spool: Spool) -> None:
    run = make.closed()
    totals = Totals()
    assert list(scrub(spool, [run.id], totals=totals)) == []
    assert (totals.runs, totals.writers, totals.segments, totals.records) == (1, 1, 1, 13)


def test_a_torn_tail_of_a_killed_writer_is_reported_and_is_no_damage(tmp_path: Path) -> None:
    """The call that was writing had not returned: nothing that was acknowledged is missing."""
    spool = open_spool(tmp_path / "torn", create=True)
    raw = ids.new_id()
    folder = spool.run(ids.to_text(raw))
    os.makedirs(folder.writers)
    pid = os.fork()
    if pid == 0:
        writer = Writer(folder.writers, raw, mapped=False)
        writer.record(Kind.RUN, {"name": "torn"})
        os.write(os.open(f"{writer.folder}/000001.open", os.O_WRONLY | os.O_APPEND), b"\xf7\x5a\x10\x00\x40\x00\x00\x00")
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    [finding] = list(scrub(spool))
    assert (finding.kind, finding.is_damage) == ("torn", False)
