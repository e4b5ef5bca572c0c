"""Verify a spool: every segment's frames and header, every drop counter, every blob. Nothing is changed, ever.

Reads as salvage does (FORMAT.md section 7), so what is found here is what a drain would declare as gaps. The limits: a live
writer's open segment is judged up to its first frame that is not there yet, and a record cut off together with its whole frame at the
end of an unsealed segment leaves no trace.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from simspool.agent.carry import carried
from simspool.agent.inbox import quarantine
from simspool.agent.inbox.positions import Position
from simspool.spool import DamagedBlob, Kind, NewerFormat, RunFolder, Spool, SpoolError, Tail, blobs, ids, layout, process, reader, shed
from simspool.spool.frames import Record
from simspool.spool.reader import read_drop_counts

DAMAGE = frozenset({"corrupt", "torn", "loss", "header", "drops", "missing", "lost", "blob-damaged", "blob-missing", "unreadable"})
_IN_SEGMENT = frozenset({"corrupt", "torn", "loss", "header", "drops", "missing", "lost", "shed"})


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a scrub found.

    `kind` is a `Damage` kind (corrupt, torn, loss, header, drops, missing), lost (sequences that no damage names), blob-damaged,
    blob-missing or unreadable (all of them damage), newer (a newer format, left alone), dropped (records that were refused when
    they were made, by reason: counted, no damage), shed (deleted on purpose before a server had it: declared, no damage)
    or not-understood (lines of an inbox: kept and counted, no damage).
    `start` and `end` bound the bytes in `path`, `first` and `last` the sequences that are lost, 0 where there are none or nobody can know.
    """

    kind: str
    path: str
    run: str = ""
    writer: str = ""
    start: int = 0
    end: int = 0
    first: int = 0
    last: int = 0
    detail: str = ""
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def is_damage(self) -> bool:
        """Whether something is not as it was written.

        A torn tail of an unsealed segment is none: its call was killed before it returned. (Where a disk lost the end of such a
        file, it looks the same.)
        """
        return self.kind in DAMAGE and not (self.kind == "torn" and self.path.endswith(".open"))

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as JSON; what does not apply is left out."""
        out: dict[str, Any] = {"kind": self.kind, "path": self.path}
        out |= {k: v for k in ("run", "writer", "detail", "counts") if (v := getattr(self, k))}
        if self.kind in _IN_SEGMENT:
            out |= {"bytes": [self.start, self.end], "sequences": [self.first, self.last]}
        return out

    def __str__(self) -> str:
        """Return the finding on one line."""
        parts = [self.kind, self.path]
        if self.end:
            parts.append(f"bytes {self.start}-{self.end}")
        if self.last >= self.first > 0:
            parts.append(f"records {self.first}-{self.last}")
        elif self.first:
            parts.append(f"records from {self.first}")
        return "  ".join([*parts, self.detail] if self.detail else parts)


@dataclass(slots=True)
class Totals:
    """What a scrub has read so far; filled while it goes. `progress` hears of the bytes."""

    progress: Callable[[int], None] = lambda _: None
    runs: int = 0
    writers: int = 0
    segments: int = 0
    records: int = 0
    blobs: int = 0
    bytes: int = 0

    def read(self, count: int) -> None:
        """Count bytes."""
        self.bytes += count
        self.progress(self.bytes)


class _Seen:
    """Blobs that were verified, by inode: a blob has a link in each run and one in the pool, and is read once."""

    def __init__(self) -> None:
        self._keys: set[tuple[int, int]] = set()

    def add(self, path: str) -> bool:
        """Remember a file; False when it is gone, or was there before. Raises OSError."""
        try:
            info = os.stat(path)
        except FileNotFoundError:
            return False
        key = (info.st_dev, info.st_ino)
        if key in self._keys:
            return False
        self._keys.add(key)
        return True


def scrub(
    spool: Spool, runs: Iterable[str] | None = None, blobs: bool = True, *, assume_dead: bool = False, totals: Totals | None = None
) -> Iterator[Finding]:
    """Yield what is wrong in the spool, or in some runs of it, while it is read.

    Without `runs`, the agent's journal and the whole pool are verified too. `blobs=False` leaves the bytes of files unread; that they
    exist is checked all the same. `assume_dead` takes writers whose process cannot be looked up from here as dead.
    """
    totals = totals if totals is not None else Totals()
    seen = _Seen()
    for run_id in spool.run_ids() if runs is None else runs:
        run = spool.run(run_id)
        totals.runs += 1
        yield from _writers(spool, run, assume_dead, totals)
        if blobs:
            yield from _blob_folder(run.blobs, run.id, seen, totals)
    if runs is None:
        yield from _writers(spool, RunFolder(spool.agent, spool.id), assume_dead, totals)
        if blobs:
            for prefix in _names(spool.pool):
                yield from _blob_folder(os.path.join(spool.pool, prefix), "", seen, totals)


def is_dead(folder: str, run: str, *, assume: bool = False) -> bool:
    """Say whether a writer's process is surely gone. With `assume`, "nobody can know" counts as gone. Raises NewerFormat."""
    for segment in layout.segments(folder):
        try:
            fd = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue  # sealed in this moment
        try:
            header, good = reader.read_header(fd, os.path.basename(folder), ids.from_text(run), segment.number, None)
        finally:
            os.close(fd)
        if good:
            alive = process.is_alive(header)
            return not alive if alive is not None else assume
    return assume


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def _writers(spool: Spool, run: RunFolder, assume_dead: bool, totals: Totals) -> Iterator[Finding]:
    origin = carried.read(run)
    for writer in run.writer_ids():
        folder = run.writer(writer)
        totals.writers += 1
        try:
            dead = is_dead(folder, run.id, assume=assume_dead) if origin is None else assume_dead or origin.is_final(writer)
            yield from _writer(spool, run, folder, dead, totals)
        except NewerFormat as error:
            yield Finding("newer", folder, run.id, writer, detail=str(error))
        except FileNotFoundError:
            continue  # pruned while we looked
        except OSError as error:
            yield Finding("unreadable", error.filename or folder, run.id, writer, detail=error.strerror or str(error))
        except SpoolError as error:  # another user's segment, or what is no file
            yield Finding("unreadable", folder, run.id, writer, detail=str(error))


