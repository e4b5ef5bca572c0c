"""Run: what a script calls to record itself.

Guarantee: a call that returns True has put its record where the script's death, by any signal, cannot reach it (power cuts: see the
durability setting). A call that returns False was not recorded and is counted in the spool with its reason. No call waits for a network.
Only the caller's own mistakes raise, and not even these after `config(suppress_errors=True)`.
"""

from __future__ import annotations

import time as _time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from simspool.spool import Drop, InvalidRecord, Kind, Writer

from . import validation as check
from .errors import MISTAKES, NotInitialised, RunClosed
from .notice import say
from .opening import MODES, Mode, Opening, utc_text
from .processes import Processes
from .recording import Recording, end_with_error, status_of

if TYPE_CHECKING:
    from datetime import datetime

    from .executor import Executor

Level = Literal["debug", "info", "warning", "error", "critical"]


class Run(Opening, Processes):
    """One run of a script.

    Methods are safe to call from threads, from signal handlers, from destructors and after a fork; a forked child records for itself.
    Use it as a context manager: an exception inside leaves its traceback and the status `failed`, and is raised again.
    """

    def __init__(
        self,
        mode: Mode = "online",
        abort_callback: Callable[[Run], None] | None = None,
        server_token: str | None = None,
        server_url: str | None = None,
        debug: bool = False,
        server_profile: str | None = None,
        *,
        agent: Literal["auto", "off"] | None = None,
    ) -> None:
        """Make a run that records nothing until `init`, `reconnect` or `attach`.

        `mode`: "online" (an agent that runs already sends at once), "offline" (only the spool), "disabled" (no effect at all).
        `server_token`, `server_url` and `server_profile` are accepted: recording needs no server, the agent has its own settings.
        `debug` says more on stderr. `agent`: "auto" starts an agent beside an online run where none serves the spool (it ends by itself),
        "off" never does; by default as the configuration says, else "auto". Raises InvalidRecord for another mode or agent.
        """
        self._mode: str = check.one_of("mode", mode, MODES)
        self.abort_callback = abort_callback
        self._server = (server_url, server_token)
        self._agent = None if agent is None else check.one_of("agent", agent, ("auto", "off"))
        self._debug = debug
        self._writer: Writer | None = None
        self._recording: Recording | None = None
        self._id: str | None = None
        self._name: str | None = None
        self._folder = "/"
        self._status: str | None = None
        self._status_set = False
        self._began = 0
        self._ended = 0
        self._options: dict[str, Any] = {}
        self._dormant = False
        self._closed = False
        self._abort_requested = self._aborted = False
        self._alerts: dict[str, dict[str, Any]] = {}
        self._defined: dict[str, dict[str, Any]] = {}
        self._executor: Executor | None = None

    # ------------------------------------------------------------------ recording

    def log_metrics(
        self,
        metrics: Mapping[str, Any],
        step: int | None = None,
        time: float | None = None,
        timestamp: str | datetime | None = None,
    ) -> bool:
        """Record numbers by name as one record: bool, int, float (NaN and infinities too), or NumPy and torch scalars.

        `step`: a whole number from 0, by default the number of calls before. `time`: seconds since the run's start, by default the clock's.
        `timestamp`: UTC as "%Y-%m-%dT%H:%M:%S.%f". Raises InvalidRecord for a name or value that is not valid; then
        nothing of the call is recorded.
        """
        writer = self._writer
        if writer is None or timestamp is not None:
            return self._log_metrics(metrics, step, time, timestamp)
        try:
            return writer.metrics(metrics, step, time) or self._dropped()
        except InvalidRecord as error:
            return self._mistake(error)
        except (AttributeError, TypeError) as error:
            return self._not_metrics(metrics, error)

    def _log_metrics(
        self, metrics: Mapping[str, Any], step: int | None, time: float | None, timestamp: str | datetime | None
    ) -> bool:  # fmt: skip
        """The ways off the fast path: no writer (yet, or any more), or a timestamp to be understood."""
        try:
            writer = self._ready("log_metrics")
            if writer is None:
                return self._default()
            stamp = None if timestamp is None else check.check_timestamp(timestamp)
            return writer.metrics(metrics, step, time, stamp) or self._dropped()
        except MISTAKES as error:
            return self._mistake(error)
        except (AttributeError, TypeError) as error:
            return self._not_metrics(metrics, error)

    def _not_metrics(self, metrics: object, error: Exception) -> bool:
        if isinstance(metrics, Mapping) and all(isinstance(name, str) for name in metrics):
            raise error
        return self._mistake(InvalidRecord(f"metrics must be a dictionary of names and numbers, not {metrics!r}"[:300]))

    def log_event(self, message: str, timestamp: str | datetime | None = None, log_level: Level | None = None) -> bool:
        """Record a message of up to 1 MiB. `timestamp` is UTC, by default now."""
        try:
            body: dict[str, Any] = {"message": check.check_text("message", message)}
            if timestamp is not None:
                body["timestamp"] = check.check_timestamp(timestamp)
            if log_level is not None:
                body["level"] = check.one_of("log_level", log_level, check.LEVELS)
            return self._record(Kind.EVENT, body)
        except MISTAKES as error:
            return self._mistake(error)

    def update_metadata(self, metadata: Mapping[str, Any]) -> bool:
        """Add to the run's metadata, key by key; a key that is there gets the new value."""
        return self._checked(Kind.METADATA, lambda: {"set": check.check_metadata(metadata)})

    def set_tags(self, tags: list[str]) -> bool:
        """Replace the run's tags."""
        return self._checked(Kind.TAGS, lambda: {"op": "set", "tags": check.check_tags(tags)})

    def update_tags(self, tags: list[str]) -> bool:
        """Add tags that the run does not have yet."""
        return self._checked(Kind.TAGS, lambda: {"op": "add", "tags": check.check_tags(tags)})

    def set_folder_details(
        self,
        path: str | Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        tags: list[str] | None = None,
        description: str | None = None,
    ) -> bool:
        """Describe a folder, by default the run's own. A dictionary in the first place is taken as the metadata, as in simvue 2.x."""
        if isinstance(path, Mapping):
            path, metadata = None, path

        def body() -> dict[str, Any]:
            found: dict[str, Any] = {"path": check.check_folder(path if path is not None else self._folder)}
            if metadata is not None:
                found["metadata"] = check.check_metadata(metadata)
            if tags is not None:
                found["tags"] = check.check_tags(tags)
            if description is not None:
                found["description"] = check.check_text("description", description)
            return found

        return self._checked(Kind.FOLDER, body)

    def set_status(self, status: Literal["completed", "failed", "terminated"]) -> bool:
        """Set the status with which the run ends. It counts whatever the run's other processes report."""
        try:
            kept = self._record(Kind.STATUS, {"status": check.one_of("status", status, check.STATUSES)})
        except MISTAKES as error:
            return self._mistake(error)
        self._status, self._status_set = status, True
        if self._recording is not None:
            self._recording.status_at_exit, self._recording.is_status_set = status, True
        return kept

    def config(
        self,
        *,
        suppress_errors: bool | None = None,
        queue_blocking: bool | None = None,
        resources_metrics_interval: int | None = None,
        enable_emission_metrics: bool | None = None,
        disable_resources_metrics: bool | None = None,
        storage_id: str | None = None,
        abort_on_alert: Literal["run", "all", "terminate", "ignore"] | bool | None = None,
        system_metrics_interval: int | None = None,
    ) -> bool:
        """Set options, before or after `init`; they are kept with the run.

        `suppress_errors`: a mistake in a call no longer raises: it is said once on stderr, and the run is dormant from then
        on (every call returns False). `queue_blocking` has no effect: there is no queue. `resources_metrics_interval`: seconds between
        resource samples, 60 by default (`system_metrics_interval` is the same); `disable_resources_metrics`: there are none. The
        others are for the agent: emissions (docs/emissions.md), storage, and what an alert's abort stops.

        Raises ConfigError for `enable_emission_metrics=True` where neither the configuration nor an agent that serves knows the country.
        """
        given: dict[str, Any] = {}
        try:
            interval = resources_metrics_interval if resources_metrics_interval is not None else system_metrics_interval
            if interval is not None:
                given["resources_metrics_interval"] = check.check_count("resources_metrics_interval", interval)
            for key, flag in (
                ("suppress_errors", suppress_errors), ("queue_blocking", queue_blocking),
                ("enable_emission_metrics", enable_emission_metrics), ("disable_resources_metrics", disable_resources_metrics),
            ):  # fmt: skip
                if flag is not None:
                    if not isinstance(flag, bool):
                        raise InvalidRecord(f"{key} must be True or False, not {flag!r}")
                    given[key] = flag
            if enable_emission_metrics and (config := self._load_config()) is not None:
                from .emissions import emission_options

                given |= emission_options(config)
            if storage_id is not None:
                given["storage_id"] = check.check_text("storage_id", storage_id)
            if abort_on_alert is not None:
                choice: Any = {True: "run", False: "ignore"}.get(abort_on_alert) if isinstance(abort_on_alert, bool) else abort_on_alert
                given["abort_on_alert"] = check.one_of("abort_on_alert", choice, ("run", "all", "terminate", "ignore"))
            self._options |= given
            if self._id is None or self._closed or self._mode == "disabled" or not given:
                return True
            return self._record(Kind.CONFIG, {"set": given})
        except MISTAKES as error:
            return self._mistake(error)

    # ------------------------------------------------------------------ the end

    def close(self) -> bool:
        """End this process's part of the run: status `completed` unless another was set. True when all of it is safely on disk.

        First it waits for the processes of `add_process`, and says on stderr for which. Where one of them failed, the run is `failed`,
        unless `set_status` or an abort says otherwise, and the script ends here by `sys.exit` with the exit status of the first
        that failed, as with the published client; not in an aborted run. An interrupt of the wait stops the processes.

        A process that forked off ends its own part only. Repeating is harmless. Raises NotInitialised before `init`.
        """
        recording = self._recording
        if self._closed:
            return True
        if recording is None and self._mode != "disabled":
            return self._mistake(NotInitialised("close: this Run was never initialised: call init first"))
        try:
            self._await_callback()
            self._await_processes()
        except BaseException as error:
            self._leave_by(error)
            raise
        if recording is not None:
            recording.await_abort()
        kept = True
        if not self._closed:  # meanwhile, by an abort
            self._closed = recording is None
            if recording is not None:
                kept = recording.close(self._final_status(), "dormant after an error" if self._dormant else None)
                self._end(recording)
        self._exit_as_processes_did()
        return kept

    def _await_callback(self) -> None:
        if self._recording is not None and self._recording.ladder is not None:
            self._recording.ladder.await_callback()

    def _close_aborted(self, reason: str) -> None:
        recording, was_closed = self._recording, self._closed
        self._status, self._status_set = "terminated", True
        if recording is not None and not was_closed:
            recording.close("terminated", reason)
            self._end(recording)

    def _final_status(self) -> str | None:
        if self._dormant:
            return "lost"
        if self._status_set:
            return self._status
        return None if self._status == "created" else "completed"

    def _end(self, recording: Recording) -> None:
        self._closed, self._writer = True, None
        self._ended = _time.clock_gettime_ns(_time.CLOCK_BOOTTIME)
        recording.say_how_it_ended()
        if self._aborted:
            self._status = "terminated"
        elif recording.failure is not None and not self._dormant and self._status in {"created", "running", "completed"}:
            self._status, self._status_set = "failed", True
        elif not self._status_set and self._status != "created":
            self._status = "lost" if self._dormant else "completed"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._closed or (self._recording is None and self._mode != "disabled"):
            return
        if error is None:
            self.close()
        else:
            self._leave_by(error)

    def _leave_by(self, error: BaseException) -> None:
        """End the run by an exception, which goes on: its processes are stopped."""
        recording = self._recording
        self._stop_processes(f"the script left the run by {type(error).__name__}")
        self._await_callback()
        if self._closed or recording is None:
            self._closed = True
            return
        status = status_of(error)
        end_with_error(recording, error)
        if status is not None:
            self._status, self._status_set = status, True
        self._end(recording)

    # ------------------------------------------------------------------ properties

    @property
    def duration(self) -> float:
        """Seconds since the run began (until it was closed)."""
        if not self._began:
            return 0.0
        return ((self._ended or _time.clock_gettime_ns(_time.CLOCK_BOOTTIME)) - self._began) / 1e9

    @property
    def id(self) -> str | None:
        """The run's id, 22 letters and digits; None before it began."""
        return self._id

    @property
    def uid(self) -> str | None:
        """The same as `id`: it is made here and stays the same on every server."""
        return self._id

    @property
    def name(self) -> str | None:
        """The run's name; None before it began."""
        return self._name

    @property
    def mode(self) -> str:
        """online, offline or disabled."""
        return self._mode

    @property
    def status(self) -> str | None:
        """created, running, completed, failed, terminated or lost, as far as this process knows; None before the run began."""
        return self._status

    @property
    def time_stamp(self) -> str:
        """Now, in UTC, as `%Y-%m-%dT%H:%M:%S.%f`."""
        return utc_text(_time.time_ns() // 1000)

    @property
    def is_closed(self) -> bool:
        """Whether this process has closed the run."""
        return self._closed

    @property
    def drops(self) -> dict[str, int]:
        """Records that this process could not keep, by reason."""
        return self._recording.drops if self._recording is not None else {}

    # ------------------------------------------------------------------ what the methods share

    def _ready(self, what: str) -> Writer | None:
        """Return the writer; None where the default is the answer (disabled, dormant, a disk that took nothing yet)."""
        if self._mode == "disabled" or self._dormant:
            return None
        if self._closed:
            if self._aborted and self._recording is not None and self._recording.writer is not None:
                self._recording.writer.count_drop(Drop.CLOSED)
                return None
            raise RunClosed(f"{what}: run {self._name!r} is closed: log before close, or reconnect({self._id!r})")
        if self._recording is None:
            raise NotInitialised(f"{what}: this Run was never initialised: call init first")
        if self._writer is None:
            self._writer = self._recording.writer
        return self._writer

    def _default(self) -> bool:
        if self._mode == "disabled":
            return True
        return False if self._dormant else self._dropped()

    def _record(self, kind: Kind, body: dict[str, Any]) -> bool:
        writer = self._ready(kind.label)
        if writer is None:
            return self._default()
        return writer.record(kind, body) or self._dropped()

    def _checked(self, kind: Kind, body: Callable[[], dict[str, Any]]) -> bool:
        try:
            return self._record(kind, body())
        except MISTAKES as error:
            return self._mistake(error)

    def _dropped(self) -> bool:
        if self._closed or self._recording is None:  # another thread closed it meanwhile; the writer has counted that
            return False
        return self._recording.dropped()

    def _mistake(self, error: Exception) -> bool:
        """The caller's mistake: raised, or, with suppress_errors, said once and followed by silence."""
        if not self._options.get("suppress_errors"):
            raise error
        if not self._dormant:
            say(f"{error} (errors are suppressed: run {self._name!r} records nothing more)")
            if self._writer is not None:
                self._writer.record(Kind.EVENT, {"message": f"simspool is dormant after: {error}"[:4000], "level": "error"})
            self._dormant, self._writer = True, None
            if self._recording is not None:
                self._recording.status_at_exit = self._final_status()
        return False
