"""Applying a receipt at the origin: what the other side says is compared with what is here, then journaled as of any server.

What is in the receipt counts writer by writer: one that does not fit is reported, and the others go on. The order of the journal makes it
safe to be killed in: first which spool it is and its custody, then marks with what was refused below them. Applied again, it is completed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from simspool.agent.budget import account
from simspool.agent.catalog import Catalog
from simspool.agent.drain.ranges import RangeCutter, Unreadable
from simspool.agent.journal import Cursor, Journal
from simspool.agent.targets.settings import BUNDLE
from simspool.spool import Spool

from . import custody
from .parts import NotTaken, Position
from .receipts import Receipt, RunReceipt


@dataclass(slots=True)
class Applied:
    """What a receipt changed: `writers` whose marks moved, by so many `records`; `files` that are stored now; `custody`, notes of what the
    other side has; `refused` records, files and whole writers; `taken` ones that it refused before. `complete` runs of those it tells of.

    `conflicts`: writer (or run) -> why nothing of it was taken. `late`: a receipt that was made later has been applied already, so only
    what this one adds counts. `nothing_new`: nothing was changed.
    """

    target: str
    far: str
    writers: int = 0
    records: int = 0
    files: int = 0
    custody: int = 0
    refused: int = 0
    taken: int = 0
    complete: int = 0
    late: bool = False
    conflicts: dict[str, str] = field(default_factory=dict)

    @property
    def nothing_new(self) -> bool:
        """Whether nothing was changed."""
        return not (self.writers or self.files or self.custody or self.refused or self.taken)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {**asdict(self), "nothing_new": self.nothing_new}


def apply_receipt(spool: Spool, catalog: Catalog, journal: Journal, receipt: Receipt, name: str) -> Applied:
    """Apply a receipt for the target `name` of kind "bundle". In the agent's worker thread, or by whoever holds the spool's lock.

    Raises NotTaken for a receipt that is for another spool, or from another far spool than before; OSError where the journal cannot be
    written (applied again, it goes on).
    """
    server = f"{BUNDLE}:{name}"
    if receipt.origin != spool.id:
        raise NotTaken(f"it is for the spool {receipt.origin}, and {spool.path} is {spool.id}: apply it where the bundles are made")
    if receipt.far == spool.id:
        raise NotTaken(f"this receipt was made by the spool {spool.path} itself: the spool that imports makes it")
    far = custody.pinned(catalog, server)
    if far is not None and far != receipt.far:
        raise NotTaken(
            f"the receipts of target {name!r} come from the spool {far}, and this one from {receipt.far}: for a second far spool,"
            f" `agent target add OTHER {BUNDLE}`, and apply it with --target OTHER"
        )
    latest = custody.latest(catalog, server)
    made = _Effect(spool, catalog, journal, server, late=latest is not None and receipt.at < latest["at"])
    made.applied = Applied(name, receipt.far, late=made.late)
    for run in {**receipt.runs, **receipt.pruned}:
        made.add(run, receipt.runs.get(run) or RunReceipt(), receipt.pruned.get(run, {}))
    ids = {} if far is not None else {custody.FAR: receipt.far}
    if not made.late and (latest is None or latest["id"] != receipt.id):
        ids[custody.LATEST] = json.dumps({"id": receipt.id, "at": receipt.at, "targets": [dict(t) for t in receipt.targets[:_NAMED]]})
    made.journal_all(ids)
    return made.applied


_NAMED = 64  # targets of the far spool, of which people may want to know
_AT_ONCE = 1000
_CONFLICT = "conflict: what was delivered is not what is recorded here (was a spool cloned, or a segment damaged?)"


class _Effect:
    """What one receipt changes, gathered run by run, then journaled."""

    def __init__(self, spool: Spool, catalog: Catalog, journal: Journal, server: str, *, late: bool) -> None:
        self._catalog, self._journal, self._server, self.late = catalog, journal, server, late
        self._cutter = RangeCutter(spool, catalog)
        self.applied = Applied("", "")
        self._ids: dict[str, str] = {}
        self._cursors: list[Cursor] = []
        self._had: list[dict[str, Any]] = []
        self._refused: list[tuple[str, int, str]] = []
        self._taken: list[tuple[str, int]] = []
        self._blocked: list[tuple[str, str]] = []
        self._stored: list[str] = []
        self._refused_files: list[tuple[str, str]] = []
        self._reopened: tuple[list[str], list[str]] = ([], [])

    def add(self, run: str, found: RunReceipt, pruned: Mapping[str, int]) -> None:
        """Take in what is said of a run."""
        rows = self._catalog.rows
        here = dict(rows("SELECT id, sequence - 1 FROM writers WHERE run = ?", (run,)))
        gone: dict[str, int] = {}
        if (row := self._catalog.one("SELECT last FROM pruned WHERE run = ?", (run,))) is not None:
            gone = json.loads(row[0])
        known: dict[str, tuple[int, int, str | None]] = {
            writer: (mark, chain, blocked)
            for writer, mark, chain, blocked in rows(
                "SELECT c.writer, c.mark, c.chain, c.blocked FROM cursors c JOIN writers w ON w.id = c.writer"
                " WHERE c.server = ? AND w.run = ?",
                (self._server, run),
            )
        }
        wrong: dict[str, str] = {}
        marks: dict[str, tuple[int, int]] = {}  # of the writers that fit: before and after
        for writer in {**found.custody, **found.delivered, **found.blocked, **pruned}:
            if writer not in here:
                if writer not in gone:
                    wrong[writer] = f"writer {writer} of run {run} is not in this spool"
                continue
            mark, chain, blocked = known.get(writer, (0, 0, None))
            said, chain_there = found.delivered.get(writer, (0, 0))
            if said > here[writer]:
                wrong[writer] = f"the receipt has {said} records of it, and {here[writer]} were recorded here: was this spool restored?"
                continue
            if said == mark and said and chain_there != chain:
                wrong[writer] = _CONFLICT
                continue
            if said > mark:
                cursor, why = self._cursor(run, writer, mark, chain, said, chain_there)
                if why:
                    wrong[writer] = why
                    continue
                if cursor is None:  # pruned here
                    said = mark
                else:
                    self._cursors.append(cursor)
                    self.applied.writers += 1
                    self.applied.records += said - mark
            marks[writer] = mark, max(mark, said)
            self._block(writer, blocked, found, grew=said > mark)
        self._refusals(run, found, marks)
        self._files(run, found, pruned, marks)
        if left := here.keys() - wrong.keys() - gone.keys():
            self._custody(run, found, left)
        self.applied.conflicts |= wrong
        self.applied.complete += found.complete and not wrong

    def _cursor(self, run: str, writer: str, mark: int, chain: int, said: int, chain_there: int) -> tuple[Cursor | None, str]:
        """Return the position that a mark means here (None where its records are pruned), and why it is not believed, or nothing."""
        try:
            if self._catalog.one('SELECT 1 FROM shed WHERE writer = ? AND "first" <= ?', (writer, said)) is not None:
                # what was shed here since, the other side may have had before: its chain cannot be compared, and tells what it had
                before = Cursor(writer, mark, chain, 0, 0) if mark else None
                if spans := self._cutter.had(writer, run, before, said, chain_there):
                    self._had.append(account.had(run, writer, self._server, spans))
                return Cursor(writer, said, chain_there, 0, 0), ""
            found = self._cutter.locate(writer, run, said)
        except Unreadable as error:
            return None, str(error)
        if found is not None and found.chain != chain_there:
            return None, _CONFLICT
        return found, ""

    def _block(self, writer: str, blocked: str | None, found: RunReceipt, *, grew: bool) -> None:
        reason = found.blocked.get(writer)
        if self.late and not grew:
            return
        if reason is not None and reason != blocked:
            self.applied.refused += blocked is None
            self._blocked.append((writer, reason))
        elif reason is not None and grew:
            self._blocked.append((writer, reason))  # a cursor that moves opens it
        elif reason is None and blocked is not None:
            self.applied.taken += 1
            if not grew:
                self._reopened[0].append(writer)

    def _refusals(self, run: str, found: RunReceipt, marks: Mapping[str, tuple[int, int]]) -> None:
        """Take in which single records were refused, and which are no more. What the user gave up stays so."""
        sql = "SELECT r.writer, r.seq, r.reason FROM {} r JOIN writers w ON w.id = r.writer WHERE r.server = ? AND w.run = ? AND r.seq > 0"
        known = {(w, seq): reason for w, seq, reason in self._catalog.rows(sql.format("refused"), (self._server, run))}
        given_up = {(w, seq) for w, seq, _ in self._catalog.rows(sql.format("given_up"), (self._server, run))}
        said = {(writer, seq): reason for writer, seq, reason in found.refused}
        for (writer, seq), reason in said.items():
            before, after = marks.get(writer, (0, 0))
            if not 0 < seq <= after or (writer, seq) in given_up or known.get((writer, seq)) == reason or (self.late and seq <= before):
                continue
            self.applied.refused += (writer, seq) not in known
            self._refused.append((writer, seq, reason))
        if not self.late:
            upto = {writer: mark for writer, (mark, _) in found.delivered.items() if writer in marks}
            self._taken += (back := [one for one in known if one not in said and one[1] <= upto.get(one[0], 0)])
            self.applied.taken += len(back)

    def _files(self, run: str, found: RunReceipt, pruned: Mapping[str, int], marks: Mapping[str, tuple[int, int]]) -> None:
        """Take in what became of files, of acknowledged records only. Of what was pruned there, all that was not refused is stored."""
        rows = self._catalog.rows("SELECT writer, seq, digest FROM artifacts WHERE run = ? ORDER BY writer, seq", (run,))
        sql = "SELECT u.digest, u.state, u.reason FROM uploads u WHERE u.server = ? AND u.digest IN (SELECT value FROM json_each(?))"
        keys = json.dumps([f"{writer}.{seq}" for writer, seq, _ in rows])
        known = {key: (state, reason) for key, state, reason in self._catalog.rows(sql, (self._server, keys))}
        stored, refused = set(found.stored), dict(found.refused_files)
        for writer, seq, digest in rows:
            key = f"{writer}.{seq}"
            state, before = known.get(key, ("", None))
            if state == "stored" or seq > marks.get(writer, (0, 0))[1]:
                continue
            reason = refused.get(key) or (refused.get(digest) if seq <= pruned.get(writer, 0) else None)
            if reason is None and (key in stored or seq <= pruned.get(writer, 0)):
                self.applied.files += 1
                self._stored.append(key)
            elif reason is not None and state != "dropped" and reason != before and not (self.late and state):
                self.applied.refused += not state
                self._refused_files.append((key, reason))
            elif reason is None and state == "refused" and not self.late:
                self.applied.taken += 1
                self._reopened[1].append(key)

    def _custody(self, run: str, found: RunReceipt, writers: set[str]) -> None:
        """Note what the other side has. The latest receipt may say less than one before: it lost something, and is brought it again."""
        had = custody.positions(self._catalog, self._server, run)
        for writer, position in found.custody.items():
            before = had.get(writer)
            if writer not in writers or before == position or (self.late and before is not None and not _is_further(position, before)):
                continue
            self._ids[custody.writer_key(run, writer)] = custody.position_text(position)
            self.applied.custody += 1
        if found.files:
            here = {digest for (digest,) in self._catalog.rows("SELECT digest FROM artifacts WHERE run = ?", (run,))}
            new = here.intersection(found.files) - custody.files(self._catalog, self._server, run)
            self._ids |= {custody.file_key(run, digest): "1" for digest in sorted(new)}
            self.applied.custody += len(new)

    def journal_all(self, ids: Mapping[str, str]) -> None:
        """Write it down. Raises OSError when the journal cannot be written."""
        items = [*ids.items(), *self._ids.items()]
        for i in range(0, len(items), _AT_ONCE):
            self._journal.note_ids(self._server, dict(items[i : i + _AT_ONCE]))
        for body in self._had:
            self._journal.shed(body)
        if any(self._reopened):
            self._journal.reopen(self._server, *self._reopened)
        lots = (self._cursors, self._refused, self._stored, self._refused_files, self._blocked, self._taken)
        if any(lots):
            self._journal.receive(
                self._server, time.time(), self._cursors, self._refused, self._stored, self._refused_files, self._blocked, taken=self._taken
            )


def _is_further(position: Position, before: Position) -> bool:
    return (position.segment, position.offset, position.final) > (before.segment, before.offset, before.final)
