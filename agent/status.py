"""What is recorded, acknowledged and waiting: read from a catalog, by the running agent or by a command alone."""

from __future__ import annotations

import json
import os
from typing import Any

from simspool.agent.catalog import Catalog
from simspool.agent.catalog.store import pruned
from simspool.agent.inbox import quarantine
from simspool.spool import RunNotFound, Spool, records, runstate


def overview(catalog: Catalog, spool: Spool, server: str) -> dict[str, Any]:
    """Return the spool's totals against one server (its id; empty when none was ever reached)."""
    one = catalog.one
    runs = dict(catalog.rows("SELECT status, count(*) FROM runs GROUP BY status"))
    # a server may have more than the catalog has seen: a spool that was restored from a copy
    recorded, acknowledged, blocked, gone = one(
        "SELECT coalesce(sum(recorded), 0), coalesce(sum(mark), 0), coalesce(sum(CASE WHEN blocked THEN recorded - mark END), 0),"  # noqa: S608
        " coalesce(sum(CASE WHEN pruned AND NOT blocked THEN recorded - mark END), 0) FROM (SELECT w.sequence - 1 AS recorded,"
        " min(coalesce(c.mark, 0), w.sequence - 1) AS mark, c.blocked IS NOT NULL AS blocked,"
        f" {pruned('w.run', 'w.id')} AS pruned FROM writers w LEFT JOIN cursors c ON c.writer = w.id AND c.server = ?)",
        (server,),
    ) or (0, 0, 0, 0)  # fmt: skip
    waiting = recorded - acknowledged - blocked - gone
    refused = (one("SELECT count(*) FROM refused r JOIN writers w ON w.id = r.writer WHERE r.server = ?", (server,)) or (0,))[0]
    files, stored, files_refused = one(
        "SELECT count(*), coalesce(sum(u.state = 'stored'), 0), coalesce(sum(u.state = 'refused'), 0)"
        " FROM (SELECT DISTINCT digest FROM artifacts) a LEFT JOIN uploads u ON u.digest = a.digest AND u.server = ?",
        (server,),
    ) or (0, 0, 0)  # fmt: skip
    drops: dict[str, int] = {}
    for (text,) in catalog.rows("SELECT drops FROM writers WHERE drops IS NOT NULL AND drops != '{}'"):
        for reason, n in json.loads(text).items():
            drops[reason] = drops.get(reason, 0) + n
    damage = (one("SELECT count(*) FROM damage") or (0,))[0]
    return {
        "spool": spool.path,
        "server": server,
        "runs": {"total": sum(runs.values()), **runs},
        "records": {
            "recorded": recorded, "acknowledged": acknowledged - refused, "waiting": waiting, "refused": blocked + refused,
            "pruned": gone, "dropped": drops,
        },
        "files": {"recorded": files, "acknowledged": stored, "waiting": files - stored - files_refused, "refused": files_refused},
        "damage": damage,
        "not_understood": len(list(quarantine.found_in(spool))),
    }  # fmt: skip


def list_runs(catalog: Catalog, server: str, *, limit: int | None = None) -> list[dict[str, Any]]:
    """Return runs, the newest first, each with what waits to be sent."""
    rows = catalog.rows(
        "SELECT r.id, r.name, r.status, r.folder, r.tags, r.created, r.ended, coalesce(sum(w.sequence - 1), 0),"
        " coalesce(sum(min(c.mark, w.sequence - 1)), 0) FROM runs r LEFT JOIN writers w ON w.run = r.id"
        " LEFT JOIN cursors c ON c.writer = w.id AND c.server = ?"
        " GROUP BY r.id ORDER BY r.id DESC LIMIT ?",
        (server, -1 if limit is None else limit),
    )
    return [
        {
            "id": id_, "name": name, "status": status, "folder": folder, "tags": json.loads(tags) if tags else [],
            "created": _seconds(created), "ended": _seconds(ended), "records": recorded, "waiting": recorded - acknowledged,
        }
        for id_, name, status, folder, tags, created, ended, recorded, acknowledged in rows
    ]  # fmt: skip


