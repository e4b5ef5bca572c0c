"""One request's worth of ranges: taken fairly from all writers with a backlog, settled by its verdicts.

Confined to the agent's worker thread. The order within a writer never changes: a writer is in one request at a time.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from simspool.agent.budget import account
from simspool.agent.catalog import Catalog
from simspool.agent.catalog.store import pruned
from simspool.agent.journal import Cursor, Journal
from simspool.agent.targets.port import Limits, Range, Traits, Verdict
from simspool.spool import Spool

from .ranges import RangeCutter, Unreadable

REQUEST_BYTES = 4 << 20
_SMALLEST = 16 << 10


@dataclass(slots=True)
class Batch:
    """Ranges in flight together. `ranges` keeps each writer's order."""

    ranges: list[Range]

    @property
    def writers(self) -> set[str]:
        """Who is in it."""
        return {r.writer for r in self.ranges}

    @property
    def bytes(self) -> int:
        """Bytes before compression."""
        return sum(len(r.data) for r in self.ranges)


@dataclass(slots=True)
class Delivered:
    """What a drain has brought to its target since it began."""

    records: int = 0
    bytes: int = 0
    ranges: int = 0
    refused: int = 0
    blobs: int = 0
    blob_bytes: int = 0
    known_blobs: int = 0
    problems: dict[str, str] = field(default_factory=dict)
    lacking: set[str] = field(default_factory=set)  # writers and digests whose bytes the spool itself does not have


