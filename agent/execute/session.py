"""One command from start to end: what `agent exec` does, in order.

The main thread waits for the command and for signals. Beside it: a thread for each of stdout and stderr, one for followed logs, one for
output files, and the SDK's own. The command is started when the run has begun, and ends when it likes; from then on everything is bounded
by what is left to record.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from simspool.agent.lines.patterns import Patterns
from simspool.sdk import process_tree
from simspool.sdk.agent_start import can_run_here
from simspool.sdk.notice import say
from simspool.sdk.redaction import PLAIN, Redactor
from simspool.spool import InvalidRecord, RunNotFound, SpoolError
from simspool.spool.agent_address import living_agent

from .child import CannotStart, Child, Terminal, fill_closed, inherited_environment, start
from .complaints import Complaints
from .ending import Ending
from .globs import Glob
from .kept import KeptOutput
from .outputs import Outputs
from .pump import Pump, Reader
from .reading import FollowedLogs, Scanner
from .recorder import Category, CommandRun, command_text
from .steps import Meeting, Step, find_step, is_of_each_rank, with_rank
from .waiting import Signals

if TYPE_CHECKING:
    from simspool.sdk.process_tree import Process

_AFTER_ABORT = 5.0  # s that a reader downstream gets for the last bytes of a command that was aborted
_HURRIED = 10.0  # s for what is being saved when somebody wants an end
_LARGE = 1 << 30  # bytes of a file whose saving is worth a line on stderr


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be run and recorded; everything in it has been checked."""

    command: Sequence[str]
    spool_dir: str
    fields: Mapping[str, Any] = field(default_factory=dict)  # of Run.init: name, folder, tags, metadata, description
    patterns: Patterns = field(default_factory=Patterns)
    follow: Sequence[str] = ()
    reads_output: bool = True  # patterns are looked for in what is printed
    outputs: Sequence[str] = ()
    saved_first: Sequence[tuple[str, Category]] = ()
    alerts: Sequence[Mapping[str, Any]] = ()
    run: str | None = None
    rank: int | None = None
    terminal: Terminal = "auto"
    keep: int = 16 << 20
    settle: float = 5.0
    agent: Literal["auto", "off"] | None = None
    starts_agent: bool = True
    url: str | None = None
    token: str | None = None
    redactor: Redactor = PLAIN


