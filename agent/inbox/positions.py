"""How far each file of an inbox is copied: position records, and what the writers of earlier agents say together (FORMAT.md section 10).

A position says: each record behind it in its writer, up to the next position, is one line of this file, in order and without a gap (blank
lines left out), from this byte on. So a line is copied if and only if its record is there, whenever an agent is killed.
"""

from __future__ import annotations

import itertools
import os
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from simspool.spool import Kind, RunFolder, SpoolError, Tail, atomic
from simspool.spool.frames import MetricBatch, Record
from simspool.spool.process import is_alive, this_host
from simspool.spool.segment_header import SegmentHeader

LOOK_BACK = 1024  # bytes before a position that must be those that were read
_MOST = 256  # positions of an epoch that are kept, the latest
_SUFFIX = ".jsonl"
_COPIED = ".copied.json"


@dataclass(frozen=True, slots=True)
class Mark:
    """Bytes of a file that were seen: from `start` to `end`, with their CRC-32."""

    start: int
    end: int
    crc: int

    def fits(self, fd: int) -> bool:
        """Say whether the file still has them."""
        data = os.pread(fd, self.end - self.start, self.start)
        return len(data) == self.end - self.start and zlib.crc32(data) == self.crc


@dataclass(frozen=True, slots=True)
class Position:
    """A place in an epoch of a file. `step`: metric lines before it; `bad`: lines of the file that were not understood before it."""

    file: str
    epoch: int
    offset: int
    step: int
    bad: int
    mark: Mark

    def body(self) -> dict[str, Any]:
        """Return it as a record's body."""
        found: dict[str, Any] = {
            "file": self.file, "epoch": self.epoch, "offset": self.offset, "step": self.step,
            "seen": [self.mark.start, self.mark.end, self.mark.crc],
        }  # fmt: skip
        return found | ({"bad": self.bad} if self.bad else {})

    @classmethod
    def of(cls, body: dict[str, Any] | None) -> Position | None:
        """Return the position in a record's body, None where it is none."""
        body = body or {}
        numbers = [body.get(key, 0) for key in ("epoch", "offset", "step", "bad")]
        name, seen = body.get("file"), body.get("seen")
        if not isinstance(name, str) or not isinstance(seen, list) or len(seen) != 3:
            return None
        if not all(type(n) is int and n >= 0 for n in (*numbers, *seen)):
            return None
        epoch, offset, step, bad = numbers
        return cls(name, epoch, offset, step, bad, Mark(*seen))


@dataclass(slots=True)
class Reached:
    """How far a file is copied: `lines` lines behind `position`, of which `metrics` are metrics.

    `before` are positions of the epoch, the latest last. `earlier_boot`: its agent worked before this machine's last boot.
    """

    position: Position
    lines: int = 0
    metrics: int = 0
    before: deque[Position] = field(default_factory=lambda: deque(maxlen=_MOST))
    earlier_boot: bool = False

    def order(self) -> tuple[int, int, int]:
        """Of two, the one with the larger order is further."""
        return self.position.epoch, self.position.offset, self.lines


def reached(run: RunFolder) -> tuple[dict[str, Reached], list[str]]:
    """Return how far each file of a run's inbox is copied, and the inbox writers of earlier agents that tell it.

    Raises OSError and SpoolError for a writer that cannot be read: nothing is to be copied then. Records that are damaged count as lines.
    """
    found: dict[str, Reached] = {}
    writers = _telling(run)
    for writer in writers:
        for one in _of_writer(run, writer):
            known = found.get(one.position.file)
            if known is None or one.order() > known.order():
                found[one.position.file] = one
                if known is not None and known.position.epoch == one.position.epoch:
                    one.before = deque([*known.before, *one.before], maxlen=_MOST)
    return found, writers


