"""What an agent is told: where the spool is, what it drains to, how long it keeps what is acknowledged."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from simspool.agent.catalog.store import place_key
from simspool.agent.emissions import EVERY
from simspool.agent.targets.settings import SERVER, TargetSettings
from simspool.sdk.budget import Budget
from simspool.sdk.config import Graces
from simspool.spool import Spool
from simspool.spool.agent_address import address_file
from simspool.spool.lease import PATIENCE
from simspool.spool.process import this_host

DAY = 86400.0
_INITIAL_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO
SUN_PATH = 107
"""The most bytes in the path of a unix socket."""


@dataclass(frozen=True)
class AgentConfig:
    """One agent's settings. Times are seconds; `grace` is how long acknowledged data stays in the spool, `graces` are those of aborts,
    `country` that of emissions, and `emissions_every` is between two of their samples. `load` reads the targets' settings; without it, the
    one server at `url` is the target. `patience` is that of the lease: the same for all agents of a spool."""

    spool: Spool
    url: str | None = None
    token: str | None = field(default=None, repr=False)
    grace: float = 7 * DAY
    scrub_every: float = DAY
    retention_every: float = 3600.0
    patience: float = PATIENCE
    disk_floor: int = 512 << 20
    graces: Graces = field(default_factory=Graces)
    country: str | None = None
    emissions_every: float = EVERY
    budget: Budget = field(default_factory=Budget)
    load: Callable[[], list[TargetSettings]] | None = field(default=None, repr=False)

    def targets(self) -> list[TargetSettings]:
        """Return the targets in force now. Raises ConfigError."""
        if self.load is not None:
            return self.load()
        return [TargetSettings(SERVER, "auto", self.url, self.token)] if self.url else []


def runtime_folders(spool: Spool) -> list[str]:
    """Return where this spool's sockets may lie, the best first: folders, not made yet, whose paths are short enough."""
    bases = [os.path.join(os.environ["XDG_RUNTIME_DIR"], "simspool")] if os.environ.get("XDG_RUNTIME_DIR") else []
    bases.append(f"/tmp/simspool-{os.geteuid()}")  # noqa: S108 - owner and mode are checked before it is used
    folders = [os.path.join(base, _socket_key(spool)) for base in bases]
    return [folder for folder in folders if len(os.fsencode(os.path.join(folder, "bell"))) <= SUN_PATH]


def runtime_folder(spool: Spool) -> str | None:
    """Return a private folder for this spool's sockets, made 0700; None where none is short enough or safe.

    $XDG_RUNTIME_DIR/simspool/<key>, else /tmp/simspool-<uid>/<key>.
    """
    for folder in runtime_folders(spool):
        try:
            for part in (os.path.dirname(folder), folder):
                os.makedirs(part, 0o700, exist_ok=True)
                info = os.lstat(part)
                if info.st_uid != os.geteuid() or info.st_mode & 0o077 or os.path.islink(part):
                    raise PermissionError(part)
        except OSError:
            continue
        return folder
    return None


def _socket_key(spool: Spool) -> str:
    """Return a name for this spool's sockets, which agents of two PID namespaces that share the folder must not share."""
    namespace = this_host().pid_namespace
    if namespace in {0, _INITIAL_NAMESPACE}:
        return place_key(spool)
    return hashlib.sha256(f"{place_key(spool)} {namespace}".encode()).hexdigest()[:32]


def host_file(spool: Spool) -> str:
    """Return where this host's agent tells scripts and commands how to reach it."""
    return address_file(spool.path)
