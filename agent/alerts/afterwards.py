"""Judging what no watch was there for: runs that ended while there was no agent, and, for a one-shot sync, those that live."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from simspool.agent.catalog import Catalog
from simspool.agent.notes import RunNotes
from simspool.spool import Spool, runstate

from .elsewhere import Seen, note_once
from .references import References
from .watched import SLACK, Acts, SiteRules, WatchedRun

_ROUNDS = 4


def unjudged(catalog: Catalog, *, ended: bool, site: SiteRules | None = None) -> list[str]:
    """Return the runs with alerts, or for which the site has alerts, that are not judged to their end: those that have ended, or all."""
    which = "complete = 1 AND " if ended else ""
    some = "" if site is not None else " AND state LIKE '%\"alerts\":{\"%'"
    found = []
    for run, text in catalog.rows(f"SELECT id, state FROM runs WHERE {which}state IS NOT NULL{some}"):  # noqa: S608
        state = json.loads(text)
        if not runstate.is_judged(state) or (site is not None and _lacks(state, site)):
            found.append(run)
    return found


def _lacks(state: Mapping[str, Any], site: SiteRules) -> bool:
    """Say whether the site has alerts for a run that nobody has given it."""
    known = runstate.alerts(state)
    return any(alert.body["name"] not in known for alert in site(state))


def judge_afterwards(
    spool: Spool, runs: Collection[str], notes: RunNotes, acts: Acts, site: SiteRules | None, report: Callable[[str], None],
    ended: Iterable[Seen] = (),
) -> int:  # fmt: skip
    """Judge these runs by what they have recorded, and record what follows. Returns how many have rules.

    A run that cannot be judged is reported, and the others go on. Who fires in a run that lives is aborted, as by a watch. `ended` are
    runs that ended before, with an alert firing: rules about several runs count them too.
    """
    judged = 0
    references = References(spool, report, wait=True)
    elsewhere = {one.run: one for one in ended}
    asking: list[WatchedRun] = []
    for name in runs:
        try:
            run = WatchedRun(spool, name, notes, acts, site, references)
            _judge(run)
            judged += bool(run.rules.rules)
            elsewhere[name] = run.seen()
            if run.rules.across and not run.rules.over:
                asking.append(run)
            else:
                run.close()
        except Exception as error:  # noqa: BLE001 - one run's odd records are no reason to leave the others
            report(f"run {name} cannot be judged ({type(error).__name__}: {error})")
    noted = [run for run in asking if note_once(run, elsewhere.values())]
    if noted:
        time.sleep(SLACK)  # what the notes decide, time decides
    for run in asking:
        if run in noted:
            _judge(run)
        run.close()
    return judged


def _judge(run: WatchedRun) -> None:
    for _ in range(_ROUNDS):
        while not run.catch_up():
            pass
        for writer in run.new_writers():
            run.add(writer)
        for one in run.writers.values():
            run.read(one)
        now = run.now()
        run.rules.tick(math.inf if run.rules.over or now is None else now - SLACK)
        run.settle()
        for writer in run.new_writers():  # what the site's rules were recorded in
            run.read(run.add(writer))
        if run.is_ready and not run.rules.stale:
            break
    if run.rules.over:
        run.finish()
