"""Blobs: a file's bytes under its SHA-256 (FORMAT.md W6).

`put_file` copies and hashes in one pass, so the digest is that of the bytes that were kept, whatever happens to the source
meanwhile. The run's own folder gets the blob at once; the pool gets it after an fsync (`publish`), off the caller's thread.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from . import atomic, filesystem, ids
from .errors import DamagedBlob, UnreadableFile
from .layout import RunFolder, Spool

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Blob:
    """A stored blob: SHA-256 in hex, size in bytes, and whether its bytes were new to the spool."""

    digest: str
    size: int
    new: bool


def _open_regular(path: str) -> int:
    try:
        # O_NONBLOCK: a FIFO must not hang the run
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UnreadableFile(error.errno, f"cannot read {path}: {error.strerror}") from None
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        kind = "a folder: use save_directory" if stat.S_ISDIR(mode) else "not a regular file (a FIFO, socket or device)"
        raise UnreadableFile(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, f"cannot save {path}: it is {kind}")
    return fd


def _known(spool: Spool, run: RunFolder, digest: str, size: int) -> bool:
    """Link the pool's blob into the run where the pool has it; say whether the run now has it."""
    own = os.path.join(run.blobs, digest)
    if os.path.exists(own):
        return True
    pooled = spool.pool_path(digest)
    try:
        if os.stat(pooled).st_size != size:
            return False
        atomic.link(pooled, own)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.EMLINK, errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP}:
            raise
        return False  # links do not work here: the run keeps its own copy
    return True


def put_file(spool: Spool, run: RunFolder, path: str) -> Blob:
    """Store a file's bytes in the run.

    Raises UnreadableFile when the path is not a readable regular file, OSError (ENOSPC, EIO, ...) when the spool cannot take
    it; then nothing is left behind. The bytes are in the page cache on return, durable after `publish`.
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
            _write_all(fd, data)
        finally:
            os.close(fd)
        os.rename(temporary, os.path.join(run.blobs, digest))
    finally:
        atomic.remove(temporary)
    return Blob(digest, len(data), new=True)


def _put(spool: Spool, run: RunFolder, source: int, path: str) -> Blob:
    atomic.make_folder(run.blobs)
    temporary = os.path.join(run.blobs, f".tmp-{ids.to_text(ids.new_id())}")
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
    try:
        try:
            try:
                if filesystem.reflink(source, fd):
                    digest, size = _hash(fd)
                else:
                    digest, size = _copy_and_hash(source, fd)
            except OSError as error:
                if error.errno == errno.EIO:
                    raise UnreadableFile(errno.EIO, f"cannot copy {path}: {error.strerror}") from None
                raise
        finally:
            os.close(fd)
        new = not _known(spool, run, digest, size)
        if new:
            os.rename(temporary, os.path.join(run.blobs, digest))
    finally:
        atomic.remove(temporary)
    return Blob(digest, size, new)


def _write_all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _copy_and_hash(source: int, target: int) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    buffer = bytearray(_CHUNK)
    view = memoryview(buffer)
    while n := os.readv(source, [buffer]):
        digest.update(view[:n])
        _write_all(target, view[:n])
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


def publish(spool: Spool, run: RunFolder, digests: Iterable[str]) -> None:
    """Make a run's blobs durable and known to the whole spool. Repeating it is harmless; a blob that is gone is skipped."""
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
            os.fsync(fd)
        finally:
            os.close(fd)
        if not own_synced:
            atomic.sync_folder(run.blobs)
            own_synced = True
        atomic.make_folder(os.path.dirname(pooled))
        try:
            atomic.link(own, pooled)
        except OSError:
            continue  # no hard links here: each run keeps its own copy
        atomic.sync_folder(os.path.dirname(pooled))


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
