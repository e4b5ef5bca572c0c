"""Closing a dead writer truthfully: what its own close would have said, with the evidence (DESIGN 6, I9)."""

from __future__ import annotations

import os
from typing import Any

from simspool.spool import Durability, Kind, Spool, Writer, ids, runstate
from simspool.spool.process import this_host

from .follow import Followed


def declare_survivor(spool: Spool, state: dict[str, Any], followed: Followed) -> str:
    """Record, in a writer of the agent's own, that a writer ended without a close: status `lost`.

    Nothing is recorded where another agent's word is known already (of several, the first one counts), and where the run was deleted.
    Returns why it could not be recorded, empty when it was, or was not needed.
    """
    entry = state["writers"].get(followed.writer)
    if entry is not None and runstate.is_ended(entry):
        return ""
    header = followed.header
    assert header is not None
    here = this_host()
    reason = "rebooted" if header.boot_id != here.boot_id else "process-gone"
    folder = os.path.join(spool.runs, followed.run, "w")
    if not os.path.isdir(folder):
        return ""
    writer = Writer(folder, ids.from_text(followed.run), durability=Durability.LAZY)
    body = {
        "writer": followed.writer,
        "status": "lost",
        "last": followed.tail.sequence - 1,
        "evidence": {"reason": reason, "pid": header.pid, "host": header.host, "start_ticks": header.start_ticks},
    }
    kept = writer.record(Kind.ATTACH, {"reason": "agent"}) and writer.record(Kind.SURVIVOR, body)
    kept = writer.close({"status": None}) and kept
    return "" if kept else writer.last_error or "the spool cannot be written"
