"""What alerts do in other runs: noted in each run with a rule about several, whose verdict follows from the notes alone.

See docs/alerts.md, "Across runs". Confined to the watch's thread.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simspool.agent.catalog import Catalog
from simspool.spool import InvalidRecord, Spool, runstate
from simspool.spool.alert_expression import ALL

from .rules import Rule
from .site import Matcher, parse_where

if TYPE_CHECKING:
    from .watched import WatchedRun

_EVERY = 0.25  # s between notes
_REFRESH = 60.0  # s between looks at the runs that have ended (those that end under watch are known at once)
_SOON = (2.0, 10.0)  # s after runs were judged that nobody watched: when what that decided is in the catalog
_PATIENCE = 30.0  # s that a run may take to be read
_MOST = 10_000  # runs that a note names
Notes = dict[str, dict[str, Any]]
"""By the alert's name: firing, live and live_firing."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A run, as a rule about several looks at it: its folded state, the alerts that it has, those that fire, and whether it lives.

    Alerts that are composed themselves are not among them.
    """

    run: str
    state: Mapping[str, Any]
    has: frozenset[str]
    firing: frozenset[str]
    live: bool


def seen_in_state(run: str, state: Mapping[str, Any]) -> Seen:
    """Return what a run's records say of it, without judging."""
    known = {n: told for n, told in runstate.alerts(state).items() if (told["definition"] or {}).get("source") != "alerts"}
    firing = frozenset(name for name, told in known.items() if told["state"] == "critical")
    return Seen(run, state, frozenset(known), firing, live=not runstate.ended(state))


def ended_and_firing(catalog: Catalog) -> list[Seen]:
    """Return the runs that have ended with an alert firing, from the catalog."""
    rows = catalog.rows("SELECT id, state FROM runs WHERE complete = 1 AND state LIKE '%\"critical\"%'")
    found = [seen_in_state(run, json.loads(state)) for run, state in rows]
    return [one for one in found if one.firing and not one.live]


def told(rule: Rule, seen: Iterable[Seen]) -> Notes:
    """Return what the note of a rule says, given the runs that its filter means."""
    assert rule.when is not None
    notes: Notes = {name: {"firing": [], "live": 0, "live_firing": 0} for name in sorted(rule.when.names)}
    for one in seen:
        for name, note in notes.items():
            if name in one.has:
                fires = name in one.firing
                note["live"] += one.live
                note["live_firing"] += one.live and fires
                if fires:
                    note["firing"].append(one.run)
    for note in notes.values():
        note["firing"] = sorted(note["firing"])[:_MOST]
    return notes


