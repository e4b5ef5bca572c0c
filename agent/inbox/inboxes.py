"""All inboxes of a spool: a thread that copies lines within milliseconds, and finds what was appended while no agent ran.

A run that lives is looked at a hundred times a second while lines come, else four times, and at once where the system says that its
folder changed, or `agent log` rang. Runs without an inbox cost two looks a second while they live, those that have ended one a minute.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from simspool.agent.carry.carried import CarriedRuns
from simspool.spool import Spool, ids

from .copying import Problem, RunInbox
from .newcomers import Newcomers
from .positions import is_copied
from .ring import RING

_FAST, _SLOW, _WATCHED = 0.01, 0.25, 1.0  # s between looks: while lines come, when none come, where the system tells of changes
_WARM = 2.0  # s after a line in which another is expected soon
_FIND_EVERY, _SEARCH_EVERY = 0.5, 60.0
_AGAIN, _LONGEST_AGAIN = 1.0, 30.0  # s until what failed is tried again
_MANY, _SPELL = 50, 30.0  # looks in a second that brought news: so busy a folder is not watched for so many s
_NEW = 5.0  # s in which a run may be known here before it is known to live
_IDLE = 5.0

Watcher = Callable[[list[str], Callable[[str], None]], None]
"""Given folders and whom to tell of changes in them (by the folder), has the system watch these, and no others."""


@dataclass(slots=True)
class _Followed:
    inbox: RunInbox
    began: float
    due: float = 0.0
    news: float = 0.0
    counted: int = 0  # looks that brought news since `since`
    since: float = 0.0
    busy_until: float = 0.0
    failures: int = 0
    is_active: bool = True
    is_hinted: bool = True  # a file may have come


class Inboxes:
    """Copies the inboxes of a spool's runs. With `start`, in a thread of its own; without, when `copy_all` is called.

    `active` returns the runs that have not ended (any thread may ask); `rung` is told of what was recorded, as scripts ring. While `may`
    says no, another host's agent copies them: it is asked before each look, and what was known of positions is forgotten.
    """

    def __init__(
        self, spool: Spool, active: Callable[[], Collection[str]], rung: Callable[[bytes], None],
        report: Callable[[str], None] = lambda _: None, may: Callable[[], bool] = lambda: True,
    ) -> None:  # fmt: skip
        self._spool, self._active, self._rung, self._report, self._may = spool, active, rung, report, may
        self._newcomers = Newcomers(spool, report)
        self._carried = CarriedRuns(spool)
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="simspool-inbox-aside")
        self._runs: dict[str, _Followed] = {}
        self._hints: deque[str] = deque()
        self._news = threading.Event()
        self._asked: deque[threading.Event] = deque()
        self._thread: threading.Thread | None = None
        self._watch: Watcher | None = None
        self._watched: list[str] = []
        self._stopping = False
        self._next_find = self._next_search = self._next_maintain = 0.0
        self.progress = time.monotonic()
        self.problems: dict[str, str] = {}

    # ------------------------------------------------------------------ from other threads

    def start(self, watch: Watcher | None = None) -> None:
        """Begin. `watch` has the system tell of changes."""
        self._watch = watch
        self._thread = threading.Thread(target=self._work, name="simspool-inbox", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End: what was appended is copied by the next agent. Repeating is harmless."""
        self._stopping = True
        self._news.set()
        if self._thread is not None:
            self._thread.join(30)
            self._thread = None
        for asked in self._asked:
            asked.set()
        for followed in self._runs.values():
            followed.inbox.release()
        self._runs.clear()
        self._aside.shutdown()

    def rung(self, data: bytes) -> None:
        """Somebody appended to a run's inbox and says so: `inbox `, the run's id."""
        self._hint(data[len(RING) :].decode("ascii", errors="replace"))

    def changed(self, folder: str) -> None:
        """The system says that something changed in a run's inbox."""
        self._hint(os.path.basename(os.path.dirname(folder)))

    def _hint(self, run: str) -> None:
        if len(self._hints) < 10_000:
            self._hints.append(run)
        self._news.set()

    def copy_all(self) -> int:
        """Copy everything that was appended before this call, to any run; returns how many lines, where no thread does it beside."""
        if self._thread is None:
            return self._pass_alone()
        done = threading.Event()
        self._asked.append(done)
        self._news.set()
        while not done.wait(0.5):
            if self._thread is None or not self._thread.is_alive():
                break
        return 0

    @property
    def is_busy(self) -> bool:
        """Whether runs are followed that have ended, and whose inbox is not copied yet."""
        return any(not f.is_active for f in list(self._runs.values()))

    # ------------------------------------------------------------------ the thread

    def _work(self) -> None:
        while not self._stopping:
            now = time.monotonic()
            asked = [self._asked.popleft() for _ in range(len(self._asked))]
            try:
                self._turn(now, everything=bool(asked))
            except Exception as error:  # noqa: BLE001 - it must not end; what fails is reported, and tried again
                self._report(f"the inbox stumbled ({type(error).__name__}: {error}); it goes on")
                time.sleep(0.2)
            for one in asked:
                one.set()
            self.progress = now = time.monotonic()
            wake = min([self._next_find, now + _IDLE, *(f.due for f in self._runs.values())])
            if wake > now and not self._asked:
                self._news.wait(wake - now)
            self._news.clear()

    def _turn(self, now: float, *, everything: bool) -> None:
        if not self._may():
            self._let_go()
            self._next_find = now + _FIND_EVERY
            return
        while self._hints:
            self._follow(self._hints.popleft())
        if everything or now >= self._next_find:
            self._next_find = now + _FIND_EVERY
            self._find()
        if everything or now >= self._next_search:
            self._next_search = now + _SEARCH_EVERY
            self._search()
        for run, followed in sorted(self._runs.items(), key=lambda r: not r[1].is_active):
            is_due = everything or followed.due <= now
            if is_due and self._look(run, followed, whole=everything) and not followed.is_active and not everything:
                break  # what an ended run left can wait: the rules are there for those that live, which are looked at again first
        if now >= self._next_maintain:
            self._next_maintain = now + 1.0
            for followed in self._runs.values():
                followed.inbox.maintain()
            self._watch_quiet(now)

    def _pass_alone(self) -> int:
        """Copy everything, and let go of it: for a command that looks once."""
        if not self._may():
            return 0
        self._find()
        self._search()
        lines = 0
        for run, followed in list(self._runs.items()):
            while (count := self._look(run, followed, whole=True)) and run in self._runs:
                lines += count
            if run in self._runs:
                del self._runs[run]
                followed.inbox.release()
        return lines

    # ------------------------------------------------------------------ which runs

    def _follow(self, run: str) -> None:
        """Look at a run's inbox next, if it has one."""
        known = self._runs.get(run)
        if known is not None:
            known.due, known.is_hinted = 0.0, True
        elif ids.is_id(run) and not self._carried.is_carried(run):  # its lines are copied where it was recorded
            inbox = RunInbox(self._spool, run, self._rung, self._aside)
            if inbox.exists:
                self._runs[run] = _Followed(inbox, time.monotonic())

    def _find(self) -> None:
        """Follow the runs that live; note which do not any more."""
        self._newcomers.look()
        active = {*self._active(), *self._newcomers.open}
        for run in active:
            if run not in self._runs:
                self._follow(run)
        for run, followed in self._runs.items():
            followed.is_active = run in active

    def _search(self) -> None:
        """Follow the runs that have ended and were appended to since."""
        for run in self._spool.run_ids():
            self.progress = time.monotonic()
            if run not in self._runs and os.path.isdir(self._spool.run(run).inbox) and not is_copied(self._spool.run(run)):
                self._follow(run)
                if run in self._runs:
                    self._runs[run].is_active = run in self._active() or run in self._newcomers.open

    # ------------------------------------------------------------------ one run

    def _let_go(self) -> None:
        """Another agent copies: what is known of its positions here is out of date with its next line."""
        for followed in self._runs.values():
            followed.inbox.release()
        self._runs.clear()

    def _look(self, run: str, followed: _Followed, *, whole: bool) -> int:
        """Copy what is new in a run's inbox; `whole`: all of it. Lets go of a run that has ended, when all is copied."""
        if not self._may():
            return 0
        inbox, now, lines = followed.inbox, time.monotonic(), 0
        try:
            hinted, followed.is_hinted = followed.is_hinted, False
            while count := inbox.copy(listing=whole or hinted):
                lines += count
                self.progress = time.monotonic()
                if not whole:
                    break
            while whole and inbox.is_waiting and not self._stopping:
                inbox.wait(1.0)
                self.progress = time.monotonic()
                lines += inbox.copy()
            known = whole or now - followed.began > _NEW
            if not lines and known and not followed.is_active and inbox.finish():
                del self._runs[run]
        except Problem as error:
            self._failed(run, followed, error)
            return lines
        if self.problems.pop(run, None):
            self._report(f"run {run}: its inbox is copied again")
        followed.failures = 0
        if inbox.has_status:
            self._newcomers.ended(run)
        if lines:
            followed.news = now
            followed.counted += 1
            if now - followed.since >= 1.0:
                followed.counted, followed.since = 1, now
            elif followed.counted >= _MANY:
                followed.busy_until = now + _SPELL
        quiet = _WATCHED if inbox.folder in self._watched else _SLOW
        followed.due = now + (0.0 if lines > 1000 else _FAST if now - followed.news < _WARM else quiet)
        return lines

    def _failed(self, run: str, followed: _Followed, error: OSError | Exception) -> None:
        if not os.path.isdir(self._spool.run(run).path):  # deleted, or pruned
            self._runs.pop(run, None)
            self.problems.pop(run, None)
            followed.inbox.release()
            return
        what = getattr(error, "strerror", None) or str(error)
        if run not in self.problems:
            self._report(f"run {run}: its inbox is not copied just now, nothing of it is lost: {what}")
        self.problems[run] = f"its inbox is not copied: {what}: it is tried again"
        followed.due = time.monotonic() + min(_AGAIN * 2.0 ** min(followed.failures, 10), _LONGEST_AGAIN)
        followed.failures += 1

    def _watch_quiet(self, now: float) -> None:
        """Have the system watch the inboxes where little happens: each line there is an event, which costs more than a look."""
        if self._watch is None:
            return
        wanted = [f.inbox.folder for f in self._runs.values() if f.is_active and f.busy_until <= now]
        if wanted != self._watched:
            self._watched = wanted
            self._watch(wanted, self.changed)
