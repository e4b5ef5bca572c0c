"""Files that come along: verified before they have their name, once for all runs that have them, and never others under their name."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from carrying import Parcel, bring, pack, settle, tree
from recorded import add_file, begin
from sides import Side

from simspool.agent.carry import carried
from simspool.agent.carry.incoming import Incoming
from simspool.agent.carry.parts import NotTaken
from simspool.spool import Spool, ids

OTHER = ids.to_text(ids.new_id())


def with_files(origin: Side, tmp_path: Path) -> tuple[list[str], str]:
    """Record two runs with one file."""
    (tmp_path / "data.bin").write_bytes(b"d" * 5000)
    runs = []
    for _ in range(2):
        run, writer = begin(origin.spool)
        digest = add_file(origin.spool, run, writer, tmp_path / "data.bin")
        writer.close({"status": "completed"})
        runs.append(run)
    settle(origin)
    return runs, digest


def test_a_file_of_several_runs_comes_once_and_is_linked(origin: Side, far: Spool, tmp_path: Path) -> None:
    runs, digest = with_files(origin, tmp_path)
    parcel = pack(origin)
    assert [(blob.digest, sorted(blob.runs)) for _, blob, _ in parcel.blobs] == [(digest, sorted(runs))]
    assert bring(far, parcel)[1] == []
    paths = [far.pool_path(digest), *(os.path.join(far.run(run).blobs, digest) for run in runs)]
    assert len({os.stat(path).st_ino for path in paths}) == 1
    assert Path(paths[0]).read_bytes() == b"d" * 5000
    assert os.stat(paths[0]).st_mode & 0o777 == 0o400
    for run in runs:
        there = carried.read(far.run(run))
        assert there is not None
        assert there.files == {digest: 5000}


def test_wrong_bytes_of_a_file_are_not_taken(origin: Side, far: Spool, tmp_path: Path) -> None:
    runs, digest = with_files(origin, tmp_path)
    parcel = pack(origin)
    state = parcel.runs[0]
    [(_, blob, data)] = parcel.blobs
    with Incoming(far, origin.spool.id, via="bundle") as incoming:
        incoming.begin_run(state)
        os.makedirs(far.run(state.run).blobs)
        before = tree(far.path)

        def endless() -> Iterator[bytes]:
            for _ in range(100):
                yield bytes(1000)
            pytest.fail("more was read than the file has")

        for part, chunks in (
            (blob, [data[:-1]]), (blob, [data, b"x"]), (blob, [b"x" + data[1:]]), (blob, endless()), (blob, []),
            (replace(blob, size=blob.size - 1), [data]), (replace(blob, size=-1), [data]), (replace(blob, digest="../../x"), [data]),
            (replace(blob, digest=blob.digest.upper()), [data]), (replace(blob, runs=()), [data]), (replace(blob, runs=("../x",)), [data]),
            (replace(blob, runs=(OTHER,)), [data]),
        ):  # fmt: skip
            with pytest.raises(NotTaken):
                incoming.blob(part, chunks)
            assert tree(far.path) == before
        assert not incoming.known_blob(digest)
        assert incoming.blob(blob, [data])
        assert incoming.known_blob(digest)
        assert not incoming.blob(blob, iter(()))
        with pytest.raises(NotTaken, match="5000"):
            incoming.blob(replace(blob, size=4999), [data])
    assert runs


def test_what_lies_under_a_files_name_and_is_not_it_is_replaced(origin: Side, far: Spool, tmp_path: Path) -> None:
    _, digest = with_files(origin, tmp_path)
    parcel = pack(origin)
    bring(far, parcel, upto=1)
    folder = far.run(parcel.runs[0].run).blobs
    os.makedirs(folder, exist_ok=True)
    Path(folder, digest).write_bytes(b"d" * 100)
    Path(folder, f".tmp-{digest}").write_bytes(b"d")
    assert bring(far, parcel)[1] == []
    assert Path(folder, digest).read_bytes() == b"d" * 5000
    assert sorted(os.listdir(folder)) == [digest]


def test_where_links_do_not_work_each_run_has_a_copy(origin: Side, far: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, digest = with_files(origin, tmp_path)

    def no_links(_: str, __: str) -> bool:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr("simspool.spool.atomic.link", no_links)
    assert bring(far, pack(origin))[1] == []
    assert [Path(far.run(run).blobs, digest).read_bytes() for run in runs] == [b"d" * 5000] * 2


def two_large(origin: Side, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[str], Parcel]:
    """Record a run with two files, which count as large."""
    monkeypatch.setattr("simspool.agent.carry.incoming._LARGE", 1)
    run, writer = begin(origin.spool)
    digests = []
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode() * 5000)
        digests.append(add_file(origin.spool, run, writer, tmp_path / name))
    writer.close({"status": "completed"})
    settle(origin)
    return run, digests, pack(origin)


def test_the_next_file_is_written_while_a_large_one_becomes_durable_and_nothing_is_noted_before(
    origin: Side, far: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, digests, parcel = two_large(origin, tmp_path, monkeypatch)
    written, real = threading.Event(), os.fsync

    def slow(fd: int) -> None:
        if threading.current_thread().name.startswith("finish"):
            assert written.wait(20)  # the first file's fsync ends when the second one is written
        real(fd)

    monkeypatch.setattr(os, "fsync", slow)
    with Incoming(far, origin.spool.id, via="bundle") as incoming:
        incoming.begin_run(parcel.runs[0])
        (_, one, first), (_, two, second) = parcel.blobs
        assert incoming.blob(one, [first])
        assert not os.path.exists(far.pool_path(one.digest))

        def last() -> Iterator[bytes]:
            yield second
            written.set()

        assert incoming.blob(two, last())
        assert not incoming.blob(one, iter(()))  # one that is under way is waited for, not taken twice
        incoming.end_run(parcel.runs[0])
        noted = carried.read(far.run(run))
        assert noted is not None
        assert sorted(noted.files) == sorted(digests)
        assert all(os.path.exists(far.pool_path(digest)) for digest in digests)


def test_a_disk_that_refuses_a_large_file_later_is_heard_and_leaves_nothing(
    origin: Side, far: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, digests, parcel = two_large(origin, tmp_path, monkeypatch)
    real = os.fsync

    def refuse(fd: int) -> None:
        if threading.current_thread().name.startswith("finish"):
            raise OSError(errno.EIO, "a test's disk")
        real(fd)

    monkeypatch.setattr(os, "fsync", refuse)
    _, one, data = parcel.blobs[0]
    with Incoming(far, origin.spool.id, via="bundle") as incoming:
        incoming.begin_run(parcel.runs[0])
        assert incoming.blob(one, [data])
        with pytest.raises(OSError, match="a test's disk"):
            incoming.end_run(parcel.runs[0])
    assert os.listdir(far.run(run).blobs) == []
    assert not os.path.exists(far.pool_path(one.digest))
    monkeypatch.setattr(os, "fsync", real)
    assert bring(far, parcel)[1] == []
    noted = carried.read(far.run(run))
    assert noted is not None
    assert sorted(noted.files) == sorted(digests)
