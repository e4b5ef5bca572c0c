"""Which blobs a server still needs, and their receipts. Records never wait for them, nor they for records."""

from __future__ import annotations

import os
import time
from collections.abc import Collection

from simspool.agent.catalog import Catalog
from simspool.agent.catalog.store import pruned
from simspool.agent.journal import Journal
from simspool.spool import DamagedBlob, Spool, blobs

from .batch import Delivered

ASK_AT_ONCE = 500


class Uploads:
    """Blobs of one server's backlog. Confined to the agent's worker thread. `runs` limits it to some runs; None is all."""

    def __init__(self, spool: Spool, catalog: Catalog, journal: Journal, server: str, runs: Collection[str] | None = None) -> None:
        self._spool, self._catalog, self._journal, self.server = spool, catalog, journal, server
        self._runs = None if runs is None else frozenset(runs)
        self._later: dict[str, float] = {}
        self._bad_paths: set[str] = set()
        self._settled_until = -1  # the newest artifact when nothing waited

    def waiting(self) -> list[tuple[str, str]]:
        """Return (digest, run) of blobs without a receipt, the oldest first, at most ASK_AT_ONCE."""
        [newest] = self._catalog.one("SELECT coalesce(max(rowid), 0) FROM artifacts") or (0,)
        if newest == self._settled_until:
            return []
        rows = self._catalog.rows(
            "SELECT a.digest, min(a.run), group_concat(DISTINCT a.run) FROM artifacts a"  # noqa: S608
            " LEFT JOIN uploads u ON u.digest = a.digest AND u.server = ? WHERE u.digest IS NULL"
            f" AND NOT {pruned('a.run', 'a.writer')} GROUP BY a.digest ORDER BY min(a.rowid)",
            (self.server,),
        )
        if not rows:
            self._settled_until = newest
        now, found = time.monotonic(), []
        for digest, run, runs in rows:
            if self._runs is not None and not self._runs.intersection(runs.split(",")):
                continue
            if self._later.get(digest, 0.0) <= now:
                found.append((digest, run))
                if len(found) == ASK_AT_ONCE:
                    break
        return found

    def path(self, digest: str, run: str) -> str | None:
        """Return where the bytes lie; without any that are right, None, and the blob is put off."""
        runs = [run, *(r for (r,) in self._catalog.rows("SELECT DISTINCT run FROM artifacts WHERE digest = ?", (digest,)))]
        for one in dict.fromkeys(runs):
            folder = self._spool.run(one)
            for path in (os.path.join(folder.blobs, digest), self._spool.pool_path(digest)):
                if path not in self._bad_paths and os.path.exists(path):
                    return path
        self._bad_paths.clear()  # they may be restored
        self.put_off(digest, 60.0)
        return None

    def put_off(self, digest: str, seconds: float = 10.0) -> None:
        """Ask for this blob again later, not now."""
        self._later[digest] = time.monotonic() + seconds

    def settle(self, stored: Collection[str], refused: Collection[tuple[str, str]] = ()) -> None:
        """Journal blobs that the server has, and those it will never take."""
        if stored or refused:
            self._journal.receive(self.server, time.time(), blobs=list(stored), refused_blobs=list(refused))

    def not_taken(self, digest: str, path: str, reason: str, delivered: Delivered) -> None:
        """The server did not take a blob: find out whether its bytes, the way or the server is at fault, and act on it."""
        problem = ""
        try:
            blobs.verify(path, digest)
        except DamagedBlob as error:
            problem = f"damaged in the spool: {error}"
        except OSError as error:
            problem = f"unreadable in the spool: {error.strerror}"
        if problem:
            self._bad_paths.add(path)  # another run may have a copy
            self.put_off(digest, 0.0)
            delivered.problems[digest] = problem
        elif "422" in reason:
            self.put_off(digest, 2.0)  # the bytes were right when they left
        else:
            self.settle((), [(digest, reason)])
            delivered.problems[digest] = reason

    def size(self, path: str) -> int:
        """Return a blob's size in bytes."""
        try:
            return os.stat(path).st_size
        except OSError:
            return 0
