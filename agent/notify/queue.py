"""What people are to be told, in the catalog: an index of decisions, ends of runs and what channels said of them. Deletable."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simspool.spool import Spool, atomic, records, runstate

if TYPE_CHECKING:
    from simspool.agent.catalog import Catalog

DAY = 86400.0
OLDEST = 7 * DAY  # s: what was recorded longer ago and never tried is not told
SETTLE = 5.0  # s after the end of a run: ranks end one after the other
_WANTED = {
    "all": frozenset({"completed", "failed", "terminated", "lost"}),
    "error": frozenset({"failed", "terminated", "lost"}),
    "lost": frozenset({"lost"}),
}
_RANKS = {"sent": 2, "abandoned": 1}
_STATES = frozenset({"trying", "failed", *_RANKS})
_LONGEST_BODY = 20_000  # characters


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing to tell: a decision (event firing or resolved), or a run's end (ended). `at` is when it was recorded (wall ns).

    `body` is the decision's record; of an end, its status, reason and `finished` (wall ns). `state` is the run's, folded.
    """

    id: str
    run: str
    event: str
    at: int
    body: Mapping[str, Any]
    state: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Tried:
    """What a channel has tried before: `state` is trying (nobody knows how it ended), failed or empty; `first` is wall ns."""

    attempt: int = 0
    state: str = ""
    digest: str | None = None
    first: int | None = None


