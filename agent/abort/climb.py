"""One request's way through one process: what is waited for, and what is done from outside when it does not come.

asked -> answered -> leaving     the process does it all itself, and the agent watches
asked -> stopping -> killing     it does not answer, its callback takes too long, or something of it is left
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Sequence
from enum import Enum, auto
from typing import Any

from simspool.agent.live import LiveWriter
from simspool.sdk.config import Graces
from simspool.sdk.process_tree import Process, is_gone
from simspool.spool.control import AbortRequest
from simspool.spool.process import is_alive

from .members import Members, is_protected, named_process
from .steps import Word, as_told, mode_of

Note = Callable[[str, dict[str, Any]], None]
"""Records a step (state, more of the body) in the run's records."""

_MANY = 32  # processes that are named one by one
_TREE = 2000  # processes that a note remembers for the next agent
_SLACK = 1.0  # s more than its graces for a process that does it all itself
_SLOW = 30.0  # s after which a process that SIGKILL does not end is reported


class Step(Enum):
    """Where a climb is."""

    ASKED = auto()
    ANSWERED = auto()
    LEAVING = auto()
    STOPPING = auto()
    KILLING = auto()
    OVER = auto()


class Climb:
    """Made for a process with writers that a request means. `advance` is called a few times a second until `step` is OVER.

    `elapsed` is for how long (s) the process could have answered, `floor` how long it may take from now on at least. `look` reads the
    process's own words from the disk: nothing is done to a process only because the agent has fallen behind with its reading.
    """

    def __init__(
        self, request: AbortRequest, writers: Sequence[LiveWriter], graces: Graces, *, elapsed: float, floor: float, now: float, note: Note,
        report: Callable[[str], None], look: Callable[[Iterable[str]], tuple[list[Word], bool]],
    ) -> None:  # fmt: skip
        first = writers[0]
        self.request, self.run = request, first.run
        self.process = Process(first.header.pid, first.header.start_ticks)
        self.step = Step.ASKED
        self._header, self._graces = first.header, graces
        self._floor = now + floor
        self._answers = first.answers
        self._due = max(now + graces.answer - elapsed, self._floor) if first.answers else now
        self._note, self._report, self._look = note, report, look
        self._mode = mode_of(first.options)
        self._writers = {w.writer: w for w in writers}
        self._members = Members()
        self._was_asked = False

    # ------------------------------------------------------------------ what it hears

    @property
    def writers(self) -> list[str]:
        """The ids of the process's writers that are meant."""
        return list(self._writers)

    def add(self, live: Iterable[LiveWriter]) -> bool:
        """Take the process's writers as they are now; say whether there are new ones."""
        before = len(self._writers)
        self._writers |= {w.writer: w for w in live}
        return len(self._writers) > before

    def hear(self, word: Word, now: float, age: float) -> None:
        """Take what the process itself recorded of this request, `age` seconds ago."""
        if self.step not in {Step.ASKED, Step.ANSWERED}:
            return
        mode = mode_of({"abort_on_alert": word.body["mode"]}) if "mode" in word.body else self._mode
        if word.state == "ignored" or mode == "ignore":
            self._mode, self.step = "ignore", Step.OVER
        elif word.state == "received" and self.step is Step.ASKED:
            self._mode, self.step = mode, Step.ANSWERED
            self._graces = as_told(self._graces, word.body.get("graces"))
            self._due = max(now + self._graces.callback + _SLACK - age, self._floor)
        elif word.state == "done":
            self._mode, self.step = mode, Step.LEAVING
            self._due = max(now + self._graces.term + _SLACK - age, self._floor)

    def resume(self, word: Word, now: float, age: float) -> None:
        """Take what an earlier agent noted of this process and request, `age` seconds ago."""
        if word.body.get("of", word.body.get("pid")) != self.process.pid:
            return
        if word.state == "not-ours":
            self.step = Step.OVER
        elif word.state == "signalled" and self.step is not Step.KILLING:
            self._members.remember(word.body.get("tree"))
            self.step, self._was_asked = Step.STOPPING, True
            self._due = max(now + self._graces.term - age, self._floor)
        elif word.state == "killed":
            self.step, self._was_asked, self._due = Step.KILLING, True, now

    # ------------------------------------------------------------------ what it does

    def advance(self, live: Sequence[LiveWriter], now: float) -> None:
        """Do what is due. `live`: the process's writers in this run that are live now and meant."""
        alive = is_alive(self._header)
        if alive is None:
            self._watch_a_stranger(live, now)
        elif self.step is Step.ASKED:
            self._wait_for_an_answer(live, now, alive=alive)
        elif self.step in {Step.ANSWERED, Step.LEAVING}:
            self._wait_for_its_end(live, now, alive=alive)
        if self.step is Step.STOPPING:
            self._wait_after_asking(now)
        if self.step is Step.KILLING:
            self._kill(now)

    def _watch_a_stranger(self, live: Sequence[LiveWriter], now: float) -> None:
        """A process of another host or PID namespace is waited for, reported, and never signalled."""
        if self.step in {Step.ANSWERED, Step.LEAVING} or not live:
            self.step = Step.OVER
        elif now >= self._due:
            self._hear_from_disk(now)
            if self.step is Step.ASKED:
                header = self._header
                self._note("not-ours", {"pid": header.pid, "host": header.host, "pid_namespace": header.pid_namespace})
            self.step = Step.OVER

    def _wait_for_an_answer(self, live: Sequence[LiveWriter], now: float, *, alive: bool) -> None:
        if not alive or not live:  # it has ended, or ended its part, without having heard: nothing is to be stopped
            self.step = Step.OVER
        elif now >= self._due and not self._hear_from_disk(now):
            self._give_up(now)

    def _wait_for_its_end(self, live: Sequence[LiveWriter], now: float, *, alive: bool) -> None:
        if self._mode == "run":
            if self.step is Step.LEAVING or not live or not alive:
                self.step = Step.OVER
            elif now >= self._due and not self._hear_from_disk(now, only_done=True):
                self._give_up(now)
            return
        self._members.grow([self.process] if alive else [])
        if not alive:  # it may have died before it could stop the others
            self._begin_to_stop(now)
        elif self.step is Step.LEAVING:  # it has sent itself a SIGTERM and has its grace
            if now >= self._due:
                self._was_asked, self.step = True, Step.KILLING
        elif now >= self._due and not self._hear_from_disk(now, only_done=True):
            self._give_up(now)

    def _give_up(self, now: float) -> None:
        if self._answers:
            self._note("unanswered", {"pid": self.process.pid})
        self._begin_to_stop(now)

    def _hear_from_disk(self, now: float, *, only_done: bool = False) -> bool:
        """Hear what the process has recorded and the watch has not read yet; say whether that changes what is due."""
        words, open_ = self._look(self._writers)
        before = self.step
        for word in words:
            if not only_done or word.state != "received":
                self.hear(word, now, 0.0)
        if not open_ and self.step is Step.ASKED:
            self.step = Step.OVER
        return self.step is not before

    def _left(self) -> list[Process]:
        """Return what lives of the tree and of the run's own processes."""
        self._members.grow(self._processes())
        return self._members.left()

    def _processes(self) -> list[Process]:
        found = (named_process(body) for w in self._writers.values() for body in w.processes)
        return [p for p in found if p is not None and not is_protected(p)]

    def _begin_to_stop(self, now: float) -> None:
        """SIGTERM to all that the mode means, the script last. They share one grace."""
        if self._mode == "ignore":
            self.step = Step.OVER
            return
        named = self._processes()
        roots = list(named)
        if self._mode != "run" and not is_gone(self.process):
            if is_protected(self.process):
                self._refused(self.process)
                self.step = Step.OVER
                return
            roots.append(self.process)
        self._members.grow(roots)
        left = self._members.left()
        if not left:
            self.step = Step.OVER
            return
        body = {"signal": int(signal.SIGTERM), "processes": len(left)}
        if self._mode != "run":
            tree = [[p.pid, p.start_ticks] for p in left[:_TREE]]
            whose = {"pid": self.process.pid} if self.process in left else {"pid": left[0].pid, "of": self.process.pid}
            self._note("signalled", {**whose, "tree": tree, **body})  # before the signal: who finds the process gone, finds why
        for process in named[:_MANY]:
            if process in left:
                self._note("signalled", {"pid": process.pid, **body})
        asked = self._members.ask([p for p in left if p != self.process] + [p for p in left if p == self.process])
        for process in left:
            if process not in asked and not is_gone(process):
                self._refused(process)
        self._was_asked = True
        self.step, self._due = Step.STOPPING, max(now + self._graces.term, self._floor)

    def _refused(self, process: Process) -> None:
        self._members.exclude(process)
        self._note("not-ours", {"pid": process.pid})
        self._report(f"abort of run {self.run}: process {process.pid} may not be signalled by this agent: end it yourself")

    def _wait_after_asking(self, now: float) -> None:
        if self._mode != "run" and not is_gone(self.process) and not is_protected(self.process):
            self._members.grow([self.process])  # those that appear are tracked, and may finish a checkpoint
        if not self._left():
            self._end()
        elif now >= self._due:
            self.step = Step.KILLING

    def _kill(self, now: float) -> None:
        if self._mode != "run" and not is_gone(self.process) and not is_protected(self.process):
            self._members.grow([self.process])
        left = self._left()
        if not left:
            self._end()
            return
        if self._was_asked:  # the first time; what SIGKILL does not end at once waits in the kernel
            self._was_asked, self._due = False, now + _SLOW
            for process in sorted(left, key=lambda p: p != self.process)[:_MANY]:
                self._note("killed", {"pid": process.pid, "signal": int(signal.SIGKILL), "processes": len(left)})
        elif now >= self._due:
            self._due = now + 3600.0
            self._report(f"abort of run {self.run}: process {left[0].pid} does not end by SIGKILL: it waits in the kernel (a hung disk?)")
        killed = self._members.kill()
        for process in left:
            if process not in killed and not is_gone(process):
                self._refused(process)

    def _end(self) -> None:
        self._note("gone", {} if self._mode == "run" else {"pid": self.process.pid})
        self.step = Step.OVER
