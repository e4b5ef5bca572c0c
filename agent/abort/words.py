"""What the spool itself says of a run's processes: who has it open, and what was recorded of an abort.

The ladder hears most of it from the watch, which follows every writer. Before a signal, and where no watch runs, it reads for itself.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from simspool.agent.live import Standing
from simspool.spool import Chunk, Kind, RunFolder, SpoolError, Tail, layout, runstate
from simspool.spool.control import open_writers
from simspool.spool.frames import Record
from simspool.spool.process import is_alive, this_host
from simspool.spool.segment_header import STATIC_SIZE, SegmentHeader

from .steps import Word

_HEAD = 64 << 10  # bytes that are read for a writer's first record


@dataclass(slots=True)
class Told:
    """What a writer's records say: as what it was opened, whether it has closed, and its words about aborts."""

    writer: str
    standing: Standing = field(default_factory=Standing)
    header: SegmentHeader | None = None
    closed: bool = False
    words: list[Word] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    def take_all(self, chunk: Chunk) -> None:
        """Take in what a read found."""
        self.header = chunk.header
        for item in chunk.items:
            if isinstance(item, Record):
                self._take(item)

    def _take(self, record: Record) -> None:
        body = record.body
        self.standing.take(record.kind, body)
        if record.kind == Kind.CLOSE:
            self.closed = True
        elif body is None:
            return
        elif record.kind == Kind.ABORT:
            self.words.append(Word(self.writer, record.boot_ns, body))
        elif record.kind == Kind.CONFIG and isinstance(body.get("set"), dict):
            self.options |= body["set"]

    @property
    def role(self) -> str:
        """As what it was opened; empty before its first record was read."""
        return self.standing.role

    @property
    def is_script(self) -> bool:
        """Whether a script's process wrote it, and not an agent."""
        return self.role not in runstate.AGENTS


def tell(run: RunFolder, writer: str, *, since: int = 0) -> Told:
    """Read a writer's records, those before the boot time `since` (ns) left out by the segment. What cannot be read is left out."""
    told = Told(writer)
    folder = run.writer(writer)
    with contextlib.suppress(OSError, SpoolError), Tail(folder, run.id, segment=_segment_at(folder, since) if since else 0) as tail:
        for chunk in tail.read():
            told.take_all(chunk)
    return told


def _segment_at(folder: str, since: int) -> int:
    """Return the number of the last segment that was begun before a boot time."""
    for segment in reversed(layout.segments(folder)):
        header = _header(segment.path)
        if header is None or header.anchor_boot <= since:
            return segment.number
    return 0


def _header(path: str) -> SegmentHeader | None:
    try:
        with open(path, "rb") as f:
            return SegmentHeader.unpack(f.read(STATIC_SIZE))
    except (OSError, SpoolError):
        return None


def role_of(run: RunFolder, writer: str) -> str:
    """Return as what a writer was opened: creator, attach, reconnect, fork, re-entrant or agent; empty before its first record."""
    told = Told(writer)
    with contextlib.suppress(OSError, SpoolError), Tail(run.writer(writer), run.id) as tail:
        for chunk in tail.read(limit=_HEAD):
            told.take_all(chunk)
            if told.role:
                break
    return told.role


def agents_words(run: RunFolder, identity: str, since: int) -> Iterator[Word]:
    """Yield what agents of this boot, this one and earlier ones, have noted of a request in a run."""
    for writer in run.writer_ids():
        if os.path.isdir(run.writer(writer)) and role_of(run, writer) == "agent":
            told = tell(run, writer, since=since)
            if told.header is not None and told.header.boot_id == this_host().boot_id:  # else its clock and its pids say nothing here
                yield from (word for word in told.words if word.id == identity)


def openings(run: RunFolder) -> dict[str, SegmentHeader | None]:
    """Return the scripts' writers that may still record, with their newest header: open, and of no process that is provably gone."""
    found: dict[str, SegmentHeader | None] = {}
    for writer in open_writers(run):
        header = next((h for s in reversed(layout.segments(run.writer(writer))) if (h := _header(s.path)) is not None), None)
        if (header is None or is_alive(header) is not False) and role_of(run, writer) not in runstate.AGENTS:
            found[writer] = header
    return found
