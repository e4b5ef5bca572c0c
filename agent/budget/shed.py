"""Shedding: deleting what has no receipt, where the user wants that rather than a full spool (`shed`, docs/budgets.md).

Only runs that have ended lose anything, the oldest first: their files, then sealed segments that hold nothing but metrics and resource
samples, and last, with `shed = "runs"`, runs as a whole. What holds events, alerts, status, tags or metadata stays otherwise.

The order (FORMAT.md section 12): the exact spans and digests are journaled and fsynced, then the run says so itself (`shed.json`), then
the bytes go, then the catalog says that it is done. What was killed in between is done again at the next start, and harmless.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Sequence

from simspool.agent.catalog import Catalog
from simspool.agent.inbox.positions import is_copied
from simspool.agent.journal import Journal
from simspool.agent.retention import Retention
from simspool.spool import Kind, RunFolder, Spool, atomic, frames, ids, layout, segment_header, shed
from simspool.spool.segment_header import SIZE as HEADER_SIZE

from . import account
from .account import WHOLE, ShedFile, Span
from .measure import Usage, measure

_RUNS = "SELECT id FROM runs WHERE complete = 1 AND (? IS NULL OR coalesce(ended, 0) < ?) ORDER BY id"
_ASIDE = ".shed"  # behind the name of a blob that is about to go
_LOW = frozenset({Kind.METRICS, Kind.METRICS_JSON, Kind.RESOURCES, Kind.RESOURCES_JSON})


class Shedder:
    """Sheds one thing at a time. Confined to the agent's worker thread. `kept` names runs that must stay whole for now, `busy` writers
    of which something is under way to a server.

    Raises OSError when the journal or the spool refuses, NotHolder where another agent has the spool's lease: what was journaled is then
    done by a later `finish`.
    """

    def __init__(
        self, spool: Spool, catalog: Catalog, journal: Journal, *, kept: Callable[[], Collection[str]] = tuple,
        busy: Callable[[], Collection[str]] = tuple,
    ) -> None:  # fmt: skip
        self._spool, self._catalog, self._journal, self._kept, self._busy = spool, catalog, journal, kept, busy
        self._retention = Retention(spool, catalog, journal, 0.0)
        self._whole_runs: frozenset[str] = frozenset()
        self._precious: set[tuple[str, int]] = set()  # (writer, segment) that hold more than numbers

    def next(self, *, runs: bool, wanted: int = 1 << 62, before: float | None = None) -> tuple[str, str, Usage] | None:
        """Shed what matters least of what may go; return of which run, what, and what that freed. None when nothing is left.

        No more goes than is `wanted` (bytes), as far as whole files and segments allow. `runs`: whole runs may go.
        `before`: only of runs that ended before this wall time (s).
        """
        self._journal.require()
        limit = None if before is None else int(before * 1e9)
        kept = self._whole_runs = frozenset(self._kept())
        found = [r for (r,) in self._catalog.rows(_RUNS, (limit, limit)) if r not in kept and os.path.isdir(self._spool.run(r).path)]
        for step in (self._files, self._segments, *((self._whole,) if runs else ())):
            for run in found:
                done = step(run, wanted)
                if done is not None:
                    return run, *done
        return None

    def finish(self) -> Usage:
        """Finish what was journaled and not done. Returns what that freed."""
        rows = self._catalog.rows
        runs = {r for (r,) in rows("SELECT run FROM shed WHERE done = 0 UNION SELECT run FROM shed_files WHERE done = 0")}
        freed = Usage()
        for run in sorted(runs):
            freed += self._carry_out(run)
        return freed

    # ------------------------------------------------------------------ choosing

    def _files(self, run: str, wanted: int) -> tuple[str, Usage] | None:
        """Shed files of a run that no live run has as well, the largest first."""
        rows = self._catalog.rows(
            "SELECT digest, max(size), json_group_array(DISTINCT writer) FROM artifacts WHERE digest IN"  # noqa: S608
            f" (SELECT a.digest FROM artifacts a WHERE a.run = ? AND NOT {account.is_shed('a.writer', 'a.digest')})"
            " GROUP BY digest HAVING digest NOT IN (SELECT b.digest FROM artifacts b JOIN runs r ON r.id = b.run WHERE r.complete = 0)"
            " ORDER BY 2 DESC",
            (run,),
        )
        files: list[ShedFile] = []
        for digest, size, writers in rows:
            if sum(f.size for f in files) >= wanted:
                break
            if self._is_there(digest) and self._whole_runs.isdisjoint(self._runs_with(digest)):
                files.append(ShedFile(digest, size or 0, tuple(json.loads(writers))))
        if not files:
            return None
        for body in account.bodies(run, time.time(), [], files):
            self._journal.shed(body)
        freed = self._carry_out(run)
        return _counted(len(files), "file"), freed

    def _is_there(self, digest: str) -> bool:
        """Whether all links of a blob are those of ended runs and the pool: another one is a run's that is not ingested yet."""
        paths = [os.path.join(self._spool.runs, run, "blobs", digest) for run in self._runs_with(digest)]
        paths.append(self._spool.pool_path(digest))
        found = [info for path in paths if (info := _stat(path)) is not None]
        return bool(found) and all(sum(o.st_ino == info.st_ino for o in found) == info.st_nlink for info in found)

    def _runs_with(self, digest: str) -> list[str]:
        return [run for (run,) in self._catalog.rows("SELECT DISTINCT run FROM artifacts WHERE digest = ?", (digest,))]

    def _segments(self, run: str, wanted: int) -> tuple[str, Usage] | None:
        """Shed a writer's segments that hold numbers only. The last one stays: behind it, nobody would miss anything."""
        folder = self._spool.run(run)
        busy = self._busy()
        for writer in (w for w in folder.writer_ids() if w not in busy):
            doubt = self._catalog.rows('SELECT "first", "last" FROM intents WHERE writer = ?', (writer,))
            spans: list[Span] = []
            for file in layout.segments(folder.writer(writer))[:-1]:
                if sum(s.bytes for s in spans) >= wanted:
                    break
                span = self._span(writer, file) if file.sealed and (writer, file.number) not in self._precious else None
                # a target that may have a part of it is asked with the very same range again
                if span is not None and not any(first <= span.last and span.first <= last for first, last in doubt):
                    spans.append(span)
            if spans:
                for body in account.bodies(run, time.time(), spans, []):
                    self._journal.shed(body)
                freed = self._carry_out(run)
                return _counted(sum(s.last - s.first + 1 for s in spans), "record") + " with metrics", freed
        return None

    def _span(self, writer: str, file: layout.SegmentFile) -> Span | None:
        """Return a sealed segment as a span, if it is whole, ingested as it is, and holds numbers only."""
        with open(file.path, "rb") as f:
            data = f.read()[HEADER_SIZE:]
        found = frames.decode(data, segment_header.seed(ids.from_text(writer), file.number), {})
        kinds = {item.kind for item in found.items}
        seal = found.seal or {}
        first, last = seal.get("first", 0), seal.get("last", 0)
        row = self._catalog.one(
            'SELECT min("first"), max("last"), sum(gaps IS NOT NULL) FROM pieces WHERE writer = ? AND segment = ? AND "end" > start',
            (writer, file.number),
        )
        count = sum(item.last - item.first + 1 for item in found.items)
        if not kinds or not kinds <= _LOW or row != (first, last, 0) or count != last - first + 1:
            self._precious.add((writer, file.number))
            return None
        return Span(writer, file.number, first, last, len(data) + HEADER_SIZE, self._marks(writer, first))

    def _marks(self, writer: str, first: int) -> dict[str, int]:
        """Return how far servers have a writer, those that have at least its record `first`."""
        return dict(self._catalog.rows("SELECT server, mark FROM cursors WHERE writer = ? AND mark >= ?", (writer, first)))

    def _whole(self, run: str, _: int) -> tuple[str, Usage] | None:
        """Shed a whole run. It goes out of everybody's sight first, as in retention, so that nobody opens it again meanwhile."""
        folder = self._spool.run(run)
        doubtful = self._catalog.one("SELECT 1 FROM intents i JOIN writers w ON w.id = i.writer WHERE w.run = ?", (run,))
        if doubtful or not is_copied(folder) or not set(self._busy()).isdisjoint(folder.writer_ids()):
            return None
        rows = self._catalog.rows("SELECT id, sequence - 1, header, role FROM writers WHERE run = ?", (run,))
        going = self._retention.going(run)
        before = measure(folder.path)
        atomic.rename(folder.path, going.path)
        if set(going.writer_ids()) - {w for w, *_ in rows}:  # somebody opened it again
            atomic.rename(going.path, folder.path)
            return None
        spans = [Span(w, WHOLE, 1, last, _size(going.writer(w)), self._marks(w, 1)) for w, last, header, _ in rows if last and header]
        headers = {w: (header.hex(), role) for w, _, header, role in rows if header}
        digests = self._catalog.rows(
            "SELECT digest, max(size), json_group_array(DISTINCT writer) FROM artifacts a"  # noqa: S608
            f" WHERE run = ? AND NOT {account.is_shed('a.writer', 'a.digest')} GROUP BY digest",
            (run,),
        )
        files = [ShedFile(digest, size or 0, tuple(json.loads(writers))) for digest, size, writers in digests]
        self._journal.require()
        for body in account.bodies(run, time.time(), spans, files, headers):
            self._journal.shed(body)
        self._carry_out(run)
        return "all " + _counted(sum(s.last for s in spans), "record"), before

    # ------------------------------------------------------------------ doing

    def _carry_out(self, run: str) -> Usage:
        """Do what is journaled of a run: say it in the run, delete, note that it is done. Repeating it is harmless."""
        self._journal.require()
        spans = account.spans_of(self._catalog, "run = ? AND done = 0", (run,))
        whole = [s for s in spans if s.segment == WHOLE]
        if whole:
            return self._carry_out_whole(run, whole)
        folder = self._spool.run(run)
        names: dict[str, dict[str, int]] = {run: {}}
        for digest, size, owner in self._catalog.rows(
            "SELECT s.digest, s.size, coalesce(w.run, s.run) FROM shed_files s LEFT JOIN writers w ON w.id = s.writer"
            " WHERE s.run = ? AND s.done = 0",
            (run,),
        ):
            names.setdefault(owner, {})[digest] = size
        parts: dict[str, list[tuple[int, int, int]]] = {}
        for span in spans:
            parts.setdefault(span.writer, []).append((span.segment, span.first, span.last))
        for owner, found in names.items():
            path = self._spool.run(owner).path
            if os.path.isdir(path) and (found or owner == run):
                shed.note(path, parts if owner == run else {}, found)
        freed = Usage()
        for span in spans:
            freed += _delete(layout.segment_path(folder.writer(span.writer), span.segment, "seg"))
        for digest in dict.fromkeys(d for found in names.values() for d in found):
            freed += _delete(self._spool.pool_path(digest))  # first: from now on, nobody links it any more
        for owner, found in names.items():
            for digest in found:
                freed += self._unlink(self._spool.run(owner), digest)
        with self._catalog.transaction() as db:
            for span in spans:
                self._declare(span)
            db.execute("UPDATE shed SET done = 1 WHERE run = ?", (run,))
            db.execute("UPDATE shed_files SET done = 1 WHERE run = ?", (run,))
        return freed

    def _unlink(self, folder: RunFolder, digest: str) -> Usage:
        """Delete a run's own link, unless somebody records into the run again: then that one may count on it.

        Whoever opens the run makes the folder of a writer before anything else. So the name goes first; then there are, or are not, others.
        """
        path = os.path.join(folder.blobs, digest)
        aside = path + _ASIDE
        if _stat(path) is not None:
            atomic.rename(path, aside)
        elif _stat(aside) is None:
            return Usage()
        known = {w for (w,) in self._catalog.rows("SELECT id FROM writers WHERE run = ? AND complete = 1", (folder.id,))}
        if not set(folder.writer_ids()) <= known:
            atomic.rename(aside, path)
            return Usage()
        return _delete(aside)

    def _declare(self, span: Span) -> None:
        """Have the drain declare the span: a piece without bytes, in the next segment that there is."""
        db, where = self._catalog.connection, (span.writer, span.segment)
        row = self._catalog.one('SELECT chain FROM pieces WHERE writer = ? AND segment = ? AND "end" > start ORDER BY "first"', where)
        if row is None:  # a catalog that was built anew: the reader tells it
            return
        later = self._catalog.one("SELECT min(segment) FROM pieces WHERE writer = ? AND segment > ?", where)
        assert later is not None
        db.execute('DELETE FROM pieces WHERE writer = ? AND segment = ? AND "end" > start', where)
        db.execute("DELETE FROM definitions WHERE writer = ? AND segment = ?", where)
        db.execute("UPDATE pieces SET segment = ? WHERE writer = ? AND segment = ?", (later[0], *where))  # those shed before it
        self._put_gap(span, later[0], row[0])

    def _put_gap(self, span: Span, segment: int, chain: int) -> None:
        self._catalog.connection.execute(
            'INSERT OR REPLACE INTO pieces(writer, "first", "last", segment, start, "end", chain, gaps, irregular)'
            " VALUES (?,?,?,?,0,0,?,?,0)",
            (span.writer, span.first, span.last, segment, chain, json.dumps([[span.first, span.last, "shed"]])),
        )

    def _carry_out_whole(self, run: str, spans: Sequence[Span]) -> Usage:
        folder = self._spool.run(run)
        if any(os.path.isdir(folder.writer(s.writer)) for s in spans):  # killed before all of it was journaled: it has not gone
            with self._catalog.transaction() as db:
                for table in ("shed", "shed_files", "pruned"):
                    db.execute(f"DELETE FROM {table} WHERE run = ?", (run,))  # noqa: S608
            return Usage()
        freed = Usage(self._retention.finish())
        with self._catalog.transaction() as db:
            for span in spans:
                db.execute("DELETE FROM pieces WHERE writer = ?", (span.writer,))
                self._put_gap(span, WHOLE, 0)
            db.execute("DELETE FROM damage WHERE writer IN (SELECT id FROM writers WHERE run = ?)", (run,))
            db.execute("UPDATE shed SET done = 1 WHERE run = ?", (run,))
            db.execute("UPDATE shed_files SET done = 1 WHERE run = ?", (run,))
        return freed


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None


def _size(folder: str) -> int:
    return sum(info.st_size for s in layout.segments(folder) if (info := _stat(s.path)) is not None)


def _delete(path: str) -> Usage:
    info = _stat(path)
    if info is None or not atomic.remove(path):
        return Usage()
    return Usage(info.st_blocks * 512, 1) if info.st_nlink == 1 else Usage()
