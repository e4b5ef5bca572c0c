"""The storage port: what the server needs of a store. SQLite and a folder implement it (`sqlite_store`); others may follow.

Every method that changes something returns only when the change is durable; each is one transaction, and what it raises
(`errors.Refused`) leaves nothing behind. `who` bounds what a call sees and changes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from .artifacts import Link
from .drain import Verdict
from .identity import Principal
from .listing import Page
from .ranges import PreparedRange

Json = dict[str, Any]
Listed = tuple[list[Json], int]


class DrainStore(Protocol):
    """Our own face: ranges, marks, blobs known, replaceable state."""

    async def server_id(self) -> str:
        """Return the id that the store was made with; receipts are bound to it."""

    async def apply_ranges(self, who: Principal, ranges: Sequence[PreparedRange | Verdict]) -> list[Verdict]:
        """Commit ranges, marks and chains in one transaction; return a verdict each."""

    async def marks(self, who: Principal, writers: Sequence[str]) -> dict[str, list[int]]:
        """Return {writer: [mark, chain]} of the user's writers."""

    async def recount(self, who: Principal, run: str, *, deep: bool) -> Json | None:
        """Count what is stored of the user's run; None without such a run. `deep` decodes every point."""

    async def gaps(self, who: Principal, run: str) -> list[Json]:
        """Return {"writer", "first", "last", "reason"} of the records that were declared as gone, in order. Raises NotFound."""

    async def exchange_state(self, who: Principal, runs: Mapping[str, int | None]) -> dict[str, dict[str, Any]]:
        """Take heartbeats (µs); return the runs to abort."""

    async def readable_digests(self, who: Principal, digests: Sequence[str]) -> set[str]:
        """Return those whose bytes are here and which the user may read."""

    async def add_blob(self, owner: str, digest: str, size: int) -> None:
        """Record that a durable blob was shown by this user."""


class RunStore(Protocol):
    """Runs and what belongs to them."""

    async def create_runs(self, who: Principal, bodies: Sequence[Json]) -> list[dict[str, str]]:
        """Create runs, all or none; return their ids and names."""

    async def get_run(self, who: Principal, run: str) -> Json:
        """Return a run."""

    async def list_runs(self, who: Principal, page: Page, parts: Collection[str], attributes: Collection[str] | None) -> Listed:
        """Return a page of runs."""

    async def update_run(self, who: Principal, run: str, body: Json) -> dict[str, str]:
        """Change a run."""

    async def delete_run(self, who: Principal, run: str) -> dict[str, str]:
        """Delete a run for good."""

    async def beat(self, who: Principal, run: str) -> Json:
        """Note a heartbeat."""

    async def request_abort(self, who: Principal, run: str, reason: str) -> Json:
        """Raise the abort flag."""

    async def abort_flag(self, who: Principal, run: str) -> Json:
        """Return the abort flag."""

    async def star_run(self, who: Principal, run: str, starred: bool) -> Json:
        """Star or unstar a run."""

    async def statistics(self, who: Principal) -> Json:
        """Return counts."""

    async def append_metrics(self, who: Principal, run: str, rows: object) -> int:
        """Store points; return how many values."""

    async def metric_values(
        self, who: Principal, runs: Sequence[str], metrics: Sequence[str], axis: str, most: int | None, aggregate: bool
    ) -> Json:
        """Return values of metrics."""

    async def metric_names(self, who: Principal, runs: Sequence[str]) -> list[str]:
        """Return the names of the runs' metrics."""

    async def metric_span(self, who: Principal, runs: Sequence[str]) -> Json:
        """Return the extent of the runs' metrics."""

    async def append_arrays(self, who: Principal, run: str, rows: Sequence[Json]) -> None:
        """Store array metrics."""

    async def array_values(self, who: Principal, run: str, metric: str, step: int) -> Json:
        """Return an array."""

    async def array_span(self, who: Principal, run: str, metric: str) -> list[Json]:
        """Return the extent of an array metric."""

    async def run_grids(self, who: Principal, run: str) -> list[Json]:
        """Return the run's grids."""

    async def attach_grid(self, who: Principal, run: str, grid: str, metric: str) -> dict[str, str]:
        """Put an array metric on a grid."""

    async def append_events(self, who: Principal, run: str, rows: Sequence[tuple[int, str | None, str]]) -> None:
        """Store events: (time µs, level, message)."""

    async def list_events(self, who: Principal, run: str, page: Page) -> Listed:
        """Return a page of events."""

    async def event_histogram(
        self, who: Principal, run: str, begin: int, end: int, window: float, filters: Sequence[str]
    ) -> list[Json]:
        """Return counts of events by time."""


class ObjectStore(Protocol):
    """Documents, alerts' statuses, artifacts."""

    async def create_document(self, who: Principal, kind: str, body: Json, *, deduplicate: bool) -> tuple[str, bool]:
        """Create a document; return its id and whether it is new."""

    async def get_document(self, who: Principal, kind: str, identity: str) -> Json:
        """Return a document."""

    async def list_documents(self, who: Principal, kind: str, page: Page) -> Listed:
        """Return a page of documents."""

    async def update_document(self, who: Principal, kind: str, identity: str, body: Json) -> Json:
        """Change a document."""

    async def delete_document(self, who: Principal, kind: str, identity: str) -> None:
        """Delete a document."""

    async def star_document(self, who: Principal, kind: str, identity: str, starred: bool) -> Json:
        """Star or unstar a document."""

    async def delete_folder(
        self, who: Principal, folder: str, *, recursive: bool, with_runs: bool, runs_only: bool
    ) -> dict[str, list[str]]:
        """Delete a folder and what the flags say."""

    async def set_alert_status(self, who: Principal, alert: str, run: str, status: str) -> Json:
        """Set a user alert's status for a run."""

    async def alert_status(self, who: Principal, alert: str, run: str) -> str | None:
        """Return an alert's status for a run."""

    async def create_artifact(self, who: Principal, body: Json) -> tuple[str, bool]:
        """Create an artifact; return its id and whether its content is known."""

    async def get_artifact(self, who: Principal, identity: str, link: Link) -> Json:
        """Return an artifact."""

    async def list_artifacts(self, who: Principal, page: Page, runs: Sequence[str] | None, link: Link) -> Listed:
        """Return a page of artifacts."""

    async def run_artifacts(self, who: Principal, run: str, name: str | None, category: str | None, link: Link) -> list[Json]:
        """Return a run's artifacts."""

    async def attach_artifact(self, who: Principal, run: str, artifact: str, category: str) -> None:
        """Attach an artifact to a run."""

    async def artifact_category(self, who: Principal, run: str, artifact: str) -> str:
        """Return an artifact's category in a run."""

    async def expected_upload(self, artifact: str) -> tuple[str, str, int]:
        """Return (owner, digest, size) of an artifact."""

    async def delete_artifact(self, who: Principal, identity: str) -> None:
        """Delete an artifact."""


class Store(DrainStore, RunStore, ObjectStore, Protocol):
    """The whole port, with its housekeeping."""

    async def sweep_lost(self, now: int) -> int:
        """Make runs lost whose heartbeat is too old at `now` (µs); return how many."""

    async def fold_points(self) -> int:
        """Fold buffered points into chunks; return how much was done, 0 when there is nothing to do."""

    def close(self) -> None:
        """Finish and close."""
