"""What a look found, and what is looked at: the settings in force, and the spool where there is one."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from simspool.agent.targets.settings import TargetSettings
from simspool.sdk.config import Config
from simspool.spool import Spool, open_spool

_NOWHERE = "/proc/self/nowhere"
Verdict = Literal["ok", "warn", "fail", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    `fail`: recording or syncing will not work as promised; `warn`: it will, with a limit that one should know; `skipped`: it does not
    apply, or could not be looked at. `next` is what to type or change, `facts` what was measured, for programs. It holds no secret.
    """

    check: str
    verdict: Verdict
    text: str
    next: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as JSON."""
        return {"check": self.check, "verdict": self.verdict, "text": self.text, "next": self.next, "facts": dict(self.facts)}


@dataclass
class Site:
    """What is looked at: settings are read when a look wants them, so that each that cannot be read spoils only those looks.

    `read_config` may raise ConfigError or CommandError, `read_targets` too. `quick` leaves out what takes seconds. `answers` is whether the
    spool's disk does, once that is known: while it is not True, nothing but a look at that disk may touch it.
    """

    read_config: Callable[[], Config]
    read_targets: Callable[[Spool], list[TargetSettings]]
    quick: bool = False
    answers: bool | None = None

    @functools.cached_property
    def config(self) -> Config:
        """The settings in force."""
        return self.read_config()

    def spool(self) -> Spool:
        """Open the spool. Raises SpoolError or OSError."""
        return open_spool(self.config.spool_dir)

    def is_there(self) -> bool:
        """Say whether there is a spool, whatever is wrong with it."""
        return os.path.exists(os.path.join(self.config.spool_dir, "SPOOL"))

    def targets(self) -> list[TargetSettings]:
        """Return the targets in force: those of the settings alone, where there is no spool yet, or none that answers."""
        if self.answers and self.is_there():
            return self.read_targets(self.spool())
        return self.read_targets(Spool(_NOWHERE, ""))

    def secrets(self) -> Iterator[str]:
        """Yield the tokens that are known here, as far as the settings can be read."""
        reads: tuple[Callable[[], list[str | None]], ...] = (
            lambda: [self.config.server_token],
            lambda: [one.token for one in self.targets()],
        )
        for read in reads:
            try:
                found = read()
            except Exception:  # noqa: BLE001, S112 - what cannot be read gives nothing away
                continue
            yield from (token for token in found if token)


Look = Callable[[Site], Iterator[Finding]]


@dataclass(frozen=True, slots=True)
class Check:
    """A look, what it may take (s), and whether it asks the spool's disk."""

    name: str
    look: Look
    seconds: float
    disk: bool = False


def nearest_folder(path: str) -> str:
    """Return the path, or the first folder above it that exists."""
    at = os.path.abspath(path)
    while not os.path.isdir(at) and at != "/":
        at = os.path.dirname(at)
    return at


def shown_size(count: float) -> str:
    """Return a size for people: `812 B`, `4.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
