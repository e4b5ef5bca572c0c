"""A run's abort flag: raised by people and programs on the server, carried to the run's agent with its next heartbeat.

A flag concerns the life of the run that the server knew when it was raised: it names the writers that were open then, as far
as they had been drained. The agent leaves a flag alone when none of them is open any more.
"""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from simspool.spool import runstate

from . import plain
from .times import now_us


def raise_flag(db: sqlite3.Connection, run: str, reason: str) -> None:
    """Raise the flag. While it is up and the run lives, the first reason stays; in a later life of the run it is raised anew."""
    row = db.execute("SELECT state, abort_at, abort_writers FROM runs WHERE id = ?", (run,)).fetchone()
    if row is None:
        return
    open_ = [w for w, entry in json.loads(row["state"])["writers"].items() if not runstate.is_ended(entry)] if row["state"] else []
    if row["abort_at"] is not None and (not open_ or set(json.loads(row["abort_writers"] or "[]")) & set(open_)):
        return
    db.execute(
        "UPDATE runs SET abort_reason = ?, abort_at = ?, abort_writers = ? WHERE id = ?",
        (plain.text(reason), now_us(), json.dumps(open_), run),
    )


def told(row: sqlite3.Row) -> dict[str, Any] | None:
    """Return the flag of a row of `runs` (abort_at, abort_reason, abort_writers) as agents get it; None when it is not up."""
    if row["abort_at"] is None:
        return None
    return {"reason": row["abort_reason"] or "", "at": row["abort_at"], "writers": json.loads(row["abort_writers"] or "[]")}
