"""The agent: the one place that wires spool, catalog, journal, ingest, drain and the local API together.

Everything that touches the catalog, the journal or a segment runs in one worker thread; the event loop only waits and talks.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from simspool.sdk.budget import Budget
from simspool.sdk.config import Graces
from simspool.sdk.sampling.slots import AHEAD
from simspool.spool import Spool, SpoolError, atomic, control
from simspool.spool.lease import PATIENCE, Lease
from simspool.spool.lock import SpoolLock
from simspool.spool.process import start_ticks

from .abort.requests import Aborts
from .alerts.afterwards import judge_afterwards, unjudged
from .alerts.decisions import Decision
from .alerts.elsewhere import Seen, ended_and_firing
from .alerts.site import SiteFile
from .alerts.watch import Watch
from .api import LocalApi
from .budget.guard import Guard
from .budget.shed import Shedder
from .catalog import Catalog
from .catalog.store import claim, is_damage
from .clock import Clock, SystemClock
from .config import AgentConfig, host_file, runtime_folder
from .drain.backoff import Backoff
from .drain.drains import Drains
from .drain.loop import Drain
from .drain.network import NetworkWatch
from .duties import SpoolDuties
from .emissions import EVERY
from .emissions.meter import Emissions
from .exit_codes import CommandError, ExitCode
from .inbox.inboxes import Inboxes
from .ingest import Ingest
from .ingest.loop import IngestLoop
from .ingest.wake import Doorbell, FolderWatch
from .journal import Journal
from .live import is_of_another_host
from .notes import RunNotes
from .notify.notifier import Notifier
from .notify.settings import NotifySource
from .progress import Progress
from .retention import Retention
from .sampling.sampler import NEVER, Sampler
from .survivors import ProcessWatch
from .sync import Selection, SyncReport
from .syncing import Syncing
from .targets.build import make_target
from .targets.port import Target
from .targets.settings import SERVER, TargetSettings, targets_file

if TYPE_CHECKING:
    from .relay.duty import RelayDuty

T = TypeVar("T")
Report = Callable[[str], None]

_WORKER = "worker thread"
_IDLE = 10.0  # seconds: longer than any thread beside it waits when there is nothing to do


class Agent:
    """One agent on one spool, for one process's life. Use it as an async context manager; then `serve` or `sync`.

    Raises Locked on entry when another agent of this host has the spool. What one agent does for all hosts it does while it has the
    spool's lease (see duties.py). `target` replaces the configured ones, `build` makes
    those; `on_demand` is said to whoever asks.
    """

    def __init__(
        self, config: AgentConfig, *, clock: Clock | None = None, report: Report = lambda _: None, target: Target | None = None,
        build: Callable[[TargetSettings], Target] = make_target, backoff: Backoff | None = None, on_demand: bool = False,
    ) -> None:  # fmt: skip
        self.config, self.spool = config, config.spool
        self.clock: Clock = clock or SystemClock()
        self.report = report
        self._target, self._build, self._backoff = target, build, backoff
        self._lock = SpoolLock(self.spool)
        self.lease = Lease(self.spool, patience=config.patience)
        self.duties: SpoolDuties | None = None  # while it serves
        self._executor: ThreadPoolExecutor | None = None
        self.drains: Drains | None = None  # while it serves
        self.started = time.time()
        self.disk_problem = ""
        self.ingest_loop: IngestLoop | None = None
        self.processes: ProcessWatch | None = None
        self._begun = 0
        self.condemned = False
        self.progress = Progress()
        self.notes = RunNotes(self.spool)
        self.guard = Guard(self.spool, config.budget, report=report)
        self.notes.gate = self.guard.gate
        self.site: SiteFile | None = None
        self.notify: NotifySource | None = None
        self.notifier: Notifier | None = None
        self.relay: RelayDuty | None = None
        self.watch: Watch | None = None
        self.sampler: Sampler | None = None
        self.emissions: Emissions | None = None
        self.aborts: Aborts | None = None
        self.on_demand = on_demand
        self.taken = 0  # times that something was taken in
        self.syncs = 0  # that commands are waiting for
        self._address: dict[str, Any] = {}
        self._follow: Callable[[list[tuple[str, str]]], None] | None = None
        self._here: asyncio.AbstractEventLoop | None = None

    # ------------------------------------------------------------------ life

    async def __aenter__(self) -> Self:
        self._lock.acquire()
        self.condemned = False
        try:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="simspool")
            await self.work(self._open)
        except BaseException:
            self._shut()
            raise
        return self

    def _open(self) -> None:
        path, held = claim(self.spool)
        self.catalog = Catalog(path, claim=held)
        try:
            row = self.catalog.one("SELECT value FROM meta WHERE key = 'generation'")
            self.lease.floor = int(row[0]) if row is not None else 0
            with contextlib.suppress(OSError):  # it is looked for again
                self.lease.turn()
            self.journal = Journal(self.spool, self.catalog, lease=self.lease)
            self.ingest = Ingest(
                self.spool, self.catalog, report=self.report, turn=self._worker_turn, notes=self.notes, learn=self._learn,
                judges_others=lambda: self.lease.is_fresh,
            )
            self.inboxes = Inboxes(self.spool, self.ingest.unended_runs, self._copied, self.report, lambda: self.lease.is_fresh)
            self._finish()
        except sqlite3.Error as error:
            if not is_damage(error):
                self.catalog.close()
                raise
            self.catalog.condemn()
            self._open()
        except BaseException:
            self.catalog.close()
            raise

    def _learn(self) -> None:
        """Take in what other agents journaled, where that can be read. Raises OSError."""
        with contextlib.suppress(SpoolError):
            self.journal.follow()

    def _finish(self) -> None:
        """End deletions that were killed in the middle."""
        with contextlib.suppress(OSError):  # housekeeping tries again; another agent, where that one has the lease
            Retention(self.spool, self.catalog, self.journal, self.config.grace).finish()
            Shedder(self.spool, self.catalog, self.journal).finish()

    def take_over(self) -> None:
        """The lease is this agent's: learn what its last holder journaled, end what it began. Runs in the worker thread."""
        with contextlib.suppress(OSError, SpoolError):  # it is read again every two seconds
            self.journal.follow()
        self._finish()
        if self._follow is not None:
            self.ingest.tell(self._follow)

    def journal_changed(self) -> None:
        """Another host's agent journaled something: what waits here may be acknowledged, or is to be sent again."""
        if self.drains is not None:
            self.drains.wake()

    async def __aexit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        try:
            await self.work(self._close)
        finally:
            self._shut()

    def _close(self) -> None:
        self.inboxes.stop()
        self.notes.close()
        with contextlib.suppress(OSError, sqlite3.Error):  # a journal that cannot be sealed is read as it is
            self.journal.close()
        with contextlib.suppress(OSError):  # the next one waits for a time
            self.lease.release()
        self.ingest.close()
        if self.condemned:
            self.catalog.condemn()
        self.catalog.close()

    def _shut(self) -> None:
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None
        self._lock.release()

    async def work(self, function: Callable[..., T], *args: Any) -> T:
        """Run a function in the worker thread."""
        assert self._executor is not None
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._watched, function, *args)

    def _watched(self, function: Callable[..., T], *args: Any) -> T:
        self._worker_turn()
        try:
            return function(*args)
        finally:
            self.progress.end(_WORKER)

    def _worker_turn(self) -> None:
        self.progress.turn(_WORKER)

    def make_drains(self, runs: Collection[str] | None, *, heartbeats: bool) -> Drains:
        """Return the drains of this agent's targets, not loaded yet; `runs` limits them to some, None is all."""
        live = self.ingest.live_runs if heartbeats else None

        def make(settings: TargetSettings, target: Target) -> Drain:
            return Drain(
                self.spool, self.catalog, self.journal, target, self.clock, self.work, name=f"drain to {settings.name}", runs=runs,
                backoff=self._backoff, live_runs=live, progress=self.progress, flagged=self._flagged, report=self.report,
            )  # fmt: skip

        given = self._target
        if given is not None:
            alone = [TargetSettings(SERVER, "simspool", given.url)]
            return Drains(lambda: alone, make, build=lambda _: given)
        return Drains(self.config.targets, make, watched=targets_file(self.spool), report=self.report, build=self._build)

    def make_notifier(self) -> Notifier | None:
        """Return what tells people of alerts and ends of runs, if there is a configuration for it."""
        if self.notify is None:
            return None

        def follows(run: str) -> bool:
            return self.watch is not None and self.watch.follows(run)

        return Notifier(self.spool, self.catalog, self.ingest, self.notes, self.work, self.notify, self.report, follows)

    def untold(self) -> dict[str, str]:
        """Return why people cannot be told, by channel."""
        return {f"notifications by {name}": why for name, why in (self.notifier.problems() if self.notifier else {}).items()}

    def _flagged(self, server: str, flags: Mapping[str, Mapping[str, Any]]) -> None:
        """The server wants runs to be aborted; it says so again and again."""
        for run, flag in flags.items():
            if self.aborts is not None and not self.ingest.carried.is_carried(run):
                self.aborts.flagged(server, run, flag)

    # ------------------------------------------------------------------ the daemon

    async def serve(self, stop: asyncio.Event, *, ready: Callable[[], None] = lambda: None) -> None:
        """Ingest, drain and answer until `stop` is set; then stop clean: what is acknowledged is journaled, the rest stays."""
        from .housekeeping import Housekeeping

        folder = runtime_folder(self.spool)
        watch = FolderWatch(self.spool, self._files_changed)
        loop = IngestLoop(self.ingest, self.work, watch, self._taken, self.report, self.progress)
        self.ingest_loop = loop
        bell = self._start_bell(folder, loop.rung)
        watching = self._start_watch(bell)
        self._start_inboxes(bell, watch, watching)
        atomic.make_folder(self.spool.runs)
        problem = watch.start()
        if problem:
            self.report(problem)
        drains = self.drains = self.make_drains(None, heartbeats=True)
        await drains.load()
        if not drains and self.relay is not None and self.relay.sends and not drains.problems:
            self.report("no server is configured: what is recorded goes by the relay")
        elif not drains and drains.carried and not drains.problems:
            self.report("nothing is sent from here: what is recorded waits for bundles (`agent bundle create`)")
        elif not drains:
            why = "; ".join(drains.problems.values())
            self.report(why or "no server is configured: recording is watched, nothing is sent (SIMSPOOL_URL, --url, `agent target add`)")
        network = NetworkWatch(self._network_changed)
        network.start()
        api = LocalApi(self, folder)
        housekeeping = Housekeeping(self)
        duties = self.duties = SpoolDuties(self)
        await duties.turn()
        if not duties.are_done:
            self.report("another host's agent has the spool's lease: it sends, this one looks after its own host")
        tasks = [asyncio.create_task(loop.run()), asyncio.create_task(self._watch_processes(loop)), asyncio.create_task(duties.run())]
        waiting = asyncio.create_task(stop.wait())
        try:
            await self._reachable(bell, api)
            housekeeping.start()
            ready()
            await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    self.check(task)
        finally:
            housekeeping.stop()
            self.withdraw()
            await api.stop()
            network.stop()
            if bell is not None:
                bell.stop()
            waiting.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(waiting, *tasks, return_exceptions=True)
            await drains.close()
            watch.stop()
            await asyncio.to_thread(self.guard.stop)
            await asyncio.to_thread(watching.close)
            self.duties = None

    def _start_watch(self, bell: Doorbell | None) -> contextlib.ExitStack:
        """Start the threads that judge, abort and sample; closing what is returned ends them."""
        stack = contextlib.ExitStack()
        here = asyncio.get_running_loop()

        def ended() -> Future[list[Seen]]:
            return asyncio.run_coroutine_threadsafe(self.work(ended_and_firing, self.catalog), here)

        watch = self.watch = Watch(self.spool, self.notes, _Acts(self), site=self.site, report=self.report, ended=ended)
        aborts = self.aborts = Aborts(
            self.spool, self.notes, watch.live, graces=self.config.graces, bell=bell.path if bell else None, report=self.report
        )
        if bell is not None:
            bell.also(watch.rung)

        def follow(found: list[tuple[str, str]]) -> None:
            # what this agent notes in a run that has ended is no reason to watch it again
            found = [(w, run) for w, run in found if watch.follows(run) or (self.notes.position(run) or ("",))[0] != w]
            if not self.lease.held:  # its own host's; the holder watches all, as other hosts may have no agent
                found = [(w, run) for w, run in found if not is_of_another_host(self.spool.run(run).writer(w))]
            watch.follow(found)

        self._follow = follow
        self.ingest.tell(follow)
        sampler = self.sampler = Sampler(self.spool.path, self.notes.sample, watch.live)
        emissions = self.emissions = Emissions(
            self.spool, self.notes, watch.live, country=self.config.country, every=self.config.emissions_every, report=self.report
        )
        for part in (watch, aborts, sampler, emissions):
            part.start()
            stack.callback(part.stop)
        for name, last_turn in (("watch", lambda: watch.progress), ("abort ladder", lambda: aborts.ladder.progress)):
            self.progress.follow(name, last_turn, _IDLE)
            stack.callback(self.progress.end, name)
        return stack

    def _start_inboxes(self, bell: Doorbell | None, folders: FolderWatch, stack: contextlib.ExitStack) -> None:
        """Start the thread that copies what programs append; `stack` ends it."""
        inboxes, self._here = self.inboxes, asyncio.get_running_loop()
        if bell is not None:
            bell.of_inboxes = inboxes.rung
        inboxes.start(folders.follow_inboxes)
        stack.callback(inboxes.stop)
        self.progress.follow("inbox", lambda: inboxes.progress, _IDLE)
        stack.callback(self.progress.end, "inbox")

    def _copied(self, ring: bytes) -> None:
        """Lines of an inbox are records now: said as scripts ring, in the thread that copied them."""
        if self.watch is not None:
            self.watch.rung(ring)
        if self.ingest_loop is not None and self._here is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._here.call_soon_threadsafe(self.ingest_loop.rung, ring)

    async def refresh_site(self) -> None:
        """Take over what changed in the site's file of alerts."""
        if self.site is not None and await asyncio.to_thread(self.site.refresh) and self.watch is not None:
            self.watch.site_changed(self.site)

    async def refresh_targets(self) -> None:
        """Take over what `agent target` changed."""
        if self.drains is not None:
            await self.drains.refresh()

    async def reload_targets(self) -> None:
        """Read the targets' settings again."""
        if self.drains is not None:
            await self.drains.load()

    async def judge_the_rest(self, *, ended: bool) -> int:
        """Judge the runs with alerts for which no watch was there (those that have ended, or all). Returns how many."""

        def find() -> list[str]:
            found = unjudged(self.catalog, ended=ended, site=self.site)
            return [run for run in found if not self.ingest.carried.is_carried(run)]

        watch = self.watch
        runs = [run for run in await self.work(find) if watch is None or not watch.follows(run)]
        if not runs:
            return 0
        known = await self.work(ended_and_firing, self.catalog)
        judged = await asyncio.to_thread(judge_afterwards, self.spool, runs, self.notes, _Acts(self), self.site, self.report, known)
        if judged and watch is not None:
            watch.judged_others()
        return judged

    async def _watch_processes(self, loop: IngestLoop) -> None:
        """Have the kernel say when a script ends, and how; scripts that die are closed at once."""
        here = asyncio.get_running_loop()
        watch = self.processes = ProcessWatch(self.ingest.live_writers, loop.died, report=self.report)

        def ready(writer: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                here.call_soon_threadsafe(loop.died, [writer])

        self.ingest.survivors.attend(watch, ready)
        try:
            await watch.run()
        finally:
            self.ingest.survivors.attend(None, None)

    def doing(self) -> str:
        """Return what `serve` does now, in a line for people: "following 3 runs, draining"."""
        count = len(self.ingest.active_runs)
        following = f"following {count} run{'' if count == 1 else 's'}"
        if self.ingest_loop is not None and self.ingest_loop.problem:
            return f"{following}: {self.ingest_loop.problem}"
        if self.duties is not None and not self.duties.are_done:
            return f"{following}, another host's agent sends"
        return f"{following}, {self.drains.doing() if self.drains is not None else 'starting'}"

    def check(self, task: asyncio.Task[None]) -> None:
        """A loop that ended by itself ended by an error: the agent stops with it, and whoever supervises it starts it again."""
        error = task.exception()
        if error is not None and is_damage(error):
            self.condemned = True
            raise CommandError(
                ExitCode.ERROR, f"the catalog {self.catalog.path} is damaged ({error}): start again, it is set aside and rebuilt"
            ) from None
        task.result()

    async def _reachable(self, bell: Doorbell | None, api: LocalApi) -> None:
        """Open the local API and announce it. Where that fails, commands and scripts do without."""
        try:
            await api.start()
            self._address = {"bell": bell.path if bell else None, "api": api.path}
            self.announce()
        except OSError as error:
            self.report(f"this agent cannot be reached by commands and scripts: {error}; new data is found by scanning")

    def _start_bell(self, folder: str | None, rung: Callable[[bytes], None]) -> Doorbell | None:
        if folder is None:
            self.report(
                "no folder for sockets is short and safe enough (XDG_RUNTIME_DIR): scripts cannot ring, new data is found by scanning"
            )
            return None
        bell = Doorbell(os.path.join(folder, "bell"), rung)
        try:
            bell.start()
        except OSError as error:
            self.report(f"no doorbell ({error.strerror or error}): new data is found by scanning")
            return None
        return bell

    def announce(self) -> None:
        """Tell scripts and commands of this host how to reach this agent. Raises OSError."""
        path = host_file(self.spool)
        atomic.make_folder(os.path.dirname(path))
        pid, samples_from = os.getpid(), time.clock_gettime_ns(time.CLOCK_BOOTTIME) + AHEAD
        ticks = (start_ticks(pid) or (0, ""))[0]
        body = {
            **self._address, "pid": pid, "start_ticks": ticks, "on_demand": self.on_demand, "samples_from": samples_from,
            "country": self.config.country,
        }  # fmt: skip
        atomic.write_json(path, body)
        if self.sampler is not None:
            self.sampler.samples_from = samples_from

    def withdraw(self) -> None:
        """Tell them no longer."""
        if self.sampler is not None:
            self.sampler.samples_from = NEVER
        with contextlib.suppress(OSError):
            atomic.remove(host_file(self.spool))

    def _files_changed(self) -> None:
        if self.ingest_loop is not None:
            self.ingest_loop.files_changed()

    def _taken(self) -> None:
        if self.processes is not None and self._begun != self.ingest.begun:
            self._begun = self.ingest.begun
            self.processes.wake()
        self.taken += 1
        if self.drains is not None:
            self.drains.wake()
        if self.notifier is not None:
            self.notifier.wake()

    def _network_changed(self) -> None:
        if self.drains is not None:
            self.drains.retry()
        if self.notifier is not None:
            self.notifier.retry()

    # ------------------------------------------------------------------ sync

    async def sync(
        self, selection: Selection | None = None, *, timeout: float | None = None, progress: Callable[[SyncReport], None] = lambda _: None,
        patient: bool = False,
    ) -> SyncReport:  # fmt: skip
        """Drain everything that the selected runs have recorded up to now, and return how it ended.

        Works beside `serve` of the same agent, or alone. An unreachable server ends it after a few attempts, or, with a timeout (s) or
        when `patient`, at the timeout. Raises RunNotFound for a selected run that is not there.
        """
        return await Syncing(self, timeout, progress, patient=patient).run(selection or Selection())


class _Acts:
    """What the watch sets off (see alerts.watched.Acts), in its thread."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def abort(self, decision: Decision) -> None:
        agent, reason = self._agent, f"alert {decision.alert}: {decision.reason}"
        if agent.aborts is not None:
            agent.aborts.request(decision.run, decision.id, reason, by="alert", alert=decision.alert)
        else:  # a one-shot: the scripts' own look finds it
            folder = agent.spool.run(decision.run)
            with contextlib.suppress(OSError):
                control.put_request(folder, control.make_request(folder, decision.id, reason, by="alert", alert=decision.alert))

    def heard(self, run: str, writer: str, body: Mapping[str, Any], at: int | None) -> None:
        if self._agent.aborts is not None:
            self._agent.aborts.heard(run, writer, body, at)


def agent_config(
    spool: Spool, url: str | None, token: str | None, graces: Graces | None = None, country: str | None = None,
    load: Callable[[], list[TargetSettings]] | None = None, budget: Budget | None = None,
) -> AgentConfig:  # fmt: skip
    """Return the settings of an agent; SIMSPOOL_GRACE (days that acknowledged data is kept), SIMSPOOL_EMISSIONS_EVERY (s) and
    SIMSPOOL_LEASE (s of silence after which another host's agent is taken for gone) are taken from the environment.
    """
    return AgentConfig(
        spool, url, token, grace=max(_number("SIMSPOOL_GRACE", 7.0), 0.0) * 86400.0, graces=graces or Graces(), country=country,
        emissions_every=max(_number("SIMSPOOL_EMISSIONS_EVERY", EVERY), 1.0), load=load, budget=budget or Budget(),
        patience=max(_number("SIMSPOOL_LEASE", PATIENCE), 1.0),
    )  # fmt: skip


def _number(variable: str, default: float) -> float:
    try:
        return float(os.environ.get(variable, default))
    except ValueError:
        return default
