"""The pressure file: what the agent says of the room that is left in a spool (FORMAT.md section 11).

It counts for a short time only, on a clock that nobody sets, so that the word of an agent that has died is soon forgotten.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from . import atomic
from .process import this_host

NAME = "pressure.json"
LASTS = 120.0
"""Seconds for which a word of the agent counts."""

FREE, SAMPLES, METRICS, FILES = range(4)
"""Levels: nothing is refused; no resource samples; metrics are thinned as well; no files are taken as well."""

ENTER, LEAVE = (0.80, 0.90, 0.95), (0.70, 0.80, 0.85)
"""How much of a budget is in use when level 1, 2, 3 begins; below which it ends."""


@dataclass(frozen=True, slots=True)
class Pressure:
    """`use` is the share of the budget that is taken, `why` says of which one; `since` is wall time in seconds.

    `watched`: names of metrics, or patterns, that are not to be thinned.
    """

    level: int = FREE
    use: float = 0.0
    why: str = ""
    since: float = 0.0
    watched: tuple[str, ...] = ()


def level_after(level: int, use: float) -> int:
    """Return the level at a use, coming from a level: it rises at ENTER and falls below LEAVE."""
    rising = sum(use >= bound for bound in ENTER)
    staying = sum(use >= bound for bound in LEAVE)
    return max(rising, min(level, staying))


def path_of(spool_path: str) -> str:
    """Return where a spool's pressure file lies."""
    return os.path.join(spool_path, "agent", NAME)


def publish(spool_path: str, found: Pressure) -> None:
    """Say it, for LASTS seconds from now on. Raises OSError."""
    host, boot, wall = this_host(), time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.time()
    path = path_of(spool_path)
    atomic.make_folder(os.path.dirname(path))
    atomic.write_json(
        path,
        {
            "level": found.level, "use": round(found.use, 4), "why": found.why, "since": found.since, "watched": list(found.watched),
            "boot_id": host.boot_id.hex(), "until": boot + int(LASTS * 1e9), "expires": wall + LASTS,
        },
    )  # fmt: skip


def withdraw(spool_path: str) -> None:
    """Say nothing any more. Raises OSError."""
    atomic.remove(path_of(spool_path))


def read(spool_path: str) -> tuple[Pressure, float] | None:
    """Return what the agent says and for how many seconds it counts yet; None where nobody says anything that counts.

    Within one boot of one machine the boot clock tells; elsewhere (a spool on the network) the wall clocks have to agree.
    """
    try:
        body = atomic.read_json(path_of(spool_path))
        until, expires = int(body["until"]), float(body["expires"])
        watched = tuple(str(name) for name in body.get("watched", ()))
        found = Pressure(min(max(int(body["level"]), FREE), FILES), float(body["use"]), str(body["why"]), float(body["since"]), watched)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    host: Any = this_host()
    if body.get("boot_id") == host.boot_id.hex() and any(host.boot_id):
        left = (until - time.clock_gettime_ns(time.CLOCK_BOOTTIME)) / 1e9
    else:
        left = expires - time.time()
    return (found, left) if 0.0 < left <= LASTS else None
