"""The budget's turn in a running agent: look, and where too much lies in the spool, delete what may go.

First what every required target has acknowledged: past its age, or, where the user opted into shedding, before its grace is over. Then,
opted in only, what has no receipt.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from typing import TYPE_CHECKING

from simspool.agent.journal import NotHolder
from simspool.agent.retention import Retention
from simspool.spool import Kind, SpoolError
from simspool.spool.pressure import FREE

from .guard import survey
from .measure import Usage
from .reserve import Reserve
from .shed import Shedder

if TYPE_CHECKING:
    from simspool.agent.app import Agent

_AGED_EVERY = 60.0
_AGAIN = 1.5  # seconds after which the journal's writer asks a disk again that was full


class BudgetDuty:
    """Call `turn` every few seconds."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._shedder = Shedder(agent.spool, agent.catalog, agent.journal, kept=self._whole, busy=self._busy)
        self._reserve = Reserve(agent.spool)
        self._aged_at = 0.0
        self._is_stuck = False

    async def turn(self) -> None:
        """Look, and act, while this agent has the spool's lease. What fails is reported, and tried again."""
        agent, guard = self._agent, self._agent.guard
        if not agent.lease.held:
            return
        try:
            found = await agent.work(survey, agent.catalog)
            await asyncio.to_thread(guard.look, found)
            budget = guard.budget
            if budget.shed != "no" and guard.level == FREE:
                await asyncio.to_thread(self._reserve.keep)
            if budget.age is not None and time.monotonic() >= self._aged_at:
                self._aged_at = time.monotonic() + _AGED_EVERY
                await self._drop_acknowledged(time.time() - budget.age)
                if budget.shed != "no":
                    await self._shed(time.time() - budget.age)
            if guard.wants_room and budget.shed != "no":
                await self._drop_acknowledged(None)
                await self._shed(None)
        except asyncio.CancelledError:  # the agent stops
            return
        except NotHolder:
            return  # its next holder goes on
        except (OSError, SpoolError, sqlite3.Error) as error:
            guard.problem = f"what is over the budget cannot be deleted: {error}"

    def _kept(self) -> set[str]:
        """The runs of which people are to be told yet."""
        return set(self._agent.notifier.runs()) if self._agent.notifier is not None else set()

    def _whole(self) -> set[str]:
        """The runs of which nothing is shed: those too that were carried here, as it is not for this spool to declare their gaps."""
        agent = self._agent
        ended = agent.catalog.rows("SELECT id FROM runs WHERE complete = 1")
        return self._kept() | {run for (run,) in ended if agent.ingest.carried.is_carried(run)}

    def _busy(self) -> set[str]:
        """The writers of which something is under way."""
        drains = self._agent.drains
        return {writer for lane in (drains.lanes.values() if drains is not None else ()) for writer in lane.drain.busy}

    async def _drop_acknowledged(self, before: float | None) -> None:
        """Delete runs that every required target has, whatever their grace; with `before`, those that ended before (wall s)."""
        agent, guard = self._agent, self._agent.guard
        servers = agent.drains.required_servers if agent.drains is not None else None
        if servers is None:
            return
        retention = Retention(agent.spool, agent.catalog, agent.journal, 0.0, unknown=agent.ingest.look_again)
        old = {r for (r,) in await agent.work(agent.catalog.rows, "SELECT id FROM runs WHERE ended < ?", (int((before or 0.0) * 1e9),))}
        for run in await agent.work(retention.eligible, *servers):
            if (before is not None and run not in old) or run in self._kept() or (before is None and not guard.wants_room):
                continue
            freed = await agent.work(retention.prune, run, *servers)
            if freed is not None:
                why = "past its age" if before is not None else "the spool is over its budget"
                agent.report(f"run {run} is acknowledged and {why}: {freed} bytes freed")
                guard.freed(Usage(freed))

    async def _shed(self, before: float | None) -> None:
        """Shed one thing after another, until there is room; with `before`, all of what is so old."""
        agent, guard = self._agent, self._agent.guard
        said: dict[str, list[str]] = {}
        why = guard.standing.why if before is None else "it is older than the budget allows"
        while before is not None or guard.wants_room:
            try:
                done = await agent.work(self._next, before)
            except OSError:
                if not self._reserve.give_up():
                    raise
                await asyncio.sleep(_AGAIN)
                await agent.work(self._shedder.finish)
                continue
            if done is None:
                break
            run, what, freed = done
            agent.report(f"shed: {what} of run {run}, which no server had acknowledged: {freed.bytes} bytes freed")
            said.setdefault(run, []).append(what)
            guard.freed(freed)
        if before is None:
            if guard.wants_room and not self._is_stuck:
                agent.report(f"nothing is left that may be shed: {guard.standing.why}")
            self._is_stuck = guard.wants_room
        for run, parts in said.items():
            message = f"simspool shed {', '.join(parts)} of this run before a server acknowledged them: {why}"
            await asyncio.to_thread(self._say, run, message)

    def _next(self, before: float | None) -> tuple[str, str, Usage] | None:
        guard = self._agent.guard
        wanted = guard.wanted if before is None else 1 << 62
        return self._shedder.next(runs=guard.budget.shed == "runs", wanted=wanted, before=before)

    def _say(self, run: str, message: str) -> None:
        """Say it in the run, for people who look at a server. Once, or not at all: the journal and the declared gaps say it anyhow."""
        notes = self._agent.notes
        notes.record(run, Kind.EVENT, {"message": message, "level": "warning"})
        notes.release(run)