class Batches:
    """Cuts and settles batches for one server. `runs` limits it to some runs; None is all."""

    def __init__(
        self, spool: Spool, catalog: Catalog, journal: Journal, server: str, limits: Limits, runs: Collection[str] | None = None,
        traits: Traits = Traits(),  # noqa: B008 - frozen
    ) -> None:  # fmt: skip
        self._catalog, self._journal, self.server, self._limits = catalog, journal, server, limits
        self.cutter = RangeCutter(spool, catalog)
        self._once = traits.effect == "exactly-once"
        self._runs = None if runs is None else frozenset(runs)
        self._busy: set[str] = set()
        self._anew: set[str] = set()  # nothing of their last range was taken, whatever the journal says: it was too large
        self._served: dict[str, int] = {}
        self._turn = 0
        self._request = min(REQUEST_BYTES, limits.decoded // 2, limits.body)
        self._waiting: dict[str, float] = {}
        self.delivered = Delivered()

    @property
    def busy(self) -> set[str]:
        """The writers of which something is under way."""
        return self._busy

    def _backlogged(self) -> list[tuple[str, str, int, int, int, int]]:
        rows = self._catalog.rows(
            'SELECT w.id, w.run, coalesce(c.mark, 0), coalesce(c.chain, 0), coalesce(c.segment, 0), coalesce(c."offset", 0) FROM writers w'  # noqa: S608
            " LEFT JOIN cursors c ON c.writer = w.id AND c.server = ?"
            f" WHERE w.sequence - 1 > coalesce(c.mark, 0) AND c.blocked IS NULL AND NOT {pruned('w.run', 'w.id')} ORDER BY w.id",
            (self.server,),
        )
        now = time.monotonic()
        wanted = [
            r for r in rows
            if r[0] not in self._busy and (self._runs is None or r[1] in self._runs) and self._waiting.get(r[0], 0.0) <= now
        ]  # fmt: skip
        wanted.sort(key=lambda r: self._served.get(r[0], -1))
        return wanted

    def take(self) -> Batch | None:
        """Cut the next request and journal its intent; None when there is no backlog (that is not in flight, or waiting)."""
        backlogged = self._backlogged()
        if not backlogged:
            return None
        budget = self._request
        share = min(budget, max(64 << 10, budget // len(backlogged)))
        ranges: list[Range] = []
        used = 0
        self._turn += 1
        for writer, run, mark, chain, segment, offset in backlogged:
            room = min(self._limits.ranges - len(ranges), self._limits.ranges if self._once else 1)
            if used >= budget or room <= 0:
                break
            cursor = Cursor(writer, mark, chain, segment, offset) if mark else None
            try:
                made = self._cut(writer, run, cursor, share, room)
            except Unreadable as error:
                self._put_off(writer, str(error))
                continue
            self.delivered.problems.pop(writer, None)
            self.delivered.lacking.discard(writer)
            ranges += made
            used += sum(len(r.data) for r in made)
            self._served[writer] = self._turn
        if not ranges:
            return None
        self._journal.intend(self.server, [(r.writer, r.first, r.last) for r in ranges], doubtful=not self._once)
        batch = Batch(ranges)
        self._busy |= batch.writers
        self._anew -= batch.writers
        return batch

    def _cut(self, writer: str, run: str, cursor: Cursor | None, share: int, most: int) -> list[Range]:
        """Cut a writer's next ranges. What was sent before with an unknown end comes as it was, where sending it twice may do it twice."""
        if not self._once and writer not in self._anew:
            found = self._catalog.one('SELECT "first", "last" FROM intents WHERE server = ? AND writer = ?', (self.server, writer))
            if found is not None and found[0] == (cursor.mark if cursor else 0) + 1:
                return [replace(self.cutter.again(writer, run, cursor, found[1]), doubtful=True)]
        return self.cutter.cut(writer, run, cursor, share, most)

    def _put_off(self, writer: str, problem: str) -> None:
        self._waiting[writer] = time.monotonic() + 10.0
        self.delivered.problems[writer] = problem
        self.delivered.lacking.add(writer)

    def smaller(self) -> bool:
        """A server takes only smaller requests than it says: cut smaller ones from now on. False when there are none."""
        if self._request <= _SMALLEST:
            return False
        self._request = max(self._request // 4, _SMALLEST)
        return True

    def release(self, batch: Batch, *, anew: bool = False) -> None:
        """A batch that brought no verdicts: its writers are free to be sent again, as they are or cut anew."""
        self._busy -= batch.writers
        if anew:
            self._anew |= batch.writers

    def settle(self, batch: Batch, verdicts: list[Verdict]) -> None:
        """Journal what was acknowledged, then move the cursors. Raises OSError when the journal cannot be written."""
        cursors: dict[str, Cursor] = {}
        refused: list[tuple[str, int, str]] = []
        blocked: dict[str, str] = {}
        rewinds: list[tuple[Range, Verdict]] = []
        remarks: list[tuple[str, int, str, str, str, int]] = []
        had: dict[str, tuple[Range, Verdict]] = {}
        for sent, verdict in zip(batch.ranges, verdicts, strict=True):
            if sent.writer in blocked or verdict.kind == "unsent":
                continue
            if verdict.kind == "permanent" and self.cutter.is_damaged(sent):
                where = f"at records {sent.first} to {sent.last}"
                self._put_off(sent.writer, f"segment {sent.segment} was damaged after it was taken in, {where}: `agent check` says more")
            elif verdict.kind == "permanent" and (sent.writer in had or self._is_unclear(sent, verdict)):
                had.setdefault(sent.writer, (sent, verdict))
                cursors.setdefault(sent.writer, Cursor(sent.writer, verdict.mark, verdict.chain, 0, 0))
            elif verdict.kind == "permanent":
                blocked[sent.writer] = verdict.reason
            elif verdict.kind == "accepted":
                cursor = self._cursor_after(sent, verdict)
                if cursor is None and self._is_unclear(sent, verdict):
                    had.setdefault(sent.writer, (sent, verdict))
                    cursor = Cursor(sent.writer, verdict.mark, verdict.chain, 0, 0)
                if cursor is None:
                    blocked[sent.writer] = "conflict: the server has other records of this writer than the spool (was a machine cloned?)"
                    continue
                cursors[sent.writer] = cursor
                refused += [(sent.writer, seq, reason) for seq, reason in verdict.refused]
                remarks += [r.row for r in verdict.remarks]
                self.delivered.records += sent.last - sent.first + 1
                self.delivered.bytes += len(sent.data)
                self.delivered.ranges += 1
            elif sent.writer not in cursors:
                rewinds.append((sent, verdict))
        for one in had.values():
            self._note_had(*one)
        if cursors or refused or blocked:
            self._journal.receive(self.server, time.time(), list(cursors.values()), refused, blocked=list(blocked.items()), remarks=remarks)
        for sent, verdict in rewinds:
            self._rewind(sent, verdict)
        self.delivered.refused += len(refused)
        self.delivered.problems.update(blocked)
        self._busy -= batch.writers

    def _cursor_after(self, sent: Range, verdict: Verdict) -> Cursor | None:
        """Return the position that an accepted verdict means; None when the chains differ."""
        if verdict.mark == sent.last:
            ok = verdict.chain == sent.chain_after
            return Cursor(sent.writer, sent.last, sent.chain_after, sent.segment, sent.end) if ok else None
        try:
            found = self.cutter.locate(sent.writer, sent.run, verdict.mark)
        except Unreadable:
            found = None
        if found is None:
            # it has more than we have ingested yet: what we sent is there, the rest is compared when we come to it
            return Cursor(sent.writer, sent.last, sent.chain_after, sent.segment, sent.end)
        return found if found.chain == verdict.chain else None

    def _rewind(self, sent: Range, verdict: Verdict) -> None:
        """The server has less than its receipts said (a restored backup): go back to its mark, if the records are still here."""
        if verdict.mark >= sent.first:
            self._waiting[sent.writer] = time.monotonic() + 10.0
            self.delivered.problems[sent.writer] = f"the server wants records {sent.first} to {sent.last} again later: {verdict.reason}"
            return
        try:
            found = self.cutter.locate(sent.writer, sent.run, verdict.mark)
        except Unreadable:
            found = None
        if found is not None and self._is_unclear(sent, verdict, rewound=True):
            self._journal.shed(account.rewound(sent.run, sent.writer, self.server, verdict.mark))
            found = Cursor(sent.writer, verdict.mark, verdict.chain, 0, 0)
        if found is None or found.chain != verdict.chain:
            gone = f"the server asks for records from {verdict.mark + 1} on, which the spool no longer has"
            self._put_off(sent.writer, f"{gone}: was it restored from an old backup?")
            return
        self._journal.rewind(self.server, found)

    def _note_had(self, sent: Range, verdict: Verdict) -> None:
        """Note what the server had of what was shed since, before its cursor moves on."""
        row = self._catalog.one(
            'SELECT mark, chain, segment, "offset" FROM cursors WHERE server = ? AND writer = ? AND mark > 0', (self.server, sent.writer)
        )
        cursor = Cursor(sent.writer, *row) if row is not None else None
        try:
            spans = self.cutter.had(sent.writer, sent.run, cursor, verdict.mark, verdict.chain)
        except Unreadable:
            return
        if spans:
            self._journal.shed(account.had(sent.run, sent.writer, self.server, spans))

    def _is_unclear(self, sent: Range, verdict: Verdict, *, rewound: bool = False) -> bool:
        """Say whether the server's chain cannot be compared, as something of the writer was shed at or below its mark.

        It may have had that before: a request whose reply was lost. It is believed then.
        """
        if not rewound and verdict.kind == "permanent" and (not verdict.reason.startswith("conflict") or verdict.mark < sent.first):
            return False
        bound = 1 << 62 if rewound else verdict.mark
        return self._catalog.one('SELECT 1 FROM shed WHERE writer = ? AND "first" <= ?', (sent.writer, bound)) is not None
