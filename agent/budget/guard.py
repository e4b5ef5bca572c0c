"""The guard: measures the spool, decides what is refused, and says so to the scripts (spool/pressure.py).

A spool that is small is walked every few seconds; of a large one, a walk takes no more than half a percent of the time, and in between
what was ingested since is added. So another process's files, and what was deleted, are seen at the next walk.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from simspool.agent.catalog import Catalog
from simspool.sdk.budget import Budget
from simspool.sdk.pressure import Thinning, floor_pressure, watched_by
from simspool.spool import Spool, pressure, runstate
from simspool.spool.pressure import FILES, FREE, SAMPLES, Pressure
from simspool.spool.segment import SEGMENT_MAX

from .measure import Usage, measure

LOOK_EVERY = 5.0
"""Seconds between two looks."""

_SHARE = 200  # times as long as a walk took, the next one is put off
_SAY_EVERY = 30.0
_GOAL = 0.90  # of a budget: shedding ends below


@dataclass(frozen=True, slots=True)
class Survey:
    """What the catalog tells: a figure that grows by the bytes that are recorded, and the metrics that alert rules look at."""

    grown: int = 0
    watched: frozenset[str] = frozenset()


def survey(catalog: Catalog) -> Survey:
    """Ask the catalog. Confined to the agent's worker thread."""
    [segments] = catalog.one('SELECT coalesce(sum(max(segment - 1, 0) * ? + "offset"), 0) FROM writers', (SEGMENT_MAX,)) or (0,)
    [files] = catalog.one("SELECT coalesce(sum(size), 0) FROM (SELECT max(size) AS size FROM artifacts GROUP BY digest)") or (0,)
    watched: set[str] = set()
    for (state,) in catalog.rows("SELECT state FROM runs WHERE complete = 0 AND state IS NOT NULL"):
        defined = (alert["definition"] for alert in runstate.alerts(json.loads(state)).values())
        watched |= watched_by(body for body in defined if body)
    return Survey(segments + files, frozenset(watched))


