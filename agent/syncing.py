"""One sync beside an agent: take everything in, drain to every target until its goals are reached, say how it ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from .drain.drains import Drains, Lane
from .drain.loop import Drain
from .duties import kept, obtain
from .ingest.ingest import LOOKS
from .notify.notifier import TELL
from .sync import CARRIED, Goals, Selection, SyncReport

if TYPE_CHECKING:
    from .app import Agent

_ATTEMPTS, _STALL = 4, 20.0
_BEST_EFFORT = 5.0  # seconds without progress after which a best-effort target holds up nothing
_LONGEST_WAIT = 60.0  # seconds that a sync without a timeout waits because the server asks for it


class Syncing:
    """See Agent.sync. Made for one sync."""

    def __init__(self, agent: Agent, timeout: float | None, progress: Callable[[SyncReport], None], *, patient: bool) -> None:
        self._agent, self._progress = agent, progress
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._patient = patient or timeout is not None
        self._report = SyncReport(url=agent.config.url or "")
        self._copied = False

    async def run(self, selection: Selection) -> SyncReport:
        """Do it. Raises RunNotFound."""
        agent, report = self._agent, self._report
        self._progress(report)
        if not await obtain(agent, self._deadline):
            holder = agent.lease.holder
            report.state, report.problem = "timeout", f"the agent of {holder.host if holder else 'another host'} has the spool's lease"
            return report
        async with kept(agent):
            return await self._run(selection)

    async def _run(self, selection: Selection) -> SyncReport:
        agent, report = self._agent, self._report
        runs = await self.settle(selection)
        newer = agent.ingest.newer if runs is None else agent.ingest.newer.intersection(runs)
        report.problems.update({run: agent.ingest.problems[run] for run in newer if run in agent.ingest.problems})
        unread = {run: why for run, why in agent.ingest.unread.items() if runs is None or run in runs}
        report.problems.update(unread)
        goals = await agent.work(Goals, agent.catalog, runs)
        report.live_runs = len(set(await agent.work(agent.ingest.live_runs)) & goals.runs)
        served = agent.drains is not None
        drains = agent.drains
        if drains is None:
            drains = agent.make_drains(runs, heartbeats=False)
            await drains.load()
        try:
            await self._drain(drains, goals, served)
        finally:
            if not served:
                await drains.close()
        if report.state == "done" and newer:
            report.state = "newer-format"
        if report.state == "done" and unread:  # nobody knows what is in them
            report.state = "incomplete"
        return report

    async def settle(self, selection: Selection) -> set[str] | None:
        """Take in everything recorded up to now and what follows from it (the ends of the dead, rules that nobody judged, people to be
        told), without sending anything. Returns the ids of the selected runs, None for all. Raises RunNotFound."""
        agent = self._agent
        await self._ingest_all()
        if agent.watch is None and agent.lease.held:
            if await agent.judge_the_rest(ended=False):
                await self._ingest_all()
            await self._tell()
        if agent.watch is None and agent.notes.is_open:  # what a command noted goes with the rest, its last words too
            await agent.work(agent.notes.close)
            await self._ingest_all()
        return await agent.work(selection.resolve, agent.catalog, agent.spool)

    async def _drain(self, drains: Drains, goals: Goals, served: bool) -> None:
        report = self._report
        report.problems.update(drains.problems)
        carried = await self._look_at_carried(drains, goals)
        if not drains and carried and not drains.problems:
            self._only_carried(carried)
            return
        if not drains:
            report.state = "refused" if drains.problems else "no-target"
            report.problem = "; ".join(drains.problems.values()) or (
                "no server is configured: set SIMSPOOL_URL and SIMSPOOL_TOKEN, or --url and --token-file, or `agent target add`"
            )
            report.records = report.records_left = goals.records
            report.runs, report.files = len(goals.runs), len(goals.digests)
            return
        parts = {
            name: SyncReport("draining", lane.name, lane.required, url=lane.target.url, live_runs=report.live_runs)
            for name, lane in drains.lanes.items()
        }
        report.targets = [*parts.values(), *carried]
        following = [asyncio.create_task(self._follow(lane, goals, parts[name])) for name, lane in drains.lanes.items()]
        running = None if served else asyncio.create_task(drains.run())
        waits = {*following, *([running] if running is not None else [])}
        try:
            while not all(task.done() for task in following):
                await asyncio.wait([t for t in waits if not t.done()], return_when=asyncio.FIRST_COMPLETED)
                for task in waits:
                    if task.done():
                        self._agent.check(task)
        finally:
            for task in waits:
                task.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        report.gather()

    async def _look_at_carried(self, drains: Drains, goals: Goals) -> list[SyncReport]:
        """Return how far the targets are to which bundles carry: it is receipts that move them, nothing is sent here."""
        made = []
        for settings in drains.carried.values():
            report = SyncReport("done", settings.name, settings.required, bundles=True, url=settings.address)
            await self._agent.work(lambda: goals.measure(settings.address, report, by_record=True))  # noqa: B023 - awaited here
            if report.records_left or report.files_left:
                report.state, report.problem = CARRIED, _waits(report)
            made.append(report)
        return made

    def _only_carried(self, carried: list[SyncReport]) -> None:
        """Say how it ended where nothing but bundles goes out: it is done when receipts have covered everything, and there is no target
        for the rest. `agent bundle create` is what goes on then."""
        report = self._report
        counting = [t for t in carried if t.required] or carried
        worst = max(counting, key=lambda t: (t.state != "done", t.records_left, t.files_left))
        for name in ("runs", "records", "records_left", "files", "files_left", "server", "url", "problem"):
            setattr(report, name, getattr(worst, name))
        report.state = "done" if worst.state == "done" else "no-target"
        report.refused = max(t.refused for t in counting)
        report.targets = carried

    async def _ingest_all(self) -> None:
        """Take in everything that is in the spool now, the last words of dead writers included."""
        agent = self._agent
        for _ in range(LOOKS):
            await agent.work(agent.ingest.scan)
            while True:
                found = await agent.work(agent.ingest.read)
                self._report.records += found.records
                self._progress(self._report)
                if not found.more:
                    break
            await agent.work(agent.ingest.read)  # a second look tells who is silent
            buried = await agent.work(agent.ingest.bury)
            if not await self._copy_inboxes() and not buried:
                return

    async def _copy_inboxes(self) -> bool:
        """Copy what programs have appended; true the first time, and where something came."""
        first, self._copied = not self._copied, True
        return bool(await asyncio.to_thread(self._agent.inboxes.copy_all)) or first

    async def _tell(self) -> None:
        """Tell people what there is to tell; no running agent does it."""
        agent = self._agent
        notifier = agent.make_notifier()
        if notifier is None:
            return
        longest = TELL if self._deadline is None else min(TELL, max(self._deadline - time.monotonic(), 0.0))
        try:
            left = await notifier.tell(longest)
        finally:
            await asyncio.to_thread(notifier.stop)
        if left:
            why = "; ".join(notifier.problems().values()) or "it takes too long"
            agent.report(f"{left} notifications are left for the next sync or agent: {why}")

    async def _follow(self, lane: Lane, goals: Goals, report: SyncReport) -> None:
        """Follow one target until it has everything, or no more is to be hoped for."""
        agent, drain = self._agent, lane.drain
        before = replace(drain.delivered)
        attempts = drain.attempts
        drain.wake()
        drain.retry()  # whatever it waits for: somebody wants it now
        last, moved, kicked = -1, time.monotonic(), 0
        while True:
            began = time.monotonic()
            server = drain.server or await agent.work(self._known_server, lane)
            by_record = lane.target.traits.files_by_record
            if server:
                left: set[str] = await agent.work(lambda: goals.measure(server, report, by_record=by_record))  # noqa: B023 - awaited here
            else:
                left = {*goals.marks, *goals.files(by_record=by_record)}
                report.runs, report.records, report.files = len(goals.runs), goals.records, len(goals.files(by_record=by_record))
                report.records_left, report.files_left = goals.records, report.files
            d = drain.delivered
            report.sent_records, report.sent_bytes = d.records - before.records, d.bytes - before.bytes
            report.sent_files, report.sent_file_bytes = d.blobs - before.blobs, d.blob_bytes - before.blob_bytes
            report.known_files = d.known_blobs - before.known_blobs
            report.problem = drain.problem
            report.problems.update(goals.concerns(d.problems))
            failures = drain.attempts - attempts if drain.failures else 0
            if not left and (drain.state == "draining" or failures):
                report.state = "done"
                return
            now = time.monotonic()
            if report.records_left + report.files_left != last:
                last, moved = report.records_left + report.files_left, now
            state = self._verdict(drain, left, failures, now - moved) or self._is_superfluous(report, now - moved)
            if lane.over:
                state, report.problem = "incomplete", f"the target {lane.name} was changed or removed meanwhile: sync again"
            if state:
                report.state = state
                return
            self._report.gather()
            self._progress(self._report)
            await drain.wait_for_change(0.25)
            if failures > kicked and not drain.floor:  # a running agent may be in a long backoff
                kicked = failures
                await asyncio.sleep(0.25 * 2.0**failures if failures < _ATTEMPTS else 0)
                drain.retry()
            await asyncio.sleep(min(3 * (now - began), 0.5))  # a look costs time that the drain needs

    def _verdict(self, drain: Drain, left: set[str], failures: int, stalled: float) -> str:
        """Return the state that ends a target's part of a sync which is not done, or nothing while it may go on."""
        if drain.refused and failures:
            return "refused"
        if left and left <= drain.delivered.lacking:
            return "incomplete"
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return "unreachable" if drain.failures else "timeout"
        if not self._patient and (failures >= _ATTEMPTS or (failures and drain.floor > _LONGEST_WAIT)):
            return "unreachable"
        if stalled > _STALL and not drain.failures and drain.delivered.problems and not self._patient:
            return "incomplete"
        return ""

    def _is_superfluous(self, report: SyncReport, stalled: float) -> str:
        """Return "timeout" for a best-effort target that does not get on when all the required ones are through."""
        others = [t for t in self._report.targets if t.required]
        over = not report.required and bool(others) and all(t.state != "draining" for t in others)
        return "timeout" if over and stalled > _BEST_EFFORT else ""

    def _known_server(self, lane: Lane) -> str:
        row = self._agent.catalog.one("SELECT server FROM servers WHERE url = ?", (lane.target.url,))
        return str(row[0]) if row else ""


def _waits(report: SyncReport) -> str:
    """Return what waits for a bundle or for its receipt, and what to do."""
    what = f"{report.records_left} records and {report.files_left} files wait for a bundle or its receipt"
    return f"{what}: `agent bundle create`, and `agent bundle apply-receipt` when one came back"
