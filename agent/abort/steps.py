"""The words of an abort: graces as told, the modes, and what the records of kind 35 say of one process."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from simspool.sdk.config import Graces

MODES = ("terminate", "run", "all", "ignore")
_LONGEST = 7 * 86400.0


def as_told(graces: Graces, found: Any) -> Graces:
    """Return graces with those that a script's process gives of its own: it knows how long its checkpoint takes.

    Its `callback` is the time until it says `done`, what it has to stop itself included.
    """
    if not isinstance(found, dict):
        return graces
    return replace(graces, **{k: float(v) for k, v in found.items() if k in {"callback", "term"} and _is_seconds(v)})


def _is_seconds(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and 0 <= value <= _LONGEST


def mode_of(options: Mapping[str, Any]) -> str:
    """Return what a run's options say an abort is to stop: terminate, run, all or ignore."""
    found = options.get("abort_on_alert", "terminate")
    if isinstance(found, bool):
        return "run" if found else "ignore"
    return found if found in MODES else "terminate"


@dataclass(frozen=True, slots=True)
class Word:
    """A record of kind 35, by whom it may be: `boot` (ns) is its moment on the boot clock of this host."""

    writer: str
    boot: int
    body: Mapping[str, Any]

    @property
    def id(self) -> str:
        """The request's id."""
        return str(self.body.get("id"))

    @property
    def state(self) -> str:
        """received, done, signalled ...: docs/abort.md has them all."""
        return str(self.body.get("state"))
