"""The ladder: one thread that sees every abort request through, for all runs of this host.

A request is found in the run's `control/` folder, whoever made it, within about a second; what is handed over is taken at once.
Each process acts, and is acted on, once per request: what came of it is in the records, where the next agent finds it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from simspool.agent.live import LiveWriter, LiveWriters
from simspool.agent.notes import RunNotes
from simspool.sdk.config import Graces
from simspool.spool import Kind, Spool
from simspool.spool.control import AbortRequest, put_request, requests
from simspool.spool.process import this_host
from simspool.spool.runstate import AGENTS

from .climb import Climb, Step
from .steps import Word
from .words import agents_words, tell

_PERIOD, _BUSY = 1.0, 0.1  # s between two turns; while a climb is on
_WORDS = 10_000  # that are kept of a run: a script may say what it likes

_Key = tuple[str, str, int, int]  # run, request, pid, start ticks


@dataclass(slots=True)
class _Watched:
    """A run with writers that are live: its requests, and what its writers said of them."""

    requests: dict[str, AbortRequest] = field(default_factory=dict)
    words: list[Word] = field(default_factory=list)
    earlier: dict[str, list[Word]] = field(default_factory=dict)  # what agents noted, by request; it is there once we have noted it too


class Ladder:
    """Runs climbs. `live` tells which writers there are; steps are noted in the runs through `notes`; `report` is for people.

    All methods may be called from any thread, and none waits. `progress` is the monotonic time (s) of the last turn's end.
    """

    def __init__(self, spool: Spool, notes: RunNotes, live: LiveWriters, graces: Graces, report: Callable[[str], None]) -> None:
        self._spool, self._notes, self._live, self._graces, self._report = spool, notes, live, graces, report
        self._inbox: deque[Word | AbortRequest | None] = deque()
        self._of: deque[str] = deque()  # the runs of what is in the inbox
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._runs: dict[str, _Watched] = {}
        self._climbs: dict[_Key, Climb] = {}
        self._over: set[_Key] = set()
        self._unwritten: dict[tuple[str, str], AbortRequest] = {}
        self._next_look = 0.0
        self._said: dict[str, str] = {}  # problems, by run
        self._began = _boot()
        self.progress = time.monotonic()

    # ------------------------------------------------------------------ from other threads

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._work, name="simspool-ladder", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the turn that is being done. What is not finished, the next agent goes on with."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(10)

    def take(self, run: str, request: AbortRequest, *, written: bool = True) -> None:
        """See a request through that was made just now. One that could not be `written` yet is written as soon as the disk takes it."""
        if not written:
            self._unwritten[run, request.id] = request
        self._put(run, request)

    def hear(self, run: str, word: Word) -> None:
        """Take what a run's writer said of a request."""
        self._put(run, word)

    def look(self, run: str) -> None:
        """Look for requests of a run now."""
        self._put(run, None)

    def _put(self, run: str, item: Word | AbortRequest | None) -> None:
        with self._lock:
            self._inbox.append(item)
            self._of.append(run)
        self._wake.set()

    @property
    def is_busy(self) -> bool:
        """Whether a process is being waited for, or something was handed over that has not been looked at."""
        return bool(self._climbs or self._inbox)

    # ------------------------------------------------------------------ the thread

    def _work(self) -> None:
        while not self._stopping:
            self._wake.wait(_BUSY if self._climbs else _PERIOD)
            self._wake.clear()
            with self._reporting(""):
                self.turn()
            self.progress = time.monotonic()

    def turn(self) -> None:
        """Do what is due, once."""
        live = self._live()  # before the words: who is not live any more has said what it said
        by_run: dict[str, list[LiveWriter]] = {}
        for writer in live:
            if writer.role not in AGENTS:
                by_run.setdefault(writer.run, []).append(writer)
        asked = self._empty_inbox()
        now = time.monotonic()
        look = now >= self._next_look
        if look:
            self._next_look = now + _PERIOD
            self._write_what_is_due()
        for run, writers in by_run.items():
            with self._reporting(run):
                if look or run in asked:
                    self._find_requests(run)
                self._begin_climbs(run, writers, now)
        for key, climb in list(self._climbs.items()):
            with self._reporting(climb.run):
                mine = _meant(key, climb.request, by_run.get(climb.run, ()))
                if climb.add(mine):
                    self._tell_what_is_known(climb, now)
                climb.advance(mine, now)
            if climb.step is Step.OVER:
                del self._climbs[key]
                self._over.add(key)
        if look:
            self._forget(by_run)

    @contextlib.contextmanager
    def _reporting(self, run: str) -> Iterator[None]:
        """What fails is that run's problem, said once; the others go on, and it is tried again."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - one odd run must not stop all aborts
            if run not in self._said:
                self._said[run] = f"{type(error).__name__}: {error}"
                self._report(f"{f'abort of run {run}' if run else 'aborts'}: {self._said[run]}: it is tried again")

    def _empty_inbox(self) -> set[str]:
        """Take what was handed over; return the runs that are to be looked at."""
        asked = set[str]()
        while True:
            with self._lock:
                if not self._inbox:
                    return asked
                item, run = self._inbox.popleft(), self._of.popleft()
            watched = self._runs.setdefault(run, _Watched())
            if isinstance(item, AbortRequest):
                watched.requests.setdefault(item.id, item)
                if item.id not in watched.earlier:
                    watched.earlier[item.id] = []
                    self._record(run, item, "requested", {"sticky": True} if item.sticky else {})
            elif isinstance(item, Word):
                if len(watched.words) < _WORDS:
                    watched.words.append(item)
                self._pass_on(run, item)
                if item.id not in watched.requests:
                    asked.add(run)
            else:
                asked.add(run)

    def _pass_on(self, run: str, word: Word) -> None:
        now, age = time.monotonic(), _age(word.boot)
        for (of, identity, *_), climb in self._climbs.items():
            if of == run and identity == word.id and word.writer in climb.writers:
                climb.hear(word, now, age)

    def _write_what_is_due(self) -> None:
        for (run, identity), request in list(self._unwritten.items()):
            try:
                put_request(self._spool.run(run), request)
            except OSError:
                continue  # it acts as it is, as long as this agent lives
            del self._unwritten[run, identity]

    def _find_requests(self, run: str) -> None:
        watched = self._runs.setdefault(run, _Watched())
        for request in requests(self._spool.run(run), watched.requests):
            watched.requests[request.id] = request

    def _begin_climbs(self, run: str, writers: list[LiveWriter], now: float) -> None:
        for request in list(self._runs[run].requests.values()) if run in self._runs else ():
            for writer in writers:
                key = (run, request.id, writer.header.pid, writer.header.start_ticks)
                if request.concerns(writer.writer) and key not in self._climbs and key not in self._over:
                    climb = self._climb(request, _meant(key, request, writers), now)
                    self._climbs[key] = climb
                    self._tell_what_is_known(climb, now)
                    for word in self._noted_earlier(run, request):
                        climb.resume(word, now, _age(word.boot))

    def _climb(self, request: AbortRequest, writers: list[LiveWriter], now: float) -> Climb:
        """Begin; the process had time from when it could know, on the one clock that all processes of a boot share."""
        writer = writers[0]
        boot = this_host().boot_id
        since = max(
            request.boot if request.boot_id == boot.hex() else 0, writer.header.anchor_boot if writer.header.boot_id == boot else 0
        )
        floor = self._graces.answer if since < self._began else 0.0  # what was said while no agent listened is still to be read
        folder = self._spool.run(writer.run)

        def look(mine: Iterable[str]) -> tuple[list[Word], bool]:
            told = [tell(folder, w, since=request.boot if request.boot_id == boot.hex() else 0) for w in mine]
            return [word for t in told for word in t.words if word.id == request.id], any(not t.closed for t in told)

        def note(state: str, more: Mapping[str, Any]) -> None:
            self._note(request, writer, state, more)

        elapsed = max(_boot() - since, 0) / 1e9
        return Climb(
            request, writers, self._graces, elapsed=elapsed, floor=floor, now=now, note=note, report=self._report, look=look
        )  # fmt: skip

    def _tell_what_is_known(self, climb: Climb, now: float) -> None:
        """Let a climb know what its process has said already."""
        for word in self._runs[climb.run].words:
            if word.id == climb.request.id and word.writer in climb.writers:
                climb.hear(word, now, _age(word.boot))

    def _noted_earlier(self, run: str, request: AbortRequest) -> list[Word]:
        """Return what earlier agents noted of a request; one that nobody has noted is noted now."""
        earlier = self._runs[run].earlier
        if request.id not in earlier:
            same_boot = request.boot_id == this_host().boot_id.hex()
            is_new = same_boot and request.boot >= self._began
            found = [] if is_new else list(agents_words(self._spool.run(run), request.id, request.boot if same_boot else 0))
            earlier[request.id] = found
            if not found:
                self._record(run, request, "requested", {"sticky": True} if request.sticky else {})
        return earlier[request.id]

    def _note(self, request: AbortRequest, writer: LiveWriter, state: str, more: Mapping[str, Any]) -> None:
        """Note a step; a process that is stopped takes all its runs with it, so each of them has the reason."""
        self._record(writer.run, request, state, more)
        key = ("", "", writer.header.pid, writer.header.start_ticks)
        if state in {"signalled", "killed"} and more.get("pid") == writer.header.pid:
            for other in {w.run for w in self._live() if _is_of(key, w) and w.role not in AGENTS} - {writer.run}:
                self._record(other, request, state, {**more, "run": writer.run})

    def _record(self, run: str, request: AbortRequest, state: str, more: Mapping[str, Any]) -> None:
        body = {"id": request.id, "state": state, "by": request.by, "reason": request.reason, **more}
        if request.alert is not None:
            body["alert"] = request.alert
        self._notes.record(run, Kind.ABORT, body)

    def _forget(self, by_run: Mapping[str, Any]) -> None:
        """Forget runs that have ended; their requests are for nobody any more, unless somebody opens them again."""
        busy = {run for run, *_ in self._climbs}
        for run in self._runs.keys() - by_run.keys() - busy:
            del self._runs[run]
            self._said.pop(run, None)
            self._over = {key for key in self._over if key[0] != run}


def _meant(key: _Key, request: AbortRequest, writers: Iterable[LiveWriter]) -> list[LiveWriter]:
    return [w for w in writers if _is_of(key, w) and request.concerns(w.writer)]


def _is_of(key: _Key, writer: LiveWriter) -> bool:
    return (writer.header.pid, writer.header.start_ticks) == key[2:]


def _boot() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _age(boot: int) -> float:
    return max(_boot() - boot, 0) / 1e9
