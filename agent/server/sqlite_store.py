"""The storage port on one SQLite database. Each method is one transaction of `database.Database`."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import artifacts, checks, documents, drain, events, grids, metric_views, points, recount, run_views, runs
from .artifacts import Link
from .database import Database
from .drain import Verdict
from .identity import Principal
from .listing import Page
from .port import Json, Listed
from .ranges import PreparedRange


def _create_runs(db: sqlite3.Connection, who: Principal, bodies: Sequence[Json]) -> list[dict[str, str]]:
    return [runs.create(db, who, body) for body in bodies]


def _star_run(db: sqlite3.Connection, who: Principal, run: str, starred: bool) -> Json:
    runs.find(db, who, run)
    documents.star(db, who, "run", run, starred)
    return {"id": run, "starred": starred}


def _append_metrics(db: sqlite3.Connection, who: Principal, run: str, rows: object) -> int:
    runs.find(db, who, run, write=True)
    writer, first = runs.own_writer(db, run, who.user)
    batches = checks.metrics(rows, first, time.time_ns())
    count = sum(len(batch.seqs) for batch in batches)
    db.execute("UPDATE writers SET mark = mark + ? WHERE id = ?", (max(count - 1, 0), writer))
    return points.append(db, run, writer, batches)


def _append_events(db: sqlite3.Connection, who: Principal, run: str, rows: Sequence[tuple[int, str | None, str]]) -> None:
    runs.find(db, who, run, write=True)
    writer, first = runs.own_writer(db, run, who.user)
    db.execute("UPDATE writers SET mark = mark + ? WHERE id = ?", (max(len(rows) - 1, 0), writer))
    wall = time.time_ns()
    events.append(db, run, writer, [(seq, wall, at, level, message) for seq, (at, level, message) in enumerate(rows, first)])


class SqliteStore:
    """Implements `port.Store`. One process at a time may have it open: `serving` holds the data folder's lock."""

    def __init__(self, path: Path) -> None:
        """Open (and migrate) the database file. Raises what `Database` raises."""
        self._db = Database(path)

    async def server_id(self) -> str:
        def find(db: sqlite3.Connection) -> str:
            return str(db.execute("SELECT value FROM meta WHERE key = 'server'").fetchone()[0])

        return await self._db.read(find)

    async def apply_ranges(self, who: Principal, ranges: Sequence[PreparedRange | Verdict]) -> list[Verdict]:
        return await self._db.write(drain.apply_ranges, who, ranges)

    async def marks(self, who: Principal, writers: Sequence[str]) -> dict[str, list[int]]:
        return await self._db.read(drain.marks, who, writers)

    async def recount(self, who: Principal, run: str, *, deep: bool) -> Json | None:
        return await self._db.read(recount.of_run, who, run, deep=deep)

    async def gaps(self, who: Principal, run: str) -> list[Json]:
        return await self._db.read(run_views.gaps, who, run)

    async def exchange_state(self, who: Principal, beats: Mapping[str, int | None]) -> dict[str, dict[str, Any]]:
        return await self._db.write(runs.exchange_state, who, beats)

    async def readable_digests(self, who: Principal, digests: Sequence[str]) -> set[str]:
        return await self._db.read(artifacts.readable_digests, who, digests)

    async def add_blob(self, owner: str, digest: str, size: int) -> None:
        await self._db.write(artifacts.add_blob, owner, digest, size)

    async def create_runs(self, who: Principal, bodies: Sequence[Json]) -> list[dict[str, str]]:
        return await self._db.write(_create_runs, who, bodies)

    async def get_run(self, who: Principal, run: str) -> Json:
        return await self._db.read(run_views.get, who, run)

    async def list_runs(
        self, who: Principal, page: Page, parts: Collection[str], attributes: Collection[str] | None
    ) -> Listed:
        return await self._db.read(run_views.list_page, who, page, parts, attributes)

    async def update_run(self, who: Principal, run: str, body: Json) -> dict[str, str]:
        return await self._db.write(runs.update, who, run, body)

    async def delete_run(self, who: Principal, run: str) -> dict[str, str]:
        return await self._db.write(runs.delete, who, run)

    async def beat(self, who: Principal, run: str) -> Json:
        return await self._db.write(runs.beat, who, run)

    async def request_abort(self, who: Principal, run: str, reason: str) -> Json:
        return await self._db.write(runs.request_abort, who, run, reason)

    async def abort_flag(self, who: Principal, run: str) -> Json:
        return await self._db.read(runs.abort_flag, who, run)

    async def star_run(self, who: Principal, run: str, starred: bool) -> Json:
        return await self._db.write(_star_run, who, run, starred)

    async def statistics(self, who: Principal) -> Json:
        return await self._db.read(run_views.statistics, who)

    async def append_metrics(self, who: Principal, run: str, rows: object) -> int:
        return await self._db.write(_append_metrics, who, run, rows)

    async def metric_values(
        self, who: Principal, wanted: Sequence[str], metrics: Sequence[str], axis: str, most: int | None, aggregate: bool
    ) -> Json:
        if aggregate:
            return await self._db.read(metric_views.aggregated, who, wanted, metrics, axis, most)
        return await self._db.read(metric_views.values, who, wanted, metrics, axis, most)

    async def metric_names(self, who: Principal, wanted: Sequence[str]) -> list[str]:
        return await self._db.read(metric_views.names, who, wanted)

    async def metric_span(self, who: Principal, wanted: Sequence[str]) -> Json:
        return await self._db.read(metric_views.span, who, wanted)

    async def append_arrays(self, who: Principal, run: str, rows: Sequence[Json]) -> None:
        await self._on_run(grids.append, who, run, rows)

    async def array_values(self, who: Principal, run: str, metric: str, step: int) -> Json:
        def find(db: sqlite3.Connection) -> Json:
            runs.find(db, who, run)
            return grids.values(db, run, metric, step)

        return await self._db.read(find)

    async def array_span(self, who: Principal, run: str, metric: str) -> list[Json]:
        def find(db: sqlite3.Connection) -> list[Json]:
            runs.find(db, who, run)
            return grids.span(db, run, metric)

        return await self._db.read(find)

    async def run_grids(self, who: Principal, run: str) -> list[Json]:
        def find(db: sqlite3.Connection) -> list[Json]:
            runs.find(db, who, run)
            return grids.of_run(db, who, run)

        return await self._db.read(find)

    async def attach_grid(self, who: Principal, run: str, grid: str, metric: str) -> dict[str, str]:
        found: dict[str, str] = await self._on_run(grids.attach, who, run, grid, metric)
        return found

    async def append_events(self, who: Principal, run: str, rows: Sequence[tuple[int, str | None, str]]) -> None:
        await self._db.write(_append_events, who, run, rows)

    async def list_events(self, who: Principal, run: str, page: Page) -> Listed:
        def find(db: sqlite3.Connection) -> Listed:
            runs.find(db, who, run)
            return events.list_page(db, run, page)

        return await self._db.read(find)

    async def event_histogram(
        self, who: Principal, run: str, begin: int, end: int, window: float, filters: Sequence[str]
    ) -> list[Json]:
        def find(db: sqlite3.Connection) -> list[Json]:
            runs.find(db, who, run)
            return events.histogram(db, run, begin, end, window, filters)

        return await self._db.read(find)

    async def create_document(self, who: Principal, kind: str, body: Json, *, deduplicate: bool) -> tuple[str, bool]:
        return await self._db.write(documents.create, who, kind, body, deduplicate=deduplicate)

    async def get_document(self, who: Principal, kind: str, identity: str) -> Json:
        return await self._db.read(documents.get, who, kind, identity)

    async def list_documents(self, who: Principal, kind: str, page: Page) -> Listed:
        return await self._db.read(documents.list_page, who, kind, page)

    async def update_document(self, who: Principal, kind: str, identity: str, body: Json) -> Json:
        return await self._db.write(documents.update, who, kind, identity, body)

    async def delete_document(self, who: Principal, kind: str, identity: str) -> None:
        await self._db.write(documents.delete, who, kind, identity)

    async def star_document(self, who: Principal, kind: str, identity: str, starred: bool) -> Json:
        return await self._db.write(documents.star_document, who, kind, identity, starred)

    async def delete_folder(
        self, who: Principal, folder: str, *, recursive: bool, with_runs: bool, runs_only: bool
    ) -> dict[str, list[str]]:
        return await self._db.write(
            runs.delete_folder, who, folder, recursive=recursive, with_runs=with_runs, runs_only=runs_only
        )

    async def set_alert_status(self, who: Principal, alert: str, run: str, status: str) -> Json:
        return await self._db.write(documents.set_alert_status, who, alert, run, status)

    async def alert_status(self, who: Principal, alert: str, run: str) -> str | None:
        return await self._db.read(documents.alert_status, who, alert, run)

    async def create_artifact(self, who: Principal, body: Json) -> tuple[str, bool]:
        return await self._db.write(artifacts.create, who, body)

    async def get_artifact(self, who: Principal, identity: str, link: Link) -> Json:
        return await self._db.read(artifacts.get, who, identity, link)

    async def list_artifacts(self, who: Principal, page: Page, wanted: Sequence[str] | None, link: Link) -> Listed:
        return await self._db.read(artifacts.list_page, who, page, wanted, link)

    async def run_artifacts(
        self, who: Principal, run: str, name: str | None, category: str | None, link: Link
    ) -> list[Json]:
        def find(db: sqlite3.Connection) -> list[Json]:
            runs.find(db, who, run)
            return artifacts.of_run(db, run, name, category, link)

        return await self._db.read(find)

    async def attach_artifact(self, who: Principal, run: str, artifact: str, category: str) -> None:
        await self._on_run(artifacts.attach, who, run, artifact, category)

    async def artifact_category(self, who: Principal, run: str, artifact: str) -> str:
        def find(db: sqlite3.Connection) -> str:
            runs.find(db, who, run)
            return artifacts.category_of(db, run, artifact)

        return await self._db.read(find)

    async def expected_upload(self, artifact: str) -> tuple[str, str, int]:
        return await self._db.read(artifacts.expected, artifact)

    async def delete_artifact(self, who: Principal, identity: str) -> None:
        await self._db.write(artifacts.delete, who, identity)

    async def sweep_lost(self, now: int) -> int:
        if not await self._db.read(runs.any_late, now):
            return 0  # the writer thread is left alone, and no commit is made
        return await self._db.write(runs.sweep_lost, now)

    async def fold_points(self) -> int:
        if not await self._db.read(points.foldable):
            return 0
        return await self._db.write(points.fold)

    async def _on_run(self, function: Any, who: Principal, run: str, *args: Any) -> Any:
        """Run a function that changes a run of the user's own."""

        def change(db: sqlite3.Connection) -> Any:
            runs.find(db, who, run, write=True)
            return function(db, who, run, *args)

        return await self._db.write(change)

    def close(self) -> None:
        self._db.close()
