"""A bundle is written: run by run, as a folder that gets its name when it is whole and durable."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Callable, Collection, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from simspool.agent.carry.outgoing import Outgoing
from simspool.agent.carry.parts import BlobPart, RunPart, SegmentPart
from simspool.agent.exit_codes import CommandError, ExitCode
from simspool.spool import Spool, UnreadableFile, atomic, ids, records
from simspool.spool.direct_io import DirectIO

from . import signing
from .blocks import BLOCK, FilePacker, in_order, pack, workers
from .manifest import MEMBERS, Manifest, Member, encode
from .volumes import VolumeWriter

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
SUFFIX = ".bundle"


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be written where. `folder`: where the bundle's own folder is made; `to`, `receipt`: as in the manifest; `key` signs it.

    `limit`: about so many bytes of content, of which each run gets a fair share, and one file or part of a segment at least; the rest is
    for the next bundle (None: all of it).
    """

    folder: str
    target: str
    to: str = ""
    receipt: str = ""
    volume_size: int | None = None
    key: Ed25519PrivateKey | None = None
    limit: int | None = None


@dataclass(slots=True)
class Written:
    """A bundle that was written: `records_bytes` and `blob_bytes` are of what it carries, `stored` is what that takes in it.

    `left`: runs that had no place in it (a bundle has at most 200 000 members, or the limit that was ordered): the last ones. `problems`:
    what could not be read, by run.
    """

    path: str = ""
    id: str = ""
    runs: int = 0
    segments: int = 0
    blobs: int = 0
    record_bytes: int = 0
    blob_bytes: int = 0
    stored: int = 0
    volumes: int = 0
    left: int = 0
    signed: bool = False
    problems: dict[str, str] = field(default_factory=dict)