class Guard:
    """One agent's guard on one spool. `look` may block for as long as a walk takes: call it in a thread, one call at a time.

    `standing` is what is said at the moment, `usage` what was measured (None where nothing has to be), `use` the share of the budget.
    """

    def __init__(self, spool: Spool, budget: Budget, *, report: Callable[[str], None] = lambda _: None) -> None:
        self._spool, self.budget, self._report = spool, budget, report
        self.standing = Pressure()
        self.usage: Usage | None = None
        self.use = 0.0
        self.problem = ""
        self._walked, self._grown = Usage(), 0
        self._walk_at = self._say_at = 0.0
        self._floor = Pressure()
        self._said: tuple[int, tuple[str, ...]] | None = None
        self._over = 0
        self.gate = Thinning(FREE, lambda: self.standing.watched, 0)
        """The gate of the agent's own resource samples."""

    @property
    def level(self) -> int:
        """What is refused at the moment."""
        return self.standing.level

    def as_dict(self) -> dict[str, object]:
        """Return what a status shows."""
        return _shown(self.budget, self.usage, self.standing)

    @property
    def wants_room(self) -> bool:
        """Whether more has to go: what is refused was not enough, at two looks."""
        return self._over >= 2 and self.use >= _GOAL

    @property
    def wanted(self) -> int:
        """How many bytes are to go until there is room; 1 where it is inodes that are short. Raises OSError."""
        over = 1
        if self.usage is not None and self.budget.bytes is not None:
            over = max(over, self.usage.bytes - int(_GOAL * self.budget.bytes))
        found = os.statvfs(self._spool.path)
        return max(over, int(self.budget.free.of(found.f_blocks * found.f_frsize) / _GOAL) - found.f_bavail * found.f_frsize)

    def look(self, found: Survey) -> Pressure:
        """Measure, decide, and say it where that has changed or is due. Never raises; `problem` tells what could not be done."""
        now = time.monotonic()
        self.problem = ""
        if self.budget.is_limited:
            try:
                if now >= self._walk_at:
                    self._walked, self._grown = measure(self._spool.path), found.grown
                    self._walk_at = time.monotonic() + _SHARE * (time.monotonic() - now)
                self.usage = self._walked + Usage(found.grown - self._grown, 0)
            except OSError as error:
                self.problem = f"the spool cannot be measured: {error.strerror or error}"
        self._decide(tuple(sorted(found.watched)))
        self._over = self._over + 1 if self.use >= 1.0 and self.level >= FILES else 0
        return self._say()

    def freed(self, amount: Usage) -> Pressure:
        """Take off what was deleted."""
        self._walked += -amount
        if self.usage is not None:
            self.usage += -amount
        self._decide(self.standing.watched)
        return self._say()

    def _decide(self, watched: tuple[str, ...]) -> None:
        use, why = 0.0, ""
        if self.usage is not None:
            for limit, amount, what in (
                (self.budget.bytes, self.usage.bytes, f"{self.usage.bytes / 1e6:,.1f} MB of {(self.budget.bytes or 0) / 1e6:,.1f} MB"),
                (self.budget.inodes, self.usage.inodes, f"{self.usage.inodes:,} of {self.budget.inodes or 0:,} files"),
            ):
                if limit and amount / limit >= use:
                    use, why = amount / limit, f"the spool has {what} that it may take"
        self._floor = floor_pressure(self._spool.path, self.budget, self._floor)
        if self._floor.use > use:
            use, why = self._floor.use, self._floor.why
        before = self.standing
        level = pressure.level_after(before.level, use)
        since = before.since if level == before.level else time.time()
        self.use, self.standing = use, Pressure(level, use, why, since if level else 0.0, watched)
        self.gate.level = min(level, SAMPLES)
        self.gate.refresh()
        if level != before.level:
            self._report(f"{WORDS[level]}: {why}")

    def _say(self) -> Pressure:
        """Tell the scripts. Nothing has to be said where nothing is refused."""
        standing, now = self.standing, time.monotonic()
        said = (standing.level, standing.watched)
        try:
            if standing.level == FREE:
                if self._said is None or self._said[0] != FREE:
                    pressure.withdraw(self._spool.path)  # of an agent before this one, too
            elif said != self._said or now >= self._say_at:
                pressure.publish(self._spool.path, standing)
                self._say_at = now + _SAY_EVERY
            self._said = said
        except OSError as error:  # scripts look at the disk themselves when the word is over
            self.problem = f"scripts cannot be told how much room the spool has: {error.strerror or error}"
        return standing

    def stop(self) -> None:
        """Say nothing any more; raises nothing."""
        try:
            pressure.withdraw(self._spool.path)
        except OSError:
            return  # it is over soon


WORDS = (
    "nothing is refused", "no resource samples are taken", "metrics are thinned, no resource samples are taken",
    "no files are taken, metrics are thinned, no resource samples are taken",
)  # fmt: skip
"""What each level means, for people."""


def look_once(spool: Spool, budget: Budget) -> dict[str, object]:
    """Return what a status shows of the budget where no agent runs: measured now, with what is said at the moment. Raises OSError."""
    word = pressure.read(spool.path)
    standing = word[0] if word is not None else floor_pressure(spool.path, budget, Pressure())
    return _shown(budget, measure(spool.path) if budget.is_limited else None, standing)


def _shown(budget: Budget, usage: Usage | None, standing: Pressure) -> dict[str, object]:
    return {
        "bytes": usage.bytes if usage is not None else None, "bytes_limit": budget.bytes,
        "inodes": usage.inodes if usage is not None else None, "inodes_limit": budget.inodes,
        "level": standing.level, "refused": WORDS[standing.level], "why": standing.why if standing.level else "",
        "since": standing.since or None, "shed": budget.shed,
    }  # fmt: skip
