"""An agent on demand: started beside an online run where none serves the spool, and where it can run.

The agent is nobody's child (see orphan.py), in a session of its own, and ends by itself. Where a site ends everything that a job or a login
started (Slurm's cgroups, a systemd scope), it goes with the script; what is recorded waits in the spool.

Never two agents of one host: its lock decides that. That 64 ranks which begin together do not start 64 interpreters, the start note sees
to: a small file for each host, locked for the moment of a start by the kernel, which also frees it when the starter dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.util
import json
import os
import re
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simspool.spool import atomic, process
from simspool.spool.agent_address import address_stem, living_agent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .config import Config

FIRST_PAUSE, LONGEST_PAUSE = 30.0, 600.0  # s between two starts on one host, growing while no started agent comes to serve
_NEEDS = ("simspool.agent", "aiohttp", "apscheduler", "click", "psutil", "sqlite_utils", "watchdog")
_PYTHON = re.compile(r"(python|pypy)[0-9.]*t?")
_NOTE_BYTES = 160
# what else begins with PYTHON is about the script: start-up files, debuggers, warnings, profilers
_KEPT = {
    "PYTHONPATH", "PYTHONHOME", "PYTHONUTF8", "PYTHONNOUSERSITE", "PYTHONUSERBASE", "PYTHONPLATLIBDIR", "PYTHONDONTWRITEBYTECODE",
    "PYTHONPYCACHEPREFIX",
}  # fmt: skip
_PATHS = {"SIMSPOOL_STATE", "SIMSPOOL_ALERTS"}
_DROPPED = {
    "LD_PRELOAD", "LD_AUDIT", "SIMSPOOL_RUN", "SIMSPOOL_URL", "SIMSPOOL_TOKEN", "SIMSPOOL_TOKEN_FILE",
    "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "CREDENTIALS_DIRECTORY",  # of a script that is a service
}  # fmt: skip


class AgentStarter:
    """Starts agents for one spool. Made in the process that records; safe to use from several threads."""

    def __init__(self, config: Config, spool_path: str) -> None:
        self._config, self._spool_path = config, spool_path

    def consider(self) -> bool:
        """Start an agent if none serves the spool; True when one does, or is about to. Raises OSError when the disk or the system refuses.

        About a millisecond when one is started, else the reading of two small files.
        """
        if serving_agent(self._spool_path) is not None:
            return True
        if not can_run_here():
            return False
        with StartNote(self._spool_path).held(wait=False) as note:
            if note is None:
                return True  # another process starts one at this moment
            if serving_agent(self._spool_path) is not None:
                return True
            tries = note.tries
            if note.is_closed:
                return tries == 1
            note.write(tries + 1, min(FIRST_PAUSE * 2.0 ** min(tries, 10), LONGEST_PAUSE))
            self._start()
            return True

    def _start(self) -> None:
        from . import orphan

        log = os.path.join(self._spool_path, "agent", "on-demand.log")
        try:
            stderr = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError:  # without a log, then
            stderr = None
        command = [sys.executable, "-P", "-m", "simspool.agent", "run", "--on-demand", "--spool", self._spool_path]
        try:
            orphan.start(sys.executable, command, _environment(os.environ, self._config), stderr)
        finally:
            if stderr is not None:
                os.close(stderr)


@functools.cache
def can_run_here() -> bool:
    """Say whether this interpreter can run the agent: it is installed with what it needs, and programs can be started.

    A frozen application or a program with Python inside is no interpreter: it would start itself.
    """
    from . import orphan

    if getattr(sys, "frozen", False) or not sys.executable or not _PYTHON.fullmatch(os.path.basename(sys.executable)):
        return False
    try:
        return orphan.is_possible() and all(importlib.util.find_spec(name) is not None for name in _NEEDS)
    except (ImportError, ValueError):
        return False


@dataclass(frozen=True, slots=True)
class ServingAgent:
    """A living agent of this host and PID namespace, as its host file tells."""

    pid: int
    start_ticks: int
    on_demand: bool


def serving_agent(spool_path: str) -> ServingAgent | None:
    """Return the agent that serves a spool on this host, None when there is none that lives."""
    known = living_agent(spool_path)
    return None if known is None else ServingAgent(known["pid"], known["start_ticks"], known.get("on_demand") is True)


class StartNote:
    """When an agent was last started for a spool on this host, and when one may be started again."""

    def __init__(self, spool_path: str) -> None:
        self._path = f"{address_stem(spool_path)}.start"
        self._boot = process.this_host().boot_id.hex()
        self._fd = -1

    @contextlib.contextmanager
    def held(self, *, wait: bool) -> Iterator[StartNote | None]:
        """Hold the note alone; None when another process does (and `wait` is False). Raises OSError when the disk refuses."""
        atomic.make_folder(os.path.dirname(self._path))
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield None
                return
            self._fd = fd
            try:
                yield self
            finally:
                fcntl.flock(fd, fcntl.LOCK_UN)  # also for a process that was forked meanwhile
        finally:
            os.close(fd)

    @property
    def tries(self) -> int:
        """How often an agent was started without coming to serve."""
        return self._read()[0]

    @property
    def is_closed(self) -> bool:
        """Whether no agent is to be started yet."""
        return self._read()[1] > time.clock_gettime(time.CLOCK_BOOTTIME)

    def _read(self) -> tuple[int, float]:
        try:
            found = json.loads(os.pread(self._fd, 4096, 0))
            tries, until, boot = int(found["tries"]), float(found["until"]), found["boot_id"]
        except (ValueError, KeyError, TypeError):
            return 0, 0.0
        return (tries, min(until, time.clock_gettime(time.CLOCK_BOOTTIME) + LONGEST_PAUSE)) if boot == self._boot else (0, 0.0)

    def write(self, tries: int, pause: float) -> None:
        """Note that no agent is to be started for a pause (s)."""
        until = time.clock_gettime(time.CLOCK_BOOTTIME) + pause
        text = json.dumps({"tries": tries, "until": until, "boot_id": self._boot}).encode()
        os.pwrite(self._fd, text.ljust(_NOTE_BYTES), 0)  # one write of one length: a reader, or a kill, never finds half of it


def _environment(environ: Mapping[str, str], config: Config) -> dict[str, str]:
    """Return the agent's environment: the script's without what is meant for the script; the server's settings as they are in force."""
    kept = {k: v for k, v in environ.items() if k not in _DROPPED and (k in _KEPT or not k.startswith("PYTHON"))}
    for name in _PATHS & kept.keys():  # the agent leaves the script's folder
        kept[name] = os.path.abspath(kept[name])
    if "PYTHONPATH" in kept:
        kept["PYTHONPATH"] = os.pathsep.join(os.path.abspath(p) for p in kept["PYTHONPATH"].split(os.pathsep) if p)
    kept["SIMSPOOL_AGENT"] = "off"
    if config.server_url:
        kept["SIMSPOOL_URL"] = config.server_url
    if config.server_token:
        kept["SIMSPOOL_TOKEN"] = config.server_token
    return kept
