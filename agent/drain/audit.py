"""Noticing, at a connect, that a server has less than its receipts say: it was restored from a backup, or somebody deleted there.

What was acknowledged last is asked for: whatever else a backup lacks, it lacks that. Where that is gone, everything is asked for, and what
the spool still has is sent again; what it no longer has (grace is over) is a problem that is named.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from simspool.agent.catalog import Catalog
from simspool.agent.journal import Cursor, Journal
from simspool.agent.targets.port import File, Target
from simspool.agent.truth import restored
from simspool.agent.truth.restored import Gone

from .batch import Delivered
from .ranges import RangeCutter, Unreadable
from .uploads import stored_files

_AT_ONCE = 500


class Audit:
    """One connection's questions. `worker` runs a function in the agent's worker thread."""

    def __init__(
        self, target: Target, server: str, catalog: Catalog, journal: Journal, cutter: RangeCutter,
        worker: Callable[..., Awaitable[Any]], delivered: Delivered, report: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self._target, self._server, self._catalog, self._journal = target, server, catalog, journal
        self._cutter, self._worker, self._delivered, self._report = cutter, worker, delivered, report

    async def look(self) -> bool:
        """Ask for the latest receipts, and for all where some are gone. True when the server has less than they say.

        Raises Unreachable, Refused, and OSError when the journal cannot be written.
        """
        recent = self._target.traits.audited
        if not await self._behind(0, recent) and not await self._gone(0, recent):
            return False
        await self.everything()
        return True

    async def everything(self) -> int:
        """Ask for every receipt, and have what is gone there sent again. Returns how many writers and files that are."""
        behind: list[tuple[str, str, int, int]] = []
        at = 0
        while True:  # all of them before the first goes back: a page is a count of those that are not at 0
            page = await self._behind(at, _AT_ONCE)
            behind += page or ()
            at += _AT_ONCE
            if page is None or at >= await self._worker(self._count, "SELECT count(*) FROM cursors WHERE server = ?"):
                break
        at = 0
        gone: list[str] = []
        while at < await self._worker(self._count, "SELECT count(*) FROM uploads WHERE server = ? AND state = 'stored'"):
            gone += [f.key for f in await self._gone(at, _AT_ONCE)]
            at += _AT_ONCE
        await self._worker(self._journal.reopen, self._server, (), gone)
        return int(await self._worker(self._go_back_all, behind, len(gone))) + len(gone)

    def _go_back_all(self, behind: list[tuple[str, str, int, int]], files: int) -> int:
        """Have what the server lost sent again, and note it. Returns how many writers those are."""
        found = {one for one in behind if self._go_back(*one[:3])}
        again = sum(had - mark for _, _, mark, had in found)
        lost = [Gone(run, writer, mark + 1, had) for writer, run, mark, had in behind if (writer, run, mark, had) not in found]
        if restored.note(self._catalog, self._journal, self._server, time.time(), again, files, lost):
            known = restored.restored(self._catalog, self._server)
            self._report(f"{self._target.url} has less than it acknowledged (was it restored from a backup?): {known}")
        return len(found)

    def _count(self, sql: str) -> int:
        row = self._catalog.one(sql, (self._server,))
        return int(row[0]) if row else 0

    async def _behind(self, start: int, count: int) -> list[tuple[str, str, int, int]] | None:
        """Return (writer, run, what the server has, what it had) of those of which it has less; None where it cannot tell."""
        sql = (
            "SELECT w.run, w.id, c.mark FROM cursors c JOIN writers w ON w.id = c.writer WHERE c.server = ? AND c.mark > 0"
            " AND c.blocked IS NULL ORDER BY c.at DESC, w.id LIMIT ? OFFSET ?"
        )
        rows = await self._worker(self._catalog.rows, sql, (self._server, count, start))
        if not rows:
            return []
        found = await self._target.marks([(run, writer) for run, writer, _ in rows])
        if found is None:
            return None
        return [(writer, run, found.get(writer, 0), mark) for run, writer, mark in rows if found.get(writer, 0) < mark]

    async def _gone(self, start: int, count: int) -> list[File]:
        """Return the files with a receipt whose bytes the server does not have."""
        files: list[File] = await self._worker(
            stored_files, self._catalog, self._server, count, start, self._target.traits.files_by_record
        )
        missing = set(await self._target.missing(files)) if files else set()
        return [f for f in files if f.key in missing]

    def _go_back(self, writer: str, run: str, mark: int) -> bool:
        """Have a writer's records sent again from what the server has; False when the spool no longer has them."""
        try:
            found: Cursor | None = self._cutter.locate(writer, run, mark)
        except Unreadable:
            found = None
        if found is None or not self._cutter.has(writer, mark + 1):
            gone = f"the server has records of writer {writer} only up to {mark}, and the spool no longer has the next ones"
            self._delivered.problems[writer] = f"{gone}: was it restored from an old backup?"
            return False
        self._journal.rewind(self._server, found)
        return True