def _writer(spool: Spool, run: RunFolder, folder: str, dead: bool, totals: Totals) -> Iterator[Finding]:
    writer, last_segment = os.path.basename(folder), 0
    named: set[tuple[int, int]] = set()
    bad: dict[str, tuple[int, int]] = {}
    with Tail(folder, run.id) as tail:
        for chunk in tail.read(dead=dead):
            if chunk.segment != last_segment:
                totals.segments, last_segment = totals.segments + 1, chunk.segment
            totals.read(chunk.end - chunk.start)
            for d in chunk.damage:
                named.add((d.first, d.last))
                yield Finding(d.kind, _segment_path(folder, d.segment), run.id, writer, d.start, d.end, d.first, d.last)
            for first, last, reason in chunk.gaps:
                if (first, last) not in named:
                    path = _segment_path(folder, chunk.segment)
                    kind = "shed" if reason == "shed" else "lost"
                    yield Finding(kind, path, run.id, writer, chunk.start, chunk.end, first, last, reason)
            for item in chunk.items:
                totals.records += item.last - item.first + 1
                if isinstance(item, Record) and item.kind == Kind.ARTIFACT and item.body is not None:
                    yield from _named_blob(spool, run, item, writer)
                elif isinstance(item, Record) and item.kind == Kind.INBOX and (at := Position.of(item.body)) is not None:
                    bad[at.file] = bad.get(at.file, (at.bad, 0))[0], at.bad
    for name, (before, now) in bad.items():
        if now > before:
            detail = f"{now - before:,} lines, kept in {quarantine.path_of(spool, run.id, name)}"
            yield Finding("not-understood", os.path.join(run.inbox, name), run.id, writer, detail=detail)
    drops = read_drop_counts(folder)
    if drops:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in drops.items())
        yield Finding("dropped", folder, run.id, writer, detail=reasons, counts=drops)


def _segment_path(folder: str, number: int) -> str:
    return next((s.path for s in layout.segments(folder) if s.number == number), layout.segment_path(folder, number, "seg"))


def _named_blob(spool: Spool, run: RunFolder, record: Record, writer: str) -> Iterator[Finding]:
    assert record.body is not None
    digest = record.body.get("digest")
    if isinstance(digest, str) and len(digest) == 64 and digest.isalnum() and blobs.path_of(spool, run, digest) is None:
        kind, what = ("shed", "were shed") if digest in shed.files(run.path) else ("blob-missing", "are gone")
        detail = f"the bytes of {record.body.get('name')!r} {what}"
        yield Finding(kind, os.path.join(run.blobs, digest), run.id, writer, first=record.seq, last=record.seq, detail=detail)


def _blob_folder(folder: str, run: str, seen: _Seen, totals: Totals) -> Iterator[Finding]:
    for name in _names(folder):
        if len(name) != 64 or not name.isalnum():
            continue
        path = os.path.join(folder, name)
        try:
            if seen.add(path):
                totals.read(blobs.verify(path, name))
                totals.blobs += 1
        except FileNotFoundError:
            continue  # pruned while we looked
        except DamagedBlob as error:
            yield Finding("blob-damaged", path, run, detail=str(error))
        except OSError as error:
            yield Finding("unreadable", path, run, detail=error.strerror or str(error))
