"""Direct I/O: what is written is what arrives, in whatever pieces; errors are heard; where a disk cannot, files are written as any."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simspool.spool import filesystem
from simspool.spool.direct_io import BLOCK, DirectIO
from simspool.spool.sink import PlainSink

_NOISE = os.urandom(BLOCK + 8191)
_EDGES = (0, 1, 4095, 4096, 4097, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 4096, 3 * BLOCK + 4095, 5 * BLOCK + 1)


def _piece(at: int, size: int) -> bytes:
    """Bytes that tell where they belong."""
    at %= len(_NOISE)
    return (_NOISE[at:] + _NOISE * (size // len(_NOISE) + 1))[:size]


def _content(size: int) -> bytes:
    return _piece(0, size)


def _write(io: DirectIO, path: Path, sizes: list[int], *, known: bool) -> bytes:
    """Write pieces of these sizes; return what should be in the file."""
    content = _content(sum(sizes))
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    sink = io.sink(fd, len(content) if known else None)
    try:
        at = 0
        for size in sizes:
            sink.write(content[at : at + size])
            at += size
        sink.flush()
        os.fsync(fd)
    finally:
        sink.abandon()
        os.close(fd)
    return content


@pytest.fixture
def io() -> Iterator[DirectIO]:
    with DirectIO() as one:
        yield one


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("size", _EDGES)
def test_files_of_every_size_have_their_bytes(io: DirectIO, tmp_path: Path, size: int, known: bool) -> None:
    pieces = [1 << 20] * (size >> 20) + [size % (1 << 20)]
    content = _write(io, tmp_path / "file", pieces, known=known)
    assert (tmp_path / "file").read_bytes() == content


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.one_of(st.integers(0, 3 * BLOCK), st.sampled_from(_EDGES), st.integers(0, 9000)), max_size=8), known=st.booleans())
def test_pieces_of_any_size_arrive_in_order(tmp_path: Path, sizes: list[int], known: bool) -> None:
    with DirectIO() as io:
        content = _write(io, tmp_path / "file", sizes, known=known)
    assert (tmp_path / "file").read_bytes() == content


def test_several_files_after_each_other_do_not_mix(io: DirectIO, tmp_path: Path) -> None:
    written = {n: _write(io, tmp_path / str(n), [BLOCK + n, 2 * BLOCK], known=True) for n in range(5)}
    assert all((tmp_path / str(n)).read_bytes() == content for n, content in written.items())


def test_one_is_flushed_in_another_thread_while_the_next_is_written(io: DirectIO, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as other:
        pending = []
        for n in range(6):
            fd = os.open(tmp_path / str(n), os.O_WRONLY | os.O_CREAT, 0o600)
            sink = io.sink(fd, 3 * BLOCK + n)
            sink.write(_content(3 * BLOCK + n))
            pending.append((fd, sink, other.submit(sink.flush)))
        for fd, sink, flushed in pending:
            flushed.result()
            sink.abandon()
            os.close(fd)
    assert all((tmp_path / str(n)).read_bytes() == _content(3 * BLOCK + n) for n in range(6))


def _is_direct(path: Path) -> bool:
    """Say whether large files are written directly there, by the descriptor's own flag."""
    fd = os.open(path / "looked", os.O_WRONLY | os.O_CREAT, 0o600)
    with DirectIO() as io:
        sink = io.sink(fd, 4 * BLOCK)
        sink.write(_content(4 * BLOCK))
        sink.flush()
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            flags = int(next(line for line in file if line.startswith("flags")).split()[1], 8)
        sink.abandon()
    os.close(fd)
    return bool(flags & os.O_DIRECT)


def test_on_a_local_disk_the_page_cache_is_passed_by(tmp_path: Path) -> None:
    if filesystem.type_of(str(tmp_path)) not in {"ext4", "xfs"}:
        pytest.skip(f"temporary files lie on {filesystem.type_of(str(tmp_path))} here")
    assert _is_direct(tmp_path)


def test_in_memory_files_are_written_as_any() -> None:
    import tempfile

    if filesystem.type_of("/dev/shm") != "tmpfs":
        pytest.skip("/dev/shm is no tmpfs here")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, DirectIO() as io:
        assert not _is_direct(Path(folder))
        assert (Path(folder) / "looked").read_bytes() == _content(4 * BLOCK)
        fd = os.open(Path(folder) / "one", os.O_WRONLY | os.O_CREAT, 0o600)
        assert isinstance(io.sink(fd), PlainSink)
        os.close(fd)


def test_a_disk_that_refuses_to_write_directly_is_written_as_any(io: DirectIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    real, refused = os.pwrite, []

    def pwrite(fd: int, data: memoryview, at: int) -> int:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            flags = int(next(line for line in file if line.startswith("flags")).split()[1], 8)
        if flags & os.O_DIRECT:
            refused.append(at)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(fd, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr("simspool.spool.direct_io._DISKS", {filesystem.type_of(str(tmp_path))})
    content = _write(io, tmp_path / "file", [3 * BLOCK + 5], known=True)
    assert refused
    assert (tmp_path / "file").read_bytes() == content


def test_what_the_disk_refuses_is_heard_and_nothing_is_written_afterwards(io: DirectIO, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    fd = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT, 0o600)
    sink = io.sink(fd, 16 * BLOCK)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * BLOCK, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):  # noqa: PT012 - it may be heard at each of them
            for _ in range(16):
                sink.write(_content(BLOCK))
            sink.flush()
        sink.abandon()
        sink.abandon()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        os.close(fd)
    assert (tmp_path / "file").stat().st_size <= 2 * BLOCK
    assert _write(io, tmp_path / "next", [5 * BLOCK], known=True) == (tmp_path / "next").read_bytes()  # no buffer was lost


def test_the_page_cache_does_not_keep_what_was_written(tmp_path: Path, io: DirectIO) -> None:
    if filesystem.type_of(str(tmp_path)) not in {"ext4", "xfs"}:
        pytest.skip(f"temporary files lie on {filesystem.type_of(str(tmp_path))} here")
    _write(io, tmp_path / "file", [8 * BLOCK], known=True)
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        with pytest.raises(BlockingIOError):
            os.preadv(fd, [bytearray(4096)], 4 * BLOCK, os.RWF_NOWAIT)
    finally:
        os.close(fd)