def _telling(run: RunFolder) -> list[str]:
    """Return the inbox writers that must be read: those whose positions a later one has not repeated at its beginning."""
    openings = {}
    for writer in run.writer_ids():
        first = first_records(run, writer)
        if not first or (first[0].kind == Kind.ATTACH and (first[0].body or {}).get("reason") == "inbox"):
            openings[writer] = first  # a writer whose first record is damaged may be one
    repeated: set[str] = set()
    for first in openings.values():
        body = (first[0].body or {}) if first else {}
        files, after = body.get("files", 0), body.get("after")
        if isinstance(after, list) and isinstance(files, int) and [r.kind for r in first[1 : files + 1]] == [Kind.INBOX] * files:
            repeated.update(w for w in after if isinstance(w, str))
    return [w for w in openings if w not in repeated]


def _of_writer(run: RunFolder, writer: str) -> list[Reached]:
    """Return the last of each file in one writer."""
    found: dict[str, Reached] = {}
    now: Reached | None = None
    with Tail(run.writer(writer), run.id) as tail:
        next(tail.read(limit=1), None)
        dead = tail.header is not None and is_alive(tail.header) is not True
    boot = this_host().boot_id
    with Tail(run.writer(writer), run.id) as tail:
        last = 0
        for chunk in tail.read(dead=dead):
            for item in chunk.items:
                if now is not None:
                    now.lines += item.first - last - 1  # damaged ones
                last = item.last
                if isinstance(item, MetricBatch):
                    if now is not None:
                        now.lines += len(item.rows)
                        now.metrics += len(item.rows)
                elif item.kind == Kind.INBOX:
                    position = Position.of(item.body)
                    before = found.get(position.file) if position is not None else None
                    now = None
                    if position is not None:
                        same = before is not None and before.position.epoch == position.epoch
                        now = Reached(position, earlier_boot=_other_boot(chunk.header, boot))
                        if same and before is not None:
                            now.before = before.before
                        now.before.append(position)
                        found[position.file] = now
                elif item.kind == Kind.CLOSE:
                    now = None
                elif now is not None:
                    now.lines += 1
                    now.metrics += item.kind == Kind.METRICS_JSON
    return list(found.values())


def _other_boot(header: SegmentHeader, boot: bytes) -> bool:
    return header.boot_id != boot


def first_record(run: RunFolder, writer: str) -> Record | None:
    """Return a writer's first record, None where there is none, or it cannot be read."""
    return next(iter(first_records(run, writer)), None)


def first_records(run: RunFolder, writer: str) -> list[Record]:
    """Return what a writer begins with, up to its first metrics, as far as one read brings it; nothing where it cannot be read."""
    try:
        with Tail(run.writer(writer), run.id) as tail:
            for chunk in tail.read(limit=1):
                found = itertools.takewhile(lambda item: isinstance(item, Record), chunk.items)
                return [item for item in found if isinstance(item, Record)]
    except (OSError, SpoolError):
        pass
    return []


# ------------------------------------------------------------------ files


def files_in(run: RunFolder) -> Iterator[os.DirEntry[str]]:
    """Yield the files of a run's inbox, by name; nothing where it has none."""
    try:
        with os.scandir(run.inbox) as entries:
            found = [e for e in entries if e.name.endswith(_SUFFIX) and not e.name.startswith(".") and is_file(e)]
    except OSError:
        return
    yield from sorted(found, key=lambda e: e.name)


def is_file(entry: os.DirEntry[str]) -> bool:
    """Say whether it is a file, or leads to one. What cannot be told of, a link to itself, is none: the others are still read."""
    try:
        return entry.is_file()
    except OSError:
        return False


def is_copied(run: RunFolder) -> bool:
    """Say whether everything in a run's inbox is copied, as of the run's end; true where there is no inbox.

    A file that was appended to since, or came since, says no; so does one of which no agent has noted it.
    """
    names = [(e.name, e.stat().st_size) for e in files_in(run)]
    if not names:
        return True
    try:
        noted = atomic.read_json(os.path.join(run.inbox, _COPIED))
    except (OSError, ValueError):
        return False
    return isinstance(noted, dict) and all(noted.get(name) == size for name, size in names)


def note_copied(run: RunFolder, sizes: dict[str, int]) -> None:
    """Note that each file is copied up to this byte. It only saves reading: without it, the writers are asked. Raises OSError."""
    atomic.write_json(os.path.join(run.inbox, _COPIED), sizes)
