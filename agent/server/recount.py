"""Counting a run anew, from the rows themselves and not from what was noted while they came: what `agent verify` asks for."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
from pathlib import Path
from typing import Any

from simspool.spool.ids import is_digest

from . import points
from .blobstore import BlobStore
from .identity import Principal

_BLOCK = 1 << 20


def of_run(db: sqlite3.Connection, who: Principal, run: str, *, deep: bool) -> dict[str, Any] | None:
    """Return what is stored of a run of this user's; None without one. `deep` decodes every point instead of counting rows."""
    row = db.execute("SELECT owner, status FROM runs WHERE id = ?", (run,)).fetchone()
    if row is None or row["owner"] != who.user:
        return None
    counts = _counts(db, run)
    metrics = _decoded(db, run, counts) if deep else _counted(db, run, counts)
    files = db.execute(
        "SELECT t.name, t.digest, t.size FROM run_artifacts ra JOIN artifacts t ON t.id = ra.artifact WHERE ra.run = ? ORDER BY t.name",
        (run,),
    )
    return {
        "status": row["status"],
        "metrics": metrics,
        "events": db.execute("SELECT count(*) FROM events WHERE run = ?", (run,)).fetchone()[0],
        "files": [{"name": f["name"], "digest": f["digest"], "size": f["size"]} for f in files],
        "marks": dict(db.execute("SELECT id, mark FROM writers WHERE run = ? AND chain IS NOT NULL", (run,)).fetchall()),
        "gaps": db.execute("SELECT coalesce(sum(last - first + 1), 0) FROM gaps WHERE run = ?", (run,)).fetchone()[0],
        "refused": [[w, seq] for w, seq in db.execute("SELECT writer, seq FROM refused WHERE run = ? ORDER BY 1, 2", (run,))],
    }


def _counts(db: sqlite3.Connection, run: str) -> dict[str, int]:
    """Return the number of stored points of each metric."""
    found: dict[str, int] = {}
    rows = db.execute(
        "SELECT s.names, sum(x.rows) FROM (SELECT shape, rows FROM chunks WHERE run = ?"
        " UNION ALL SELECT shape, rows FROM buffer WHERE run = ?) x JOIN shapes s ON s.id = x.shape GROUP BY s.id",
        (run, run),
    )
    for names, count in rows:
        for name in json.loads(names):
            found[name] = found.get(name, 0) + count
    return found


def _counted(db: sqlite3.Connection, run: str, counts: dict[str, int]) -> dict[str, Any]:
    edges = {
        metric: {"first": [first_step, json.loads(first)], "last": [last_step, json.loads(last)]}
        for metric, first_step, first, last_step, last in db.execute(
            "SELECT metric, first_step, first, last_step, last FROM summaries WHERE run = ?", (run,)
        )
    }
    return {name: {"count": count, **edges.get(name, {})} for name, count in counts.items()}


def _decoded(db: sqlite3.Connection, run: str, counts: dict[str, int]) -> dict[str, Any]:
    out = {}
    for name in counts:
        found = points.read(db, run, name)
        out[name] = {
            "count": len(found.values), "first": [found.steps[0], found.values[0]], "last": [found.steps[-1], found.values[-1]],
        } if found.values else {"count": 0}  # fmt: skip
    return out


async def check_files(blobs: BlobStore, files: list[dict[str, Any]], *, deep: bool) -> None:
    """Put into each file whether its bytes are here: of the right size, or with `deep` of the right digest."""
    for one in files:
        one["there"] = is_digest(one["digest"]) and await asyncio.to_thread(_is_there, blobs.path(one["digest"]), one, deep)


def _is_there(path: Path, one: dict[str, Any], deep: bool) -> bool:
    try:
        with open(path, "rb") as file:
            if not deep:
                return bool(file.seek(0, 2) == one["size"])
            found = hashlib.sha256()
            while block := file.read(_BLOCK):
                found.update(block)
    except OSError:
        return False
    return bool(found.hexdigest() == one["digest"])
