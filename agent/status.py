"""What is recorded, acknowledged and waiting: read from a catalog, by the running agent or by a command alone."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from simspool.agent.carry import custody
from simspool.agent.catalog import Catalog
from simspool.agent.catalog.store import FILE_KEY, pruned
from simspool.agent.inbox import quarantine
from simspool.agent.targets.settings import BUNDLE
from simspool.agent.truth.books import ALL, Account, books, remarks
from simspool.agent.truth.known import KnownTarget, counting
from simspool.agent.truth.restored import restored
from simspool.spool import RunNotFound, Spool, records, runstate

_MOST_SPANS = 1000


def overview(catalog: Catalog, spool: Spool, targets: Sequence[KnownTarget]) -> dict[str, Any]:
    """Return the spool's totals: of all targets that count together (the required ones), and of each by itself.

    What is `waiting` there waits for at least one of them. `balanced` says that every record and file of every run is accounted for.
    """
    runs = dict(catalog.rows("SELECT status, count(*) FROM runs GROUP BY status"))
    made = books(catalog, targets)
    drops: dict[str, int] = {}
    for by_reason in made.drops.values():
        for reason, n in by_reason.items():
            drops[reason] = drops.get(reason, 0) + n
    together = made.all_records(ALL)
    imbalances = made.imbalances()
    return {
        "spool": spool.path,
        "server": next((t.server for t in counting(targets)), ""),
        "runs": {"total": sum(runs.values()), **runs},
        "records": {**together.as_dict(), "pruned": together.gone, "dropped": drops},
        "files": made.all_files.get(ALL, Account()).as_dict(),
        "targets": [
            _of_target(catalog, t, made.all_records(t.name), made.all_files.get(t.name, Account())) for t in targets
        ],
        "lost": [span.as_dict() for span in made.lost[:_MOST_SPANS]],
        "damage": (catalog.one("SELECT count(*) FROM damage") or (0,))[0],
        "not_understood": len(list(quarantine.found_in(spool))),
        "balanced": not imbalances,
        "imbalances": imbalances,
    }  # fmt: skip


def run_overview(catalog: Catalog, run: str, targets: Sequence[KnownTarget]) -> dict[str, Any]:
    """Return one run's books, in the form of `overview`."""
    made = books(catalog, targets, [run])
    row = catalog.one("SELECT name, status FROM runs WHERE id = ?", (run,)) or ("", "")
    records, files = made.records.get(run, {}), made.files.get(run, {})
    together = records.get(ALL, Account())
    imbalances = made.imbalances()
    return {
        "id": run,
        "name": row[0],
        "status": row[1],
        "records": {**together.as_dict(), "pruned": together.gone, "dropped": made.drops.get(run, {})},
        "files": files.get(ALL, Account()).as_dict(),
        "targets": [_of_target(catalog, t, records.get(t.name, Account()), files.get(t.name, Account()), run) for t in targets],
        "lost": [span.as_dict() for span in made.lost],
        "damage": (catalog.one("SELECT count(*) FROM damage d JOIN writers w ON w.id = d.writer WHERE w.run = ?", (run,)) or (0,))[0],
        "balanced": not imbalances,
        "imbalances": imbalances,
    }


def _of_target(catalog: Catalog, target: KnownTarget, records: Account, files: Account, run: str | None = None) -> dict[str, Any]:
    found = restored(catalog, target.server)
    what: dict[str, int] = {}
    for _, word, _, count in (rows := list(remarks(catalog, target, run))):
        what[word] = what.get(word, 0) + count
    return {
        "name": target.name, "kind": target.kind, "url": target.address, "required": target.required, "server": target.server,
        "records": records.as_dict(), "files": files.as_dict(), "remarks": what,
        **({"remarked": [{"what": word, "detail": detail, "count": n} for _, word, detail, n in rows]} if run is not None else {}),
        "restored": None if found is None else found.as_dict(),
        **(_carried(catalog, target.server, run) if target.kind == BUNDLE else {}),
    }  # fmt: skip


def _carried(catalog: Catalog, server: str, run: str | None) -> dict[str, Any]:
    """Return what receipts say beside what is acknowledged: which spool gave them, and the records that it has and has not delivered."""
    latest = custody.latest(catalog, server)
    return {
        "far": custody.pinned(catalog, server), "receipt": None if latest is None else latest["at"],
        "in_custody": custody.count_undelivered(catalog, server, run),
    }  # fmt: skip


def count_waiting(catalog: Catalog, server: str) -> int:
    """Return how many records and files wait for a server: quickly, without the books."""
    [records] = catalog.one(
        "SELECT coalesce(sum(w.sequence - 1 - min(coalesce(c.mark, 0), w.sequence - 1)), 0) FROM writers w"  # noqa: S608
        f" LEFT JOIN cursors c ON c.writer = w.id AND c.server = ? WHERE c.blocked IS NULL AND NOT {pruned('w.run', 'w.id')}",
        (server,),
    ) or (0,)
    [files] = catalog.one(
        f"SELECT count(DISTINCT a.digest) FROM artifacts a WHERE NOT {pruned('a.run', 'a.writer')} AND NOT EXISTS"  # noqa: S608
        f" (SELECT 1 FROM uploads u WHERE u.server = ? AND u.digest IN (a.digest, {FILE_KEY}))"
        " AND NOT EXISTS (SELECT 1 FROM shed_files s WHERE s.writer = a.writer AND s.digest = a.digest)",
        (server,),
    ) or (0,)
    return int(records) + int(files)


def list_runs(catalog: Catalog, targets: Sequence[KnownTarget], *, limit: int | None = None) -> list[dict[str, Any]]:
    """Return runs, the newest first, each with what is not acknowledged yet by every target that counts."""
    rows = catalog.rows(
        "SELECT r.id, r.name, r.status, r.folder, r.tags, r.created, r.ended, coalesce(sum(w.sequence - 1), 0),"
        " coalesce(sum(min(w.sequence - 1, (SELECT min(coalesce(c.mark, 0)) FROM json_each(?) t LEFT JOIN cursors c"
        "                                   ON c.writer = w.id AND c.server = t.value))), 0)"
        " FROM runs r LEFT JOIN writers w ON w.run = r.id GROUP BY r.id ORDER BY r.id DESC LIMIT ?",
        (json.dumps([t.server for t in counting(targets)] or [""]), -1 if limit is None else limit),
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


def _seconds(wall_ns: int | None) -> float | None:
    return None if wall_ns is None else wall_ns / 1e9
