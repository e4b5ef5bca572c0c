"""What the other side of a gap lacks: the parts of segments, and the blobs, that are not in its custody yet.

The parts of a writer are a prefix that never changes any more: up to where the catalog has read it, whole valid frames of a segment that
is still written, nothing behind a segment that its living writer has not sealed yet. Only of a writer that has ended, what lies behind its
last frame is carried too, where it is not all zeros: the other side then finds the same damage.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from simspool.agent.catalog import Catalog
from simspool.spool import DamagedBlob, DamagedSegment, Kind, Spool, SpoolError, atomic, blobs, frames, ids, layout, segment_header, shed
from simspool.spool.frames import MAX_FRAME
from simspool.spool.ids import is_digest
from simspool.spool.layout import SegmentFile
from simspool.spool.process import is_alive
from simspool.spool.salvage import Salvager, open_regular
from simspool.spool.segment_header import SegmentHeader
from simspool.spool.stream import sync_segment

from . import custody
from .landing import LIMIT, read_at
from .parts import HEAD, BlobPart, Position, RunPart, SegmentPart

PART = 8 << 20
"""Bytes of frames in one part, at most."""


class _Unfit(Exception):
    """Raised when what the other side has of a writer is not what is here: it is carried from its beginning."""


@dataclass(slots=True)
class _Writer:
    """A writer as the catalog had it: read up to `offset` of `segment`, and whether it has ended (`complete`), and with a close record.

    `basis`: how far the other side has it.
    """

    id: str
    run: str
    folder: str
    segment: int
    offset: int
    complete: bool
    closed: bool
    header: bytes | None
    basis: Position | None
    end: tuple[int, int] | None = None  # of one of which no more comes: its last segment, and where that ends

    @property
    def seed_id(self) -> bytes:
        return ids.from_text(self.id)


@dataclass(frozen=True, slots=True)
class Span:
    """What the far side lacks of a segment: the bytes from `start` on behind the open descriptor `fd`; `seed` is of its checksums."""

    writer: str
    number: int
    start: int
    fd: int
    seed: int


class Outgoing:
    """Finds what the far side that `server` ("bundle:NAME") stands for lacks of a spool's runs. Confined to one thread.

    `catalog` may be a read-only view; what it has as ingested when `runs` is called bounds what is carried. `runs` limits it to some runs.
    `full`: everything, whatever the far side says it has. Runs that were carried here go on like any other. `problems` tells, by run, what
    could not be read; the others go on.
    """

    def __init__(self, spool: Spool, catalog: Catalog, server: str, runs: Collection[str] | None = None, *, full: bool = False) -> None:
        self._spool, self._catalog, self._server, self._full = spool, catalog, server, full
        self._wanted = None if runs is None else frozenset(runs)
        self._plan: dict[str, list[_Writer]] = {}
        self._blobs: dict[str, dict[str, list[str]]] = {}  # run -> digest -> runs that lack it, at the first of these
        self._files: dict[str, list[str]] = {}
        self._named: set[tuple[str, int]] = set()
        self.problems: dict[str, str] = {}

    # ------------------------------------------------------------------ runs

    def runs(self) -> list[RunPart]:
        """Return the runs of which something is to be carried, oldest first."""
        self._plan, self._blobs, self.problems = {}, {}, {}
        writers: dict[str, list[tuple[Any, ...]]] = {}
        for row in self._catalog.rows('SELECT run, id, segment, "offset", complete, closed, header FROM writers WHERE segment > 0'):
            if self._wanted is None or row[0] in self._wanted:
                writers.setdefault(row[0], []).append(row[1:])
        lacking = self._files = self._lacking()
        found = []
        for run in sorted(writers.keys() | lacking.keys()):
            if not os.path.isdir(self._spool.run(run).path):
                continue
            try:
                part = self._run(run, sorted(writers.get(run, [])), has_blobs=run in lacking)
            except (OSError, SpoolError) as error:
                self._fail(run, error)
                continue
            if part is not None:
                found.append(part)
        first: dict[str, str] = {}
        for run in (part.run for part in found):
            for digest in lacking.get(run, ()):
                self._blobs.setdefault(first.setdefault(digest, run), {}).setdefault(digest, []).append(run)
        return found

    def _lacking(self) -> dict[str, list[str]]:
        """Return, by run, the digests that the far side does not have for it."""
        found: dict[str, list[str]] = {}
        for run, digest in self._catalog.rows("SELECT DISTINCT run, digest FROM artifacts ORDER BY run, digest"):
            if is_digest(digest) and (self._wanted is None or run in self._wanted):
                found.setdefault(run, []).append(digest)
        lacking: dict[str, list[str]] = {}
        for run, digests in found.items():
            folder = self._spool.run(run)
            there = set() if self._full else custody.files(self._catalog, self._server, run)
            left = [d for d in digests if d not in there]
            here = [d for d in left if blobs.path_of(self._spool, folder, d) is not None]
            gone = set(left) - set(here)
            if here:
                lacking[run] = here
            if gone and os.path.isdir(folder.path) and gone - shed.files(folder.path):
                self.problems[run] = f"the bytes of {len(gone)} of its files are gone: `agent check {run}` says which"
        return lacking

    def _run(self, run: str, rows: list[tuple[Any, ...]], *, has_blobs: bool) -> RunPart | None:
        folder = self._spool.run(run)
        there = {} if self._full else self._basis(run)
        planned, final = [], {}
        for writer, segment, offset, complete, closed, header in rows:
            one = _Writer(
                writer, run, folder.writer(writer), segment, offset, bool(complete), bool(closed), header, there.get(writer)
            )  # fmt: skip
            if one.basis is not None and one.basis.final:
                final[writer] = (one.basis.segment, one.basis.offset)
                continue
            one.end = self._end(one) if one.complete else None
            if one.end is not None:
                final[writer] = one.end
            if one.end is not None or one.basis is None or _is_ahead(segment, offset, one.basis):
                planned.append(one)
        if not planned and not has_blobs:
            return None
        self._plan[run] = planned
        try:
            said = atomic.read_json(shed.path_of(folder.path), 1 << 26)
        except (OSError, ValueError):
            said = None
        return RunPart(run, folder.info(), said if isinstance(said, dict) else None, final)

    def _basis(self, run: str) -> dict[str, Position]:
        """Return how far the far side has the run's writers: what it said it has, or what it said is delivered where that is further."""
        found = custody.positions(self._catalog, self._server, run)
        for writer, segment, offset in self._catalog.rows(
            'SELECT c.writer, c.segment, c."offset" FROM cursors c JOIN writers w ON w.id = c.writer WHERE c.server = ? AND w.run = ?',
            (self._server, run),
        ):
            known = found.get(writer)
            if segment > 0 and offset >= HEAD and (known is None or (known.segment, known.offset) < (segment, offset)):
                found[writer] = Position(segment, offset, "")
        return found

    def _end(self, writer: _Writer) -> tuple[int, int] | None:
        """Return where a writer that has ended ends; None where its process may still write a seal."""
        files = layout.segments(writer.folder)
        if not files:
            return None
        last = files[-1]
        if writer.closed and not last.sealed and _lives(writer.header):
            return None
        fd, is_sealed = _open(writer.folder, last)
        try:
            return last.number, self._whole(fd, writer, last.number, is_sealed=is_sealed)
        finally:
            os.close(fd)

    def _fail(self, run: str, error: Exception) -> None:
        self.problems[run] = getattr(error, "strerror", None) or str(error)

    # ------------------------------------------------------------------ a look ahead

    def files(self, run: str) -> Sequence[str]:
        """Return the digests of a run's files that the far side lacks."""
        return self._files.get(run, ())

    def spans(self, run: str) -> Iterator[Span]:
        """Yield what the far side lacks of a run's segments, each open until the next is asked for. Raises OSError, DamagedSegment."""
        for writer in self._plan.get(run, []):
            basis = writer.basis or Position(0, HEAD, "")
            for file in layout.segments(writer.folder):
                if file.number < basis.segment:
                    continue
                fd, _ = _open(writer.folder, file)
                try:
                    if os.fstat(fd).st_size > LIMIT:
                        raise _too_large(writer.id, file.number, os.fstat(fd).st_size)
                    start = basis.offset if file.number == basis.segment else HEAD
                    yield Span(writer.id, file.number, start, fd, segment_header.seed(writer.seed_id, file.number))
                finally:
                    os.close(fd)

    # ------------------------------------------------------------------ blobs

    def blobs(self, run: str, *, verify: bool = True) -> Iterator[tuple[BlobPart, str]]:
        """Yield a run's blobs with their paths, to be carried before its segments. One that several of the runs lack comes once.

        Those whose bytes are not right are left out, and named in `problems`. Without `verify`, whoever reads the bytes looks for that.
        """
        for digest, runs in self._blobs.get(run, {}).items():
            found = self._whole_blob(digest, runs, verify=verify)
            if found is None:
                self.problems.setdefault(run, f"the bytes of file {digest} are gone or damaged: `agent check {run}` says where")
            else:
                yield BlobPart(digest, found[1], tuple(runs)), found[0]

    def _whole_blob(self, digest: str, runs: Collection[str], *, verify: bool) -> tuple[str, int] | None:
        for path in (*(os.path.join(self._spool.run(run).blobs, digest) for run in runs), self._spool.pool_path(digest)):
            try:
                return path, blobs.verify(path, digest) if verify else os.stat(path).st_size
            except (OSError, DamagedBlob):
                continue
        return None

    # ------------------------------------------------------------------ segments

    def segments(self, run: str) -> Iterator[tuple[SegmentPart, bytes]]:
        """Yield the parts of a run's segments with their bytes, each writer's in order. What is yielded is durable in this spool."""
        for writer in self._plan.get(run, []):
            try:
                try:
                    yield from self._parts(writer)
                except _Unfit:
                    writer.basis = None
                    yield from self._parts(writer)
            except (OSError, SpoolError) as error:
                self._fail(run, error)

    def _parts(self, writer: _Writer) -> Iterator[tuple[SegmentPart, bytes]]:
        basis = writer.basis
        files = layout.segments(writer.folder)
        if basis is not None and all(f.number != basis.segment for f in files):
            raise _Unfit
        previous = previous_end = 0
        for file in files:
            last = writer.end[0] if writer.end is not None else writer.segment
            is_last = file.number == last
            if file.number > last or (is_last and writer.end is None and writer.offset < HEAD):
                return
            fd, is_sealed = _open(writer.folder, file)
            try:
                start = HEAD
                if basis is not None and file.number <= basis.segment:
                    if file.number < basis.segment:
                        previous = file.number
                        previous_end = self._whole(fd, writer, file.number, is_sealed=is_sealed)
                        continue
                    start = self._check_basis(fd, basis)
                whole = is_sealed and (writer.end is not None or not is_last)
                end = self._whole(fd, writer, file.number, is_sealed=is_sealed) if writer.end is not None or whole else 0
                if not end:
                    bound = writer.offset if is_last else os.fstat(fd).st_size
                    end = _frames_end(fd, segment_header.seed(writer.seed_id, file.number), start, bound, seals=False)
                if end > LIMIT:
                    raise _too_large(writer.id, file.number, end)
                if not is_sealed:
                    self._sync(fd, writer.folder, file.number)
                is_new = basis is None or file.number > basis.segment
                if end > start or is_new or (is_last and writer.end is not None):
                    part = SegmentPart(
                        writer.run, writer.id, file.number, start, end, whole, b"", "", "", previous, previous_end
                    )  # fmt: skip
                    yield from _cut(fd, part)
                if not whole and writer.end is None:
                    return  # its writer may have begun the next one; this one gets its seal first
                previous, previous_end = file.number, end
            finally:
                os.close(fd)

    def _check_basis(self, fd: int, basis: Position) -> int:
        """Return from where on a segment is to be carried. Raises _Unfit where the other side has other bytes."""
        known = read_at(fd, HEAD, basis.offset)
        if len(known) != basis.offset - HEAD or (basis.after and hashlib.sha256(known).hexdigest() != basis.after):
            raise _Unfit
        return basis.offset

    def _whole(self, fd: int, writer: _Writer, number: int, *, is_sealed: bool) -> int:
        """Return where a segment ends of which no more comes."""
        size = os.fstat(fd).st_size
        if is_sealed:
            return max(size, HEAD)
        end = _frames_end(fd, segment_header.seed(writer.seed_id, number), HEAD, size, seals=True)
        used = Salvager(fd, 0).end_of_data(end)
        if writer.closed or used <= end:
            return end
        return min(size, used + MAX_FRAME)  # a reader there judges what does not verify by as many bytes as one here

    def _sync(self, fd: int, folder: str, number: int) -> None:
        """What another spool has must not be lost here by a power cut: the numbers would be used again for something else."""
        try:
            sync_segment(fd, folder, named=(folder, number) in self._named)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
        self._named.add((folder, number))


