"""Slow duties on apscheduler: scrub, free space, retention. Never the drain, never a backoff: those need a monotonic clock."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from simspool.spool import SpoolError

from .budget.duty import BudgetDuty
from .budget.guard import LOOK_EVERY
from .journal import NotHolder
from .retention import Retention

if TYPE_CHECKING:
    from simspool.agent.scrub import Finding

    from .app import Agent


class Housekeeping:
    """The scheduled duties of one running agent."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._budget = BudgetDuty(agent)
        # the memory store: persistent ones pickle their jobs
        self._scheduler = AsyncIOScheduler(timezone="UTC", job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": 3600})

    def start(self) -> None:
        """Schedule everything."""
        config = self._agent.config
        add = self._scheduler.add_job
        add(self.scrub, "interval", seconds=config.scrub_every, jitter=int(config.scrub_every / 10), id="scrub")
        add(self.check_disk, "interval", seconds=60, id="disk")
        add(self.retain, "interval", seconds=config.retention_every, jitter=int(config.retention_every / 10), id="retention")
        add(self._agent.refresh_site, "interval", seconds=2, id="site")
        add(self._agent.refresh_targets, "interval", seconds=2, id="targets")
        add(self._budget.turn, "interval", seconds=LOOK_EVERY, next_run_time=datetime.now(UTC), id="budget")
        add(self.follow, "interval", seconds=2, id="journals")
        add(self.judge, "interval", seconds=600, next_run_time=datetime.now(UTC), id="judge")
        self._scheduler.start()

    def stop(self) -> None:
        """Cancel what is scheduled."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)

    async def follow(self) -> None:
        """Take in what agents of other hosts journaled."""
        agent = self._agent
        try:
            if await agent.work(agent.journal.follow):
                agent.journal_changed()
        except asyncio.CancelledError:
            return
        except (OSError, SpoolError, sqlite3.Error) as error:
            agent.report(f"what other agents journaled cannot be read, and is tried again: {error}")

    async def judge(self) -> None:
        """Judge the runs that ended while no agent watched them."""
        agent = self._agent
        if not agent.lease.held:
            return
        try:
            await agent.judge_the_rest(ended=True)
        except asyncio.CancelledError:  # the agent stops; the next one judges
            return
        except (OSError, sqlite3.Error) as error:
            agent.report(f"runs that have ended are not judged yet: {error}")

    async def scrub(self) -> None:
        """Verify everything in the spool, in a thread of its own; each finding is reported."""
        if not self._agent.lease.held:
            return
        from .scrub import scrub

        findings: Iterator[Finding] = iter(scrub(self._agent.spool))
        while (found := await asyncio.to_thread(next, findings, None)) is not None:
            where = f"{found.path}, bytes {found.start} to {found.end}" if found.end else found.path
            self._agent.report(f"scrub: {found.kind}: {where}" + (f": {found.detail}" if found.detail else ""))

    async def check_disk(self) -> None:
        """Report, once, when the disk's free space falls below the floor, and when it is back."""
        agent = self._agent
        try:
            found = os.statvfs(agent.spool.path)
        except OSError as error:
            problem = f"the spool's disk does not answer: {error.strerror}"
        else:
            free = found.f_bavail * found.f_frsize
            low = free < agent.config.disk_floor
            problem = f"only {free >> 20} MiB are free on the spool's disk: recording stops when it is full" if low else ""
        if problem != agent.disk_problem:
            agent.report(problem or "the spool's disk has space again")
        agent.disk_problem = problem

    async def retain(self) -> None:
        """Delete what is acknowledged and over its grace; keep the journal small."""
        agent = self._agent
        if not agent.lease.held:
            return
        retention = Retention(agent.spool, agent.catalog, agent.journal, agent.config.grace, unknown=agent.ingest.look_again)
        servers = agent.drains.required_servers if agent.drains is not None else None
        try:
            await agent.work(agent.journal.compact_if_large)
            await agent.work(retention.finish)
            if servers is None:
                return  # nobody is there whose receipts count
            for run in await agent.work(retention.eligible, *servers):
                if agent.notifier is not None and run in agent.notifier.runs():
                    continue  # it would go, and with it what people are to be told of it
                freed = await agent.work(retention.prune, run, *servers)
                if freed is not None:
                    agent.report(f"run {run} is acknowledged and over its grace: {freed} bytes freed")
            await agent.work(retention.sweep)
        except (NotHolder, asyncio.CancelledError):
            return  # its next holder goes on, or the next agent
        except (OSError, SpoolError, sqlite3.Error) as error:
            agent.report(f"retention stopped, and is tried again: {error}")
