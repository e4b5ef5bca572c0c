"""Recounting runs on their targets: what has a receipt must be there, and be what was recorded.

Nothing is changed anywhere. It works beside a running agent, and without one. The order makes it sound while data flows: first what is
acknowledged is noted, then the target counts, then the segments are read.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from simspool.agent.catalog import Catalog
from simspool.agent.catalog.store import FILE_KEY, pruned
from simspool.agent.targets.port import Recount, Refused, Target, Unreachable
from simspool.spool import Spool, runstate

from .compare import Facts, Outcome, compare
from .known import KnownTarget
from .recorded import Kept, Tally, count
from .restored import restored

_AT_ONCE, _LOOKS, _PAUSE = 4, 3, 1.0


class DeepTarget(Protocol):
    """A target that can read all that it has, and not only count it."""

    async def recount_deep(self, run: str) -> Recount | None:
        """See Target.recount: every point is decoded, and every file hashed."""


class ReadOnlyMemory:
    """What a target noted of its server, as the catalog has it; what it notes now is forgotten at the end (see targets.port.Memory)."""

    def __init__(self, catalog: Catalog, server: str) -> None:
        self._catalog, self._server = catalog, server
        self._noted: dict[str, str] = {}

    async def recall(self, keys: Sequence[str]) -> dict[str, str]:
        """See Memory."""
        found = {}
        for key in keys:
            row = self._catalog.one("SELECT value FROM ids WHERE server = ? AND key = ?", (self._server, key))
            if key in self._noted or row is not None:
                found[key] = self._noted[key] if key in self._noted or row is None else str(row[0])
        return found

    async def note(self, items: Mapping[str, str]) -> None:
        """See Memory."""
        self._noted.update(items)

    async def run_state(self, run: str) -> dict[str, Any]:
        """See Memory."""
        row = self._catalog.one("SELECT state FROM runs WHERE id = ?", (run,))
        return dict(json.loads(row[0])) if row and row[0] else {}


@dataclass(frozen=True, slots=True)
class Asked:
    """A target to verify, connected or not: then `problem` says why, and `refused` whether trying again is no use."""

    known: KnownTarget
    target: Target
    problem: str = ""
    refused: bool = False


async def connect(catalog: Catalog, known: KnownTarget, target: Target) -> Asked:
    """Connect to a target for reading; nothing is raised for what is its own fault."""
    try:
        server, _ = await target.connect()
    except (Unreachable, Refused) as error:
        return Asked(known, target, str(error), isinstance(error, Refused))
    if known.server and server != known.server:
        why = f"{known.address} is another server than the one that gave the receipts ({known.server[:12]}): it has nothing of them"
        return Asked(known, target, why, True)
    target.bind(ReadOnlyMemory(catalog, server))
    return Asked(KnownTarget(known.name, known.kind, known.address, known.required, server), target)


class Verifier:
    """Recounts runs on one target. `catalog` may be another process's, read-only. `report(bytes)` hears of what was read here."""

    def __init__(self, spool: Spool, catalog: Catalog, asked: Asked, *, deep: bool, report: Callable[[int], None]) -> None:
        self._spool, self._catalog, self._asked, self._report = spool, catalog, asked, report
        self._server, self._name = asked.known.server, asked.known.name
        self._exact = asked.target.traits.effect == "exactly-once"
        recount: Any = getattr(asked.target, "recount_deep", None) if deep else None
        self._recount: Callable[[str], Awaitable[Recount | None]] = recount or asked.target.recount
        self.deep = recount is not None

    async def all(self, runs: Sequence[str]) -> AsyncIterator[Outcome]:
        """Yield a verdict for each run, in the order in which they come. Raises Unreachable and Refused."""
        waiting = list(reversed(runs))
        tasks: set[asyncio.Task[Outcome]] = set()
        try:
            while waiting or tasks:
                while waiting and len(tasks) < _AT_ONCE:
                    tasks.add(asyncio.create_task(self.one(waiting.pop())))
                done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def one(self, run: str) -> Outcome:
        """Return the verdict for one run; a difference is looked at again while its receipts go on. Raises Unreachable and Refused."""
        for look in range(_LOOKS):
            facts = self._facts(run)
            out = await self._look(run, facts)
            if out.verdict in {"equal", "explained", "nothing"}:
                break
            if look < _LOOKS - 1:
                await asyncio.sleep(_PAUSE)  # it may be what is on its way in this moment
                if self._facts(run) == facts:
                    break
        return out

    async def _look(self, run: str, facts: Facts) -> Outcome:
        found = await self._recount(run)
        marks = dict(facts.marks)
        if self._exact and found is not None:
            marks = {w: max(marks.get(w, 0), mark) for w, mark in {**marks, **found.marks}.items()}
        tally = Tally(marks, self._without(run), orders=not self._exact)
        problems: list[str] = []
        if not facts.pruned:
            problems = await asyncio.to_thread(count, self._spool, run, [tally], self._report)
        partly = facts.partly or (not facts.pruned and tally.least < sum(facts.marks.values()) - facts.lost)
        facts = replace(facts, partly=partly)
        out = compare(run, self._name, tally, facts, found, exact=self._exact)
        out.notes += problems
        return out

    def _declared(self, run: str, marks: Mapping[str, int]) -> int:
        """Return how many records at or below the marks are gaps now."""
        rows = self._catalog.rows(
            "SELECT p.writer, p.gaps FROM pieces p JOIN writers w ON w.id = p.writer WHERE w.run = ? AND p.gaps IS NOT NULL", (run,)
        )
        spans = ((first, min(last, marks.get(writer, 0))) for writer, gaps in rows for first, last, _ in json.loads(gaps))
        return sum(max(0, last - first + 1) for first, last in spans)

    def _without(self, run: str) -> dict[str, frozenset[int]]:
        found: dict[str, set[int]] = {}
        for table in ("refused", "given_up"):
            sql = (
                f"SELECT r.writer, r.seq FROM {table} r JOIN writers w ON w.id = r.writer"  # noqa: S608
                " WHERE r.server = ? AND w.run = ? AND r.seq > 0"
            )
            for writer, seq in self._catalog.rows(sql, (self._server, run)):
                found.setdefault(writer, set()).add(seq)
        return {writer: frozenset(seqs) for writer, seqs in found.items()}

    def _facts(self, run: str) -> Facts:
        """Return what the catalog knows now of a run and this target."""
        rows = self._catalog.rows
        found = rows(
            "SELECT w.id, w.sequence - 1, coalesce(c.mark, 0), c.blocked IS NOT NULL FROM writers w"
            " LEFT JOIN cursors c ON c.writer = w.id AND c.server = ? WHERE w.run = ?",
            (self._server, run),
        )
        marks = {w: min(mark, recorded) for w, recorded, mark, _ in found}
        waiting = sum(recorded - marks[w] for w, recorded, _, blocked in found if not blocked)
        gone = self._catalog.one(f"SELECT 1 FROM writers w WHERE w.run = ? AND {pruned('w.run', 'w.id')}", (run,)) is not None  # noqa: S608
        shed = self._catalog.one("SELECT 1 FROM shed WHERE run = ?", (run,)) is not None
        row = self._catalog.one("SELECT state, complete FROM runs WHERE id = ?", (run,))
        settled = row is not None and row[0] and row[1] and not waiting and not any(blocked for *_, blocked in found)
        events = self._catalog.one("SELECT count FROM events WHERE run = ?", (run,))
        known = restored(self._catalog, self._server)
        refused = sum(len(seqs) for seqs in self._without(run).values())
        sql = (
            f"SELECT a.name, a.digest, a.size, {FILE_KEY}, EXISTS (SELECT 1 FROM uploads u WHERE u.server = ? AND u.state = 'stored'"  # noqa: S608
            f" AND u.digest IN (a.digest, {FILE_KEY})) FROM artifacts a WHERE a.run = ? ORDER BY a.writer, a.seq"
        )
        files: dict[str, list[Kept]] = {}
        stored: set[str] = set()
        for n, (name, digest, size, key, there) in enumerate(rows(sql, (self._server, run))):
            files.setdefault(name, []).append(Kept(n, digest, size or 0, key, True))
            if there:
                stored.update((digest, key))
        return Facts(
            marks, frozenset(stored), dict(rows("SELECT name, count FROM metrics WHERE run = ?", (run,))), events[0] if events else 0,
            [(what, detail, n) for what, detail, n in rows(
                'SELECT what, detail, sum("count") FROM remarks WHERE server = ? AND run = ? GROUP BY 1, 2', (self._server, run)
            )],
            [g for g in known.gone if g.run == run] if known else [],
            runstate.status(json.loads(row[0])) if settled and row else None, waiting, refused, self._declared(run, marks), shed, gone,
            files,
        )  # fmt: skip