def _too_large(writer: str, number: int, size: int) -> DamagedSegment:
    return DamagedSegment(f"segment {number} of writer {writer} has {size} bytes: it is no segment of simspool's")


def _cut(fd: int, whole: SegmentPart) -> Iterator[tuple[SegmentPart, bytes]]:
    """Yield a part in pieces of at most PART bytes; only the last one seals."""
    head = read_at(fd, 0, HEAD).ljust(HEAD, b"\0")
    found, start = hashlib.sha256(read_at(fd, HEAD, whole.start)), whole.start
    while True:
        end = min(whole.end, start + PART)
        data = read_at(fd, start, end)
        if len(data) != end - start:
            raise DamagedSegment(f"segment {whole.number} of writer {whole.writer} became shorter while it was read")
        before = found.hexdigest()
        found.update(data)
        sealed = whole.sealed and end == whole.end
        yield replace(whole, start=start, end=end, sealed=sealed, head=head, before=before, after=found.hexdigest()), data
        start = end
        if start >= whole.end:
            return


def _is_ahead(segment: int, offset: int, basis: Position) -> bool:
    """Say whether there is something behind the basis. A segment that is begun next has nothing yet."""
    return (segment, offset) > (basis.segment, basis.offset) and (offset > HEAD or segment > basis.segment + 1)


