"""Which blobs a server still needs, and their receipts. Records never wait for them, nor they for records."""

from __future__ import annotations

import os
import time
from collections.abc import Collection

from simspool.agent.catalog import Catalog
from simspool.agent.journal import Journal
from simspool.spool import DamagedBlob, Spool, blobs

ASK_AT_ONCE = 500


class Uploads:
    """Blobs of one server's backlog. Confined to the agent's worker thread. `runs` limits it to some runs; None is all."""

    def __init__(self, spool: Spool, catalog: Catalog, journal: Journal, server: str, runs: Collection[str] | None = None) -> None:
        self._spool, self._catalog, self._journal, self.server = spool, catalog, journal, server
        self._runs = None if runs is None else frozenset(runs)
        self._later: dict[str, float] = {}

    def waiting(self) -> list[tuple[str, str]]:
        """Return (digest, run) of blobs without a receipt, the oldest first, at most ASK_AT_ONCE."""
        rows = self._catalog.rows(
            "SELECT a.digest, min(a.run), group_concat(DISTINCT a.run) FROM artifacts a"
            " LEFT JOIN uploads u ON u.digest = a.digest AND u.server = ? WHERE u.digest IS NULL GROUP BY a.digest ORDER BY min(a.rowid)",
            (self.server,),
        )
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
        """Return where the bytes lie; without any, the blob is put off (its run's process may still be writing it, or it is lost)."""
        runs = [run, *(r for (r,) in self._catalog.rows("SELECT DISTINCT run FROM artifacts WHERE digest = ?", (digest,)))]
        for one in dict.fromkeys(runs):
            folder = self._spool.run(one)
            found = blobs.path_of(self._spool, folder, digest)
            if found is not None:
                return found
        self.put_off(digest)
        return None

    def put_off(self, digest: str, seconds: float = 10.0) -> None:
        """Ask for this blob again later, not now."""
        self._later[digest] = time.monotonic() + seconds

    def settle(self, stored: Collection[str], refused: Collection[tuple[str, str]] = ()) -> None:
        """Journal blobs that the server has, and those it will never take."""
        if stored or refused:
            self._journal.receive(self.server, time.time(), blobs=list(stored), refused_blobs=list(refused))

    def verdict_on_mismatch(self, path: str, digest: str, reason: str) -> str | None:
        """The server says that the bytes do not match: None when ours do (then the way corrupted them: send again), else why not."""
        try:
            blobs.verify(path, digest)
        except DamagedBlob as error:
            return f"damaged in the spool: {error}"
        except OSError as error:
            return f"unreadable in the spool: {error.strerror}"
        return None if "422" in reason else reason

    def size(self, path: str) -> int:
        """Return a blob's size in bytes."""
        try:
            return os.stat(path).st_size
        except OSError:
            return 0