class Session:
    """Runs a plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._cwd = plan, _cwd()
        self._child: Child | None = None
        self._process: Process | None = None
        self._is_started, self._is_recorded = threading.Event(), threading.Event()
        self._aborted_at: float | None = None
        self._pumps: list[Pump] = []
        self._kept: dict[int, KeptOutput] = {}
        self._outputs: Outputs | None = None
        self._logs: FollowedLogs | None = None
        self.run = CommandRun("disabled")
        self.status = ""

    # ------------------------------------------------------------------ the whole

    def execute(self) -> Ending:
        """Run the command and record it; returns how it ended. Raises RunNotFound for a run to join that is not there, and InvalidRecord
        for values of the run that are not valid: both before anything is started."""
        self._closed = fill_closed()
        if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else nobody learns how the command ended
        self._signals = Signals()
        self.run = self._begin()
        run = self.run
        for alert in self._plan.alerts:
            run.add_alert(alert)  # a name that has another definition is the caller's mistake, and nothing has been started
        if any(alert["abort"] for alert in self._plan.alerts):
            self._say_who_judges()
        if run.is_creator:
            for path, category in self._plan.saved_first:
                run.save(path, category, self._cwd)
        with run.guard("output files"):
            self._watch_outputs()
        with run.guard("what is followed"):
            self._follow()
        try:
            self._child = self._start()
        except CannotStart as error:
            return self._could_not_start(error)
        with run.guard("the command's start"):
            self._process = run.started(self._child.pid, self._plan.command)
        self._is_started.set()
        for pump in self._pumps:
            pump.start()
        for watcher in (self._logs, self._outputs):
            if watcher is not None:
                watcher.start()
        how = Ending.of_status(self._signals.await_end(self._child))
        self._await_streams()
        self._finish(how)
        return how

    # ------------------------------------------------------------------ beginning

    def _begin(self) -> CommandRun:
        """Begin the run; where that is not possible, one that records nothing."""
        plan = self._plan
        try:
            return self._begin_recording()
        except (RunNotFound, InvalidRecord):
            raise
        except Exception as error:  # noqa: BLE001 - a spool of others, a newer one, a bug of ours: no reason not to run the command
            what = "" if isinstance(error, (SpoolError, OSError)) else f"{type(error).__name__}: "
            say(f"nothing is recorded: {what}{error}; the command runs all the same")
            unrecorded = CommandRun("disabled")
            unrecorded.init(**plan.fields)
            return unrecorded

    def _begin_recording(self) -> CommandRun:
        plan = self._plan
        if plan.run is not None:
            run = self._new_run()
            run.join(plan.run, plan.rank)
            return run
        step = find_step(os.environ)
        if step is None:
            run = self._new_run()
            run.rank = plan.rank
            run.init(**plan.fields)
            return run
        return self._begin_in_step(step)

    def _begin_in_step(self, step: Step) -> CommandRun:
        from simspool.spool import open_spool

        meeting = Meeting(open_spool(self._plan.spool_dir, create=True), step)
        run = self._new_run()
        if meeting.claim():
            told = ""
            try:
                if run.init(**self._plan.fields):
                    told = run.id or ""
            finally:
                meeting.tell(told)
            run.rank = step.rank
            return run
        found = meeting.await_run()
        if found is None:
            say(f"rank {step.rank} found no run of its job step, and records into one of its own")
            run.init(**self._plan.fields)
            run.rank = step.rank
            return run
        run.join(found, step.rank)
        return run

    def _new_run(self) -> CommandRun:
        plan = self._plan
        run = CommandRun(abort_callback=self._stop_command, url=plan.url, token=plan.token, agent=plan.agent)
        run.config(abort_on_alert="run")  # the command is stopped; this process ends as the command does
        return run

    def _say_who_judges(self) -> None:
        spool = self.run.spool
        if spool is None or living_agent(spool.path) is not None or (self._plan.starts_agent and can_run_here()):
            return
        say("alerts are judged by an agent, and none runs for this spool: `agent run` in another terminal, or --agent auto")

    def _start(self) -> Child:
        plan, run = self._plan, self.run
        environment = inherited_environment() | run.environment()
        child = start(plan.command, environment, plan.terminal, self._signals.mask_before, self._closed)
        for stream in child.streams:
            readers: list[Reader] = []
            if run.mode != "disabled":
                with run.guard("what it prints"):
                    readers = self._readers(stream.number)
            self._pumps.append(Pump(stream, readers, Signals.wake, say))
        return child

    def _readers(self, number: int) -> list[Reader]:
        plan, run = self._plan, self.run
        readers: list[Reader] = []
        folder = run.run_folder
        if plan.keep and folder is not None:
            readers.append(self._kept.setdefault(number, KeptOutput(folder.path, plan.keep)))
        if plan.patterns and plan.reads_output:
            readers.append(Scanner(run, plan.patterns, "stdout" if number == 1 else "stderr"))
        if number == 2:
            readers.append(Complaints(lambda text: run.log_event(text, log_level="warning")))
        return readers

    def _watch_outputs(self) -> None:
        globs = [Glob(with_rank(p, self.run.rank), self._cwd, self._avoid()) for p in self._mine(self._plan.outputs)]
        if globs and self.run.mode != "disabled":
            self._outputs = Outputs(globs, self._plan.settle, self._save_output)

    def _avoid(self) -> str | None:
        return os.path.realpath(self._plan.spool_dir)

    def _mine(self, patterns: Sequence[str]) -> list[str]:
        """Of the ranks of a run, the one that made it has the files that they share; those with `{rank}` are each one's own."""
        return [p for p in patterns if self.run.is_creator or is_of_each_rank(p)]

    def _save_output(self, path: str, size: int) -> None:
        if size >= _LARGE and self._is_ending:
            say(f"saving {path} ({size / 1e9:.1f} GB)")
        self.run.save(path, "output", self._cwd)

    def _follow(self) -> None:
        followed = [with_rank(p, self.run.rank) for p in self._mine(self._plan.follow)]
        if followed and self.run.mode != "disabled":
            self._logs = FollowedLogs(self.run, [os.path.join(self._cwd, path) for path in followed], self._plan.patterns)

    def _could_not_start(self, error: CannotStart) -> Ending:
        words = self._plan.command
        hint = ""
        if "--" in words:
            hint = f" (the command begins at {words[0]!r}: quote patterns, so that the shell leaves them alone, as in --output '*.h5')"
        say(f"{error}{hint}")
        self._is_started.set()
        self._is_recorded.set()
        with self.run.guard("the end"):
            self.run.log_event(f"{error}", log_level="error")
            self.run.end("failed", str(error))
        self.status = "failed"
        self._signals.end()
        return Ending(code=error.code)

    # ------------------------------------------------------------------ stopping

    def _stop_command(self, _: object) -> None:
        """The run is aborted: stop the command, and return when all that it left is recorded. In a thread of the SDK's."""
        self._is_started.wait()
        self._aborted_at = time.monotonic()
        if self._process is not None:
            process_tree.stop([self._process], self.run.term_grace)
        Signals.wake()
        self._is_recorded.wait()

    # ------------------------------------------------------------------ ending

    @property
    def _is_ending(self) -> bool:
        return bool(self._pumps) and all(pump.is_over.is_set() for pump in self._pumps)

    def _await_streams(self) -> None:
        """Wait until everything that the command printed is passed on."""
        for pump in self._pumps:
            pump.command_ended()
        while not self._is_ending:
            if self._signals.await_all([lambda: self._is_ending], 1.0) is not None:
                return
            if self._aborted_at is not None and time.monotonic() - self._aborted_at > _AFTER_ABORT:
                return

    def _finish(self, how: Ending) -> None:
        """Record what is left, and close. The first signal to end leaves out the files that are not being saved yet; the second, all."""
        worker = threading.Thread(target=self._record_rest, args=(how,), name="exec-finish", daemon=True)
        worker.start()
        cut = self._signals.await_all([self._is_recorded.is_set])
        if cut is not None:
            if self._outputs is not None:
                self._outputs.hurry()
            self._signals.await_all([self._is_recorded.is_set], _HURRIED)
            with self.run.guard("the end"):
                what = f"{cut.name} came while the last files were being saved: some may be missing"
                self.run.log_event(what, log_level="warning")
                say(what)
        self._is_recorded.set()
        self.run.await_abort()
        with self.run.guard("the end"):
            self.run.end(how.status, how.reason)
        self.status = self.run.final_status or how.status
        for pump in self._pumps:
            pump.hand_over()
        self._signals.end()

    def _record_rest(self, how: Ending) -> None:
        run = self.run
        with run.guard("the command's end"):
            run.exited(self._process, how.as_dict())
        if self._logs is not None:
            with run.guard("what is followed"):
                self._logs.finish()
        for number, name in ((1, "stdout"), (2, "stderr")):
            with run.guard(name):
                self._save_stream(name, self._kept.get(number))
        if self._outputs is not None:
            with run.guard("output files"):
                self._outputs.finish()
        self._is_recorded.set()
        Signals.wake()

    def _save_stream(self, name: str, kept: KeptOutput | None) -> None:
        file = kept.file() if kept is not None else None
        if kept is not None and kept.problem:
            say(f"of {name}, {kept.size} bytes are kept: {kept.problem}")
        if kept is not None and file is not None:
            self.run.save_stream(name, file, kept.size, kept.left_out)
            kept.close()

    # ------------------------------------------------------------------ afterwards

    def summary(self, how: Ending) -> dict[str, Any]:
        """Return what `--json` says."""
        recorded = self.run.mode != "disabled" and self.run.spool is not None
        return {
            "run": self.run.id if recorded else None, "name": self.run.name, "status": self.status, **how.as_dict(), "reason": how.reason,
            "command": command_text(self._plan.command, self._plan.redactor), "not_recorded": self.run.drops,
        }  # fmt: skip


def _cwd() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was deleted under us
        return "/"

