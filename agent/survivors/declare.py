"""Closing a dead writer truthfully: what its own close would have said, with the evidence (DESIGN 6, I9)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from simspool.agent.notes import RunNotes
from simspool.sdk.process_exit import exit_of_zombie
from simspool.spool import Kind, RunFolder, Spool, SpoolError, Tail, control, runstate
from simspool.spool.frames import Record
from simspool.spool.process import is_alive, this_host
from simspool.spool.segment_header import SegmentHeader

from .elsewhere import Elsewhere
from .memory import out_of_memory
from .slurm import Job, JobState, Slurm
from .verdict import Evidence, judge, survivor_body
from .watch import Death, ProcessWatch

_SIGKILL = 9
_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")  # ns
_QUIET = 10.0  # s after a death until the agent's part of its run is closed: others of the agent may have something to add
_STEPS = frozenset({"signalled", "killed"})
_IN_A_JOB = frozenset({"fork", "re-entrant"})  # they say nothing of the job: it is the run's


class Survivors:
    """Declares dead writers in the agent's part of their runs. Confined to the agent's worker thread.

    Alone (a command that looks once) it waits for what the scheduler says; attended by a running agent it comes back later.
    """

    def __init__(
        self, spool: Spool, notes: RunNotes, *, slurm: Slurm | None = None, judges_others: Callable[[], bool] = lambda: False
    ) -> None:  # fmt: skip
        self._spool, self._notes = spool, notes
        self._slurm = slurm or Slurm()
        self._elsewhere = Elsewhere(self._ask, judges_others)
        self._watch: ProcessWatch | None = None
        self._ready: Callable[[str], None] | None = None
        self._noted: dict[str, float] = {}  # runs, monotonic s

    def attend(self, watch: ProcessWatch | None, ready: Callable[[str], None] | None) -> None:
        """Use a running agent's process watch. `ready(writer)`, called in any thread, says that a pending writer can be declared."""
        self._watch, self._ready = watch, ready

    def is_over_elsewhere(
        self, run: str, writer: str, role: str | None, header: SegmentHeader, at: tuple[int, int], state: Callable[[], Mapping[str, Any]]
    ) -> bool:  # fmt: skip
        """Say whether a process of another host is gone, as far as its job tells. `at` is how far it was read."""
        found = self._elsewhere.is_over(writer, at, lambda: self._job(run, writer, role, header, state()), once=self._ready is None)
        return found is not None

    def declare(self, run: str, writer: str, role: str | None, header: SegmentHeader, last: int, state: Mapping[str, Any]) -> str | None:
        """Record that a writer ended without a close record: its status, the reason, the evidence. `last` is its last sequence.

        Nothing is recorded where another agent's word is known already (of several, the first one counts), and where the run was
        deleted. Returns None when the evidence is not complete yet: ask again. Else why it could not be recorded, empty when it was,
        or was not needed.
        """
        entry = state["writers"].get(writer)
        if (entry is not None and runstate.is_ended(entry)) or not os.path.isdir(self._spool.run(run).writers):
            return ""
        found = self._gather(run, writer, role, header, state)
        if found is None:
            return None
        self._noted[run] = time.monotonic()
        if not self._notes.record(run, Kind.SURVIVOR, survivor_body(writer, last, found, judge(found))):
            return self._notes.last_error or "the spool cannot be written"
        return ""

    def release(self, active: Collection[str]) -> int:
        """Close the agent's part of runs in which a death was noted, and that have no active writer left. Returns of how many."""
        released = 0
        latest = time.monotonic() - (_QUIET if self._ready is not None else 0.0)
        for run, noted in list(self._noted.items()):
            if run not in active and noted <= latest:
                del self._noted[run]
                self._notes.release(run)
                released += 1
        return released

    # ------------------------------------------------------------------ evidence

    def _gather(self, run: str, writer: str, role: str | None, header: SegmentHeader, state: Mapping[str, Any]) -> Evidence | None:
        if is_alive(header) is None:
            return self._gather_elsewhere(run, writer, role, header, state)
        rebooted = header.boot_id != this_host().boot_id
        death: Death | None = None
        if self._watch is not None and not rebooted:
            seen = self._watch.death(header)
            if seen is False:
                return None
            death = seen
        abort = self._abort(run, writer, header, state)
        ended = death.exit if death is not None else None if rebooted else exit_of_zombie(header.pid, header.start_ticks)
        crashed = ended is not None and ended.crashed
        job: JobState | None = None
        if abort is None and not crashed and (known := self._job(run, writer, role, header, state)) is not None:
            job = self._ask(known, writer)
            if job is None:
                return None
        oom = None
        if not rebooted:
            by_kill = None if ended is None else ended.signal == _SIGKILL
            oom = out_of_memory(header.pid, _began(header), None if death is None else death.memory, by_kill=by_kill)
        return Evidence(
            header,
            exit=ended,
            oom=oom,
            job=job,
            abort=abort,
            rebooted=rebooted,
            ended=None if death is None else (death.boot - header.origin_boot) / 1e9,
        )

    def _gather_elsewhere(
        self, run: str, writer: str, role: str | None, header: SegmentHeader, state: Mapping[str, Any]
    ) -> Evidence | None:  # fmt: skip
        job = self._job(run, writer, role, header, state)
        answer = None if job is None else self._ask(job, writer)
        return None if answer is None else Evidence(header, job=answer, abort=self._abort(run, writer, header, state), elsewhere=True)

    def _ask(self, job: Job, writer: str) -> JobState | None:
        if self._ready is None:
            return self._slurm.ask_once(job)
        ready = self._ready
        return self._slurm.ask(job, lambda: ready(writer))

    def _job(self, run: str, writer: str, role: str | None, header: SegmentHeader, state: Mapping[str, Any]) -> Job | None:
        """Return the Slurm job that the process was in: its first record says so."""
        seen = header.anchor_wall / 1e9
        if role in _IN_A_JOB:
            system = runstate.value(state, "system")
            return Job.of_record(system if isinstance(system, dict) else None, seen)
        body = self._first_record(run, writer)
        system = body.get("system")
        return Job.of_record(system if isinstance(system, dict) else body, seen)

    def _first_record(self, run: str, writer: str) -> Mapping[str, Any]:
        try:
            with Tail(self._spool.run(run).writer(writer), run) as tail:
                for chunk in tail.read(limit=1):
                    first = chunk.items[0] if chunk.items else None
                    return (first.body if isinstance(first, Record) else None) or {}
        except (OSError, SpoolError):
            pass  # what is damaged says nothing
        return {}

    def _abort(self, run: str, writer: str, header: SegmentHeader, state: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return what an agent of the process's host noted before it signalled the process, None where none did."""
        folder = self._spool.run(run)
        if any(r.concerns(writer) for r in control.requests(folder)):
            for other in folder.writer_ids():
                known = state["writers"].get(other)  # the agent's own may be too new to be known
                if (known is None or known.get("as") == "agent") and (found := self._step(folder, other, header)) is not None:
                    return found
        return None

    @staticmethod
    def _step(folder: RunFolder, writer: str, header: SegmentHeader) -> Mapping[str, Any] | None:
        began, whom = header.start_ticks * _TICK, [header.pid, header.start_ticks]
        try:
            with Tail(folder.writer(writer), folder.id) as tail:
                for chunk in tail.read():
                    if (chunk.header.boot_id, chunk.header.pid_namespace) != (header.boot_id, header.pid_namespace):
                        return None  # another host's: the same pid is another process
                    for item in chunk.items:
                        if isinstance(item, Record) and item.kind == Kind.ABORT and item.boot_ns >= began:
                            body = item.body or {}
                            tree = body.get("tree")
                            signalled = body.get("pid") == header.pid or (isinstance(tree, list) and whom in tree)
                            if signalled and body.get("state") in _STEPS:
                                return body
        except (OSError, SpoolError):
            pass  # what is damaged says nothing
        return None


def _began(header: SegmentHeader) -> float:
    """Return when a process of this boot began, on the monotonic clock (s), or a little earlier."""
    asleep = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
    return header.start_ticks * _TICK / 1e9 - asleep
