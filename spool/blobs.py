"""Blobs: a file's bytes under its SHA-256 (FORMAT.md W6).

`put_file` copies and hashes in one pass, so the digest is that of the bytes that were kept, whatever happens to the source
meanwhile. The run's own folder gets the blob at once; the pool gets it after an fsync (`publish`), off the caller's thread.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from . import atomic, filesystem, ids, links
from .errors import DamagedBlob, UnreadableFile
from .layout import RunFolder, Spool
from .sink import PlainSink, Sink, write_all

_CHUNK = 1 << 20
_NO_LINKS = frozenset({errno.EPERM, errno.EMLINK, errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP})


@dataclass(frozen=True, slots=True)
class Blob:
    """A stored blob: SHA-256 in hex, size in bytes, and whether its bytes were new to the spool."""

    digest: str
    size: int
    new: bool


def _open_regular(path: str) -> int:
    try:
        return links.open_file(path)
    except IsADirectoryError:
        raise UnreadableFile(errno.EISDIR, f"cannot save {path}: it is a folder: use save_directory") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        number = error.errno if isinstance(error, OSError) else errno.EINVAL
        raise UnreadableFile(number, f"cannot read {path}: {reason}") from None


def _known(spool: Spool, run: RunFolder, digest: str, size: int) -> bool:
    """Link the pool's blob into the run where the pool has it; say whether the run now has it."""
    own = os.path.join(run.blobs, digest)
    try:
        if os.stat(own).st_size == size:  # a power cut may have left less under the name
            return True
        os.unlink(own)
    except FileNotFoundError:
        pass
    pooled = spool.pool_path(digest)
    try:
        if os.stat(pooled).st_size != size:
            return False
        atomic.link(pooled, own)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return False  # links do not work here: the run keeps its own copy
    return True


def put_file(spool: Spool, run: RunFolder, path: str) -> Blob:
    """Store a file's bytes in the run.

    Raises UnreadableFile when the path is no readable regular file, or leads through a link that another user planted (links.py); OSError
    (ENOSPC, EIO, ...) when the spool cannot take it; then nothing is left behind. The bytes are in the page cache on return,
    durable after `publish`.
    """
    source = _open_regular(path)
    try:
        return _put(spool, run, source, path)
    finally:
        os.close(source)


