"""What `agent relay send --once` waits for: that the other side has, or has delivered, everything that was recorded before it began."""

from __future__ import annotations

from simspool.agent.carry import custody
from simspool.agent.catalog import Catalog
from simspool.agent.sync import Goals, SyncReport


class RelayGoals:
    """Goals of one relay, taken from the catalog when it began. `look` says how far they are."""

    def __init__(self, catalog: Catalog, server: str) -> None:
        self._server = server
        goals = Goals(catalog, None)
        self._marks, self._keys, self._digests = goals.marks, goals.keys, goals.digests
        rows = catalog.rows('SELECT id, run, segment, "offset" FROM writers WHERE segment > 0')
        self._positions = {writer: (run, segment, offset) for writer, run, segment, offset in rows if writer in goals.marks}
        files = catalog.rows("SELECT DISTINCT run, digest FROM artifacts")
        self._files = {(run, digest) for run, digest in files if digest in goals.digests}
        self._runs = goals.runs

    def look(self, catalog: Catalog) -> SyncReport:
        """Return how far the other side has delivered them; `state` is done when nothing is left."""
        goals = Goals(catalog, [])
        goals.marks, goals.keys, goals.digests = dict(self._marks), set(self._keys), set(self._digests)
        goals.runs, goals.records = set(self._runs), sum(self._marks.values())
        report = SyncReport("draining", bundles=True, url=self._server)
        left = goals.measure(self._server, report, by_record=True)
        report.state = "draining" if left else "done"
        return report

    def custody_left(self, catalog: Catalog) -> int:
        """Return of how many writers and files the other side does not have yet what was there."""
        marks = dict(catalog.rows("SELECT writer, mark FROM cursors WHERE server = ?", (self._server,)))
        known = {run: (custody.positions(catalog, self._server, run), custody.files(catalog, self._server, run)) for run in self._runs}
        stored = {key for (key,) in catalog.rows("SELECT digest FROM uploads WHERE server = ?", (self._server,))}
        left = 0
        for writer, (run, segment, offset) in self._positions.items():
            there = known[run][0].get(writer) if run in known else None
            has = there is not None and (there.segment, there.offset) >= (segment, offset)
            left += not (has or (there is not None and there.final) or marks.get(writer, 0) >= self._marks[writer])
        delivered = {digest for run, digest in self._files if self._is_stored(catalog, run, digest, stored)}
        return left + sum(1 for run, digest in self._files if digest not in delivered and (run not in known or digest not in known[run][1]))

    @staticmethod
    def _is_stored(catalog: Catalog, run: str, digest: str, stored: set[str]) -> bool:
        rows = catalog.rows("SELECT writer, seq FROM artifacts WHERE run = ? AND digest = ?", (run, digest))
        return bool(rows) and all(f"{writer}.{seq}" in stored for writer, seq in rows)
