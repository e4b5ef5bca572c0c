"""The ingest loop of a running agent: at once when there is news, else ever more slowly; the scan alone is sufficient."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from simspool.agent.catalog.store import is_damage
from simspool.agent.progress import Progress

from .ingest import Ingest
from .wake import FolderWatch

_FAST, _SLOWEST_LIVE, _SLOWEST_IDLE = 0.05, 1.0, 30.0  # seconds between looks at the spool
_SCAN_SHARE = 0.005  # of the time may go into scanning
_BURY_EVERY = 2.0
_HARDEN_EVERY = 0.5
_NAME = "ingest"


class IngestLoop:
    """Runs an Ingest for ever. `work` runs a function in the agent's worker thread; `taken` is called when something was taken in.

    `problem` says why it does not get on. A disk that fails, or a spool that is gone, is tried again; anything else ends it.
    """

    def __init__(
        self,
        ingest: Ingest,
        work: Callable[..., Awaitable[Any]],
        watch: FolderWatch,
        taken: Callable[[], None],
        report: Callable[[str], None],
        progress: Progress,
    ) -> None:
        self._ingest, self._worker, self._watch, self._taken, self._report = ingest, work, watch, taken, report
        self._progress = progress
        self._news = asyncio.Event()
        self._hot: set[str] = set()
        self._dead: set[str] = set()
        self._scan_wanted = True
        self._next_scan = self._next_bury = self._next_harden = 0.0
        self.problem = ""

    def rung(self, data: bytes) -> None:
        """A script rang the bell: its writer's id, and its run's."""
        writer = data[:22].decode("ascii", errors="replace")
        if len(self._hot) < 10_000:  # anybody of this user can ring with anything
            self._hot.add(writer)
        self._news.set()

    def died(self, writers: Iterable[str]) -> None:
        """The processes of these writers have ended, or what was waited for to say why is known."""
        self._dead.update(writers)
        self._news.set()

    def files_changed(self) -> None:
        """Files appeared."""
        self._scan_wanted = True
        self._news.set()

    async def run(self) -> None:
        """Loop until cancelled."""
        pause = 0.0
        while True:
            self._progress.turn(_NAME, pause)
            await self._wait_for_news(pause)
            try:
                pause = await self._look(pause)
            except (OSError, sqlite3.Error) as error:
                if is_damage(error):
                    raise
                self._scan_wanted = True
                pause = min(max(pause, 0.5) * 2, _SLOWEST_IDLE)
                self._say(f"nothing can be taken in, it is tried again: {error}")
            else:
                self._say("")

    async def _work(self, function: Callable[..., Any], *args: Any) -> Any:
        self._progress.turn(_NAME)
        return await self._worker(function, *args)

    def _say(self, problem: str) -> None:
        if problem != self.problem:
            self._report(problem or "what is recorded is taken in again")
        self.problem = problem

    async def _look(self, pause: float) -> float:
        """One look at the spool; returns how long (s) the next one may wait for news."""
        ingest, now = self._ingest, time.monotonic()
        scan_due = self._scan_wanted or now >= self._next_scan
        hot, self._hot = self._hot, set()
        self._scan_wanted = False
        found = 0
        if scan_due:
            found = await self._work(ingest.scan)
            cost = time.monotonic() - now
            self._next_scan = now + min(max(cost / _SCAN_SHARE, 1.0), _SLOWEST_IDLE)
            if found:
                self._watch.follow(await self._work(ingest.active_folders))
        if hot and not found and not all(ingest.follows(w) for w in hot):
            self._scan_wanted = not scan_due  # a bell rang for a writer that no scan has seen yet
        progress = await self._work(ingest.read, None if scan_due or not hot else hot)
        dead, self._dead = self._dead, set()
        ended = await self._work(ingest.bury, sorted(dead)) if dead else 0
        if now >= self._next_bury:
            self._next_bury = now + _BURY_EVERY
            ended += await self._work(ingest.bury)
        self._scan_wanted = self._scan_wanted or ended > 0
        if now >= self._next_harden:
            self._next_harden = now + _HARDEN_EVERY
            await self._work(ingest.hardener.harden)
        if progress.records or ended or found:
            self._taken()
        if progress.more:
            return 0.0
        if progress.records or found or ended or self._scan_wanted:
            return _FAST
        slowest = _SLOWEST_LIVE if ingest.active else max(_SLOWEST_LIVE, min(self._next_scan - time.monotonic(), _SLOWEST_IDLE))
        return min(max(pause, _FAST) * 1.5, slowest)

    async def _wait_for_news(self, pause: float) -> None:
        if pause > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):  # not wait_for, which may swallow a cancellation
                    await self._news.wait()
            if self._news.is_set() and not self._dead:
                await asyncio.sleep(min(pause, _FAST))  # a commit is an fsync: news is gathered
        self._news.clear()
