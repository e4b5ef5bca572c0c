"""Where a host's agent says how it is reached: `agent/hosts/<host>-<PID namespace>.json` in the spool (FORMAT.md section 2)."""

from __future__ import annotations

import os
from typing import Any

from . import atomic
from .process import start_ticks, this_host


def address_stem(spool_path: str) -> str:
    """Return the path, without its suffix, of what this host and PID namespace keeps about its agent."""
    here = this_host()
    return os.path.join(spool_path, "agent", "hosts", f"{here.name}-{here.pid_namespace}")


def address_file(spool_path: str) -> str:
    """Return where this host's agent tells scripts and commands how to reach it."""
    return f"{address_stem(spool_path)}.json"


def living_agent(spool_path: str) -> dict[str, Any] | None:
    """Return what the agent that serves a spool on this host has announced; None when none lives.

    `pid` and `start_ticks` are whole numbers and its own; the other entries are as they were read.
    """
    try:
        known = atomic.read_json(address_file(spool_path))
        pid, ticks = known["pid"], known["start_ticks"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(known, dict) or not isinstance(pid, int) or not isinstance(ticks, int):
        return None
    found = start_ticks(pid)
    return known if found is not None and found[0] == ticks and found[1] not in "ZX" else None