def write_bundle(spool: Spool, outgoing: Outgoing, runs: list[RunPart], order: Order, progress: Callable[[int], None]) -> Written:
    """Write what these runs have for the other side; `progress` is told how many bytes were read. The bundle is durable on return.

    Raises OSError (ENOSPC, ...): then nothing is left behind. A process that is killed leaves a folder whose name begins with a point and
    ends with `.part`.
    """
    bundle = ids.to_text(ids.new_id())
    now = time.time()
    name = f"simspool-{spool.id[-8:]}-{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%SZ}-{bundle[-8:]}"
    part = os.path.join(order.folder, f".{name}.part")
    try:
        os.mkdir(part, 0o700)
    except OSError as error:
        raise CommandError(ExitCode.USAGE, f"cannot write into {order.folder}: {error.strerror}; --output names another folder") from None
    direct = DirectIO()
    volumes = VolumeWriter(part, order.volume_size, direct)
    try:
        with workers() as pool:
            packing = _Packing(spool, outgoing, volumes, pool, progress, {run.run for run in runs})
            for n, run in enumerate(runs):
                packing.run(run, None if order.limit is None else (order.limit - packing.read) // (len(runs) - n))
        volumes.close()
        manifest = Manifest(
            bundle, spool.id, order.target, round(now, 3), order.to, order.receipt, tuple(volumes.sizes), packing.all()
        )
        document = encode(manifest)
        if order.key is not None:
            atomic.write_file(os.path.join(part, SIGNATURE), signing.sign(document, signing.BUNDLE, order.key))
        atomic.write_file(os.path.join(part, MANIFEST), document)
        path = os.path.join(order.folder, name + SUFFIX)
        atomic.rename(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            _discard(volumes, part)
        raise
    finally:
        direct.close()
    done = packing.done
    done.path, done.id, done.signed = path, bundle, order.key is not None
    done.stored, done.volumes, done.problems = sum(volumes.sizes), len(volumes.sizes), dict(outgoing.problems)
    return done


def _discard(volumes: VolumeWriter, part: str) -> None:
    volumes.back_to(0)
    for name in os.listdir(part):
        atomic.remove(os.path.join(part, name))
    os.rmdir(part)


class _Packing:
    """Members, as they are packed."""

    def __init__(
        self, spool: Spool, outgoing: Outgoing, volumes: VolumeWriter, pool: ThreadPoolExecutor, progress: Callable[[int], None],
        runs: Collection[str],
    ) -> None:  # fmt: skip
        self._outgoing, self._volumes, self._pool, self._progress = outgoing, volumes, pool, progress
        self._runs, self._pool_path = runs, spool.pool_path
        self.members: list[Member] = []
        self.done = Written()
        self.read = 0  # bytes of content

    def run(self, part: RunPart, share: int | None = None) -> None:
        """Pack a run: its state, its blobs, its records; no more of it than its share of bytes, of which files have the half.

        One that has no place any more is left for the next bundle.
        """
        if len(self.members) >= MEMBERS // 2 or (share is not None and share <= 0):
            self.done.left += 1
            return
        ends = {writer: list(end) for writer, end in part.final.items()}
        state = records.encode({"info": dict(part.info), "shed": None if part.shed is None else dict(part.shed), "final": ends})
        stored = self._store_bytes(state)
        self.members.append(Member("run", part.run, len(state), stored, hashlib.sha256(state).hexdigest()))
        self.done.runs += 1
        began = self.read
        for blob, path in self._outgoing.blobs(part.run, verify=False):  # it is hashed as it is packed
            self._blob(part.run, blob, path)
            if share is not None and self.read - began >= share // 2:
                break
        for segment, frames in self._outgoing.segments(part.run):
            self._segment(segment, frames)
            if share is not None and self.read - began >= share:
                break

    def all(self) -> tuple[Member, ...]:
        """Return the members; what a run that was left has in common with others comes again with it."""
        there = {m.run for m in self.members if m.kind == "run"}
        return tuple(replace(m, runs=tuple(r for r in m.runs if r in there)) if m.kind == "blob" else m for m in self.members)

    def _blob(self, run: str, part: BlobPart, path: str) -> None:
        before = self._volumes.total
        stored = None
        for place in (path, self._pool_path(part.digest)):  # one of the two may be damaged, or pruned meanwhile
            stored = self._store_file(place, part)
            if stored is not None:
                break
            self._volumes.back_to(before)
        if stored is None:
            self._outgoing.problems[run] = f"the file {part.digest[:12]} is damaged in the spool, not in the bundle: see `agent check`"
            return
        runs = tuple(one for one in part.runs if one in self._runs) or (run,)
        self.members.append(Member("blob", run, part.size, stored, part.digest, runs=runs))
        self.done.blobs += 1
        self.done.blob_bytes += part.size

    def _store_file(self, path: str, part: BlobPart) -> int | None:
        """Pack a file, hashing what is packed; None where that is not what its name says."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.EIO}:
                raise
            return None
        try:
            if os.fstat(fd).st_size != part.size:
                return None
            packer = FilePacker(fd, part.size)
            stored = self._store(packer.jobs(), part.size)
            return stored if packer.hexdigest() == part.digest else None
        except UnreadableFile:  # and no other error: the volumes' disk may have its own
            return None
        finally:
            os.close(fd)

    def _segment(self, part: SegmentPart, frames: bytes) -> None:
        content = part.head + frames
        stored = self._store_bytes(content)
        self.members.append(
            Member(
                "segment", part.run, len(content), stored, hashlib.sha256(content).hexdigest(), part.writer, part.number, part.start,
                part.end, part.sealed, part.before, part.after, part.previous, part.previous_end,
            )
        )  # fmt: skip
        self.done.segments += 1
        self.done.record_bytes += len(frames)

    def _store_bytes(self, content: bytes) -> int:
        return self._store((partial(pack, content[at : at + BLOCK]) for at in range(0, len(content), BLOCK)), len(content))

    def _store(self, jobs: Iterable[Callable[[], tuple[bytes, bytes]]], size: int) -> int:
        """Pack the blocks of a content of `size` bytes into the volumes; returns how many bytes they take there."""
        stored, began = 0, self.read
        packed_blocks: Generator[tuple[bytes, bytes], None, None] = in_order(self._pool, jobs)
        with closing(packed_blocks) as found:
            for length, packed in found:
                self._volumes.write(length)
                self._volumes.write(packed)
                stored += len(length) + len(packed)
                self.read = min(self.read + BLOCK, began + size)
                self._progress(self.read)
        return stored
