"""Client: reads back what was recorded, from a spool or from a server, with the same results."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from simspool.spool import InvalidRecord, open_spool

from . import downloads
from .artifacts import deserialise
from .errors import ArtifactNotFound, ConfigError
from .source import Artifact, Series, Source
from .validation import check_category, check_count, one_of

Axis = Literal["step", "time", "timestamp"]
_AXES = ("step", "time", "timestamp")


class Client:
    """Reads runs, metrics, events, alerts and artifacts.

    Every `run_id` is a run's id, a unique prefix of it, or its name; RunNotFound is raised where it matches none or
    several. A server that refuses or does not answer raises ServerError or Unreachable; nothing is retried.
    """

    def __init__(
        self, server_token: str | None = None, server_url: str | None = None, spool: str | os.PathLike[str] | None = None
    ) -> None:  # fmt: skip
        """Read from a spool (`spool`), or from a server (`server_url`, or the configured one), else from the default spool.

        Raises ConfigError where a server has no token, InvalidSpool and NewerFormat for a folder that is no spool of ours.
        """
        from .config import load_config

        config = load_config(spool=spool, server_url=server_url, server_token=server_token)
        self._source: Source
        if spool is None and config.server_url is not None:
            if config.server_token is None:
                notes = f" ({'; '.join(config.notes)})" if config.notes else ""
                raise ConfigError(f"no token for {config.server_url}: set SIMSPOOL_TOKEN or SIMSPOOL_TOKEN_FILE{notes}")
            from .keyring_token import resolve
            from .server_source import ServerSource

            self._source = ServerSource(config.server_url, resolve(config.server_token, "the token") or "", config.server_way)
        else:
            from .spool_source import SpoolSource

            self._source = SpoolSource(open_spool(config.spool_dir))

    # ------------------------------------------------------------------ runs

    def get_run_id_from_name(self, name: str) -> str:
        """Return the id of the run with this name. Raises RunNotFound where there is none or several."""
        return self._source.find(name)

    def get_run_name_from_id(self, run_id: str) -> str:
        """Return a run's name."""
        return str(self.get_run(run_id)["name"])

    def get_run(self, run_id: str) -> dict[str, Any]:
        """Return a run: id, name, status, reason (of a final status, where one was said), folder, description, tags, metadata,
        created, started, endtime, visibility, ttl (s), heartbeat_timeout (s), system.
        """
        return self._source.run(self._source.find(run_id))

    def get_runs(
        self,
        filters: list[str] | None = None,
        *,
        output_format: Literal["dict", "dataframe", "objects"] = "dict",
        count_limit: int | None = 100,
        start_index: int = 0,
        sort_by_columns: list[tuple[str, bool]] | None = None,
    ) -> Any:
        """Return the runs that meet all filters, newest first: a list of what `get_run` returns.

        `filters` such as `name contains x`, `has tag.x`, `metadata.k >= 3`, `status == running`, `folder.path == /a`, `created < 3h`.
        `sort_by_columns` lists (column, descending). `output_format`: "dict", "objects" (pairs of id and run) or
        "dataframe". Raises InvalidRecord for a bad filter or column.
        """
        one_of("output_format", output_format, ("dict", "dataframe", "objects"))
        found = self._source.runs(filters or [], start_index, count_limit, sort_by_columns or [])
        if output_format == "objects":
            return ((run["id"], run) for run in found)
        return found if output_format == "dict" else _pandas().json_normalize(found)

    # ------------------------------------------------------------------ metrics and events

    def get_metrics_names(self, run_id: str) -> list[str]:
        """Return the names of a run's metrics, in order."""
        return self._source.metric_names(self._source.find(run_id))

    def get_metric_values(
        self,
        metric_names: Sequence[str],
        xaxis: Axis = "step",
        *,
        output_format: Literal["dict", "dataframe"] = "dict",
        run_ids: Sequence[str] | None = None,
        run_filters: list[str] | None = None,
        use_run_names: bool = False,
        aggregate: bool = False,
        max_points: int | None = None,
    ) -> Any:
        """Return metric values of several runs: those of `run_ids`, or those that meet `run_filters`, or all.

        The result is {metric: {(x, run): value}}, or with `aggregate` {metric: {(x, "average" | "min" | "max" | "std" |
        "count"): value}} over the runs; a place without a value holds None; of several values at one x the last counts. As
        "dataframe": columns are metrics, rows these pairs. `max_points` thins each metric evenly. None where no run or no
        metric has points.
        """
        one_of("xaxis", xaxis, _AXES)
        one_of("output_format", output_format, ("dict", "dataframe"))
        if isinstance(metric_names, str) or not metric_names:
            raise InvalidRecord("metric_names must be a list with at least one name")
        if run_ids and run_filters:
            raise InvalidRecord("give run_ids or run_filters, not both")
        if aggregate and xaxis == "timestamp":
            raise InvalidRecord("aggregate is over step or time, not timestamp")
        if max_points is not None:
            check_count("max_points", max_points)
        if run_ids:
            ids = [self._source.find(run) for run in run_ids]
        else:
            ids = [run["id"] for run in self._source.runs(run_filters or [], 0, None, [])]
        if aggregate:
            table, labels = _aggregates(self._source.aggregated(ids, list(metric_names), xaxis, max_points), xaxis)
            second = "statistic"
        else:
            found = self._source.values(ids, list(metric_names), xaxis, max_points)
            names = {run: self.get_run_name_from_id(run) if use_run_names else run for run in found}
            table, labels = _by_run(found, names, xaxis)
            second = "run"
        if not table:
            return None
        if output_format == "dict":
            return table
        index = _pandas().MultiIndex.from_tuples(labels, names=(xaxis, second))
        return _pandas().DataFrame({metric: [column[label] for label in labels] for metric, column in table.items()}, index=index)

    def get_events(
        self, run_id: str, *, message_contains: str | None = None, start_index: int | None = None, count_limit: int | None = None
    ) -> list[dict[str, Any]]:
        """Return a run's events in order of time: message, timestamp (UTC text), log_level (or None)."""
        return self._source.events(self._source.find(run_id), message_contains, start_index or 0, count_limit)

    def get_gaps(self, run_id: str) -> list[dict[str, Any]]:
        """Return which of a run's records no longer exist anywhere: writer, first, last (sequences) and reason.

        Reasons are lost, missing (damage on a disk) and shed (deleted where a spool was over its budget, docs/budgets.md). A server
        that is no simspool server tells of none.
        """
        return self._source.gaps(self._source.find(run_id))

    def get_alerts(self, run_id: str, critical_only: bool = True, names_only: bool = True) -> list[Any]:
        """Return the names of a run's alerts, in order: those that are critical now, or all with `critical_only=False`.

        With `names_only=False`, dictionaries: name, source, description, notification, abort, alert (the definition), status ("ok",
        "critical", or None where nothing was said yet), since (UTC text) and reason (of the last decision).
        """
        found = [a for a in self._source.alerts(self._source.find(run_id)) if not critical_only or a["status"] == "critical"]
        return [a["name"] for a in found] if names_only else found

    # ------------------------------------------------------------------ artifacts

    def list_artifacts(self, run_id: str) -> list[dict[str, Any]]:
        """Return a run's artifacts in order of name: name, category, checksum (SHA-256), size (bytes), mime_type,
        original_path, metadata, created.
        """
        return [dict(artifact.shown) for artifact in self._source.artifacts(self._source.find(run_id))]

    def get_artifact(self, run_id: str, name: str, allow_pickle: bool = False) -> Any:
        """Return an artifact's content: the object that `save_object` was given, or the bytes of anything else.

        Pickled objects need `allow_pickle=True`; unpickling runs code that whoever saved them chose. Raises
        ArtifactNotFound, DamagedBlob for bytes that are not those which were saved, NotSerialisable where a library is
        missing.
        """
        artifact = self._artifact(run_id, name)
        data = b"".join(self._verified(artifact))
        return deserialise(data, str(artifact.shown["mime_type"] or ""), allow_pickle=allow_pickle)

    def get_artifact_as_file(
        self, run_id: str, name: str, path: str | os.PathLike[str] | None = None, *, output_dir: str | os.PathLike[str] | None = None
    ) -> str:  # fmt: skip
        """Write an artifact into a folder (by default the working folder) under its name, and return the file's path.

        The file stays inside the folder whatever the name says, appears whole or not at all, and is left alone when it has
        the content already. Raises ArtifactNotFound, DamagedBlob, UnsafeName, OSError.
        """
        artifact = self._artifact(run_id, name)
        target = downloads.place(_folder(path, output_dir), artifact.name)
        self._fetch(artifact, target)
        return target

    def get_artifacts_as_files(
        self,
        run_id: str,
        path: str | os.PathLike[str] | None = None,
        category: Literal["input", "output", "code"] | None = None,
        startswith: str | None = None,
        contains: str | None = None,
        endswith: str | None = None,
        *,
        output_dir: str | os.PathLike[str] | None = None,
    ) -> list[str]:
        """Write a run's artifacts into a folder (by default the working folder) under their names, and return the files' paths.

        All given conditions on the category and the name must hold. Files that have the content already are not fetched
        again. Where two names lead to one file, the later gets a part of its digest appended. Raises as
        `get_artifact_as_file` does.
        """
        if category is not None:
            check_category(category)
        folder = _folder(path, output_dir)
        taken: dict[str, str] = {}
        for artifact in self._source.artifacts(self._source.find(run_id)):
            name = artifact.name
            if (
                (category is not None and artifact.shown["category"] != category)
                or (startswith is not None and not name.startswith(startswith))
                or (contains is not None and contains not in name)
                or (endswith is not None and not name.endswith(endswith))
            ):
                continue
            target = downloads.place(folder, name)
            if taken.get(target, artifact.digest) != artifact.digest:
                target = downloads.place(folder, name, mark=f".{artifact.digest[:12]}")
            taken[target] = artifact.digest
            self._fetch(artifact, target)
        return list(taken)

    def _artifact(self, run_id: str, name: str) -> Artifact:
        run = self._source.find(run_id)
        for artifact in self._source.artifacts(run):
            if artifact.name == name:
                return artifact
        raise ArtifactNotFound(f"run {run_id!r} has no artifact {name!r}: list_artifacts shows what it has")

    def _verified(self, artifact: Artifact) -> Iterator[bytes]:
        return downloads.verified(artifact.name, artifact.digest, self._source.content(artifact))

    def _fetch(self, artifact: Artifact, target: str) -> None:
        if not downloads.has_content(target, artifact.digest, artifact.shown["size"]):
            downloads.write(target, self._verified(artifact))


