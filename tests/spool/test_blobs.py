"""Blobs: bytes that match their name, whatever happens to the source (FORMAT.md W6; attacks A2-A8)."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from simspool.spool import DamagedBlob, RunFolder, Spool, UnreadableFile, blobs, filesystem, ids, open_spool


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return open_spool(tmp_path / "spool", create=True)


@pytest.fixture
def run(spool: Spool) -> RunFolder:
    return spool.run(ids.to_text(bytes(range(16))))


@pytest.fixture
def other(spool: Spool) -> RunFolder:
    return spool.run(ids.to_text(bytes(range(1, 17))))


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 3_000_000])
def test_a_file_is_kept_under_its_digest(spool: Spool, run: RunFolder, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "f").write_bytes(data)
    blob = blobs.put_file(spool, run, str(tmp_path / "f"))
    assert (blob.digest, blob.size, blob.new) == (digest(data), size, True)
    path = blobs.path_of(spool, run, blob.digest)
    assert path is not None
    assert Path(path).read_bytes() == data
    assert os.stat(path).st_mode & 0o777 == 0o400
    assert blobs.verify(path, blob.digest) == size


def test_saving_the_same_content_again_stores_no_bytes(spool: Spool, run: RunFolder, other: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 100_000)
    first = blobs.put_file(spool, run, str(tmp_path / "f"))
    assert not blobs.put_file(spool, run, str(tmp_path / "f")).new
    assert not blobs.put_bytes(spool, run, b"x" * 100_000).new
    assert blobs.publish(spool, run, [first.digest]) == []
    for put in (lambda: blobs.put_file(spool, other, str(tmp_path / "f")), lambda: blobs.put_bytes(spool, other, b"x" * 100_000)):
        assert not put().new
    inodes = {os.stat(p).st_ino for p in (Path(run.blobs, first.digest), Path(other.blobs, first.digest), spool.pool_path(first.digest))}
    assert len(inodes) == 1
    assert os.listdir(run.blobs) == [first.digest]


def test_publish_is_harmless_when_repeated_and_skips_what_is_gone(spool: Spool, run: RunFolder) -> None:
    blob = blobs.put_bytes(spool, run, b"x")
    for _ in range(2):
        assert blobs.publish(spool, run, [blob.digest, digest(b"not there")]) == []
    assert os.path.exists(spool.pool_path(blob.digest))
    assert not os.path.exists(spool.pool_path(digest(b"not there")))


def test_the_pool_takes_only_bytes_that_match_their_name(spool: Spool, run: RunFolder, tmp_path: Path) -> None:
    """After a power cut a run's own blob may be shorter than it was: it is never pooled, and a new save repairs it."""
    blob = blobs.put_bytes(spool, run, b"hello")
    own = Path(run.blobs, blob.digest)
    own.chmod(0o600)
    own.write_bytes(b"")
    assert blobs.publish(spool, run, [blob.digest]) == [blob.digest]
    assert not os.path.exists(spool.pool_path(blob.digest))
    assert blobs.put_bytes(spool, run, b"hello").new
    assert own.read_bytes() == b"hello"
    assert blobs.publish(spool, run, [blob.digest]) == []


def test_a_file_that_changes_while_it_is_read_is_kept_as_copied(
    spool: Spool, run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A8: the digest is of what was copied, the size what it was at the opening."""
    source = tmp_path / "log"
    source.write_bytes(b"a" * 3_000_000)
    real = os.readv

    def growing(fd: int, buffers: Any) -> int:
        with source.open("ab") as f:
            f.write(b"b" * 2_000_000)
        return real(fd, buffers)

    monkeypatch.setattr(filesystem, "reflink", lambda *_: False)
    monkeypatch.setattr(os, "readv", growing)
    blob = blobs.put_file(spool, run, str(source))
    assert (blob.digest, blob.size) == (digest(b"a" * 3_000_000), 3_000_000)

    def shrinking(fd: int, buffers: Any) -> int:
        os.truncate(source, 1_500_000)
        return real(fd, buffers)

    monkeypatch.setattr(os, "readv", shrinking)
    blob = blobs.put_file(spool, run, str(source))
    assert blob.size == 1_500_000
    path = blobs.path_of(spool, run, blob.digest)
    assert path is not None
    assert blobs.verify(path, blob.digest) == 1_500_000


def test_files_of_proc_that_say_they_are_empty_are_read(spool: Spool, run: RunFolder) -> None:
    assert blobs.put_file(spool, run, "/proc/self/status").size > 100


def test_what_is_no_regular_file_is_refused_without_blocking(spool: Spool, run: RunFolder, tmp_path: Path) -> None:
    """A7."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tmp_path / "socket"))
        for name, word in (("fifo", "FIFO"), ("folder", "save_directory"), ("socket", "socket"), ("missing", "No such file"),
                           ("/dev/zero", "device"), ("nul\0", "cannot read"), ("link", "FIFO")):  # fmt: skip
            if name == "link":
                (tmp_path / "link").symlink_to(tmp_path / "fifo")
            with pytest.raises(UnreadableFile, match=word):
                blobs.put_file(spool, run, os.path.join(tmp_path, name))
    assert not os.path.exists(run.blobs)


def test_a_source_that_cannot_be_read_is_the_sources_fault(
    spool: Spool, run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_bytes(b"x")
    monkeypatch.setattr(filesystem, "reflink", lambda *_: False)
    monkeypatch.setattr(os, "readv", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(UnreadableFile):
        blobs.put_file(spool, run, str(tmp_path / "f"))
    assert os.listdir(run.blobs) == []


def test_without_hard_links_each_run_keeps_its_own_copy(
    spool: Spool, run: RunFolder, other: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "Operation not permitted")))
    for folder in (run, other):
        blob = blobs.put_bytes(spool, folder, b"x")
        assert blob.new
        assert blobs.publish(spool, folder, [blob.digest]) == []
        path = blobs.path_of(spool, folder, blob.digest)
        assert path is not None
        assert blobs.verify(path, blob.digest) == 1
    assert blobs.path_of(spool, run, digest(b"y")) is None


def test_bytes_that_do_not_match_are_named(spool: Spool, run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"y")
    with pytest.raises(DamagedBlob, match=digest(b"x")):
        blobs.verify(str(tmp_path / "x"), digest(b"x"))


@pytest.mark.root
def test_a_reflink_is_used_where_the_disk_can(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("a file system with reflinks needs root to mount")
    image = tmp_path / "image"
    with image.open("wb") as f:
        f.truncate(400 << 20)
    mount = tmp_path / "mount"
    mount.mkdir()
    try:
        made = subprocess.run(["mkfs.xfs", "-q", str(image)], check=False, capture_output=True)
        if made.returncode or subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=False, capture_output=True).returncode:
            pytest.skip("no xfs here: `apt install xfsprogs`, and a kernel that mounts it")
    except FileNotFoundError:
        pytest.skip("no mkfs.xfs here: `apt install xfsprogs`")
    try:
        spool = open_spool(mount / "spool", create=True)
        run = spool.run(ids.to_text(bytes(16)))
        data = os.urandom(20 << 20)
        (mount / "f").write_bytes(data)
        os.sync()
        free = os.statvfs(mount).f_bavail
        blob = blobs.put_file(spool, run, str(mount / "f"))
        os.sync()
        assert blob.digest == digest(data)
        assert free - os.statvfs(mount).f_bavail < 1000
    finally:
        subprocess.run(["umount", str(mount)], check=True)
