"""The agent: the one place that wires spool, catalog, journal, ingest, drain and the local API together.

Everything that touches the catalog, the journal or a segment runs in one worker thread; the event loop only waits and talks.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

from simspool.spool import Spool, atomic
from simspool.spool.lock import SpoolLock
from simspool.spool.process import start_ticks

from .catalog import Catalog
from .catalog.store import catalog_path
from .clock import Clock, SystemClock
from .config import AgentConfig, host_file, runtime_folder
from .drain.backoff import Backoff
from .drain.loop import Drain
from .drain.network import NetworkWatch
from .ingest import Ingest
from .ingest.wake import Doorbell, FolderWatch
from .journal import Journal
from .sync import Goals, Selection, SyncReport
from .targets.embedded import EmbeddedTarget
from .targets.port import Refused, Target

T = TypeVar("T")
Report = Callable[[str], None]

_FAST, _SLOWEST_LIVE, _SLOWEST_IDLE = 0.05, 1.0, 30.0  # seconds between looks at the spool
_SCAN_SHARE = 0.005  # of the time may go into scanning
_BURY_EVERY = 2.0
_ATTEMPTS, _STALL = 4, 20.0


class Agent:
    """One agent on one spool, for one process's life. Use it as an async context manager; then `serve` or `sync`.

    Raises Locked on entry when another agent has the spool. `target` replaces the configured server (for tests and other dialects).
    """

    def __init__(
        self, config: AgentConfig, *, clock: Clock | None = None, report: Report = lambda _: None, target: Target | None = None,
        backoff: Backoff | None = None,
    ) -> None:  # fmt: skip
        self.config, self.spool = config, config.spool
        self.clock: Clock = clock or SystemClock()
        self.report = report
        self._target, self._backoff = target, backoff
        self._lock = SpoolLock(self.spool)
        self._executor: ThreadPoolExecutor | None = None
        self._news = asyncio.Event()
        self._hot: set[str] = set()
        self._scan_wanted = True
        self._ingested = asyncio.Condition()
        self._passes = 0
        self.drain: Drain | None = None
        self.started = time.time()
        self.target_problem = ""
        self.disk_problem = ""

    # ------------------------------------------------------------------ life

    async def __aenter__(self) -> Self:
        self._lock.acquire()
        try:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="simspool")
            await self.work(self._open)
        except BaseException:
            self._shut()
            raise
        return self

    def _open(self) -> None:
        self.catalog = Catalog(catalog_path(self.spool))
        self.journal = Journal(self.spool, self.catalog)
        self.ingest = Ingest(self.spool, self.catalog)

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        def close() -> None:
            with contextlib.suppress(OSError):  # a journal that cannot be sealed is read as it is
                self.journal.close()
            self.ingest.close()
            self.catalog.close()

        try:
            if self._target is not None:
                await self._target.close()
            await self.work(close)
        finally:
            self._shut()

    def _shut(self) -> None:
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None
        self._lock.release()

    async def work(self, function: Callable[..., T], *args: Any) -> T:
        """Run a function in the worker thread."""
        assert self._executor is not None
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)

    def _make_drain(self, runs: Collection[str] | None, *, heartbeats: bool) -> Drain | None:
        if self._target is None:
            if not self.config.url:
                return None
            try:
                self._target = EmbeddedTarget(self.config.url, self.config.token or "")
            except Refused as error:
                self.target_problem = str(error)
                return None
        live = self.ingest.live_runs if heartbeats else None
        return Drain(
            self.spool, self.catalog, self.journal, self._target, self.clock, self.work, runs=runs, backoff=self._backoff, live_runs=live
        )

    # ------------------------------------------------------------------ the daemon

    async def serve(self, stop: asyncio.Event, *, ready: Callable[[], None] = lambda: None) -> None:
        """Ingest, drain and answer until `stop` is set; then stop clean: what is acknowledged is journaled, the rest stays."""
        from .api import LocalApi
        from .housekeeping import Housekeeping

        folder = runtime_folder(self.spool)
        bell = self._start_bell(folder)
        watch = FolderWatch(self.spool, self._files_changed)
        atomic.make_folder(self.spool.runs)
        problem = watch.start()
        if problem:
            self.report(problem)
        self.drain = self._make_drain(None, heartbeats=True)
        if self.drain is None:
            self.report(self.target_problem or "no server is configured: recording is watched, nothing is sent (SIMSPOOL_URL, --url)")
        network = NetworkWatch(self._network_changed)
        network.start()
        api = LocalApi(self, folder)
        housekeeping = Housekeeping(self)
        tasks = [asyncio.create_task(self._ingest_loop(watch))]
        if self.drain is not None:
            tasks.append(asyncio.create_task(self.drain.run()))
        try:
            await api.start()
            self._announce(bell, api.path)
            housekeeping.start()
            ready()
            waiting = asyncio.create_task(stop.wait())
            await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            for task in tasks:
                if task.done():
                    task.result()  # a loop that ended by itself ended by an error
        finally:
            housekeeping.stop()
            atomic.remove(host_file(self.spool))
            await api.stop()
            network.stop()
            if bell is not None:
                bell.stop()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            watch.stop()

    def _start_bell(self, folder: str | None) -> Doorbell | None:
        if folder is None:
            self.report(
                "no folder for sockets is short and safe enough (XDG_RUNTIME_DIR): scripts cannot ring, new data is found by scanning"
            )
            return None
        bell = Doorbell(os.path.join(folder, "bell"), self._rung)
        try:
            bell.start()
        except OSError as error:
            self.report(f"no doorbell ({error.strerror or error}): new data is found by scanning")
            return None
        return bell

    def _announce(self, bell: Doorbell | None, api: str | None) -> None:
        path = host_file(self.spool)
        atomic.make_folder(os.path.dirname(path))
        pid = os.getpid()
        body = {"bell": bell.path if bell else None, "api": api, "pid": pid, "start_ticks": (start_ticks(pid) or (0, ""))[0]}
        atomic.write_json(path, body)

    def _rung(self, writer: str) -> None:
        self._hot.add(writer)
        self._news.set()

    def _files_changed(self) -> None:
        self._scan_wanted = True
        self._news.set()

    def _network_changed(self) -> None:
        if self.drain is not None:
            self.drain.network_changed()

    async def _ingest_loop(self, watch: FolderWatch) -> None:
        """Look at the spool: at once when there is news, else ever more slowly."""
        pause, next_scan, next_bury = 0.0, 0.0, 0.0
        while True:
            await self._wait_for_news(pause)
            now = time.monotonic()
            scan_due = self._scan_wanted or now >= next_scan
            hot, self._hot = self._hot, set()
            self._scan_wanted = False
            found = 0
            if scan_due:
                found = await self.work(self.ingest.scan)
                cost = time.monotonic() - now
                next_scan = now + min(max(cost / _SCAN_SHARE, 1.0), _SLOWEST_IDLE)
                if found:
                    watch.follow(await self.work(self.ingest.active_folders))
            unknown = hot and not all(self.ingest.follows(w) for w in hot)
            if unknown and not found:
                self._scan_wanted = True  # a bell rang for a writer that the last scan did not see
            progress = await self.work(self.ingest.read, None if scan_due or not hot else hot)
            ended = 0
            if now >= next_bury:
                next_bury = now + _BURY_EVERY
                ended = await self.work(self.ingest.bury)
                self._scan_wanted = self._scan_wanted or ended > 0
            if (progress.records or ended or found) and self.drain is not None:
                self.drain.wake()
            async with self._ingested:
                self._passes += 1
                self._ingested.notify_all()
            if progress.more:
                pause = 0.0
            elif progress.records or found or ended:
                pause = _FAST
            else:
                slowest = _SLOWEST_LIVE if self.ingest.active else max(_SLOWEST_LIVE, min(next_scan - time.monotonic(), _SLOWEST_IDLE))
                pause = min(max(pause, _FAST) * 1.5, slowest)

    async def _wait_for_news(self, pause: float) -> None:
        if pause > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), pause)
            if self._news.is_set():
                await asyncio.sleep(min(pause, _FAST))  # a commit is an fsync: news is gathered
        self._news.clear()

    # ------------------------------------------------------------------ sync

    async def sync(
        self, selection: Selection | None = None, *, timeout: float | None = None, progress: Callable[[SyncReport], None] = lambda _: None,
        patient: bool = False,
    ) -> SyncReport:  # fmt: skip
        """Drain everything that the selected runs have recorded up to now, and return how it ended.

        Works beside `serve` of the same agent, or alone. An unreachable server ends it after a few attempts, or, with a timeout (s) or
        when `patient`, at the timeout. Raises RunNotFound for a selected run that is not there.
        """
        report = SyncReport(url=self.config.url or "")
        deadline = None if timeout is None else time.monotonic() + timeout
        progress(report)
        await self._ingest_all(report, progress)
        runs = await self.work((selection or Selection()).resolve, self.catalog, self.spool)
        newer = self.ingest.newer if runs is None else self.ingest.newer.intersection(runs)
        report.problems.update({run: self.ingest.problems[run] for run in newer if run in self.ingest.problems})
        goals = await self.work(Goals, self.catalog, runs)
        report.live_runs = len(set(await self.work(self.ingest.live_runs)) & goals.runs)
        served = self.drain is not None
        drain = self.drain or self._make_drain(runs, heartbeats=False)
        if drain is None:
            report.state, report.problem = (
                "no-target",
                self.target_problem or "no server is configured: set SIMSPOOL_URL and SIMSPOOL_TOKEN, or --url and --token-file",
            )
            if self.target_problem:
                report.state = "refused"
            report.records = report.records_left = goals.records
            report.runs, report.files = len(goals.runs), len(goals.digests)
            return report
        task = None if served else asyncio.create_task(drain.run())
        try:
            await self._follow_drain(drain, goals, report, deadline, progress, patient=patient or timeout is not None)
        finally:
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if report.state == "done" and newer:
            report.state = "newer-format"
        return report

    async def _ingest_all(self, report: SyncReport, progress: Callable[[SyncReport], None]) -> None:
        """Take in everything that is in the spool now, the last words of dead writers included."""
        for _ in range(3):
            await self.work(self.ingest.scan)
            while True:
                found = await self.work(self.ingest.read)
                report.records += found.records
                progress(report)
                if not found.more:
                    break
            await self.work(self.ingest.read)  # a second look tells who is silent
            if not await self.work(self.ingest.bury):
                return

    async def _follow_drain(
        self,
        drain: Drain,
        goals: Goals,
        report: SyncReport,
        deadline: float | None,
        progress: Callable[[SyncReport], None],
        *,
        patient: bool,
    ) -> None:
        before = drain.delivered
        base = (before.records, before.bytes, before.blobs, before.blob_bytes, before.known_blobs)
        report.state = "draining"
        drain.wake()
        last, moved = (-1, -1), time.monotonic()
        while True:
            server = drain.server or await self.work(self._known_server)
            done = await self.work(goals.measure, server, report) if server else not (goals.marks or goals.digests)
            if not server:
                report.runs, report.records, report.files = len(goals.runs), goals.records, len(goals.digests)
                report.records_left, report.files_left = goals.records, len(goals.digests)
            d = drain.delivered
            report.sent_records, report.sent_bytes = d.records - base[0], d.bytes - base[1]
            report.sent_files, report.sent_file_bytes, report.known_files = (
                d.blobs - base[2],
                d.blob_bytes - base[3],
                d.known_blobs - base[4],
            )
            report.problem = drain.problem
            report.problems.update(d.problems)
            if done and (drain.server or drain.failures):
                report.state = "done"
                return
            now = time.monotonic()
            if (report.records_left, report.files_left) != last:
                last, moved = (report.records_left, report.files_left), now
            state = self._verdict(drain, now, moved, deadline, patient=patient)
            if state:
                report.state = state
                return
            progress(report)
            await drain.wait_for_change(0.25)

    def _verdict(self, drain: Drain, now: float, moved: float, deadline: float | None, *, patient: bool) -> str:
        """Return the state that ends a sync which is not done, or nothing while it may go on."""
        if drain.refused:
            return "refused"
        if deadline is not None and now >= deadline:
            return "unreachable" if drain.failures else "timeout"
        if drain.failures >= _ATTEMPTS and not patient:
            return "unreachable"
        if now - moved > _STALL and not drain.failures and drain.delivered.problems:
            return "incomplete"
        return ""

    def _known_server(self) -> str:
        row = self.catalog.one("SELECT server FROM servers WHERE url = ?", (self._target.url if self._target else "",))
        return str(row[0]) if row else ""


def agent_config(spool: Spool, url: str | None, token: str | None) -> AgentConfig:
    """Return the settings of an agent, with SIMSPOOL_GRACE (days that acknowledged data is kept) taken from the environment."""
    grace = os.environ.get("SIMSPOOL_GRACE")
    try:
        days = 7.0 if grace is None else float(grace)
    except ValueError:
        days = 7.0
    return AgentConfig(spool, url, token, grace=max(days, 0.0) * 86400.0)
