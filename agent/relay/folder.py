"""A place that is a folder of this machine, or of a shared file system: both sides of it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from typing import TypeVar

from simspool.agent.bundles.errors import BadBundle
from simspool.agent.bundles.volumes import open_file
from simspool.spool import Locked, atomic

from .place import (
    IN,
    REASON_LIMIT,
    RECEIPT_LIMIT,
    RECEIPTS,
    REFUSED,
    SIGNATURE_LIMIT,
    PlaceUnreachable,
    Refusal,
    is_bundle_name,
    parse_reason,
    reason_name,
    reason_text,
)

T = TypeVar("T")
STALE = 3600.0
"""Seconds after which a bundle that is not whole yet, and does not grow, is swept."""
KEPT = 5
"""So many refused bundles are kept to be looked at; of the rest, only the reason."""
_REASONS = 200


class FolderPlace:
    """The sending side of a place that is a folder. Bundles are written there, and renamed when they are whole."""

    def __init__(self, path: str) -> None:
        self.name, self._path = path, path
        self.staging: str | None = os.path.join(path, IN)
        self.moved = 0
        self._last: tuple[bytes, bytes | None] | None = None

    async def waiting(self, prefix: str) -> list[str]:
        """See Place."""
        return await self._call(lambda: [name for name in arrived(self._path) if name.startswith(prefix)])

    async def receipt(self, origin: str) -> tuple[bytes, bytes | None] | None:
        """See Place."""
        found = await self._call(lambda: read_receipt(self._path, origin))
        if found == self._last:
            return None
        self._last = found
        return found

    async def refusal(self, name: str) -> Refusal | None:
        """See Place."""
        return await self._call(lambda: read_refusal(self._path, name))

    async def put(self, path: str) -> None:
        """See Place. It was written there."""

    def forget(self) -> None:
        """See Place."""
        self._last = None

    async def close(self) -> None:
        """See Place."""

    async def _call(self, function: Callable[[], T]) -> T:
        def call() -> T:
            prepare(self._path)
            return function()

        try:
            return await asyncio.to_thread(call)
        except OSError as error:
            raise PlaceUnreachable(f"{self.name}: {error.strerror or error}") from None


def prepare(path: str) -> None:
    """Make the folders of a place. The place itself is never made: it may be a disk that is not mounted.

    Raises PlaceUnreachable, OSError.
    """
    if not os.path.isdir(path):
        raise PlaceUnreachable(f"there is no folder {path}: make it (or mount what it is on)")
    for name in (IN, RECEIPTS, REFUSED):
        atomic.make_folder(os.path.join(path, name))


def arrived(path: str) -> list[str]:
    """Return the names of the whole bundles in a place, in order."""
    return sorted(name for name in os.listdir(os.path.join(path, IN)) if is_bundle_name(name))


def is_open_to_others(path: str) -> bool:
    """Say whether other users may put something there."""
    return any(os.stat(folder).st_mode & (stat.S_IWGRP | stat.S_IWOTH) for folder in (path, os.path.join(path, IN)))


def read_receipt(path: str, origin: str) -> tuple[bytes, bytes | None] | None:
    """Return the newest receipt for a spool and its signature; None where there is none."""
    folder, name = os.path.join(path, RECEIPTS), f"{origin}.receipt"
    document = _read(folder, name, RECEIPT_LIMIT)
    return None if document is None else (document, _read(folder, f"{name}.sig", SIGNATURE_LIMIT))


def write_receipt(path: str, origin: str, document: bytes, signature: bytes | None) -> None:
    """Put a receipt in its place, instead of the one before; its signature first. Raises OSError."""
    file = os.path.join(path, RECEIPTS, f"{origin}.receipt")
    if signature is not None:
        atomic.write_file(f"{file}.sig", signature, 0o644)
    else:
        atomic.remove(f"{file}.sig")
    atomic.write_file(file, document, 0o644)


def read_refusal(path: str, name: str) -> Refusal | None:
    """Return why a bundle was refused; None where it was not."""
    data = _read(os.path.join(path, REFUSED), reason_name(name), REASON_LIMIT)
    return None if data is None else parse_reason(data)


def refuse(path: str, name: str, refusal: Refusal) -> None:
    """Take a bundle out of `in/`, and say why. Raises OSError."""
    aside = os.path.join(path, REFUSED)
    atomic.write_file(os.path.join(aside, reason_name(name)), reason_text(refusal), 0o644)
    discard(os.path.join(aside, name))
    with contextlib.suppress(FileNotFoundError):
        atomic.rename(os.path.join(path, IN, name), os.path.join(aside, name))
    found = [n for n in os.listdir(aside) if is_bundle_name(n)]
    for old in _oldest(aside, found, KEPT):
        discard(os.path.join(aside, old))
    reasons = [n for n in os.listdir(aside) if is_bundle_name(n.removesuffix(".json")) and n.endswith(".json")]
    for old in _oldest(aside, reasons, _REASONS):
        atomic.remove(os.path.join(aside, old))


def _oldest(folder: str, names: list[str], kept: int) -> list[str]:
    """Return all but the newest of them."""
    by_age = sorted(names, key=lambda n: os.lstat(os.path.join(folder, n)).st_mtime)
    return by_age[: max(len(by_age) - kept, 0)]


def finish(path: str, name: str) -> None:
    """Delete a bundle that was imported whole, and whose receipt is written. Raises OSError."""
    gone = os.path.join(path, IN, f".{name}.done")
    discard(gone)
    with contextlib.suppress(FileNotFoundError):
        atomic.rename(os.path.join(path, IN, name), gone)  # half of it is never taken for one that was altered
        discard(gone)


def sweep(path: str, now: float) -> list[str]:
    """Delete what was being brought and has not grown for an hour, and what was being deleted. Returns what was not deleted, and why."""
    left, folder = [], os.path.join(path, IN)
    for name in os.listdir(folder):
        one = os.path.join(folder, name)
        try:
            if name.startswith(".simspool-") and (name.endswith(".done") or (name.endswith(".part") and now - _changed(one) > STALE)):
                discard(one)
        except FileNotFoundError:
            continue
        except OSError as error:
            left.append(f"{one} cannot be deleted: {error.strerror}")
    return left


def _changed(path: str) -> float:
    with os.scandir(path) as entries:
        return max([os.lstat(path).st_mtime, *(entry.stat(follow_symlinks=False).st_mtime for entry in entries)])


def discard(path: str) -> None:
    """Delete a bundle's folder: the files in it, then itself. What lies deeper is none of ours. Raises OSError."""
    if not os.path.lexists(path):
        return
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        atomic.remove(path)  # a link, or a file: never what it leads to
        return
    for name in os.listdir(path):
        atomic.remove(os.path.join(path, name))
    os.rmdir(path)


@contextlib.contextmanager
def claimed(path: str, what: str) -> Iterator[None]:
    """Be the only one that does something. Raises Locked while another process does it, OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
                raise Locked(f"another process {what} ({path} is locked): this one waits for it to end") from None
            raise
        yield
    finally:
        os.close(fd)


def _read(folder: str, name: str, limit: int) -> bytes | None:
    """Return a regular file's bytes; None where there is none. Raises PlaceUnreachable for one that is over its limit, or none."""
    try:
        fd, size = open_file(folder, name)
    except FileNotFoundError:
        return None
    except BadBundle as error:
        raise PlaceUnreachable(str(error)) from None
    with os.fdopen(fd, "rb") as file:
        if size > limit:
            raise PlaceUnreachable(f"{os.path.join(folder, name)} has {size} bytes, which is more than is ever read")
        return file.read(limit)
