"""Processes of a run: the half of Run that starts and stops them (docs/processes.md). What becomes of them is the executor's."""

from __future__ import annotations

import os
import sys
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .alerting import Alerting
from .errors import MISTAKES, AlertNotFound
from .saving import Saving

if TYPE_CHECKING:
    from .executor import Executor, Trigger
    from .process_report import Report


class Processes(Alerting, Saving):
    """Starting and stopping processes."""

    _name: str | None
    _dormant: bool
    _aborted: bool
    _executor: Executor | None

    @property
    @abstractmethod
    def id(self) -> str | None:
        """The run's id."""

    @abstractmethod
    def update_metadata(self, metadata: Mapping[str, Any]) -> bool:
        """Add to the run's metadata."""

    # ------------------------------------------------------------------ starting and stopping

    def add_process(
        self,
        identifier: str,
        *cmd_args: Any,
        executable: str | os.PathLike[str] | None = None,
        script: str | os.PathLike[str] | None = None,
        input_file: str | os.PathLike[str] | None = None,
        completion_callback: Callable[..., object] | None = None,
        completion_trigger: Trigger | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        **cmd_kwargs: Any,
    ) -> bool:
        """Start a process that belongs to the run, and return at once.

        The command is `executable`, `script`, `input_file` (or `input`), the options, then `cmd_args`; without `executable` the first of
        `cmd_args` is it, or else the user's shell. Other keyword arguments are options: `flag=True` is `--flag`, `n=4` is `-n 4`,
        `max_steps=10` is `--max-steps 10`; False and None are left out. Paths are relative to the folder of this call, not to `cwd`.
        `env` is the whole environment, by default the script's with SIMSPOOL_RUN.

        `script` is saved as code, `input_file` as input, the command as metadata `<identifier>_command`. stdout and stderr go to
        `<run name>_<identifier>.out` and `.err` in the folder of this call (with a number, where these are another run's), and are saved as
        output when the process has ended, unless they are empty. Its end sets the alert `<identifier>_exit_status`, if the script has
        not, and a process that fails leaves an event and makes the run `failed`; `close` says what more.

        `completion_trigger` is set when the process has ended. Then `completion_callback(status_code, std_out, std_err)` is called in a
        thread of its own, with the last 16 MiB of each text; `status_code` is minus the signal for a process that one ended, None where
        another part of the script has waited for it. An exception in it becomes an event.

        True when all is recorded. False when something could not be (counted; the process runs all the same), and in an aborted run,
        which starts nothing. Without records (mode `disabled`, or dormant after a suppressed error) the process runs as well. Raises
        ProgramNotFound, UnreadableFile, ProcessNotStarted, InvalidRecord (also for an identifier that is used already), NotInitialised or
        RunClosed: then nothing runs.
        """
        try:
            return self.executor.add_process(
                identifier, *cmd_args, executable=executable, script=script, input_file=input_file,
                completion_callback=completion_callback, completion_trigger=completion_trigger, env=env, cwd=cwd, **cmd_kwargs,
            )  # fmt: skip
        except MISTAKES as error:
            return self._mistake(error)

    def kill_process(self, process_id: str | int) -> bool:
        """Stop a process of this run by its identifier, or another by its pid, with all that descends from it; True when it is gone.

        SIGTERM, 3 s, SIGKILL. What it wrote is saved. A process that ended so has failed, and so has the run. One that has ended is
        left alone. Raises InvalidRecord for an identifier that the run does not have, and for the pid of this script or one above it.
        """
        try:
            return self.executor.kill_process(process_id)
        except MISTAKES as error:
            return self._mistake(error)

    def kill_all_processes(self) -> bool:
        """Stop all processes of `add_process` and `set_pid` that run, as `kill_process` does; True when they are gone."""
        gone = self.executor.kill_all()
        if self._recording is None or self._recording.pid != os.getpid() or not self._recording.foreign:
            return gone
        from . import executor, process_tree

        return not process_tree.stop(self._recording.foreign, executor.KILL_GRACE).left and gone

    @property
    def executor(self) -> Executor:
        """What starts the run's processes and knows how they ended."""
        found = self._executor
        if found is None or found.pid != os.getpid():  # a fork has processes of its own only
            from .executor import Executor

            found = self._executor = Executor(self)
        return found

    @property
    def processes(self) -> list[Any]:
        """The processes of `add_process` and `set_pid` that run, and all that descends from them.

        psutil's objects where it is installed, else objects with a `pid`.
        """
        found = list(self._executor.processes) if self._executor is not None and self._executor.pid == os.getpid() else []
        if self._recording is not None and self._recording.foreign and self._recording.pid == os.getpid():
            from . import process_tree
            from .executor import shown

            named = dict.fromkeys(p for root in self._recording.foreign for p in (root, *process_tree.descendants(root)))
            known = {p.pid for p in found}
            found += [p for p in shown(list(named)) if p.pid not in known]
        return found

    # ------------------------------------------------------------------ what the executor asks, and the end of the run

    def _process_report(self, identifier: str) -> tuple[str | None, Report | None]:
        """Return the run's name, None where nothing may be started, and what records the process, None where nothing is recorded."""
        self._ready("add_process")
        if self._aborted:
            return None, None
        recording = self._recording
        if recording is None or self._mode == "disabled" or self._dormant:
            return self._name or "run", None
        from .process_report import Report

        recording.executor = self.executor
        return self._name or "run", Report(self, recording, identifier)

    def _alert_named(self, name: str) -> dict[str, Any] | None:
        try:
            return self._of_this_run(lambda body: body["name"] == name, name)
        except AlertNotFound:
            return None

    def _own_executor(self) -> Executor | None:
        found = self._executor
        return found if found is not None and found.pid == os.getpid() else None

    def _await_processes(self) -> None:
        """Wait for the processes. In an aborted run the ladder stops them; in its callback, which it waits for, this does."""
        found, recording = self._own_executor(), self._recording
        if found is None:
            return
        if self._aborted and recording is not None and recording.ladder is not None and recording.ladder.is_in_callback:
            found.kill_all("the run was aborted", recording.graces.term)
        found.wait_for_completion()

    def _stop_processes(self, reason: str) -> None:
        found = self._own_executor()
        if self._aborted:
            self._await_processes()
        elif found is not None:
            found.kill_all(reason)
            found.wait_for_completion()

    def _exit_as_processes_did(self) -> None:
        """End the script with the exit status of the first process that failed, as the published client does."""
        found = self._own_executor()
        if found is not None and found.exit_status and not self._aborted:
            found.say_failures()
            sys.exit(found.exit_status)
