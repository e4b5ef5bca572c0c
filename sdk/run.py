"""Run: what a script calls to record itself.

Guarantee: a call that returns True has put its record where the script's death, by any signal, cannot reach it (power cuts: see the
durability setting). A call that returns False was not recorded and is counted in the spool with its reason. No call waits for a network.
Only the caller's own mistakes raise, and not even these after `config(suppress_errors=True)`.
"""

from __future__ import annotations

import os
import time as _time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from simspool.spool import Drop, InvalidRecord, Kind, Origin, Writer, ids, open_spool

from . import validation as check
from .aborting import Aborting
from .alerting import Alerting
from .errors import MISTAKES, NotInitialised, RunClosed, SdkError
from .notice import say
from .recording import Recording, end_with_error, status_of
from .saving import Saving

if TYPE_CHECKING:
    from datetime import datetime

    from .config import Config

Mode = Literal["online", "offline", "disabled"]
Level = Literal["debug", "info", "warning", "error", "critical"]
_MODES = ("online", "offline", "disabled")
_RANKS = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID")


class Run(Aborting, Alerting, Saving):
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
        self._mode: str = check.one_of("mode", mode, _MODES)
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

    # ------------------------------------------------------------------ beginning

    def init(
        self,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        tags: list[str] | None = None,
        description: str | None = None,
        folder: str | None = "/",
        running: bool = True,
        retention_period: str | None = None,
        timeout: int | None = None,
        visibility: Literal["public", "tenant"] | list[str] | None = None,
        no_color: bool = False,
        *,
        notification: Literal["none", "all", "error", "lost"] = "none",
        record_shell_vars: set[str] | None = None,
    ) -> bool:
        """Begin a new run in the spool; True when its first record is kept.

        `name` is made up when None. `folder` begins with "/". `running=False` leaves the run in the state `created`, to be
        reconnected to later. `retention_period` ("1 day", "2 weeks 3 hours") is the server's expiry, `timeout` (s) its
        patience without a sign of life. `no_color` is accepted; nothing is coloured. `record_shell_vars` names environment
        variables (globs allowed) to keep as metadata `shell.<name>`; none by default.

        Raises InvalidRecord for invalid values, InvalidSpool and NewerFormat for a spool that is not ours to use, ConfigError for a broken
        simspool.toml. A full or read-only disk raises nothing: False, and what follows is counted.
        """
        try:
            if self._id is not None and not self._closed:
                raise SdkError(f"this Run records {self._name!r} already: make another Run for another run")
            config = self._load_config()
            defaults = config.run_defaults if config is not None else {}
            name = name if name is not None else defaults.get("name")
            shell = _shell_vars(record_shell_vars) if record_shell_vars else {}
            body: dict[str, Any] = {
                "name": check.check_name("run name", name) if name is not None else _random_name(),
                "folder": check.check_folder(defaults.get("folder", "/") if folder in {None, "/"} else folder),
                "metadata": check.check_metadata(defaults.get("metadata") or {}) | check.check_metadata(metadata or {}) | shell,
                "tags": check.check_tags(tags if tags is not None else defaults.get("tags") or []),
                "status": "running" if running else "created",
            }
            description = description if description is not None else defaults.get("description")
            if description is not None:
                body["description"] = check.check_text("description", description)
            if visibility is not None:
                body["visibility"] = check.check_visibility(visibility)
            if retention_period is not None:
                body["retention"] = check.period_seconds(retention_period)
            if timeout is not None:
                body["timeout"] = check.check_count("timeout", timeout)
            if check.one_of("notification", notification, ("none", "all", "error", "lost")) != "none":
                body["notification"] = notification
            return self._create(config, body)
        except MISTAKES as error:
            return self._mistake(error)

    def _create(self, config: Config | None, body: dict[str, Any]) -> bool:
        run_id, origin = ids.to_text(ids.new_id()), Origin.now()
        self._begin(run_id, body["name"], body["folder"], body["status"], origin.boot)
        if config is None:
            return True
        created = _utc_text(origin.wall // 1000)
        body |= {"created": created, "system": _system()}
        info = {
            "id": run_id, "name": body["name"], "created": created,
            "origin": {"wall": origin.wall, "boot": origin.boot, "boot_id": origin.boot_id.hex()},
        }  # fmt: skip
        return self._record_into(Recording(config, run_id, (Kind.RUN, body), info=info, origin=origin, rank=None))

    def reconnect(self, run_id: str) -> bool:
        """Go on with a run of this spool, by id, unique prefix or name: one in the state `created`, or one that ended.
        Its status is then `running`.

        Raises RunNotFound, or what `init` raises for the spool.
        """
        try:
            if self._id is not None and not self._closed:
                raise SdkError(f"this Run records {self._name!r} already: make another Run for another run")
            self._join(run_id, "reconnect", None)
            return self._record(Kind.STATUS, {"status": "running"})
        except MISTAKES as error:
            return self._mistake(error)

    @classmethod
    def attach(cls, run_id: str | None = None, *, rank: int | None = None, mode: Mode = "online") -> Run:
        """Return a Run that records into a run which another process began: a rank, a worker, a helper script.

        `run_id` is an id, unique prefix or name, by default the environment's SIMSPOOL_RUN; `rank` is by default what MPI
        or Slurm set. Closing it ends this process's part; the run ends when all its parts have. Raises RunNotFound,
        NotInitialised when no id is given, or what `init` raises.
        """
        wanted = run_id or os.environ.get("SIMSPOOL_RUN")
        if not wanted:
            raise NotInitialised("which run? give its id, or set SIMSPOOL_RUN to it")
        run = cls(mode=mode)
        run._join(wanted, "attach", rank if rank is not None else _rank())
        return run

    def _join(self, wanted: str, reason: str, rank: int | None) -> None:
        config = self._load_config()
        if config is None:
            self._begin(wanted, wanted, "/", "running", _time.clock_gettime_ns(_time.CLOCK_BOOTTIME))
            return
        spool = open_spool(config.spool_dir)
        run_id = spool.find_run(check.check_text("run id", wanted))
        info = spool.run(run_id).info()
        origin = Origin.of_run(info) or Origin.now()
        self._begin(run_id, str(info.get("name") or ""), "/", "running", origin.boot)
        body: dict[str, Any] = {"reason": reason, "rank": rank} if rank is not None else {"reason": reason}
        body |= _scheduler()
        self._record_into(Recording(config, run_id, (Kind.ATTACH, body), info=None, origin=origin, rank=rank))

    def _begin(self, run_id: str, name: str, folder: str, status: str, began: int) -> None:
        self._id, self._name, self._folder, self._status = run_id, name, folder, status
        self._began, self._ended, self._status_set, self._closed = began, 0, False, False
        self._abort_requested = self._aborted = False
        self._alerts, self._defined = {}, {}

    def _record_into(self, recording: Recording) -> bool:
        recording.options, recording.run = self._options, self
        recording.open(with_bell=self._mode == "online")
        self._recording, self._writer = recording, recording.writer
        recording.status_at_exit = self._final_status()
        if self._debug:
            say(f"run {self._id} ({self._name}) is recorded in {recording.spool.path if recording.spool else 'no spool'}")
        kept = recording.is_complete
        if self._options:
            kept = self._record(Kind.CONFIG, {"set": self._options}) and kept
        return kept

    def _load_config(self) -> Config | None:
        if self._mode == "disabled":
            return None
        from .config import load_config

        config = load_config(server_url=self._server[0], server_token=self._server[1], agent=self._agent)
        wanted = config.run_defaults.get("mode")
        if wanted is not None and self._mode == "online":
            self._mode = check.one_of("[run] mode in the configuration", wanted, _MODES)
        return None if self._mode == "disabled" else config

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
            self._recording.status_at_exit = status
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
        others are for the agent: emissions, storage, and what an alert's abort stops.
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

        A process that forked off ends its own part only. Repeating is harmless. Raises NotInitialised before `init`.
        """
        if self._mode == "disabled" or self._closed:
            self._closed = True
            return True
        recording = self._recording
        if recording is None:
            return self._mistake(NotInitialised("close: this Run was never initialised: call init first"))
        if recording.ladder is not None:
            recording.ladder.await_callback()
        kept = recording.close(self._final_status(), "dormant after an error" if self._dormant else None)
        self._end(recording)
        return kept

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
        elif not self._status_set and self._status != "created":
            self._status = "lost" if self._dormant else "completed"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        recording = self._recording
        if recording is None or self._closed:
            return
        if error is None:
            self.close()
            return
        if recording.ladder is not None:
            recording.ladder.await_callback()
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
    def executor(self) -> None:
        """There is no executor: this Run starts no processes."""
        return

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
    def processes(self) -> list[Any]:
        """The processes that this Run started: none."""
        return []

    @property
    def status(self) -> str | None:
        """created, running, completed, failed, terminated or lost, as far as this process knows; None before the run began."""
        return self._status

    @property
    def time_stamp(self) -> str:
        """Now, in UTC, as `%Y-%m-%dT%H:%M:%S.%f`."""
        return _utc_text(_time.time_ns() // 1000)

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


def _system() -> dict[str, Any]:
    from . import provenance

    try:
        return provenance.system()
    except Exception as error:  # noqa: BLE001 - a strange environment is no reason not to record
        return {"error": f"{type(error).__name__}: {error}"}


def _scheduler() -> dict[str, Any]:
    from . import provenance

    return provenance.scheduler()


def _utc_text(micros: int) -> str:
    seconds, rest = divmod(micros, 1_000_000)
    return f"{_time.strftime('%Y-%m-%dT%H:%M:%S', _time.gmtime(seconds))}.{rest:06d}"


def _random_name() -> str:
    import random

    first = ("amber", "brisk", "calm", "deft", "eager", "early", "fair", "fleet", "gentle", "keen", "lucid", "mellow", "noble", "vivid")
    second = ("alder", "beacon", "cedar", "comet", "delta", "falcon", "fjord", "harbor", "heron", "maple", "otter", "quartz", "raven")
    source = random.SystemRandom()  # the user's seeded generator is left alone
    return f"{source.choice(first)}-{source.choice(second)}-{source.randrange(10_000):04d}"


def _rank() -> int | None:
    return next((int(v) for v in (os.environ.get(n, "") for n in _RANKS) if v.isascii() and v.isdecimal()), None)


def _shell_vars(patterns: set[str]) -> dict[str, str]:
    import fnmatch

    return {f"shell.{k}": v for k, v in sorted(os.environ.items()) if any(fnmatch.fnmatchcase(k, p) for p in patterns)}