def _open(folder: str, file: SegmentFile) -> tuple[int, bool]:
    """Open a segment that was listed, also when it is sealed meanwhile. Raises OSError and DamagedSegment."""
    for suffix in ("seg", "open", "seg"):
        try:
            return open_regular(layout.segment_path(folder, file.number, suffix)), suffix == "seg"
        except FileNotFoundError:
            continue
    raise FileNotFoundError(errno.ENOENT, f"segment {file.number} is gone", folder)


def _frames_end(fd: int, seed: int, start: int, bound: int, *, seals: bool) -> int:
    """Return where the last valid frame between `start` and `bound` ends, damage before it passed over; without `seals`, before a seal."""
    salvager = Salvager(fd, seed)
    data = memoryview(read_at(fd, start, bound))
    end = at = start
    while at < bound:
        verdict, length = frames.check_frame(data, seed, at - start)
        if verdict == "valid":
            if not seals and data[at - start + 2] == Kind.SEAL:
                break
            end = at = at + length
            continue
        found = salvager.next_valid((at + 8) // 8 * 8, 0)
        if found is None or found >= bound:
            break
        at = found
    return end


def _lives(header: bytes | None) -> bool:
    """Say whether a writer's process lives here, as far as its head tells."""
    try:
        return header is not None and is_alive(SegmentHeader.unpack(header)) is True
    except SpoolError:
        return False