Table = dict[str, dict[tuple[Any, str], Any]]


def _by_run(found: Series, names: Mapping[str, str], axis: str) -> tuple[Table, list[tuple[Any, str]]]:
    places = sorted({point[axis] for series in found.values() for points in series.values() for point in points})
    labels = [(x, names[run]) for x in places for run in found]
    metrics = sorted({metric for series in found.values() for metric in series})
    table: Table = {metric: dict.fromkeys(labels) for metric in metrics}
    for run, series in found.items():
        for metric, points in series.items():
            column, label = table[metric], names[run]
            for point in points:
                column[point[axis], label] = point["value"]
    return table, labels


def _aggregates(found: Mapping[str, list[dict[str, Any]]], axis: str) -> tuple[Table, list[tuple[Any, str]]]:
    kinds = ("average", "min", "max", "std", "count")
    labels = [(x, kind) for x in sorted({point[axis] for points in found.values() for point in points}) for kind in kinds]
    table: Table = {metric: dict.fromkeys(labels) for metric in found}
    for metric, points in found.items():
        for point in points:
            for kind in kinds:
                table[metric][point[axis], kind] = point.get(kind)
    return table, labels


def _folder(path: str | os.PathLike[str] | None, other: str | os.PathLike[str] | None) -> str:
    chosen = path if path is not None else other
    return os.fspath(chosen) if chosen is not None else os.getcwd()


def _pandas() -> Any:
    try:
        import pandas as pd
    except ImportError:
        raise ConfigError('output_format="dataframe" needs pandas: install it, or use "dict"') from None
    return pd
