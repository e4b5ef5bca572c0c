"""Where a Client reads: one port, a spool and a server behind it, with the same results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

RUN_KEYS = (
    "id", "name", "status", "reason", "folder", "description", "tags", "metadata", "created", "started", "endtime", "visibility", "ttl",
    "heartbeat_timeout", "system",
)  # fmt: skip
ARTIFACT_KEYS = ("name", "category", "checksum", "size", "mime_type", "original_path", "metadata", "created")
ALERT_KEYS = ("name", "source", "description", "notification", "abort", "alert", "status", "since", "reason")
Series = dict[str, dict[str, list[dict[str, Any]]]]
"""{run: {metric: [{axis: x, "value": v}]}}"""


class Artifact(NamedTuple):
    """An artifact of a run. `shown` has ARTIFACT_KEYS; `place` is where the source finds the bytes, None when they are not there."""

    shown: Mapping[str, Any]
    place: str | None

    @property
    def name(self) -> str:
        """Its name: metadata, to be trusted with nothing."""
        return str(self.shown["name"])

    @property
    def digest(self) -> str:
        """The SHA-256 of its bytes, hex."""
        return str(self.shown["checksum"])


class Source(Protocol):
    """What a Client needs. Runs are named by their ids here; times are UTC texts, values keep their types."""

    def find(self, text: str) -> str:
        """Return the id of the run with this id, unique id prefix, or name. Raises RunNotFound."""

    def run(self, run: str) -> dict[str, Any]:
        """Return a run, with RUN_KEYS. Raises RunNotFound."""

    def runs(self, filters: Sequence[str], start: int, count: int | None, sorting: Sequence[tuple[str, bool]]) -> list[dict[str, Any]]:
        """Return runs with RUN_KEYS, newest first or sorted by (column, descending). Raises InvalidRecord for a bad filter or column."""

    def metric_names(self, run: str) -> list[str]:
        """Return the names of a run's metrics, in order."""

    def values(self, runs: Sequence[str], metrics: Sequence[str], axis: str, most: int | None) -> Series:
        """Return points in ascending x, at most `most` a metric; runs and metrics without points are left out."""

    def aggregated(self, runs: Sequence[str], metrics: Sequence[str], axis: str, most: int | None) -> dict[str, list[dict[str, Any]]]:
        """Return {metric: [{axis: x, "average", "min", "max", "std", "count"}]} over the runs."""

    def events(self, run: str, contains: str | None, start: int, count: int | None) -> list[dict[str, Any]]:
        """Return {"message", "timestamp", "log_level"} in order of time."""

    def alerts(self, run: str) -> list[dict[str, Any]]:
        """Return a run's alerts with ALERT_KEYS, in order of name; `status` is ok, critical or None, `since` UTC text or None."""

    def gaps(self, run: str) -> list[dict[str, Any]]:
        """Return {"writer", "first", "last", "reason"} of records that no longer exist, in order of writer and sequence."""

    def artifacts(self, run: str) -> list[Artifact]:
        """Return a run's artifacts in order of name, of several with one name the last."""

    def content(self, artifact: Artifact) -> Iterator[bytes]:
        """Yield an artifact's bytes, unverified. Raises ArtifactNotFound when they are not there."""


def joined(gaps: Iterable[tuple[str, int, int, str]]) -> list[dict[str, Any]]:
    """Return gaps as `Source.gaps` has them; those that follow one another for the same reason are one."""
    found: list[dict[str, Any]] = []
    for writer, first, last, reason in sorted(gaps):
        before = found[-1] if found else {}
        if (before.get("writer"), before.get("reason"), before.get("last")) == (writer, reason, first - 1):
            before["last"] = last
        else:
            found.append({"writer": writer, "first": first, "last": last, "reason": reason})
    return found
