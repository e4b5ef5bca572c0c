"""The books: what became of every record and file of every run, for each target and for all that count together.

For each of them, what was recorded is acknowledged, waiting, refused, given up, lost or gone, and nothing else (`Account.imbalance` says so
where it is not: a bug). Of records these are disjoint spans of sequences:

- lost: no longer there, and declared to the target as a gap (damage, or shed by the user before the target had it);
- acknowledged: at or below the target's mark, without what it refused there;
- refused: single records at or below the mark, or all the rest of a writer that it refuses as a whole;
- given up: refused, and the user said to drop it (`agent dead drop`);
- gone: pruned from the spool before this target had it (it was added later, or is best-effort);
- waiting: all the rest.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from simspool.agent.budget.account import Span, lost_spans, spans_of
from simspool.agent.catalog import Catalog
from simspool.agent.catalog.store import FILE_KEY, pruned

from .known import KnownTarget, counting, files_by_record

ALL = ""
"""The key of what all targets that count have together."""
_ALL_RUNS = "*"
_WORST = ("waiting", "refused", "given_up", "lost", "gone", "acknowledged")


@dataclass(slots=True)
class Account:
    """Counts of records, or of files; `recorded` is the sum of the others."""

    recorded: int = 0
    acknowledged: int = 0
    waiting: int = 0
    refused: int = 0
    given_up: int = 0
    lost: int = 0
    gone: int = 0

    def add(self, other: Account) -> None:
        """Add another's counts."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))

    def imbalance(self) -> str:
        """Return what does not add up, or nothing."""
        parts = [one.name for one in fields(self)][1:]
        total = sum(getattr(self, name) for name in parts)
        wrong = [f"{name} is {n}" for name in parts if (n := getattr(self, name)) < 0]
        if total != self.recorded:
            wrong.append(f"{self.recorded} recorded, and {total} of them accounted for")
        return ", ".join(wrong)

    def as_dict(self) -> dict[str, int]:
        """Return the counts as JSON."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


@dataclass(frozen=True, slots=True)
class Lost:
    """Records of a writer that no longer exist, with the reason."""

    run: str
    writer: str
    first: int
    last: int
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"run": self.run, "writer": self.writer, "sequences": [self.first, self.last], "reason": self.reason}


@dataclass(slots=True)
class Books:
    """`records` and `files`: run -> target's name (or ALL) -> counts. `lost` and `drops` (run -> reason -> count) are the spool's own."""

    records: dict[str, dict[str, Account]] = field(default_factory=dict)
    files: dict[str, dict[str, Account]] = field(default_factory=dict)
    lost: list[Lost] = field(default_factory=list)
    drops: dict[str, dict[str, int]] = field(default_factory=dict)
    all_files: dict[str, Account] = field(default_factory=dict)  # by target: what several runs have is one file here

    def all_records(self, target: str) -> Account:
        """Return the sum over all runs."""
        made = Account()
        for accounts in self.records.values():
            if target in accounts:
                made.add(accounts[target])
        return made

    def imbalances(self) -> list[str]:
        """Return what does not add up, by run and target."""
        return [
            f"run {run}, {target or 'all targets'}: {what}: {why}"
            for what, accounts in (("records", self.records), ("files", self.files))
            for run, by_target in accounts.items()
            for target, account in by_target.items()
            if (why := account.imbalance())
        ]


@dataclass(frozen=True, slots=True)
class _Standing:
    """What one target has of one writer."""

    mark: int = 0
    blocked: bool = False
    given_up: bool = False
    refused: frozenset[int] = frozenset()
    dropped: frozenset[int] = frozenset()

    @property
    def plain(self) -> bool:
        """Whether nothing of it was ever refused."""
        return not (self.blocked or self.refused or self.dropped)


_NOTHING = _Standing()


def books(catalog: Catalog, targets: Sequence[KnownTarget], runs: Collection[str] | None = None) -> Books:
    """Return the books of some runs, or of all."""
    made = Books()
    rows = catalog.rows(f"SELECT w.id, w.run, w.sequence - 1, w.drops, {pruned('w.run', 'w.id')} FROM writers w ORDER BY w.run, w.id")  # noqa: S608
    wanted = None if runs is None else frozenset(runs)
    standings = {t.name: _standings(catalog, t.server) for t in targets}
    gaps, shed = _gaps(catalog), _shed(catalog)
    lots = [(t.name, [t]) for t in targets] + [(ALL, counting(targets))]
    for writer, run, recorded, drops, gone in rows:
        if wanted is not None and run not in wanted:
            continue
        for reason, n in json.loads(drops or "{}").items():
            by_reason = made.drops.setdefault(run, {})
            by_reason[reason] = by_reason.get(reason, 0) + n
        spans = gaps.get(writer, [])
        made.lost += [Lost(run, writer, first, last, reason) for first, last, reason in spans]
        accounts = made.records.setdefault(run, {})
        for name, lot in lots:
            standing = [standings[t.name].get(writer, _NOTHING) for t in lot] or [_NOTHING]
            account = accounts.get(name)
            if account is None:
                account = accounts[name] = Account()
            if not spans and writer not in shed and all(s.mark >= recorded and s.plain for s in standing):  # nearly all
                account.recorded += recorded
                account.acknowledged += recorded
                continue
            missing = [(a, min(b, recorded)) for a, b, reason in spans if reason != "shed"]
            missing += [(a, b) for _, a, b in lost_spans(shed.get(writer, ()), [t.server for t in lot])]
            account.add(_of_writer(recorded, standing, missing, bool(gone)))
    _count_files(catalog, targets, made, wanted)
    return made


def _of_writer(recorded: int, standings: Sequence[_Standing], missing: Sequence[tuple[int, int]], gone: bool) -> Account:
    """Return what became of a writer's records for some targets together: what the last of them lacks is not acknowledged.

    `missing` are the spans that were lost before all of them had them.
    """

    def least(found: Iterable[_Standing]) -> int:
        return min((s.mark for s in found), default=recorded)

    waiting_from = min(least(s for s in standings if not s.blocked), recorded)
    refused_from = min(least(s for s in standings if s.blocked and not s.given_up), waiting_from)
    acknowledged_to = min(least(s for s in standings if s.given_up), refused_from)

    def left(after: int, upto: int) -> int:
        return upto - after - sum(max(0, min(b, upto) - max(a, after + 1) + 1) for a, b in missing)

    refused: set[int] = set().union(*(s.refused for s in standings))
    dropped: set[int] = set().union(*(s.dropped for s in standings)) - refused
    refused, dropped = ({seq for seq in found if seq <= acknowledged_to} for found in (refused, dropped))
    rest = left(waiting_from, recorded)
    return Account(
        recorded,
        left(0, acknowledged_to) - len(refused) - len(dropped),
        0 if gone else rest,
        left(refused_from, waiting_from) + len(refused),
        left(acknowledged_to, refused_from) + len(dropped),
        sum(b - a + 1 for a, b in missing),
        rest if gone else 0,
    )


def _standings(catalog: Catalog, server: str) -> dict[str, _Standing]:
    if not server:
        return {}
    refused: dict[str, set[int]] = {}
    dropped: dict[str, set[int]] = {}
    for writer, seq in catalog.rows("SELECT writer, seq FROM refused WHERE server = ?", (server,)):
        refused.setdefault(writer, set()).add(seq)
    given_up: set[str] = set()
    for writer, seq in catalog.rows("SELECT writer, seq FROM given_up WHERE server = ? AND writer != ''", (server,)):
        if seq:
            dropped.setdefault(writer, set()).add(seq)
        else:
            given_up.add(writer)
    return {
        writer: _Standing(
            mark, blocked is not None, blocked is not None and writer in given_up,
            frozenset(refused.get(writer, ())), frozenset(dropped.get(writer, ())),
        )
        for writer, mark, blocked in catalog.rows("SELECT writer, mark, blocked FROM cursors WHERE server = ?", (server,))
    }  # fmt: skip


def _gaps(catalog: Catalog) -> dict[str, list[tuple[int, int, str]]]:
    found: dict[str, list[tuple[int, int, str]]] = {}
    for writer, text in catalog.rows("SELECT writer, gaps FROM pieces WHERE gaps IS NOT NULL AND gaps != '[]' ORDER BY writer, \"first\""):
        found.setdefault(writer, []).extend((a, b, str(reason)) for a, b, reason in json.loads(text))
    return found


def _shed(catalog: Catalog) -> dict[str, list[Span]]:
    found: dict[str, list[Span]] = {}
    for span in spans_of(catalog):
        found.setdefault(span.writer, []).append(span)
    return found


# ------------------------------------------------------------------ files


def _count_files(catalog: Catalog, targets: Sequence[KnownTarget], made: Books, wanted: Collection[str] | None) -> None:
    """Count files: for a target each content once, or each record where it keeps those; for all together each content once."""
    rows = catalog.rows(
        f"SELECT a.run, a.digest, {FILE_KEY}, {pruned('a.run', 'a.writer')}, s.digest IS NOT NULL"  # noqa: S608
        " FROM artifacts a LEFT JOIN shed_files s ON s.writer = a.writer AND s.digest = a.digest"
    )
    names = {"stored": "acknowledged", "refused": "refused", "dropped": "given_up"}
    states = {
        t.name: {key: names[state] for key, state in catalog.rows("SELECT digest, state FROM uploads WHERE server = ?", (t.server,))}
        for t in targets
    }
    by_record = {t.name: files_by_record(catalog, t) for t in targets}
    count = [t.name for t in counting(targets)]
    of_unit: dict[tuple[str, str, str], str] = {}
    for run, digest, key, gone, shed in rows:
        if wanted is not None and run not in wanted:
            continue
        without = "lost" if shed else "gone" if gone else "waiting"
        mine = {t.name: states[t.name].get(key) or states[t.name].get(digest) or without for t in targets}
        together = _worst([mine[name] for name in count]) if count else without
        for owner in (run, _ALL_RUNS):
            for name, state in mine.items():
                _worsen(of_unit, (owner, name, key if by_record[name] else digest), state)
            _worsen(of_unit, (owner, ALL, digest), together)
    for (run, name, _), state in of_unit.items():
        accounts = made.all_files if run == _ALL_RUNS else made.files.setdefault(run, {})
        account = accounts.setdefault(name, Account())
        account.recorded += 1
        setattr(account, state, getattr(account, state) + 1)


def _worst(states: Collection[str]) -> str:
    return next(state for state in _WORST if state in states)


def _worsen(of_unit: dict[tuple[str, str, str], str], unit: tuple[str, str, str], state: str) -> None:
    of_unit[unit] = _worst([state, of_unit[unit]]) if unit in of_unit else state


def remarks(catalog: Catalog, target: KnownTarget, run: str | None = None) -> Iterator[tuple[str, str, str, int]]:
    """Yield (run, what, detail, count) of what a target took otherwise than it was recorded, for one run or for all."""
    sql = 'SELECT run, what, detail, sum("count") FROM remarks WHERE server = ? AND (? IS NULL OR run = ?) GROUP BY 1, 2, 3 ORDER BY 1, 2'
    yield from ((str(a), str(b), str(c), int(d)) for a, b, c, d in catalog.rows(sql, (target.server, run, run)))