def gist(rule: Rule, notes: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what of a note can matter to the rule's verdict: another is made when this changes. Names that fire nowhere are left out."""
    assert rule.when is not None
    found: dict[str, Any] = {}
    for name, note in (notes or {}).items():
        if isinstance(note, dict) and note.get("firing"):
            found[name] = [note["firing"], note.get("live_firing") == note.get("live") if (name, ALL) in rule.when.operands else None]
    return found


def put_note(run: WatchedRun, rule: Rule, notes: Notes) -> bool:
    """Note in a run what its rule about several sees, where that can matter; True when something was noted."""
    return gist(rule, notes) != gist(rule, run.noted(rule.id)) and run.note_elsewhere(rule.id, notes)


def note_once(run: WatchedRun, seen: Iterable[Seen]) -> bool:
    """Note what the run's rules about several see of these runs; True when something was noted. Raises InvalidRecord for no filter."""
    everything, noted = list(seen), False
    for rule in run.rules.across.values():
        matcher = parse_where(str(rule.runs))
        noted = put_note(run, rule, told(rule, [one for one in everything if one.has and matcher.matches(one.state)])) or noted
    return noted


class Elsewhere:
    """Makes the notes of all runs under watch. `ended` has another thread look up the runs that ended before, with an alert firing."""

    def __init__(self, spool: Spool, ended: Callable[[], Future[list[Seen]]] | None, report: Callable[[str], None]) -> None:
        self._spool, self._ask, self._report = spool, ended, report
        self._asked: Future[list[Seen]] | None = None
        self._told: dict[str, Seen] | None = None if ended is not None else {}  # by the catalog
        self._finished: dict[str, Seen] = {}  # here, since the catalog was asked, or before it knew
        self._matching: dict[str, list[Seen]] = {}  # of those that have ended, by filter
        self._matchers: dict[str, Matcher | None] = {}
        self._next = 0.0
        self._asks = [0.0]  # when to ask for the runs that have ended
        self._is_asking = False
        self._unready_since = math.inf
        self._is_due = False

    def changed(self) -> None:
        """Some run shows something else, or there is another."""
        self._is_due = True

    def judged_others(self) -> None:
        """Runs were judged that are not watched."""
        now = time.monotonic()
        self._asks = sorted([*self._asks, *(now + soon for soon in _SOON)])

    def finished(self, seen: Seen) -> None:
        """A run is watched no longer."""
        self._is_due = True
        if seen.firing and os.path.isdir(os.path.join(self._spool.runs, seen.run)):
            self._finished[seen.run] = dataclasses.replace(seen, live=False)
            self._matching.clear()

    def wake(self) -> float:
        """Return when there is something to do (monotonic s)."""
        return max(self._next, 0.0 if self._is_due else self._asks[0]) if self._is_asking or self._is_due else math.inf

    def note(self, runs: Iterable[WatchedRun], now: float) -> list[WatchedRun]:
        """Note what has changed, and return in which runs; at most a few times a second."""
        if now < self.wake():
            return []
        self._next = now + _EVERY
        runs = list(runs)
        asking = [run for run in runs if run.is_ready and run.rules.across and not run.rules.over]
        self._is_asking = bool(asking)
        if not asking:
            self._is_due = False  # a run that gets such a rule says that it changed
            return []
        if not self._knows_ended(now) or not self._is_patient(runs, now):
            return []
        self._is_due = self._asked is not None
        seen = [run.seen() for run in runs if run.is_ready]
        notes: dict[str, Notes] = {}
        noted = []
        for run in asking:
            for rule in run.rules.across.values():
                if rule.id not in notes:
                    notes[rule.id] = told(rule, self._meant(str(rule.runs), seen))
                if put_note(run, rule, notes[rule.id]):
                    noted.append(run)
        return noted

    def _is_patient(self, runs: Iterable[WatchedRun], now: float) -> bool:
        """Wait until all runs are read: one that is not would seem to have become quiet. Not for ever: one may not be readable."""
        if all(run.is_ready for run in runs):
            self._unready_since = math.inf
            return True
        self._unready_since = min(self._unready_since, now)
        return now - self._unready_since > _PATIENCE

    def _meant(self, text: str, seen: Iterable[Seen]) -> list[Seen]:
        """Return the runs that a filter means: of those under watch, and of those that have ended."""
        matcher = self._matcher(text)
        if matcher is None:
            return []
        if text not in self._matching:
            self._matching[text] = [one for one in self._ended().values() if matcher.matches(one.state)]
        here = [one for one in seen if one.has and matcher.matches(one.state)]
        known = {one.run for one in here}
        return here + [one for one in self._matching[text] if one.run not in known]

    def _matcher(self, text: str) -> Matcher | None:
        if text not in self._matchers:
            try:
                self._matchers[text] = parse_where(text)
            except InvalidRecord as error:
                self._matchers[text] = None
                self._report(f"an alert's runs={text!r} means no runs: {error}")
        return self._matchers[text]

    # ------------------------------------------------------------------ runs that have ended

    def _ended(self) -> dict[str, Seen]:
        return self._finished | (self._told or {})

    def _knows_ended(self, now: float) -> bool:
        """Ask for the runs that have ended, from time to time; True when there has been an answer."""
        if self._asked is not None and self._asked.done():
            try:
                self._told = {one.run: one for one in self._asked.result()}
            except (sqlite3.Error, OSError, CancelledError) as error:
                self._report(f"runs that have ended are not counted yet: {error}")
            self._asked = None
            runs = self._spool.runs
            self._finished = {run: one for run, one in self._finished.items() if os.path.isdir(os.path.join(runs, run))}
            self._matching.clear()
        if self._ask is not None and self._asked is None and now >= self._asks[0]:
            self._asks = [at for at in self._asks if at > now and at <= now + _SOON[-1]] + [now + _REFRESH]
            self._asked = self._ask()
            self._is_due = True
        return self._told is not None