class Queued:
    """What one ingest transaction adds to the queue, gathered in memory and written once."""

    def __init__(self) -> None:
        self._notices: list[tuple[Any, ...]] = []
        self._told: list[tuple[Any, ...]] = []

    def decided(self, run: str, wall: int, body: Mapping[str, Any]) -> None:
        """Take a decision's record."""
        identity, event = body.get("id"), body.get("state")
        wanted = event in ("firing", "resolved") and body.get("notification", "none") != "none"
        if wanted and isinstance(identity, str) and identity.isascii():
            text = records.encode(dict(body)).decode()
            if len(text) > _LONGEST_BODY:  # inputs may hold anything
                text = records.encode({k: v for k, v in body.items() if k != "inputs"}).decode()[:_LONGEST_BODY]
            self._notices.append((identity, run, event, wall, text))

    def said(self, run: str, wall: int, body: Mapping[str, Any]) -> None:
        """Take a notification's record."""
        identity, channel, state, attempt = body.get("id"), body.get("channel"), body.get("state"), body.get("attempt")
        digest, error = body.get("digest"), body.get("error")
        texts = all(isinstance(text, str) and text.isascii() for text in (identity, channel))
        if texts and isinstance(state, str) and state in _STATES and isinstance(attempt, int) and 0 <= attempt < 1 << 31:
            digest = digest if isinstance(digest, str) and digest.isascii() else None
            error = error.encode(errors="replace").decode() if isinstance(error, str) else None
            self._told.append((identity, channel, run, state, _RANKS.get(state, 0), attempt, digest, error, wall, wall))

    def flush(self, db: sqlite3.Connection, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Write it, and the ends of runs as their states have them now, inside the caller's transaction."""
        if self._notices:
            db.executemany("INSERT OR IGNORE INTO notices(id, run, event, at, body) VALUES (?,?,?,?,?)", self._notices)
        if self._told:
            db.executemany(
                "INSERT INTO told(id, channel, run, state, rank, attempt, digest, error, first, at) VALUES (?,?,?,?,?,?,?,?,?,?)"
                " ON CONFLICT(id, channel) DO UPDATE SET state=excluded.state, rank=excluded.rank, attempt=excluded.attempt,"
                " digest=excluded.digest, error=excluded.error, at=excluded.at, first=min(first, excluded.first)"
                " WHERE excluded.rank > rank OR (excluded.rank = rank AND excluded.at >= at)",
                self._told,
            )
        for run, state in states.items():
            if runstate.value(state, "notification", "none") in _WANTED:
                end = end_of(run, state)
                db.execute("DELETE FROM notices WHERE run = ? AND event = 'ended' AND id != ?", (run, end[0] if end else ""))
                if end is not None:
                    db.execute("INSERT OR REPLACE INTO notices(id, run, event, at, body) VALUES (?,?,'ended',?,?)", (end[0], run, *end[1:]))

    def clear(self) -> None:
        """Drop what is not written."""
        self._notices.clear()
        self._told.clear()


def end_of(run: str, state: Mapping[str, Any]) -> tuple[str, int, str] | None:
    """Return id, moment (wall ns) and body of a run's end, if it has ended and somebody wanted to be told; else None.

    The id is made of the run, its last reconnect and its status: the same for whoever finds it.
    """
    status, finished = runstate.status(state), runstate.finished(state)
    if finished is None or status not in _WANTED.get(str(runstate.value(state, "notification", "none")), ()) or abs(finished) >= 1 << 63:
        return None
    life = max((w["opened"] for w in state["writers"].values() if w.get("as") == "reconnect"), default=0)
    identity = hashlib.sha256(f"end {run} {life} {status}".encode()).hexdigest()[:32]
    body = {"status": status, "reason": runstate.reason(state), "finished": finished}
    return identity, finished, records.encode(body).decode()


def pending(
    catalog: Catalog, channel: str, on: Collection[str], since: int, now: float, *, settle: float = SETTLE
) -> list[tuple[Notice, Tried]]:  # fmt: skip
    """Return what a channel, which is there since `since` (wall ns), has yet to tell at `now` (wall s): the oldest first, at most 1000.

    Nothing that ended before the channel was there; nothing that is older than a week and was never tried.
    """
    floor = max(since, int((now - OLDEST) * 1e9))
    found = []
    states: dict[str, dict[str, Any]] = {}
    for identity, run, event, at, body, text, state, attempt, digest, first in catalog.rows(
        "SELECT n.id, n.run, n.event, n.at, n.body, r.state, t.state, t.attempt, t.digest, t.first FROM notices n"
        " JOIN runs r ON r.id = n.run LEFT JOIN told t ON t.id = n.id AND t.channel = ?"
        " WHERE n.at >= ? AND coalesce(t.rank, 0) = 0 AND coalesce(r.ended, n.at) >= ? AND r.state IS NOT NULL"
        " AND n.event IN (SELECT value FROM json_each(?)) ORDER BY n.at LIMIT 1000",
        (channel, floor, since, json.dumps(sorted(on))),
    ):
        if event == "ended" and 0 <= now - at / 1e9 < settle:
            continue
        if run not in states:
            states[run] = json.loads(text)
        notice = Notice(identity, run, event, at, _decoded(body), states[run])
        found.append((notice, Tried(attempt or 0, state or "", digest, first)))
    return found


def _decoded(text: str) -> dict[str, Any]:
    try:
        return records.decode(text.encode())
    except ValueError:  # it was cut
        return {}


def standing(catalog: Catalog, channels: Mapping[str, tuple[Collection[str], int]], now: float) -> dict[str, dict[str, Any]]:
    """Return per channel (its events, since when it is there) how many notices are pending, sent and abandoned, and the last error."""
    found = {}
    for channel, (on, since) in channels.items():
        counts = dict(catalog.rows("SELECT state, count(*) FROM told WHERE channel = ? AND rank > 0 GROUP BY state", (channel,)))
        last = catalog.one("SELECT error FROM told WHERE channel = ? AND state = 'failed' ORDER BY at DESC LIMIT 1", (channel,))
        waiting = len(pending(catalog, channel, on, since, now, settle=0.0))
        found[channel] = {
            "pending": waiting, "sent": counts.get("sent", 0), "abandoned": counts.get("abandoned", 0), "error": last[0] if last else None,
        }  # fmt: skip
    return found


def since(spool: Spool, channels: Collection[str], configuration: str, *, note: bool) -> dict[str, int]:
    """Return since when (wall ns) each channel is there. With `note`, those that are new are noted.

    The note is `agent/notify.json` in the spool. A channel that is not in it is there since the file `configuration` was last changed. What
    ended before is not told; a note that is lost, or cannot be written, makes every channel new.
    """
    path, now = os.path.join(spool.agent, "notify.json"), time.time_ns()
    try:
        now = min(now, os.stat(configuration).st_mtime_ns)
    except OSError:
        pass  # it was given otherwise, or is gone meanwhile
    try:
        known = atomic.read_json(path)
        known = {k: v for k, v in known.items() if isinstance(v, int)} if isinstance(known, dict) else {}
    except (OSError, ValueError):
        known = {}
    new = {name: now for name in channels if name not in known}
    if new and note:
        try:
            atomic.make_folder(spool.agent)
            atomic.write_json(path, known | new)
        except OSError:
            pass  # in force all the same, until this agent ends
    return {name: known.get(name, now) for name in channels}
