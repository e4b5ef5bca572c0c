"""Judging what no watch was there for: runs that ended while there was no agent, and, for a one-shot sync, those that live."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from simspool.agent.catalog import Catalog
from simspool.agent.notes import RunNotes
from simspool.spool import Spool, runstate

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
    return any(body.get("name") not in known for body in site(state))


def judge_afterwards(
    spool: Spool, runs: Collection[str], notes: RunNotes, acts: Acts, site: SiteRules | None, report: Callable[[str], None]
) -> int:
    """Judge these runs by what they have recorded, and record what follows. Returns how many have rules.

    A run that cannot be judged is reported, and the others go on. Who fires in a run that lives is aborted, as by a watch.
    """
    judged = 0
    for run in runs:
        try:
            judged += _judge(WatchedRun(spool, run, notes, acts, site))
        except Exception as error:  # noqa: BLE001 - one run's odd records are no reason to leave the others
            report(f"run {run} cannot be judged ({type(error).__name__}: {error})")
    return judged


def _judge(run: WatchedRun) -> bool:
    for _ in range(_ROUNDS):
        while not run.catch_up():
            pass
        now = run.now()
        run.rules.tick(math.inf if run.rules.over or now is None else now - SLACK)
        run.settle()
        for writer in run.new_writers():  # what the site's rules were recorded in
            run.read(run.add(writer))
        if run.is_ready and not run.rules.stale:
            break
    if run.rules.over:
        run.finish()
    else:
        run.close()
    return bool(run.rules.rules)
