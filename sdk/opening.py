"""How a run begins: the half of Run that makes a new one, goes on with one, or joins another process's."""

from __future__ import annotations

import os
import time as _time
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from simspool.spool import Kind, Origin, Writer, ids, open_spool

from . import validation as check
from .aborting import Aborting
from .errors import MISTAKES, NotInitialised, SdkError
from .notice import say
from .recording import Recording

if TYPE_CHECKING:
    from .config import Config
    from .executor import Executor

Mode = Literal["online", "offline", "disabled"]
MODES = ("online", "offline", "disabled")
_RANKS = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID")


class Opening(Aborting):
    """Beginning a run."""

    _mode: str
    _server: tuple[str | None, str | None]
    _agent: str | None
    _debug: bool
    _id: str | None
    _name: str | None
    _folder: str
    _status: str | None
    _status_set: bool
    _began: int
    _ended: int
    _closed: bool
    _writer: Writer | None
    _alerts: dict[str, dict[str, Any]]
    _defined: dict[str, dict[str, Any]]
    _executor: Executor | None

    @abstractmethod
    def __init__(self, mode: Mode = "online") -> None:
        """Make a run that records nothing yet."""

    @abstractmethod
    def _final_status(self) -> str | None:
        """Return the status with which the run ends if nothing more happens."""

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
        variables (globs allowed) to keep as metadata `shell.<name>`; none by default, and no secrets (docs/security.md).

        Raises InvalidRecord for invalid values, InvalidSpool and NewerFormat for a spool that is not ours to use, ConfigError for a broken
        simspool.toml. A full or read-only disk raises nothing: False, and what follows is counted.
        """
        try:
            if self._id is not None and not self._closed:
                raise SdkError(f"this Run records {self._name!r} already: make another Run for another run")
            config = self._load_config()
            defaults = config.run_defaults if config is not None else {}
            name = name if name is not None else defaults.get("name")
            shell = _shell_vars(record_shell_vars, config) if record_shell_vars else {}
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
        created = utc_text(origin.wall // 1000)
        body |= {"created": created, "system": _system()}
        info = origin.run_info(run_id, body["name"], created)
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
    def attach(cls, run_id: str | None = None, *, rank: int | None = None, mode: Mode = "online") -> Self:
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
        run_id = spool.find_own_run(check.check_text("run id", wanted))
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
        self._executor = None

    def _record_into(self, recording: Recording) -> bool:
        recording.options, recording.run, recording.defined = self._options, self, self._defined
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
            self._mode = check.one_of("[run] mode in the configuration", wanted, MODES)
        return None if self._mode == "disabled" else config


def _system() -> dict[str, Any]:
    from . import provenance

    try:
        return provenance.system()
    except Exception as error:  # noqa: BLE001 - a strange environment is no reason not to record
        return {"error": f"{type(error).__name__}: {error}"}


def _scheduler() -> dict[str, Any]:
    from . import provenance

    return provenance.scheduler()


def utc_text(micros: int) -> str:
    """Return µs since 1970 as UTC in Simvue's form."""
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


def _shell_vars(patterns: set[str], config: Config | None) -> dict[str, str]:
    import fnmatch

    from .redaction import Redactor

    kept = Redactor.of(config.redact if config is not None else {}).value
    return {f"shell.{k}": kept(k, v) for k, v in sorted(os.environ.items()) if any(fnmatch.fnmatchcase(k, p) for p in patterns)}
