"""The executor: the processes that a script adds to its run, from their start until their last output is kept.

A process writes straight into two files; nothing is piped through the script. A thread notices its end at once, and another one, for each
process that ended, records it, copies its output into the spool, sets the trigger and calls the callback. `wait_for_completion`
waits for all of this.

A fork of the script has an executor of its own, without its parent's processes.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from simspool.spool import InvalidRecord
from simspool.spool.process import start_ticks

from . import process_tree, process_watch
from . import validation as check
from .errors import ProcessNotStarted
from .notice import say
from .process_command import Command, assemble
from .process_exit import Exit
from .process_output import Outputs, text_of
from .process_tree import Process

if TYPE_CHECKING:
    from .process_report import Report
    from .processes import Processes

KILL_GRACE = 3.0  # s between SIGTERM and SIGKILL of a process that the script kills
_SETTLE = 60.0  # s for the outputs of stopped processes to be saved
_QUIET = 2.0  # s until a wait says what it waits for
_MOST_SAID = 4000  # characters of a failed process's last lines on stderr


class Trigger(Protocol):
    """What is set when a process has ended: an Event of threading or multiprocessing."""

    def set(self) -> object:
        """Set it."""


class _Latch:
    """Opens once. A lock, not an Event: a signal handler may wait in the middle of another wait."""

    def __init__(self) -> None:
        self.is_open = False
        self._lock = threading.Lock()
        self._lock.acquire()

    def open(self) -> None:
        if not self.is_open:
            self.is_open = True
            self._lock.release()

    def wait(self, seconds: float) -> bool:
        if not self.is_open and self._lock.acquire(timeout=max(seconds, 0.0)):
            self._lock.release()
        return self.is_open


class _Added:
    """One process. Its thread opens `recorded` when the spool has all of it, `finished` when its callback has returned as well."""

    def __init__(self, identifier: str, command: Command, outputs: Outputs, report: Report | None) -> None:
        self.identifier, self.command, self.outputs, self.report = identifier, command, outputs, report
        self.paths = outputs.out.path, outputs.err.path
        self.process = Process(0, 0)
        self.end: Exit | None = None
        self.stopped = ""  # who stopped it, where the script did
        self.callback: tuple[Callable[..., object], bool] | None = None
        self.trigger: Trigger | None = None
        self.thread = 0
        self.recorded, self.finished = _Latch(), _Latch()

    @property
    def failed(self) -> bool:
        """Whether it ended badly. An end that nobody knows is none."""
        return self.end is not None and self.end.returncode not in {None, 0}

    @property
    def how(self) -> str:
        """How it ended, in words."""
        end = self.end or Exit()
        by = f" ({self.stopped})" if self.stopped else ""
        if end.signal is not None:
            return f"process {self.identifier!r} was ended by {end.name}{by}"
        if end.code is None:
            return f"process {self.identifier!r} ended; its exit status was taken by another wait in this script"
        return f"process {self.identifier!r} ended with exit code {end.code}{by}"


class Executor:
    """The processes of a run in this process. `Run.executor` has it; a fork has its own."""

    def __init__(self, run: Processes) -> None:
        self.pid = os.getpid()
        self._run = run
        self._lock = threading.RLock()
        self._added: dict[str, _Added | None] = {}  # None: it is being started

    # ------------------------------------------------------------------ starting

    def add_process(
        self,
        identifier: str,
        *arguments: Any,
        executable: str | os.PathLike[str] | None = None,
        script: str | os.PathLike[str] | None = None,
        input_file: str | os.PathLike[str] | None = None,
        completion_callback: Callable[..., object] | None = None,
        completion_trigger: Trigger | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> bool:
        """Start a process; see `Run.add_process`."""
        check.check_name("process identifier", identifier)
        if "input" in options:
            if input_file is not None:
                raise InvalidRecord("add_process: input_file and input are the same thing: give one of them")
            input_file = options.pop("input")
        command = assemble(arguments, options, executable=executable, script=script, input_file=input_file, cwd=cwd, env=env)
        callback = _callback(completion_callback)
        if completion_trigger is not None and not callable(getattr(completion_trigger, "set", None)):
            raise InvalidRecord(f"completion_trigger must be an Event, not {completion_trigger!r}"[:300])
        name, report = self._run._process_report(identifier)  # noqa: SLF001 - the other half of one thing
        if name is None:
            return False
        with self._lock:
            if identifier in self._added:
                raise InvalidRecord(f"add_process: this run has a process {identifier!r} already: give each its own identifier")
            self._added[identifier] = None
        try:
            added = self._start(identifier, command, name, report, callback, completion_trigger)
        except BaseException:
            del self._added[identifier]
            raise
        if self._run._aborted:  # noqa: SLF001 - meanwhile: then it was not among those that the abort stopped
            self._stop([added], "the run was aborted")
        return report is None or report.kept

    def _start(
        self, identifier: str, command: Command, name: str, report: Report | None, callback: tuple[Callable[..., object], bool] | None,
        trigger: Trigger | None,
    ) -> _Added:  # fmt: skip
        outputs = Outputs.open(name, identifier)
        try:
            if report is not None:
                report.before(command)
            pid = _spawn(command, outputs, self._run.id)
        except BaseException:
            outputs.close()
            raise
        added = _Added(identifier, command, outputs, report)
        added.callback, added.trigger = callback, trigger
        found = start_ticks(pid)
        added.process = Process(pid, found[0] if found is not None else 0)  # 0: it is gone, and another one has waited for it
        if outputs.is_numbered:
            say(f"process {identifier!r} writes to {outputs.out.path}: what another run wrote is not overwritten")
        if report is not None:
            report.started(added.process, command)
        self._added[identifier] = added
        process_watch.watch(pid, added.process.start_ticks, lambda end: self._ended(added, end))
        return added

    # ------------------------------------------------------------------ ending

    def _ended(self, added: _Added, end: Exit) -> None:
        """In the watch's thread: have the rest done by a thread of its own."""
        added.end = end
        thread = threading.Thread(target=self._finish, args=(added,), name=f"simspool-{added.identifier}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads, or the interpreter shuts down
            self._finish(added)

    def _finish(self, added: _Added) -> None:
        added.thread = threading.get_ident()
        try:
            self._record(added)
        except Exception as error:  # noqa: BLE001 - what became of the process must not end this thread silently
            self._complain(added, f"what process {added.identifier!r} left could not be recorded", error)
        finally:
            added.recorded.open()
        try:
            if added.callback is not None and added.end is not None:
                self._call_back(added, *added.callback)
            if added.report is not None and added.end is not None and added.end.returncode is not None:
                added.report.state(is_good=not added.failed)
        except Exception as error:  # noqa: BLE001 - as above
            self._complain(added, f"the end of process {added.identifier!r} could not be told", error)
        finally:
            added.outputs.close()
            added.callback, added.trigger = None, None
            added.finished.open()

    def _record(self, added: _Added) -> None:
        report, end = added.report, added.end or Exit()
        if report is not None:
            report.ended(added.process, end)
        if added.trigger is not None:
            try:
                added.trigger.set()
            except Exception as error:  # noqa: BLE001 - the user's own object
                self._complain(added, f"completion_trigger of process {added.identifier!r} could not be set", error)
        for output in (added.outputs.out, added.outputs.err):
            if report is not None:
                report.output(output)
            else:
                output.release()
        if report is not None and end.returncode is None:
            report.event(f"{added.how}: {report.shown(added.command)}")
        elif report is not None and added.failed:
            report.failed(added.how, added.command, added.outputs)

    def _call_back(self, added: _Added, callback: Callable[..., object], by_name: bool) -> None:
        end, outputs = added.end or Exit(), added.outputs
        try:
            told = {
                "status_code": end.returncode, "std_out": text_of(outputs.out.path, outputs.out.fd),
                "std_err": text_of(outputs.err.path, outputs.err.fd),
            }  # fmt: skip
            if by_name:
                callback(**told)
            else:
                callback(*told.values())
        except SystemExit:  # it has closed a run with a failed process, or means only its own thread
            return
        except BaseException as error:  # noqa: BLE001 - whatever it is: the run and the other processes go on
            self._complain(added, f"completion_callback of process {added.identifier!r} failed", error)

    @staticmethod
    def _complain(added: _Added, what: str, error: BaseException) -> None:
        say(f"{what}: {type(error).__name__}: {error}")
        if added.report is not None:
            added.report.error(what, error)

    # ------------------------------------------------------------------ waiting

    def wait_for_completion(self) -> None:
        """Wait until all processes have ended, their outputs are kept and their callbacks have returned.

        Called in a callback, it does not wait for callbacks. What it waits for is said on stderr after two seconds.
        """
        in_callback = any(added.thread == threading.get_ident() and not added.finished.is_open for added in self._all())
        while waiting := [a for a in self._all() if not (a.recorded if in_callback else a.finished).is_open]:
            for added in waiting:
                self._await(added, added.recorded if in_callback else added.finished)

    def _await(self, added: _Added, latch: _Latch) -> None:
        if latch.wait(_QUIET):
            return
        said = ""
        while True:
            if not latch.is_open and (what := _doing(added)) != said:
                say(f"waiting for {what}")
                said = what
            if latch.wait(1.0):
                return
            process_watch.attend()

    def settle(self, seconds: float) -> None:
        """Wait until what has ended is recorded, at most so long."""
        latest = time.monotonic() + seconds
        for added in self._all():
            if process_tree.is_gone(added.process):
                while not added.recorded.wait(min(latest - time.monotonic(), 1.0)) and time.monotonic() < latest:
                    process_watch.attend()

    # ------------------------------------------------------------------ stopping

    def kill_process(self, process_id: str | int) -> bool:
        """Stop a process with all that descends from it; see `Run.kill_process`."""
        if isinstance(process_id, str):
            return self._stop([self._get(process_id)], "stopped by the script")
        pid = check.check_count("process_id", process_id)
        if own := [a for a in self._all() if a.process.pid == pid and a.end is None]:
            return self._stop(own, "stopped by the script")
        if pid in process_tree.protected():
            raise InvalidRecord(f"kill_process: process {pid} is this script, or above it: give one that the script may stop")
        found = process_tree.identify(pid)
        return found is None or not process_tree.stop([found], KILL_GRACE).left

    def kill_all(self, reason: str = "stopped by the script", grace: float = KILL_GRACE) -> bool:
        """Stop all processes that still run: SIGTERM, `grace` seconds, SIGKILL; True when they are gone."""
        return self._stop(self._all(), reason, grace)

    def _stop(self, wanted: list[_Added], reason: str, grace: float = KILL_GRACE) -> bool:
        running = [added for added in wanted if added.end is None and not process_tree.is_gone(added.process)]
        self.will_stop(reason, running)
        left = process_tree.stop([added.process for added in running], grace).left
        self.settle(_SETTLE)
        return not left

    def will_stop(self, reason: str, some: list[_Added] | None = None) -> None:
        """Note, before processes are stopped, who does it."""
        for added in self._all() if some is None else some:
            if added.end is None:
                added.stopped = reason

    # ------------------------------------------------------------------ looking

    @property
    def running(self) -> list[Process]:
        """The processes that have not ended, without their children. None in a fork."""
        if self.pid != os.getpid():
            return []
        return [added.process for added in self._all() if added.end is None and not process_tree.is_gone(added.process)]

    @property
    def processes(self) -> list[Any]:
        """The processes that run, and all that descends from them: psutil's objects where it is installed, else each with its `pid`."""
        found = dict.fromkeys(p for root in self.running for p in (root, *process_tree.descendants(root)))
        return shown(list(found))

    @property
    def success(self) -> bool:
        """Whether all processes have ended, each with exit code 0."""
        return all(added.end is not None and added.end.returncode == 0 for added in self._all())

    @property
    def exit_status(self) -> int:
        """The first exit status that is not 0, in the order of adding; minus the signal for a process that a signal ended."""
        return next((added.end.returncode or 0 for added in self._all() if added.failed and added.end is not None), 0)

    @property
    def failure(self) -> str | None:
        """Which process failed and how, for the run's reason; None where none did."""
        failed = [added for added in self._all() if added.failed]
        if not failed:
            return None
        more = f" ({len(failed) - 1} more failed)" if len(failed) > 1 else ""
        return f"{failed[0].how}{more}"

    def get_error_summary(self) -> dict[str, str | None]:
        """Return what the failed processes wrote to stderr, or last to stdout, by identifier."""
        return {
            added.identifier: self.std_err(added.identifier) or (self.std_out(added.identifier) or "")[-_MOST_SAID:] or None
            for added in self._all()
            if added.failed
        }

    def say_failures(self) -> None:
        """Say on stderr which processes failed."""
        for identifier, text in self.get_error_summary().items():
            tail = f":\n{text[-_MOST_SAID:].rstrip()}" if text else ""
            say(f"{self._get(identifier).how}{tail}")

    def get_command(self, process_id: str) -> str:
        """Return a process's command line. Raises InvalidRecord when there is no such process."""
        return self._get(process_id).command.text

    def std_out(self, process_id: str) -> str | None:
        """Return what a process wrote to stdout so far, of more than 16 MiB the end; None where that is nothing."""
        return self._text(process_id, 0)

    def std_err(self, process_id: str) -> str | None:
        """Return what a process wrote to stderr so far, of more than 16 MiB the end; None where that is nothing."""
        return self._text(process_id, 1)

    def _text(self, process_id: str, which: int) -> str | None:
        try:
            return text_of(self._get(process_id).paths[which]) or None
        except OSError:  # the script has moved it
            return None

    def _all(self) -> list[_Added]:
        return [added for added in list(self._added.values()) if added is not None]

    def _get(self, identifier: str) -> _Added:
        found = self._added.get(identifier)
        if found is None:
            known = ", ".join(repr(name) for name in self._added) or "none"
            raise InvalidRecord(f"this run has no process {identifier!r}: there is {known}")
        return found


def shown(processes: list[Process]) -> list[Any]:
    """Return processes as users get them: psutil's, where it is installed."""
    try:
        import psutil
    except ImportError:
        return list(processes)
    found = []
    for process in processes:
        try:
            one = psutil.Process(process.pid)
        except psutil.Error:
            continue
        if not process_tree.is_gone(process):
            found.append(one)
    return found


def _callback(callback: Callable[..., object] | None) -> tuple[Callable[..., object], bool] | None:
    """Return the callback, and whether it takes its arguments by name."""
    if callback is None:
        return None
    if not callable(callback):
        raise InvalidRecord(f"completion_callback must be a function, not {callback!r}"[:300])
    import inspect

    try:
        signature = inspect.signature(callback)
    except (TypeError, ValueError):  # it does not tell
        return callback, True
    for by_name, arguments in ((True, {"status_code": 0, "std_out": "", "std_err": ""}), (False, {})):
        try:
            signature.bind(*(() if by_name else (0, "", "")), **arguments)
        except TypeError:
            continue
        return callback, by_name
    raise InvalidRecord(f"completion_callback must take (status_code, std_out, std_err), not {signature}")


def _spawn(command: Command, outputs: Outputs, run_id: str | None) -> int:
    import subprocess

    env = command.env
    if env is None and run_id is not None:
        env = {**os.environ, "SIMSPOOL_RUN": run_id}  # for `Run.attach()` and `agent log` in it
    try:
        popen = subprocess.Popen(
            command.arguments, executable=command.program, stdout=outputs.out.fd, stderr=outputs.err.fd, cwd=command.cwd, env=env
        )
    except OSError as error:
        raise ProcessNotStarted(
            error.errno or 0, f"add_process: {command.program} could not be started: {error.strerror or error}"
        ) from None
    popen.returncode = 0  # the watch waits for it, and tells its true status: subprocess never does
    return popen.pid


def _doing(added: _Added) -> str:
    from .redaction import PLAIN

    if added.end is None:
        return f"process {added.identifier!r} (pid {added.process.pid}): {added.command.shown(PLAIN.arguments)[:200]}"
    if not added.recorded.is_open:
        return f"the output of process {added.identifier!r} to be saved"
    return f"the completion_callback of process {added.identifier!r}"
