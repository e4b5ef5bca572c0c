"""The ingest pass: find writers, read what is new, close what is dead (DESIGN 2.4, 6)."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from simspool.agent.catalog import Catalog
from simspool.spool import NewerFormat, Spool, Tail, ids, layout
from simspool.spool.process import is_alive
from simspool.spool.segment_header import SegmentHeader

from .follow import Followed
from .summary import Summary
from .survivors import declare_survivor

PASS_BYTES = 8 << 20
MAX_OPEN = 400
_SETTLED_NS = 2_000_000_000


@dataclass(slots=True)
class Progress:
    """What a pass did: bytes read, records and points taken, writers found, and whether more is waiting."""

    bytes: int = 0
    records: int = 0
    found: int = 0
    more: bool = False


class Ingest:
    """Follows all writers of a spool. Confined to the agent's worker thread.

    A run that cannot be read (a newer format, a failing disk) is left out with its reason in `problems`; the others go on.
    """

    def __init__(self, spool: Spool, catalog: Catalog, *, on_run: Callable[[str], None] | None = None) -> None:
        self.spool, self.catalog = spool, catalog
        self.problems: dict[str, str] = {}
        self.newer: set[str] = set()
        self._on_run = on_run
        self._summary = Summary(catalog.connection)
        self._seen: dict[str, int] = dict(catalog.rows("SELECT id, seen FROM runs"))
        self._followed: dict[str, Followed] = {}
        self._open: dict[str, None] = {}
        for row in catalog.rows('SELECT id, run, segment, "offset", sequence, chain, closed, role, header FROM writers WHERE complete = 0'):
            self._follow(*row)

    @property
    def active(self) -> list[str]:
        """The ids of writers that are not complete."""
        return list(self._followed)

    def active_folders(self) -> list[str]:
        """The folders where new segments, seals and writers of active runs appear."""
        runs = {f.run for f in self._followed.values()}
        folders = [f.tail.folder for f in self._followed.values()]
        return folders + [os.path.join(self.spool.runs, run, "w") for run in runs]

    def follows(self, writer: str) -> bool:
        """Say whether a writer is known and not complete."""
        return writer in self._followed

    def live_runs(self) -> list[str]:
        """Return the runs with a writer whose process lives."""
        return sorted({f.run for f in self._followed.values() if f.header is not None and is_alive(f.header)})

    def _follow(
        self, writer: str, run: str, segment: int = 0, offset: int = 0, sequence: int = 1, chain: int = 0, closed: int = 0,
        role: str | None = None, header: bytes | None = None,
    ) -> None:  # fmt: skip
        tail = Tail(os.path.join(self.spool.runs, run, "w", writer), run, segment=segment, offset=offset, sequence=sequence)
        known = SegmentHeader.unpack(header) if header else None
        self._followed[writer] = Followed(writer, run, tail, chain, bool(closed), role, known)

    def scan(self) -> int:
        """Look for new runs and writers; returns how many writers were found. Cost: one stat a run that did not change."""
        found: list[tuple[str, str, int]] = []
        try:
            entries = [e.name for e in os.scandir(self.spool.runs) if ids.is_id(e.name)]
        except FileNotFoundError:
            return 0
        now = time.time_ns()
        for run in sorted(entries):
            folder = os.path.join(self.spool.runs, run, "w")
            try:
                changed = os.stat(folder).st_mtime_ns
            except OSError:
                continue
            if self._seen.get(run) == changed:
                continue
            # a folder that changed just now may change again without a new time stamp
            found.append((run, folder, changed if now - changed > _SETTLED_NS else 0))
        if not found:
            return 0
        count = 0
        with self.catalog.transaction() as db:
            for run, folder, changed in found:
                known = {w for (w,) in db.execute("SELECT id FROM writers WHERE run = ?", (run,))}
                db.execute(
                    "INSERT INTO runs(id, seen, complete, status, folder) VALUES (?,?,0,'created','/') ON"
                    " CONFLICT(id) DO UPDATE SET seen=excluded.seen",
                    (run, changed),
                )
                for writer in layout.list_writers(folder):
                    if writer not in known:
                        db.execute(
                            'INSERT OR IGNORE INTO writers(id, run, segment, "offset", sequence, chain,'
                            ' complete, closed) VALUES (?,?,0,0,1,0,0,0)',
                            (writer, run),
                        )
                        db.execute("UPDATE runs SET complete = 0 WHERE id = ?", (run,))
                        self._follow(writer, run)
                        count += 1
                        if self._on_run is not None:
                            self._on_run(run)
                self._seen[run] = changed
        return count

    def read(self, writers: Iterable[str] | None = None, *, budget: int = PASS_BYTES) -> Progress:
        """Read what is new from these writers (default: all that are active), about `budget` bytes, in one transaction."""
        progress = Progress()
        wanted = self._followed.keys() if writers is None else writers
        done: list[Followed] = []
        with self.catalog.transaction() as db:
            for writer in list(wanted):
                followed = self._followed.get(writer)
                if followed is None:
                    continue
                if progress.bytes >= budget:
                    progress.more = True
                    break
                self._read_one(followed, progress, budget, dead=False)
                if followed.complete:
                    done.append(followed)
            self._finish(done)
            self._summary.flush()
            del db
        self._limit_open()
        return progress

    def _read_one(self, followed: Followed, progress: Progress, budget: int, *, dead: bool) -> None:
        db = self.catalog.connection
        tail, before = followed.tail, (followed.tail.segment, followed.tail.offset)
        limit = max(1 << 20, min(budget - progress.bytes, PASS_BYTES // 2))
        used = progress.bytes
        try:
            for chunk in tail.read(dead=dead, limit=limit):
                progress.bytes += chunk.end - chunk.start
                progress.records += followed.take(db, self._summary, chunk)
        except NewerFormat as error:
            self.problems[followed.run] = str(error)
            self.newer.add(followed.run)
            return
        except OSError as error:
            self.problems[followed.run] = f"cannot read {tail.folder}: {error.strerror}: it is tried again"
            return
        self.problems.pop(followed.run, None)
        self._open[followed.writer] = None
        if progress.bytes - used >= limit:
            progress.more = True
        if (tail.segment, tail.offset) != before or followed.complete:
            followed.quiet = 0
            followed.save(db)
        else:
            followed.quiet += 1

    def bury(self) -> int:
        """Salvage writers whose process is provably gone; declare those without a close record lost. Returns how many ended.

        Only writers that had nothing new in the last read are looked at.
        """
        ended = 0
        for followed in list(self._followed.values()):
            if followed.quiet == 0 or followed.run in self.newer:
                continue
            header = followed.header
            if header is None:
                if not self._is_stillborn(followed):
                    continue
            elif is_alive(header) is not False:
                continue
            self._bury(followed)
            ended += 1
        return ended

    def _bury(self, followed: Followed) -> None:
        progress = Progress()
        while not followed.tail.complete:
            with self.catalog.transaction():
                at = (followed.tail.segment, followed.tail.offset)
                self._read_one(followed, progress, progress.bytes + PASS_BYTES, dead=True)
                self._summary.flush()
            if followed.run in self.problems or (at == (followed.tail.segment, followed.tail.offset) and not followed.tail.complete):
                return
        if not followed.closed and followed.role != "agent" and followed.header is not None:
            # once more: another agent's word may have come in meanwhile, the first one counts
            declare_survivor(self.spool, self._summary.state(followed.run), followed)
        with self.catalog.transaction():
            self._finish([followed])
            self._summary.flush()

    def _is_stillborn(self, followed: Followed) -> bool:
        """A writer's folder that never got a segment: killed at birth, or gone (pruned)."""
        try:
            age = time.time() - os.stat(followed.tail.folder).st_mtime
        except FileNotFoundError:
            return True
        return age > 3600 and not layout.segments(followed.tail.folder)

    def _finish(self, done: list[Followed]) -> None:
        """Stop following complete writers; note runs that are complete with them."""
        db = self.catalog.connection
        for followed in done:
            followed.save(db)
            db.execute("UPDATE writers SET complete = 1 WHERE id = ?", (followed.writer,))
            followed.tail.close()
            self._followed.pop(followed.writer, None)
            self._open.pop(followed.writer, None)
            db.execute(
                "UPDATE runs SET complete = NOT EXISTS (SELECT 1 FROM writers WHERE run = ?1 AND complete = 0) WHERE id = ?1",
                (followed.run,),
            )

    def _limit_open(self) -> None:
        """Keep the number of open files bounded; the longest unread are closed, positions stay."""
        while len(self._open) > MAX_OPEN:
            writer = next(iter(self._open))
            del self._open[writer]
            with contextlib.suppress(KeyError):
                self._followed[writer].tail.close()

    def close(self) -> None:
        """Let go of all files."""
        for followed in self._followed.values():
            followed.tail.close()
