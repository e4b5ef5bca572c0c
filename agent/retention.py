"""Retention: nothing is deleted but what the server has acknowledged durably, plus grace (DESIGN 2.10, I7)."""

from __future__ import annotations

import os
import time

from simspool.agent.catalog import Catalog
from simspool.agent.journal import Journal
from simspool.spool import Spool, atomic, layout


class Retention:
    """Prunes whole runs. Confined to the agent's worker thread. `grace` is in seconds after the last receipt.

    The journaled receipt makes a deletion safe. A prune that was killed in the middle is found eligible again, and finished.
    """

    def __init__(self, spool: Spool, catalog: Catalog, journal: Journal, grace: float) -> None:
        self._spool, self._catalog, self._journal, self._grace = spool, catalog, journal, grace

    def eligible(self, server: str) -> list[str]:
        """Return complete runs of which this server has every record and blob, the last receipt older than the grace."""
        rows = self._catalog.rows(
            "SELECT r.id FROM runs r WHERE r.complete = 1"
            " AND NOT EXISTS (SELECT 1 FROM writers w LEFT JOIN cursors c ON c.writer = w.id AND c.server = ?1"
            "                 WHERE w.run = r.id AND (c.mark IS NULL OR c.mark < w.sequence - 1 OR c.blocked IS NOT NULL OR c.at > ?2))"
            " AND NOT EXISTS (SELECT 1 FROM artifacts a LEFT JOIN uploads u ON u.digest = a.digest AND u.server = ?1"
            "                 WHERE a.run = r.id AND (u.state IS NULL OR u.state != 'stored' OR u.at > ?2))"
            " AND NOT EXISTS (SELECT 1 FROM damage d JOIN writers w ON w.id = d.writer WHERE w.run = r.id)",
            (server, time.time() - self._grace),
        )
        return [r for (r,) in rows if os.path.isdir(os.path.join(self._spool.runs, r))]

    def prune(self, server: str, run: str) -> int | None:
        """Delete an eligible run's records and blobs; returns the bytes freed, None when it is not eligible any more."""
        folder = self._spool.run(run)
        known = dict(self._catalog.rows("SELECT id, sequence - 1 FROM writers WHERE run = ?", (run,)))
        if run not in self.eligible(server) or set(folder.writer_ids()) - known.keys():
            return None  # somebody opened it again
        digests = [d for (d,) in self._catalog.rows("SELECT DISTINCT digest FROM artifacts WHERE run = ?", (run,))]
        self._journal.prune(run, time.time(), known, digests)
        freed = 0
        for writer in known:
            place = folder.writer(writer)
            freed += sum(_delete(path) for path in layout.walk_files(place))
            atomic.remove_folder(place)
        for path in list(layout.walk_files(folder.path)):
            freed += _delete(path)
        for name in ("w", "blobs", "inbox", "control", "."):
            atomic.remove_folder(os.path.normpath(os.path.join(folder.path, name)))
        for digest in digests:
            pooled = self._spool.pool_path(digest)
            try:
                if os.stat(pooled).st_nlink == 1:
                    freed += _delete(pooled)
            except FileNotFoundError:
                continue
        with self._catalog.transaction() as db:
            for table in ("pieces", "definitions"):
                db.execute(f"DELETE FROM {table} WHERE writer IN (SELECT id FROM writers WHERE run = ?)", (run,))  # noqa: S608
        return freed


def _delete(path: str) -> int:
    info = os.stat(path)
    atomic.remove(path)
    return info.st_size if info.st_nlink == 1 else 0
