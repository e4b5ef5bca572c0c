"""The thread that gives each run its share of what codecarbon measures.

Every second it looks at the process trees of the runs that ask; at the end of an interval, and when a run has ended, it has the child
measure, and records each run's share. Like the sampler it shares nothing with the rest but the list of live writers and the notes. Where
nobody asks, it does nothing, and there is no child.

Limits: what a run's processes did before they were first seen and after they were last seen (a second each) is not in its share, and
nothing is recorded of time in which the agent or its child was not there.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from simspool.agent.live import LiveWriter, LiveWriters
from simspool.agent.notes import RunNotes
from simspool.agent.sampling.sampler import roots_of
from simspool.sdk.emissions import COUNTRY, HOW_TO_SAY, WANTED
from simspool.sdk.sampling.host import read_host
from simspool.sdk.sampling.tree import Identity, Processes, TreeMeter
from simspool.spool import Kind, Spool
from simspool.spool.process import is_alive

from . import EVERY
from .child import Child, Line
from .ledger import Ledger, read_ledger
from .shares import Card, Machine, Use, open_cards, shares

_LOOK = 1.0  # s between two looks at the process trees
_LAST = 2.0  # s that the last measurement may take when the agent ends
_LINGER = 30.0  # s that the child is kept when nobody asks any more: its start takes seconds
_WAITED_FOR = 30.0  # s that a run's last share is waited for
_HELD = 1.5  # s after a run's end during which the agent's part of it is surely open still
_METHOD = "the machine's energy as codecarbon {} has it, by share of the run's processes (docs/emissions.md)"


@dataclass(slots=True)
class _Run:
    """A run that asks. `pending` is energy (kWh) that is not recorded yet, `over` when it ended (monotonic s)."""

    country: str
    meter: TreeMeter
    ledger: Ledger
    since: float  # s on the monotonic clock: the last look
    roots: list[Identity] = field(default_factory=list)
    use: Use = field(default_factory=Use)
    pending: float = 0.0
    counted: bool = False  # whether `pending` covers any time
    said: str = ""
    over: float | None = None


@dataclass(frozen=True, slots=True)
class _Mark:
    """The machine at the beginning of an interval; `energy` in kWh since the child began."""

    at: float  # monotonic s: like codecarbon's, it stands still while the machine is suspended
    busy: float
    energy: Mapping[str, float]


class Emissions:
    """Measures until it is stopped. `country` is the agent's own setting, None for the runs' own; `every` is in seconds.

    `problem` says why nothing can be measured at the moment.
    """

    def __init__(
        self, spool: Spool, notes: RunNotes, live: LiveWriters, *, country: str | None = None, every: float = EVERY,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self._spool, self._notes, self._live, self._report = spool, notes, live, report
        self._country, self._every = country, every
        self._processes, self._child = Processes(), Child()
        self._runs: dict[str, _Run] = {}
        self._refused: dict[str, str] = {}  # runs, with the country that will not do
        self._countries: dict[str, tuple[float, str] | None] = {}  # intensity (kg/kWh) and what it is of, None for unknown ones
        self._asked: set[str] = set()
        self._told = 0  # the child's life in which these were asked
        self._version = ""
        self._mark: _Mark | None = None
        self._due = self._looked = self._wanted = 0.0
        self._reported: set[str] = set()
        self._stopping = False
        self._wake = -1
        self._thread: threading.Thread | None = None
        self.problem = ""

    @property
    def child(self) -> int | None:
        """The pid of the measuring process, None when there is none."""
        return self._child.pid

    def start(self) -> None:
        """Begin, in a thread."""
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._work, name="simspool-emissions", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Record what was used up to now, and end."""
        self._stopping = True
        thread, self._thread = self._thread, None
        if thread is None:
            return
        os.eventfd_write(self._wake, 1)
        thread.join(2 * _LAST)
        if not thread.is_alive():
            os.close(self._wake)

    def _work(self) -> None:
        while not self._stopping:
            try:
                self._wait(self.turn())
            except Exception as error:  # noqa: BLE001 - shown by the agent's status, tried again
                self.problem = f"emissions: {type(error).__name__}: {error}"
                self._wait(_LOOK)
        try:
            self._finish()
        finally:
            self._child.end()

    def _wait(self, seconds: float) -> None:
        answers = self._child.fileno()
        select.select([self._wake, *([] if answers is None else [answers])], [], [], max(seconds, 0.0))

    def turn(self) -> float:
        """Do what is due; return the seconds until something is due again, unless the child answers before."""
        now = time.monotonic()
        if now >= self._looked + _LOOK:
            self._look(now)
        if not self._runs:
            self._listen(now)
            self._mark = None  # the next run begins with an interval of its own
            if now - self._wanted > _LINGER:
                self._child.end()
                self.problem = ""
            return self._looked + _LOOK - now
        self._wanted = now
        self._child.tend()
        self._listen(now)
        self._ask(now)
        return self._looked + _LOOK - time.monotonic()

    def _finish(self) -> None:
        """Have the child measure once more."""
        if self._mark is None or not self._runs:
            return
        until = time.monotonic() + _LAST
        self._due = 0.0
        if self._child.is_free:
            self._child.ask(ask="measure")
        while (left := until - time.monotonic()) > 0.0 and (waits := self._child.fileno()) is not None:
            select.select([waits], [], [], left)
            if self._listen(time.monotonic()):
                return

    # ------------------------------------------------------------------ who asks

    def _look(self, now: float) -> None:
        """Take up runs that ask, see what the others used, notice who has ended."""
        self._looked = now
        asking: dict[str, list[LiveWriter]] = {}
        for writer in self._live():
            if writer.options.get(WANTED) is True and is_alive(writer.header):
                asking.setdefault(writer.run, []).append(writer)
        self._processes.refresh()
        for run, writers in asking.items():
            known = self._runs.get(run) or self._take_up(run, writers[0].options, now)
            if known is not None:
                known.over, known.roots = None, roots_of(writers)
        for run, known in list(self._runs.items()):
            if run not in asking and known.over is None:
                known.over = now
            self._see(known, now)
            if known.over is not None and (self._mark is None or now - known.over > _WAITED_FOR):
                del self._runs[run]
        for run in self._refused.keys() - asking.keys():
            del self._refused[run]

    def _take_up(self, run: str, options: Mapping[str, Any], now: float) -> _Run | None:
        country = self._country or options.get(COUNTRY)
        if not isinstance(country, str):
            self._refuse(run, "", f"no country is configured: {HOW_TO_SAY}")
            return None
        if self._countries.get(country, ()) is None:
            self._refuse(run, country, _unknown(country))
            return None
        meter = TreeMeter(self._processes, hidden=frozenset({os.getpid()}))
        known = self._runs[run] = _Run(country, meter, read_ledger(self._spool.run(run)), now)
        return known

    def _refuse(self, run: str, country: str, why: str) -> None:
        if self._refused.get(run) != country:
            self._refused[run] = country
            self._tell(run, why)

    def _tell(self, run: str, why: str) -> None:
        """Say in a run, and once for all of them on stderr, why nothing is measured."""
        self._notes.record(run, Kind.EVENT, {"message": f"emissions are not measured: {why}", "level": "warning"})
        if why not in self._reported:
            self._reported.add(why)
            self._report(f"emissions are not measured: {why}")

    def _see(self, run: _Run, now: float) -> None:
        """Add what a run used since the last look."""
        used = run.meter.usage(run.roots)
        seconds, run.since = now - run.since, now
        if used is None:
            return
        run.use.processor += used[0]
        run.use.memory += used[1] * seconds
        run.use.pids |= run.meter.pids

    # ------------------------------------------------------------------ the child

    def _ask(self, now: float) -> None:
        """Ask the child what is to be known."""
        child = self._child
        if child.problem:
            self.problem = f"emissions: {child.problem}"
            for name, run in self._runs.items():
                if run.said != child.problem:
                    run.said = child.problem
                    self._tell(name, child.problem)
        if self._told != child.generation:
            self._told, self._asked, self._mark = child.generation, set(), None
        for country in {run.country for run in self._runs.values()} - self._asked:
            if child.fileno() is not None:
                child.ask(ask="country", country=country)
                self._asked.add(country)
        ended = any(run.over is not None for run in self._runs.values())
        if child.is_free and (self._mark is None or now >= self._due or ended):
            child.ask(ask="measure")

    def _listen(self, now: float) -> bool:
        """Take the child's answers; True when a measurement was among them."""
        measured = False
        for line in self._child.answers():
            if "ready" in line:
                self._version = line["ready"]
            elif "country" in line:
                self._learn(line)
            else:
                self.problem = ""
                self._measured(line, now)
                measured = True
        return measured

    def _learn(self, line: Line) -> None:
        country = line["country"]
        known = self._countries[country] = None if line["intensity"] is None else (line["intensity"], line["of"])
        if known is None:
            for name in [name for name, run in self._runs.items() if run.country == country]:
                del self._runs[name]
                self._refuse(name, country, _unknown(country))

    # ------------------------------------------------------------------ intervals

    def _measured(self, line: Line, now: float) -> None:
        """The end of an interval, and the beginning of the next."""
        self._look(now)
        host = read_host(time.clock_gettime(time.CLOCK_BOOTTIME))
        energy = {part: float(line[part]) for part in ("cpu", "ram", "gpu")}
        before = self._mark
        self._mark = mark = _Mark(time.monotonic(), host.busy or 0.0, energy)
        ready = {name: run for name, run in self._runs.items() if self._countries.get(run.country)}
        if before is not None:
            for name, kwh in self._share(before, mark, host.memory or 0, line["cards"], ready).items():
                ready[name].pending += kwh
                ready[name].counted = True
        for run in self._runs.values():
            run.use = Use()
        is_due = now >= self._due
        for name, run in ready.items():
            if run.counted and (is_due or run.over is not None):
                self._record(name, run, line["how"], now)
        if is_due:
            self._due = now + self._every
        for name in [name for name, run in self._runs.items() if run.over is not None]:
            del self._runs[name]

    def _share(
        self, before: _Mark, mark: _Mark, memory: int, cards: list[dict[str, Any]], runs: Mapping[str, _Run]
    ) -> dict[str, float]:  # fmt: skip
        seen = [
            Card(card["index"], card["weight"], held := {int(pid): size for pid, size in card["held"].items()}, _any_here(held))
            for card in cards
        ]  # fmt: skip
        if any(not card.visible for card in seen):
            for run in runs.values():
                run.use.cards = open_cards(_open_files(run.use.pids))
        parts = {part: max(value - before.energy[part], 0.0) for part, value in mark.energy.items()}
        machine = Machine(
            parts["cpu"], parts["ram"], parts["gpu"], max(mark.busy - before.busy, 0.0), memory * max(mark.at - before.at, 0.0), seen
        )
        return shares(machine, {name: run.use for name, run in runs.items()})

    def _record(self, name: str, run: _Run, how: Mapping[str, str], now: float) -> None:
        """Record what a run has used since its last sample."""
        known = self._countries[run.country]
        assert known is not None
        intensity, of = known
        ledger = run.ledger
        if run.said != "recorded":
            run.said = "recorded"
            about = {
                "country": run.country, "intensity": intensity, "intensity_of": of, "method": _METHOD.format(self._version), **how,
            }  # fmt: skip
            self._notes.record(name, Kind.METADATA, {"set": {f"sustainability.{key}": value for key, value in about.items()}})
        step = ledger.count
        values = ledger.add(run.pending, run.pending * intensity)
        run.pending, run.counted = 0.0, False
        if not self._notes.sample(name, values, step):
            self.problem = f"emissions: a sample of run {name} could not be recorded"
            run.ledger = read_ledger(self._spool.run(name))  # what is not on the disk is in no total
        if run.over is not None and now - run.over > _HELD:
            self._notes.release(name)


def _unknown(country: str) -> str:
    return f"codecarbon has no electricity data for the country {country!r}: {HOW_TO_SAY}"


def _any_here(pids: Mapping[int, float]) -> bool:
    """Say whether the driver's pids are those of this PID namespace, as far as can be told."""
    return any(os.path.exists(f"/proc/{pid}") for pid in pids)


def _open_files(pids: set[int]) -> set[str]:
    found: set[str] = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    found.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return found
