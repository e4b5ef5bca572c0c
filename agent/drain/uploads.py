"""Which files a server still needs, and their receipts. Records never wait for them, nor they for records."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Sequence
from typing import Any

from simspool.agent.budget.account import is_shed
from simspool.agent.catalog import Catalog
from simspool.agent.catalog.store import FILE_KEY, pruned
from simspool.agent.journal import Journal
from simspool.agent.targets.port import File
from simspool.spool import DamagedBlob, Spool, blobs

from .batch import Delivered

ASK_AT_ONCE = 500
_FIELDS = "a.digest, a.size, a.run, a.writer, a.seq, a.name, a.category, a.mime"


class Uploads:
    """Files of one server's backlog: contents, or with `by_record` each record that names one (see targets.port.Traits).

    Confined to the agent's worker thread. `runs` limits it to some runs; None is all.
    """

    def __init__(
        self, spool: Spool, catalog: Catalog, journal: Journal, server: str, runs: Collection[str] | None = None, *, by_record: bool = False
    ) -> None:
        self._spool, self._catalog, self._journal, self.server = spool, catalog, journal, server
        self._runs = None if runs is None else frozenset(runs)
        self._by_record = by_record
        self._later: dict[str, float] = {}
        self._bad_paths: set[str] = set()
        self._settled_until: tuple[int, ...] | None = None  # the newest artifact, and the receipts, when nothing waited

    def waiting(self, but: Collection[str] = ()) -> list[File]:
        """Return files without a receipt, the oldest first, at most ASK_AT_ONCE; not those whose keys are in `but`."""
        sql = "SELECT (SELECT coalesce(max(rowid), 0) FROM artifacts), (SELECT count(*) FROM uploads WHERE server = ?)"
        newest = self._catalog.one(sql, (self.server,))  # fewer receipts than before: some are to be sent again
        if newest == self._settled_until:
            return []
        key, group = (FILE_KEY, "a.rowid") if self._by_record else ("a.digest", "a.digest")
        rows = self._catalog.rows(
            f"SELECT {key}, group_concat(DISTINCT a.run), min(a.rowid), {_FIELDS} FROM artifacts a"  # noqa: S608
            f" LEFT JOIN uploads u ON u.digest = {key} AND u.server = ? WHERE u.digest IS NULL"
            f" AND NOT {pruned('a.run', 'a.writer')} AND NOT {is_shed('a.writer', 'a.digest')} GROUP BY {group} ORDER BY 3",
            (self.server,),
        )
        if not rows:
            self._settled_until = newest
        now, found = time.monotonic(), []
        for key, runs, _, *row in rows:
            if key in but or (self._runs is not None and not self._runs.intersection(runs.split(","))):
                continue
            if self._later.get(key, 0.0) <= now:
                found.append(_file(key, row))
                if len(found) == ASK_AT_ONCE:
                    break
        return found

    def path(self, digest: str, run: str) -> str | None:
        """Return where the bytes lie, None without any that are right."""
        runs = [run, *(r for (r,) in self._catalog.rows("SELECT DISTINCT run FROM artifacts WHERE digest = ?", (digest,)))]
        for one in dict.fromkeys(runs):
            folder = self._spool.run(one)
            for path in (os.path.join(folder.blobs, digest), self._spool.pool_path(digest)):
                if path not in self._bad_paths and os.path.exists(path):
                    return path
        self._bad_paths.clear()  # they may be restored
        return None

    def put_off(self, key: str, seconds: float = 10.0) -> None:
        """Ask for this file again later, not now."""
        self._later[key] = time.monotonic() + seconds

    def settle(self, stored: Collection[str], refused: Collection[tuple[str, str]] = ()) -> None:
        """Journal files (by their keys) that the server has, and those it will never take."""
        if stored or refused:
            self._journal.receive(self.server, time.time(), blobs=list(stored), refused_blobs=list(refused))

    def not_taken(self, file: File, path: str, reason: str, problem: str, delivered: Delivered) -> None:
        """The server did not take a file: act on whether its bytes (`problem`, see damage_of), the way or the server is at fault."""
        if problem:
            self._bad_paths.add(path)  # another run may have a copy
            self.put_off(file.key, 0.0)
            delivered.problems[file.key] = problem
        elif "422" in reason:
            self.put_off(file.key, 2.0)  # the bytes were right when they left
        else:
            self.settle((), [(file.key, reason)])
            delivered.problems[file.key] = reason

    def size(self, path: str) -> int:
        """Return a blob's size in bytes."""
        try:
            return os.stat(path).st_size
        except OSError:
            return 0


def damage_of(path: str, digest: str) -> str:
    """Read a blob; return what is wrong with it, "" for nothing."""
    try:
        blobs.verify(path, digest)
    except DamagedBlob as error:
        return f"damaged in the spool: {error}"
    except OSError as error:
        return f"unreadable in the spool: {error.strerror}"
    return ""


def stored_files(catalog: Catalog, server: str, count: int, start: int, by_record: bool) -> list[File]:
    """Return files that a server has acknowledged, of runs that are not pruned: `count` of them after `start`, the latest first."""
    key, group = (FILE_KEY, "a.rowid") if by_record else ("a.digest", "a.digest")
    rows = catalog.rows(
        f"SELECT {key}, max(u.at), min(a.rowid), {_FIELDS} FROM artifacts a JOIN uploads u ON u.digest = {key}"  # noqa: S608
        f" WHERE u.server = ? AND u.state = 'stored' AND NOT {pruned('a.run', 'a.writer')} GROUP BY {group}"
        " ORDER BY 2 DESC, 3 LIMIT ? OFFSET ?",
        (server, count, start),
    )
    return [_file(key, row) for key, _, _, *row in rows]


def _file(key: str, row: Sequence[Any]) -> File:
    digest, size, run, writer, seq, name, category, mime = row
    return File(key, digest, size or 0, run, writer, seq, name or "", category or "", mime or "")
