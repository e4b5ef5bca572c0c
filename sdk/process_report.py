"""What the records say of a process that `add_process` started: its command and files, its start, its end, its exit status as an alert.

It writes into the part of the run that was open when the process was added. Nothing here raises once the process runs.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from simspool.spool import InvalidRecord, Kind, SpoolError
from simspool.spool.process import this_host

from .errors import MISTAKES

if TYPE_CHECKING:
    from .process_command import Command
    from .process_exit import Exit
    from .process_output import Output, Outputs
    from .process_tree import Process
    from .processes import Processes
    from .recording import Recording

_TAIL_LINES, _TAIL_BYTES = 10, 4000


class Report:
    """The records of one process. `run` gives the ways of recording, `recording` the part of the run that they go to."""

    def __init__(self, run: Processes, recording: Recording, identifier: str) -> None:
        self._run, self._recording, self._identifier = run, recording, identifier
        self._alert = f"{identifier}_exit_status"
        self.kept = True

    def before(self, command: Command) -> None:
        """Record the files and the command, and define the alert. Raises for the caller's mistakes."""
        known = self._run._alert_named(self._alert)  # noqa: SLF001 - the other half of one thing
        if known is not None and known.get("source") != "user":
            raise InvalidRecord(f"the run has an alert {self._alert!r} that is judged by a rule: give the process another identifier")
        for path, category in ((command.script, "code"), (command.input_file, "input")):
            if path is not None:
                self.kept = self._run.save_file(path, category) and self.kept  # type: ignore[arg-type]
        self.kept = self._run.update_metadata({f"{self._identifier}_command": self.shown(command)}) and self.kept
        if known is None:
            self.kept = self._run.create_user_alert(self._alert) is not None and self.kept

    def started(self, process: Process, command: Command) -> None:
        """Record the start."""
        body = {**self._identity(process), "identifier": self._identifier, "command": command.listed(self._recording.redactor.arguments)}
        self._record(Kind.PROCESS_START, body)

    def shown(self, command: Command) -> str:
        """Return the command line as it may be kept: without secrets."""
        return command.shown(self._recording.redactor.arguments)

    def ended(self, process: Process, end: Exit) -> None:
        """Record the end."""
        body = {**self._identity(process), "identifier": self._identifier, **end.as_dict()}
        self._record(Kind.PROCESS_EXIT, body)

    def failed(self, what: str, command: Command, outputs: Outputs) -> None:
        """Record as an event that the process failed, with the last lines that it wrote."""
        tail = outputs.tail(_TAIL_LINES, _TAIL_BYTES)
        self.event("\n".join([f"{what}: {self.shown(command)}", *([tail] if tail else [])]))

    def event(self, message: str) -> None:
        """Record that something went wrong."""
        self._record(Kind.EVENT, {"message": message, "level": "error"})

    def error(self, what: str, error: BaseException) -> None:
        """Record an exception with its traceback."""
        self.event(f"{what}\n{self._recording.describe(error)[0]}")

    def output(self, output: Output) -> None:
        """Copy what the process wrote into the spool. Afterwards, and where there is nothing, the file may be overwritten."""
        from simspool.spool import blobs

        if not output.size:
            return
        body = {"name": output.name, "category": "output", "mime": "text/plain", "path": output.path}
        try:
            kept = self._recording.keep(lambda spool, folder: blobs.put_file(spool, folder, output.source), body)
        except (SpoolError, OSError) as error:
            self.error(f"{output.path} could not be saved", error)
            kept = False
        if kept:
            output.release()
        self.kept = kept and self.kept

    def state(self, *, is_good: bool) -> None:
        """Set the state of the process's alert, unless the script has set it."""
        if self._alert in self._recording.stated or self._run._recording is not self._recording:  # noqa: SLF001
            return
        with contextlib.suppress(*MISTAKES):  # the run was closed meanwhile, by an abort
            self._run.log_alert(name=self._alert, state="ok" if is_good else "critical")

    def _identity(self, process: Process) -> dict[str, Any]:
        host = this_host()
        return {
            "pid": process.pid, "start_ticks": process.start_ticks, "boot_id": host.boot_id.hex(), "pid_namespace": host.pid_namespace,
            "host": host.name,
        }  # fmt: skip

    def _record(self, kind: Kind, body: dict[str, Any]) -> None:
        recording = self._recording
        if recording.pid != os.getpid():
            return
        kept = recording.writer is not None and recording.writer.record(kind, body)
        self.kept = (kept or recording.dropped()) and self.kept
