"""Retention: nothing is deleted but what the server has acknowledged durably, plus grace (DESIGN 2.10, I7)."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable

from simspool.agent.budget.account import is_shed
from simspool.agent.carry import carried, custody
from simspool.agent.catalog import Catalog
from simspool.agent.catalog.store import FILE_KEY
from simspool.agent.inbox.positions import is_copied
from simspool.agent.journal import Journal
from simspool.spool import RunFolder, Spool, atomic, ids, layout

GOING = ".pruned-"


class Retention:
    """Prunes whole runs. Confined to the agent's worker thread. `grace` is in seconds after the last receipt.

    The journaled receipt makes a deletion safe. A run is first renamed out of everybody's sight, so that nobody opens it again
    meanwhile; then the prune is journaled; then files go. `finish` ends, or takes back, what was killed in the middle.

    Where several hosts' agents share the spool, only the holder of its lease deletes, and asks before each step (see Journal.require). An
    agent that was suspended between two steps finds its folder taken back, or ended, by the next holder: its name has the agent's id.
    `unknown` is called with a run that turned out to have a writer that the catalog does not know.
    """

    def __init__(
        self, spool: Spool, catalog: Catalog, journal: Journal, grace: float, *, unknown: Callable[[str], object] = lambda _: None
    ) -> None:  # fmt: skip
        self._spool, self._catalog, self._journal, self._grace, self._unknown = spool, catalog, journal, grace, unknown

    def eligible(self, *servers: str) -> list[str]:
        """Return complete runs of which each of these servers has every record and file, the last receipt older than the grace."""
        if not servers:
            return []
        found = set.intersection(*(self._eligible(server) for server in servers))
        return [r for r in sorted(found) if os.path.isdir(os.path.join(self._spool.runs, r))]

    def _eligible(self, server: str) -> set[str]:
        before = time.time() - self._grace
        rows = self._catalog.rows(
            "SELECT r.id FROM runs r WHERE r.complete = 1"  # noqa: S608
            " AND NOT EXISTS (SELECT 1 FROM writers w LEFT JOIN cursors c ON c.writer = w.id AND c.server = ?"
            "                 WHERE w.run = r.id AND w.sequence > 1"
            "                 AND (c.mark IS NULL OR c.mark < w.sequence - 1 OR c.blocked IS NOT NULL OR c.at > ?)"
            "                 AND NOT EXISTS (SELECT 1 FROM given_up g WHERE g.server = c.server AND g.writer = w.id AND g.seq = 0"
            "                                 AND c.blocked IS NOT NULL))"
            " AND NOT EXISTS (SELECT 1 FROM artifacts a WHERE a.run = r.id"
            f"                AND NOT {is_shed('a.writer', 'a.digest')} AND NOT EXISTS ("
            f"                SELECT 1 FROM uploads u WHERE u.server = ? AND u.digest IN (a.digest, {FILE_KEY})"
            "                 AND u.state IN ('stored', 'dropped') AND u.at <= ?))"
            " AND NOT EXISTS (SELECT 1 FROM damage d JOIN writers w ON w.id = d.writer WHERE w.run = r.id)"
            " AND NOT EXISTS (SELECT 1 FROM refused f JOIN writers w ON w.id = f.writer WHERE w.run = r.id AND f.server = ?)",
            (server, before, server, before, server),
        )
        return {r for (r,) in rows}

    def prune(self, run: str, *servers: str) -> int | None:
        """Delete a run's records and blobs, when it is eligible; returns the bytes freed, None when it is not eligible any more.

        Raises OSError when the journal cannot be written, NotHolder where another agent has the lease; then nothing is deleted.
        """
        self._journal.require()
        self._journal.follow()  # what others know of the run: a server that was restored, what is to be sent again
        if run not in self.eligible(*servers) or not is_copied(self._spool.run(run)):
            return None
        known = dict(self._catalog.rows("SELECT id, sequence - 1 FROM writers WHERE run = ?", (run,)))
        came = carried.read(self._spool.run(run))
        if came is not None and came.origin:  # its receipts tell of it for as long as the journal does
            self._journal.note_ids(custody.carried_from(came.origin), {run: came.via})
        going = self.going(run)
        atomic.rename(self._spool.run(run).path, going.path)
        if set(going.writer_ids()) - known.keys():  # somebody opened it again, maybe on another host, which is seen late
            atomic.rename(going.path, self._spool.run(run).path)
            self._unknown(run)
            return None
        try:
            self._journal.prune(run, time.time(), known)
        except Exception:
            atomic.rename(going.path, self._spool.run(run).path)
            raise
        self._journal.require()
        return self._delete(going)

    def going(self, run: str) -> RunFolder:
        """Return the folder of a run that this agent is about to delete."""
        return RunFolder(os.path.join(self._spool.runs, GOING + run + self._journal.mark), run)

    def finish(self) -> int:
        """Finish prunes that were killed in the middle, and take back those that were not journaled yet. Returns the bytes freed.

        Raises NotHolder where another agent has the lease: it may be in the middle of one.
        """
        self._journal.require()
        freed = 0
        for name in _names(self._spool.runs):
            run, _, _ = name.removeprefix(GOING).partition("-")
            if not name.startswith(GOING) or not ids.is_id(run):
                continue
            going = RunFolder(os.path.join(self._spool.runs, name), run)
            row = self._catalog.one("SELECT last FROM pruned WHERE run = ?", (run,))
            if row is not None and set(going.writer_ids()) <= json.loads(row[0]).keys():
                freed += self._delete(going)
            elif not os.path.exists(self._spool.run(run).path):
                atomic.rename(going.path, self._spool.run(run).path)
        return freed

    def _delete(self, going: RunFolder) -> int:
        freed = sum(_freed(path) for path in layout.walk_files(going.path))
        digests = [name for name in _names(going.blobs) if len(name) == 64]
        shutil.rmtree(going.path)
        freed += sum(self._unpool(digest) for digest in digests)
        with self._catalog.transaction() as db:
            for table in ("pieces", "definitions"):
                db.execute(f"DELETE FROM {table} WHERE writer IN (SELECT id FROM writers WHERE run = ?)", (going.id,))  # noqa: S608
        return freed

    def sweep(self) -> int:
        """Delete blobs of the pool that no run links (a prune was killed between a run's link and the pool's). Returns the bytes freed."""
        return sum(self._unpool(d) for prefix in _names(self._spool.pool) for d in _names(os.path.join(self._spool.pool, prefix)))

    def _unpool(self, digest: str) -> int:
        path = self._spool.pool_path(digest)
        try:
            info = os.stat(path)
        except OSError:
            return 0
        if info.st_nlink > 1:
            return 0
        atomic.remove(path)  # a run that links it in this moment has the bytes by its own link
        return info.st_size


def _freed(path: str) -> int:
    info = os.stat(path)
    return info.st_size if info.st_nlink == 1 else 0


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