def put_bytes(spool: Spool, run: RunFolder, data: bytes) -> Blob:
    """Store bytes in the run. Raises OSError when the spool cannot take them; then nothing is left behind."""
    digest = hashlib.sha256(data).hexdigest()
    atomic.make_folder(run.blobs)
    if _known(spool, run, digest, len(data)):
        return Blob(digest, len(data), new=False)
    temporary = os.path.join(run.blobs, f".tmp-{ids.to_text(ids.new_id())}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
    try:
        try:
            write_all(fd, data)
        finally:
            os.close(fd)
        os.rename(temporary, os.path.join(run.blobs, digest))
    finally:
        atomic.remove(temporary)
    return Blob(digest, len(data), new=True)


class Hasher(Protocol):
    """What computes a digest, as hashlib's objects do."""

    def update(self, data: bytes, /) -> None:
        """Take in bytes."""

    def hexdigest(self) -> str:
        """Return the digest of all of them, in hex."""


def put_carried(spool: Spool, run: RunFolder, digest: str, size: int, chunks: Iterable[bytes]) -> None:
    """Store bytes from elsewhere in the run, durably, and in the pool: those of this digest (SHA-256 in hex) and size, and no others.

    The run's `blobs/` must be there. Raises DamagedBlob for other bytes (no more than `size` are ever written), OSError when the spool
    cannot take them; then nothing is left behind. A kill leaves a temporary file that the next attempt replaces.
    """
    land_carried(spool, run, digest, size, chunks, hashlib.sha256(), PlainSink)()


def land_carried(
    spool: Spool, run: RunFolder, digest: str, size: int, chunks: Iterable[bytes], hasher: Hasher, open_sink: Callable[[int], Sink]
) -> Callable[[], None]:  # fmt: skip
    """Write bytes from elsewhere, and compare them; return what makes them durable and visible, to be called once, in any thread.

    `hasher`: a fresh one of SHA-256. `open_sink` returns what writes into a descriptor. Both raise as `put_carried` does.
    """
    temporary, own = os.path.join(run.blobs, f".tmp-{digest}"), os.path.join(run.blobs, digest)
    atomic.remove(temporary)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
    sink = open_sink(fd)
    try:
        written = 0
        for chunk in chunks:
            written += len(chunk)
            if written > size:
                raise DamagedBlob(f"the bytes of file {digest} are more than the {size} that it should have")
            hasher.update(chunk)
            sink.write(chunk)
        found = hasher.hexdigest()
        if written != size or found != digest:
            raise DamagedBlob(f"the bytes of file {digest} are not its: they are {written} with the digest {found}")
    except BaseException:
        sink.abandon()
        os.close(fd)
        atomic.remove(temporary)
        raise

    def finish() -> None:
        try:
            try:
                sink.flush()
                os.fsync(fd)
            finally:
                sink.abandon()
                os.close(fd)
            os.rename(temporary, own)
        finally:
            atomic.remove(temporary)
        atomic.sync_folder(run.blobs)
        _pool(spool, own, digest)

    return finish


def link_carried(spool: Spool, run: RunFolder, digest: str, size: int, path: str) -> None:
    """Give the run its own link to a blob whose bytes lie verified and durable at `path`; a copy where links do not work.

    What the run has under the name already stays where its bytes are right. The run's `blobs/` must be there. Raises as `put_carried`.
    """
    own = os.path.join(run.blobs, digest)
    try:
        if os.path.samefile(own, path) or verify(own, digest) == size:
            return
    except FileNotFoundError:
        pass
    except DamagedBlob:
        atomic.remove(own)
    try:
        atomic.link(path, own)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        put_carried(spool, run, digest, size, _chunks(path))
    else:
        atomic.sync_folder(run.blobs)
        _pool(spool, own, digest)


def _chunks(path: str) -> Iterator[bytes]:
    with open(path, "rb") as f:
        while data := f.read(_CHUNK):
            yield data


def _pool(spool: Spool, own: str, digest: str) -> None:
    """Let the whole spool know bytes that are durable and right. Where links do not work, each run keeps its own copy."""
    pooled = spool.pool_path(digest)
    if os.path.exists(pooled):
        return
    atomic.make_folder(os.path.dirname(pooled))
    try:
        atomic.link(own, pooled)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return
    atomic.sync_folder(os.path.dirname(pooled))


def _put(spool: Spool, run: RunFolder, source: int, path: str) -> Blob:
    atomic.make_folder(run.blobs)
    temporary = os.path.join(run.blobs, f".tmp-{ids.to_text(ids.new_id())}")
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
    try:
        try:
            if filesystem.reflink(source, fd):
                digest, size = _hash(fd)
            else:
                digest, size = _copy_and_hash(source, fd, path)
        finally:
            os.close(fd)
        new = not _known(spool, run, digest, size)
        if new:
            os.rename(temporary, os.path.join(run.blobs, digest))
    finally:
        atomic.remove(temporary)
    return Blob(digest, size, new)


def _copy_and_hash(source: int, target: int, path: str) -> tuple[str, int]:
    """Copy what the file held when it was opened; what is appended meanwhile is not waited for."""
    digest, size = hashlib.sha256(), 0
    expected = os.fstat(source).st_size or 1 << 62  # files of /proc say 0 and have more
    buffer = bytearray(_CHUNK)
    view = memoryview(buffer)
    while size < expected:
        try:
            n = os.readv(source, [view[: min(_CHUNK, expected - size)]])
        except OSError as error:
            raise UnreadableFile(error.errno, f"cannot read {path}: {error.strerror}") from None
        if not n:
            break
        digest.update(view[:n])
        write_all(target, view[:n])
        size += n
    return digest.hexdigest(), size


def _hash(fd: int) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    buffer = bytearray(_CHUNK)
    view = memoryview(buffer)
    while n := os.preadv(fd, [buffer], size):
        digest.update(view[:n])
        size += n
    return digest.hexdigest(), size


def publish(spool: Spool, run: RunFolder, digests: Iterable[str]) -> list[str]:
    """Make a run's blobs durable and known to the whole spool. Repeating it is harmless; a blob that is gone is skipped.

    Returns the digests whose bytes do not match them (a power cut before the fsync): those stay out of the pool.
    """
    damaged = []
    own_synced = False
    for digest in digests:
        own, pooled = os.path.join(run.blobs, digest), spool.pool_path(digest)
        if os.path.exists(pooled):
            continue
        try:
            fd = os.open(own, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            if _hash(fd)[0] != digest:
                damaged.append(digest)
                continue
            os.fsync(fd)
        finally:
            os.close(fd)
        if not own_synced:
            atomic.sync_folder(run.blobs)
            own_synced = True
        _pool(spool, own, digest)
    return damaged


def path_of(spool: Spool, run: RunFolder, digest: str) -> str | None:
    """Return where a blob's bytes lie: the run's own link, else the pool's; None when they are gone."""
    for path in (os.path.join(run.blobs, digest), spool.pool_path(digest)):
        if os.path.exists(path):
            return path
    return None


def verify(path: str, digest: str) -> int:
    """Return the size of a blob whose bytes have the digest. Raises DamagedBlob otherwise, OSError when unreadable."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found, size = _hash(fd)
    finally:
        os.close(fd)
    if found != digest:
        raise DamagedBlob(f"{path} should have the digest {digest} and has {found}")
    return size
