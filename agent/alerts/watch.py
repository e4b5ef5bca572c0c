"""The watch: a thread that reads every live writer a moment after it records, and lets the rules judge (DESIGN 6).

It is apart from the ingest, whose every pass is a commit: between a bad value and its abort there is no fsync.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future
from typing import Any

from simspool.agent.carry.carried import CarriedRuns
from simspool.agent.live import LiveWriter
from simspool.agent.notes import RunNotes
from simspool.spool import Spool, SpoolError, ids

from .elsewhere import Elsewhere, Seen
from .references import References
from .watched import SLACK, Acts, SiteRules, WatchedRun, WatchedWriter

_GATHER = 0.002  # s: news is gathered for so long while there is much of it
_LONGEST_GATHER = 0.01
_NO_RULES = 0.05  # s between looks at a run without rules
_AGAIN = (0.003, 0.03)  # s after a ring: the bell is throttled, so what follows it may have rung nobody
_POLL, _POLL_BUSY, _POLL_MANY, _MANY = 0.5, 0.1, 2.0, 500
_BUSY = 50  # rings between two polls: so many that some did not get through
_SETTLE = 0.5
_IDLE = 5.0
_MOST_OPEN = 400
_SUSPENDED = 2.0  # s of difference between the clocks that are no rounding


class Watch:
    """Start it, then tell it of writers (`follow`, `rung`). `progress` is when its loop last turned (monotonic s).

    `live` may be called from any thread. Runs that were carried here are never watched.
    """

    def __init__(
        self, spool: Spool, notes: RunNotes, acts: Acts, *, site: SiteRules | None = None, report: Callable[[str], None] = lambda _: None,
        ended: Callable[[], Future[list[Seen]]] | None = None,
    ) -> None:  # fmt: skip
        self._spool, self._notes, self._acts, self._site, self._report = spool, notes, acts, site, report
        self._references = References(spool, report)
        self._elsewhere = Elsewhere(spool, ended, report)
        self._carried = CarriedRuns(spool)
        self._news = threading.Event()
        self._rings: deque[bytes] = deque()
        self._found: deque[tuple[str, str]] = deque()
        self._runs: dict[str, WatchedRun] = {}
        self._of: dict[str, tuple[WatchedRun, WatchedWriter]] = {}
        self._due: dict[str, tuple[float, int]] = {}  # writer -> when to look, how many looks after that
        self._heard = 0
        self._looked: dict[str, float] = {}
        self._open: dict[str, None] = {}
        self._behind: set[str] = set()  # runs that are not read to the end yet, or have to be settled again
        self._lives: dict[str, list[LiveWriter]] = {}
        self._live: list[LiveWriter] = []
        self._next_poll = self._next_settle = self._next_maintain = 0.0
        self._clocks = _clocks()
        self._site_changed = self._judged_others = False
        self._stopping = False
        self._thread: threading.Thread | None = None
        self.progress = time.monotonic()
        self.problems: dict[str, str] = {}

    # ------------------------------------------------------------------ from other threads

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._work, name="simspool-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, and let go of the files."""
        self._stopping = True
        self._news.set()
        if self._thread is not None:
            self._thread.join(10)
        self._references.close()

    def rung(self, data: bytes) -> None:
        """A script rang: its writer's id, and its run's."""
        if len(self._rings) < 100_000:
            self._rings.append(data)
        self._news.set()

    def follow(self, writers: Collection[tuple[str, str]]) -> None:
        """These (writer, run) are there and have not ended."""
        self._found.extend(writers)
        if writers:
            self._news.set()

    def live(self) -> list[LiveWriter]:
        """Return the writers that have not ended."""
        return self._live

    def follows(self, run: str) -> bool:
        """Say whether a run is being watched."""
        return run in self._runs

    def judged_others(self) -> None:
        """Runs that are not watched were judged; rules about several runs count them too."""
        self._judged_others = True
        self._news.set()

    def site_changed(self, site: SiteRules | None) -> None:
        """The site has other rules now."""
        self._site, self._site_changed = site, True
        self._news.set()

    # ------------------------------------------------------------------ the loop

    def _work(self) -> None:
        while not self._stopping:
            began = time.monotonic()
            try:
                self._turn(began)
            except Exception as error:  # noqa: BLE001 - the watch must not end; what fails is reported, and tried again
                self._report(f"the watch stumbled ({type(error).__name__}: {error}); it goes on")
                time.sleep(0.2)
            self.progress = time.monotonic()
            self._wait(began)
        for run in self._runs.values():
            run.close()

    def _wait(self, began: float) -> None:
        now = time.monotonic()
        took = now - began
        if self._news.is_set():  # much news: what comes in the next moment is read with it, and others get the processor
            time.sleep(max(_GATHER - took, min(took, _LONGEST_GATHER)))
            self._news.clear()
            return
        wake = [self._next_poll if self._of else now + _IDLE, now + _IDLE, self._elsewhere.wake()]
        wake += [at for at, _ in self._due.values()]
        wake += [self._tick_at(run, now) for run in self._runs.values()]
        if self._behind:
            wake.append(now if any(not r.is_ready for r in map(self._runs.get, self._behind) if r is not None) else self._next_settle)
        timeout = min(wake) - now
        if timeout > 0:
            self._news.wait(timeout)
        self._news.clear()

    def _tick_at(self, run: WatchedRun, now: float) -> float:
        wake = run.rules.wake
        if wake == float("inf") or not run.is_ready:
            return now + _IDLE
        here = run.now()
        return now + _IDLE if here is None else now + max(wake + SLACK - here, 0.001)

    def _turn(self, now: float) -> None:
        self._note_suspension()
        while self._found:
            writer, run = self._found.popleft()
            self._adopt(run, writer)
        while self._rings:
            self._heard += 1
            self._ring(self._rings.popleft(), now)
        touched: set[WatchedRun] = set()
        for writer in [w for w, (at, _) in self._due.items() if at <= now]:
            self._look(writer, now, touched)
        if now >= self._next_poll:
            self._poll(now, touched)
        for name in list(self._behind):
            behind = self._runs.get(name)
            if behind is not None and (not behind.is_ready or now >= self._next_settle):
                self._guard(behind, self._catch_up, touched)
        self._next_settle = now + _SETTLE if now >= self._next_settle else self._next_settle
        for watched in self._runs.values():
            if watched.rules.wake < float("inf") and self._tick_at(watched, now) <= now + 0.001:
                self._guard(watched, self._tick, touched)
        changed = [run for run in touched if run.take_change()]
        if changed:  # before anything is set off: whoever acts asks who is live
            self._lives |= {run.id: run.live() for run in changed}
            self._live = [writer for live in self._lives.values() for writer in live]
        for watched in touched:
            self._guard(watched, WatchedRun.act)
        for watched in touched:
            self._guard(watched, self._settle)
            if watched.take_definition():
                self._look_again(watched.noted_in(), watched.id, now)
            if watched.take_news():
                self._elsewhere.changed()
        if self._judged_others:
            self._judged_others = False
            self._elsewhere.judged_others()
        for watched in self._elsewhere.note(self._runs.values(), now):
            self._look_again(watched.noted_in(), watched.id, now)
        if now >= self._next_maintain:
            self._next_maintain = now + 1.0
            self._notes.maintain()
            self._end_finished()
        if touched:
            self._limit_open()

    # ------------------------------------------------------------------ news

    def _ring(self, data: bytes, now: float) -> None:
        text = data.decode("ascii", errors="replace")
        writer, _, run = text.partition(" ")
        known = self._of.get(writer)
        if known is None:
            if not (ids.is_id(writer) and ids.is_id(run)) or not self._adopt(run, writer):
                return
            known = self._of[writer]
        gap = _GATHER if known[0].rules.rules else _NO_RULES
        self._due[writer] = (max(now, self._looked.get(writer, 0.0) + gap), len(_AGAIN))

    def _look_again(self, writer: str | None, run: str, now: float) -> None:
        """The watch itself noted something: read it as if it had rung."""
        if writer is not None:
            self._ring(f"{writer} {run}".encode(), now)
            self._news.set()

    def _adopt(self, run: str, writer: str) -> bool:
        """Follow a writer, and with it the others of its run. False when it is not there, or its run was carried here."""
        if writer in self._of:
            return True
        if not os.path.isdir(os.path.join(self._spool.runs, run, "w", writer)) or self._carried.is_carried(run):
            return False
        watched = self._runs.get(run)
        if watched is None:
            watched = self._runs[run] = WatchedRun(
                self._spool, run, self._notes, self._acts, self._site, self._references
            )
        watched.add(writer)
        for name, one in watched.writers.items():
            self._of[name] = (watched, one)
        self._behind.add(run)
        return True

    def _look(self, writer: str, now: float, touched: set[WatchedRun]) -> None:
        _, again = self._due.pop(writer)
        run, one = self._of.get(writer, (None, None))
        if run is None or one is None:
            return
        self._looked[writer] = now
        if again:
            self._due[writer] = (now + _AGAIN[-again], again - 1)
        if run.is_ready:
            self._guard(run, self._read, one, touched)

    def _poll(self, now: float, touched: set[WatchedRun]) -> None:
        rings, self._heard = self._heard, 0
        self._next_poll = now + (_POLL_MANY if len(self._of) >= _MANY else _POLL_BUSY if rings > _BUSY else _POLL)
        for run, one in list(self._of.values()):
            if run.is_ready and not one.closed and one.writer not in self._due:
                self._guard(run, self._read, one, touched)
        if self._site_changed:
            self._site_changed = False
            for run in self._runs.values():
                run.offer_again(self._site)
                touched.add(run)

    # ------------------------------------------------------------------ work on one run

    def _guard(self, run: WatchedRun, work: Callable[..., None], *arguments: Any) -> None:
        """Do something for one run; what fails there is that run's problem, and no other's."""
        try:
            work(run, *arguments)
        except (OSError, SpoolError) as error:
            self._say(run, f"cannot be watched just now: {error}")
        except Exception as error:  # noqa: BLE001 - one run's odd records must not blind the watch for the others
            self._say(run, f"cannot be judged ({type(error).__name__}: {error}); please report this")
        else:
            self._say(run, run.problem)

    def _say(self, run: WatchedRun, problem: str) -> None:
        if problem != self.problems.get(run.id, ""):
            if problem:
                self.problems[run.id] = problem
                self._report(f"run {run.id}: {problem}")
            else:
                self.problems.pop(run.id, None)

    def _read(self, run: WatchedRun, one: WatchedWriter, touched: set[WatchedRun]) -> None:
        sequence, closed = one.sequence, one.closed
        if run.read(one, glance=True):
            self._due[one.writer] = (0.0, len(_AGAIN))
            self._news.set()
        self._open[one.writer] = None
        if one.sequence != sequence or one.closed != closed:
            touched.add(run)

    def _catch_up(self, run: WatchedRun, touched: set[WatchedRun]) -> None:
        if run.catch_up():
            self._behind.discard(run.id)
            touched.add(run)

    def _tick(self, run: WatchedRun, touched: set[WatchedRun]) -> None:
        run.tick()
        touched.add(run)

    def _settle(self, run: WatchedRun) -> None:
        if not run.settle() or not run.is_ready:
            self._behind.add(run.id)

    # ------------------------------------------------------------------ slow duties

    def _note_suspension(self) -> None:
        """The boot clock counts suspended time, the monotonic one does not."""
        before, self._clocks = self._clocks, _clocks()
        slept = (self._clocks[0] - before[0]) - (self._clocks[1] - before[1])
        if slept > _SUSPENDED:
            for run in self._runs.values():
                run.suspended(slept, 0.0)

    def _end_finished(self) -> None:
        for run in [r for r in self._runs.values() if r.is_finished or not os.path.isdir(os.path.join(self._spool.runs, r.id))]:
            self._guard(run, WatchedRun.finish)
            self._elsewhere.finished(run.seen())
            for writer in run.writers:
                self._of.pop(writer, None)
                self._due.pop(writer, None)
                self._looked.pop(writer, None)
                self._open.pop(writer, None)
            self._behind.discard(run.id)
            del self._runs[run.id]
            self._lives.pop(run.id, None)
            self._live = [writer for live in self._lives.values() for writer in live]

    def _limit_open(self) -> None:
        while len(self._open) > _MOST_OPEN:
            writer = next(iter(self._open))
            del self._open[writer]
            if writer in self._of:
                self._of[writer][1].tail.close()


def _clocks() -> tuple[float, float]:
    return time.clock_gettime(time.CLOCK_BOOTTIME), time.monotonic()
