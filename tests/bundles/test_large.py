"""Large members: blocks over blocks, in volumes over volumes; a file that is not what its name says leaves nothing behind."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from pathlib import Path

import pytest
from command import Command
from made import create, manifest_of, take, tree
from recorded import add_file, begin, fill, whole

from simspool.agent.bundles.blocks import BLOCK, FilePacker, in_order, read_blocks, workers
from simspool.spool import Spool, UnreadableFile, filesystem, shed


def _rows(size: int) -> bytes:
    return b"".join(b"%8d %12.6f\n" % (n, n / 7) for n in range(size // 22 + 1))[:size]


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 9 * BLOCK + 17])
@pytest.mark.parametrize("make", [os.urandom, _rows])
def test_a_file_is_packed_and_hashed_as_it_is(tmp_path: Path, size: int, make) -> None:
    content = make(size)
    (tmp_path / "file").write_bytes(content)
    with open(tmp_path / "file", "rb") as file, workers() as pool:
        packer = FilePacker(file.fileno(), size)
        stored = b"".join(part for parts in in_order(pool, packer.jobs()) for part in parts)
        assert packer.hexdigest() == hashlib.sha256(content).hexdigest()
        assert b"".join(read_blocks(io.BytesIO(stored).read, size, len(stored), pool)) == content


def test_a_file_that_becomes_shorter_is_an_error_and_none_waits_for_ever(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(5 * BLOCK))
    with open(tmp_path / "file", "rb") as file, workers() as pool:
        packer = FilePacker(file.fileno(), 40 * BLOCK)
        with pytest.raises(UnreadableFile, match="shorter"):
            list(in_order(pool, packer.jobs()))


def test_packing_that_is_given_up_ends(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(40 * BLOCK))
    for taken in (0, 1, 7):
        with open(tmp_path / "file", "rb") as file, workers() as pool:
            found = in_order(pool, FilePacker(file.fileno(), 40 * BLOCK).jobs())
            for _ in range(taken):
                next(found)
            found.close()


def _with_files(origin: Spool, folder: Path, sizes: dict[str, int]) -> dict[str, str]:
    """Record a run with files of bytes that do not compress; return their digests."""
    run, writer = begin(origin, "files")
    digests = {}
    for name, size in sizes.items():
        (folder / name).write_bytes(os.urandom(size))
        digests[name] = add_file(origin, run, writer, folder / name)
    fill(writer, 20)
    assert writer.close({"status": "completed"})
    return digests


@pytest.mark.parametrize("volume_size", ["1GiB", "10MiB"])
def test_a_large_file_that_is_damaged_is_left_out_and_those_around_it_arrive(
    origin: Spool, far: Spool, agent: Command, tmp_path: Path, volume_size: str
) -> None:
    """Its blocks lay in several volumes before its end told that it is damaged."""
    digests = _with_files(origin, tmp_path, {"a": (9 << 20) + 1, "b": 30 << 20, "c": (17 << 20) + 4097})
    [damaged] = {path for path in Path(origin.path).rglob(digests["b"]) if path.parent.name == "blobs"}
    os.chmod(damaged, 0o600)
    with open(damaged, "r+b") as file:  # the pool's is the same file
        file.seek((30 << 20) - 5)
        file.write(b"other")
    made = create(agent, origin, "--volume-size", volume_size, code=8)
    assert digests["b"][:12] in next(iter(made["problems"].values()))
    members = manifest_of(made["path"])["members"]
    assert {m["sha256"] for m in members if m["kind"] == "blob"} == {digests["a"], digests["c"]}
    on_disk = sorted(Path(made["path"]).glob("volume-*"))
    assert [v.stat().st_size for v in on_disk] == manifest_of(made["path"])["volumes"]
    assert sum(m["stored"] for m in members) == made["stored"] == sum(v.stat().st_size for v in on_disk)
    [taken] = take(agent, far, made["path"])
    assert taken["new_files"] == 2
    arrived = set(tree(far.path).values())
    assert {digests["a"], digests["c"]} <= arrived
    assert digests["b"] not in arrived


def _fail_behind(monkeypatch: pytest.MonkeyPatch, folder: Path, number: int) -> None:
    """Let the disk refuse what is written directly behind 8 MiB of a file."""
    real = os.pwrite

    def pwrite(fd: int, data: bytes, at: int) -> int:
        if at >= 8 << 20:
            raise OSError(number, os.strerror(number))
        return real(fd, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr("simspool.spool.direct_io._DISKS", {filesystem.type_of(str(folder))})


@pytest.mark.parametrize("sizes", [{"a": 20 << 20}, {"a": 20 << 20, "b": 100, "c": 9 << 20}])
def test_an_import_that_the_disk_refuses_leaves_nothing_of_the_file_and_the_next_one_brings_it(
    origin: Spool, far: Spool, agent: Command, tmp_path: Path, sizes: dict[str, int]
) -> None:
    digests = _with_files(origin, tmp_path, sizes)
    made = create(agent, origin)
    with pytest.MonkeyPatch.context() as patch:
        _fail_behind(patch, tmp_path, errno.ENOSPC)
        assert agent("bundle", "import", "--spool", far.path, made["path"]) != 0
        assert "No space left on device" in agent.err
    assert not [path for path in Path(far.path).rglob("*") if digests["a"] in path.name or path.name.startswith(".tmp-")]
    [taken] = take(agent, far, made["path"])
    assert set(digests.values()) <= set(tree(far.path).values())
    assert not taken["refused"]


def test_an_error_of_the_disk_that_is_written_to_is_not_taken_for_a_damaged_file(
    origin: Spool, agent: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _with_files(origin, tmp_path, {"a": 20 << 20})
    _fail_behind(monkeypatch, tmp_path, errno.EIO)
    assert agent("bundle", "create", "--spool", origin.path) != 0
    assert "Input/output error" in agent.err
    assert "damaged" not in agent.err
    assert os.listdir() == []


def test_a_run_of_which_much_was_shed_is_carried_with_what_it_says_of_that(origin: Spool, far: Spool, agent: Command) -> None:
    """Its state is larger than a block."""
    run = whole(origin, "shed")
    shed.note(origin.run(run).path, {}, {hashlib.sha256(b"%d" % n).hexdigest(): n for n in range(20_000)})
    made = create(agent, origin)
    [state] = [m for m in manifest_of(made["path"])["members"] if m["kind"] == "run"]
    assert state["size"] > BLOCK
    take(agent, far, made["path"])
    assert shed.files(far.run(run).path) == shed.files(origin.run(run).path)
    assert len(shed.files(far.run(run).path)) == 20_000
