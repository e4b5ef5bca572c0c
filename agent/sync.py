"""What "synced" means: goals taken when a sync begins, and how far a server is from them (DESIGN 6)."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from simspool.agent.budget.account import is_shed
from simspool.agent.catalog import Catalog
from simspool.agent.catalog.store import FILE_KEY, pruned
from simspool.agent.exit_codes import ExitCode
from simspool.spool import Spool

from .status import find_run

# what a sync of several targets says is the first of these that one of them says
_WORST = ("ingesting", "draining", "refused", "incomplete", "unreachable", "timeout", "no-target", "newer-format", "done")
CARRIED = "carried"
"""The state of a target to which bundles carry, while something waits for one: a sync can do nothing for it."""


@dataclass(slots=True)
class SyncReport:
    """A sync's progress or result: of one target, or of all. Counts are of this sync's goals; `sent...` of what it moved itself.

    `state`: ingesting, draining, done, unreachable, refused, no-target, newer-format, timeout, or incomplete (the spool itself lacks what
    the records name; `problems` says what). `targets` has the report of each target; the rest is then about those that count: the required
    ones, or all where none is required. `name`, `required` and `bundles` (it gets nothing by a sync: its state is done, or carried) are of
    a target's own report; where others are there, those by bundles do not count.
    """

    state: str = "ingesting"
    name: str = ""
    required: bool = True
    bundles: bool = False
    runs: int = 0
    records: int = 0
    records_left: int = 0
    files: int = 0
    files_left: int = 0
    refused: int = 0
    sent_records: int = 0
    sent_bytes: int = 0
    sent_files: int = 0
    sent_file_bytes: int = 0
    known_files: int = 0
    live_runs: int = 0
    server: str = ""
    url: str = ""
    problem: str = ""
    problems: dict[str, str] = field(default_factory=dict)
    targets: list[SyncReport] = field(default_factory=list)

    def gather(self) -> None:
        """Make the whole of what the targets' reports say."""
        drained = [t for t in self.targets if not t.bundles]
        counting = [t for t in drained if t.required] or drained
        if not counting:
            return
        self.state = next(state for state in _WORST if any(t.state == state for t in counting))
        worst = next(t for t in counting if t.state == self.state)
        self.server, self.url, self.problem = worst.server, worst.url, worst.problem
        for name in ("runs", "files", "records_left", "files_left", "refused"):
            setattr(self, name, max(getattr(t, name) for t in counting))
        self.records = max(t.records for t in counting)
        for name in ("sent_records", "sent_bytes", "sent_files", "sent_file_bytes", "known_files"):
            setattr(self, name, sum(getattr(t, name) for t in self.targets))
        for target in counting:
            self.problems.update(target.problems)

    @property
    def exit_code(self) -> ExitCode:
        """The command's exit code for this state."""
        return {
            "done": ExitCode.REFUSED if self.refused else ExitCode.OK,
            "unreachable": ExitCode.UNREACHABLE,
            "refused": ExitCode.REFUSED,
            "no-target": ExitCode.NO_TARGET,
            "newer-format": ExitCode.NEWER_FORMAT,
        }.get(self.state, ExitCode.TIMEOUT)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON, with the exit code."""
        body = asdict(self)
        body["targets"] = [{k: v for k, v in target.items() if k != "targets"} for target in body["targets"]]
        return {**body, "exit_code": int(self.exit_code)}


@dataclass(frozen=True, slots=True)
class Selection:
    """Which runs a command means: ids, prefixes or names; a folder and what lies below; tags; metadata values as text. Empty is all."""

    runs: tuple[str, ...] = ()
    folder: str | None = None
    tags: tuple[str, ...] = ()
    where: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, body: dict[str, Any]) -> Selection:
        """Read a selection from JSON. Raises ValueError when it is none."""
        runs, folder, tags, where = body.get("runs", []), body.get("folder"), body.get("tags", []), body.get("where", [])
        texts = [*runs, *tags, *(t for pair in where for t in pair), *([folder] if folder is not None else [])]
        if not all(isinstance(t, str) for t in texts) or not all(len(pair) == 2 for pair in where):
            raise ValueError("a selection has texts only")
        return cls(tuple(runs), folder, tuple(tags), tuple((k, v) for k, v in where))

    def resolve(self, catalog: Catalog, spool: Spool) -> set[str] | None:
        """Return the ids that are meant, None for all. Raises RunNotFound for a run that is named and not there."""
        if self == Selection():
            return None
        named = {find_run(catalog, spool, text) for text in self.runs}
        if self.folder is None and not self.tags and not self.where:
            return named
        return {
            run
            for run, folder, tags, metadata in catalog.rows("SELECT id, folder, tags, metadata FROM runs")
            if (not self.runs or run in named)
            and self.holds(folder or "/", json.loads(tags) if tags else [], json.loads(metadata) if metadata else {})
        }

    def holds(self, folder: str, tags: Collection[str], metadata: Mapping[str, Any]) -> bool:
        """Say whether a run with this folder, these tags and this metadata is meant, whatever its id."""
        below = (self.folder or "/").rstrip("/")
        if self.folder is not None and folder != (below or "/") and not folder.startswith(below + "/"):
            return False
        return set(self.tags) <= set(tags) and all(k in metadata and str(metadata[k]) == v for k, v in self.where)


class Goals:
    """Everything that was recorded in some runs before a sync began. Confined to the agent's worker thread."""

    def __init__(self, catalog: Catalog, runs: Collection[str] | None) -> None:
        self._catalog = catalog
        wanted = None if runs is None else frozenset(runs)
        there = f"NOT {pruned('run', 'writers.id')}"
        rows = catalog.rows(f"SELECT id, run, sequence - 1 FROM writers WHERE sequence > 1 AND {there}")  # noqa: S608
        self.marks = {w: last for w, run, last in rows if wanted is None or run in wanted}
        self.runs = {run for _, run, _ in rows if wanted is None or run in wanted}
        there = f"NOT {pruned('a.run', 'a.writer')} AND NOT {is_shed('a.writer', 'a.digest')}"
        files = catalog.rows(f"SELECT DISTINCT a.digest, a.run, {FILE_KEY} FROM artifacts a WHERE {there}")  # noqa: S608
        self.digests = {digest for digest, run, _ in files if wanted is None or run in wanted}
        self.keys = {key for _, run, key in files if wanted is None or run in wanted}
        self.records = sum(self.marks.values())

    def files(self, *, by_record: bool) -> set[str]:
        """Return the keys of the files (see targets.port.File)."""
        return self.keys if by_record else self.digests

    def measure(self, server: str, report: SyncReport, *, by_record: bool = False) -> set[str]:
        """Put into the report what the server still lacks; return the writers and files that it lacks and would take."""
        rows = self._catalog.rows
        cursors = {w: (mark, blocked) for w, mark, blocked in rows("SELECT writer, mark, blocked FROM cursors WHERE server = ?", (server,))}
        stored = dict(rows("SELECT digest, state FROM uploads WHERE server = ?", (server,)))
        files = self.files(by_record=by_record)
        lacking = {f for f in files if f not in stored}
        report.files_left = len(lacking)
        left = blocked_records = 0
        given_up = {w for (w,) in rows("SELECT writer FROM given_up WHERE server = ? AND seq = 0", (server,))}
        for (writer,) in rows("SELECT writer FROM again WHERE server = ?", (server,)):  # one that was refused is tried again
            if writer in self.marks:
                left += 1
                lacking.add(writer)
        for writer, goal in self.marks.items():
            mark, blocked = cursors.get(writer, (0, None))
            if mark < goal:
                if blocked:
                    blocked_records += 0 if writer in given_up else goal - mark
                else:
                    left += goal - mark
                    lacking.add(writer)
        report.runs, report.records, report.files = len(self.runs), self.records, len(files)
        report.records_left = left
        refused_files = sum(1 for f in files if stored.get(f) == "refused")
        refused = sum(1 for (w, _) in rows("SELECT writer, seq FROM refused WHERE server = ?", (server,)) if w in self.marks)
        report.refused = blocked_records + refused_files + refused
        report.server = server
        return lacking

    def concerns(self, problems: dict[str, str]) -> dict[str, str]:
        """Return the problems of these runs' writers and files."""
        return {k: why for k, why in problems.items() if k in self.marks or k in self.digests or k in self.keys}