def find_run(catalog: Catalog, spool: Spool, text: str) -> str:
    """Return the id of the run with this id, unique id prefix, or name. Raises RunNotFound."""
    exact = catalog.rows("SELECT id FROM runs WHERE id = ?", (text,))
    found = exact or (catalog.rows("SELECT id FROM runs WHERE substr(id, 1, ?) = ? ORDER BY id", (len(text), text)) if text else [])
    named = [] if len(found) == 1 else catalog.rows("SELECT id FROM runs WHERE name = ? ORDER BY id", (text,))
    for candidates in (found, named):
        if len(candidates) == 1:
            return str(candidates[0][0])
    several = [r for (r,) in named or found]
    if several:
        raise RunNotFound(f"{len(several)} runs match {text!r}: give one of the ids {', '.join(several[-5:])}")
    raise RunNotFound(f"no run {text!r} in the spool {spool.path}: `agent ls` lists what is there")


def show_run(catalog: Catalog, spool: Spool, run: str, server: str) -> dict[str, Any]:
    """Return everything that the catalog knows of a run."""
    row = catalog.one("SELECT state FROM runs WHERE id = ?", (run,))
    assert row is not None
    state = json.loads(row[0]) if row[0] else runstate.empty()
    writers = [
        {
            "id": w, "role": role, "records": n, "acknowledged": mark, "ended": runstate.is_ended(state["writers"].get(w, {})),
            "drops": json.loads(drops) if drops else {}, **({"refused": blocked} if blocked else {}),
        }
        for w, role, n, mark, drops, blocked in catalog.rows(
            "SELECT w.id, w.role, w.sequence - 1, coalesce(c.mark, 0), w.drops, c.blocked FROM writers w"
            " LEFT JOIN cursors c ON c.writer = w.id AND c.server = ? WHERE w.run = ? ORDER BY w.id",
            (server, run),
        )
    ]  # fmt: skip
    metrics = {
        name: {"count": count, "last": records.decode(last.encode())["v"], "step": step}
        for name, count, last, step in catalog.rows("SELECT name, count, last, step FROM metrics WHERE run = ? ORDER BY name", (run,))
    }
    events = catalog.one("SELECT count, last FROM events WHERE run = ?", (run,)) or (0, None)
    artifacts = [
        {"name": name, "category": category, "size": size, "mime": mime, "digest": digest, "sent": sent == "stored"}
        for name, category, size, mime, digest, sent in catalog.rows(
            "SELECT a.name, a.category, a.size, a.mime, a.digest, u.state FROM artifacts a"
            " LEFT JOIN uploads u ON u.digest = a.digest AND u.server = ? WHERE a.run = ? ORDER BY a.writer, a.seq",
            (server, run),
        )
    ]
    damage = [
        {"writer": w, "segment": segment, "kind": kind, "bytes": [start, end], "sequences": [first, last]}
        for w, segment, kind, start, end, first, last in catalog.rows(
            'SELECT d.writer, d.segment, d.kind, d.start, d."end", d."first", d."last" FROM damage d JOIN'
            " writers w ON w.id = d.writer WHERE w.run = ?",
            (run,),
        )
    ]
    return {
        "id": run,
        "name": runstate.value(state, "name"),
        "status": runstate.status(state),
        "reason": runstate.reason(state),
        "folder": runstate.value(state, "folder", "/"),
        "description": runstate.value(state, "description"),
        "tags": runstate.tags(state),
        "metadata": runstate.metadata(state),
        "created": _seconds(runstate.started(state)),
        "ended": _seconds(runstate.finished(state)),
        "records": {"recorded": sum(w["records"] for w in writers), "acknowledged": sum(w["acknowledged"] for w in writers)},
        "writers": writers,
        "metrics": metrics,
        "events": {"count": events[0], "last": events[1]},
        "artifacts": artifacts,
        "damage": damage,
        "path": os.path.join(spool.runs, run),
    }


def last_server(catalog: Catalog, url: str | None) -> str:
    """Return the id of the server last seen at a URL, or last seen at all; empty when there was none.

    In a catalog that was built anew, before anything has connected, it is the one of the latest receipt.
    """
    row = catalog.one("SELECT server FROM servers ORDER BY url = ? DESC, seen DESC LIMIT 1", ((url or "").rstrip("/"),))
    row = row or catalog.one("SELECT server FROM cursors ORDER BY at DESC LIMIT 1")
    return str(row[0]) if row else ""


def _seconds(wall_ns: int | None) -> float | None:
    return None if wall_ns is None else wall_ns / 1e9
