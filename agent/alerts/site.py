"""A site's guard rails: alerts for all runs that match, in a TOML file (docs/alerts.md).

    [[alerts]]
    name = "diverged"
    metric = "loss*"
    rule = "is not finite"
    abort = true
    where = "folder=/campaigns tag=production"
"""

from __future__ import annotations

import fnmatch
import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from simspool.agent.exit_codes import ExitCode
from simspool.agent.sync import Selection
from simspool.sdk.reference import curve_from_file
from simspool.spool import InvalidRecord, SpoolError, alert_definition, run_filter, runstate

from .references import Reference
from .rules import InvalidRule, parse_rule

_LONGEST = 1 << 20  # bytes of a file
_DEFINITION = (
    "rule", "metric", "threshold", "range_low", "range_high", "aggregation", "window", "frequency", "hold", "hysteresis", "clear_after",
    "pattern", "when", "runs", "tolerance", "relative_tolerance", "xaxis",
)  # fmt: skip
_KEYS = ("name", "source", "description", "notification", "abort", "where", "reference", *_DEFINITION)
_LATER = "0" * 64  # in place of the digest of a curve that is made for each run
_ALL = Selection()
_TERMS = "folder=PATH, tag=TAG, name=GLOB or metadata.KEY=VALUE"


class InvalidSiteFile(SpoolError):
    """Raised for a file of alerts that cannot be used; the message names the file, the table and the key."""

    exit_code = ExitCode.USAGE


@dataclass(frozen=True, slots=True)
class Matcher:
    """Which runs an alert is for: what `agent sync` selects by, and globs of the name. All must hold; empty is all runs."""

    selection: Selection = _ALL
    names: tuple[str, ...] = ()

    def matches(self, state: Mapping[str, Any]) -> bool:
        """Say whether a run of this folded state is meant."""
        name = str(runstate.value(state, "name", ""))
        return all(fnmatch.fnmatchcase(name, glob) for glob in self.names) and self.selection.holds(
            str(runstate.value(state, "folder", "/")), runstate.tags(state), runstate.metadata(state)
        )


@dataclass(frozen=True, slots=True)
class SiteAlert:
    """An alert of the site: `body` is what is recorded in the runs that `matcher` means; `where` is the filter as it was written.

    With a `reference`, the body still lacks the curve (see references.with_curve).
    """

    body: Mapping[str, Any]
    matcher: Matcher
    where: str = ""
    reference: Reference | None = None


def parse_where(text: str) -> Matcher:
    """Return the filter in a text such as `folder=/a tag=x name="orbit *" metadata.kind=test`. Raises InvalidRecord (a ValueError)."""
    found = run_filter.parse(text)
    return Matcher(Selection((), found.folder, found.tags, found.metadata), found.names)


def load(path: str) -> list[SiteAlert]:
    """Return the alerts of a file, in its order. Raises InvalidSiteFile."""
    try:
        with open(path, "rb") as f:
            data = f.read(_LONGEST + 1)
        if len(data) > _LONGEST:
            raise InvalidSiteFile(f"{path} is over {_LONGEST >> 20} MiB: this is no file of alerts")
        content = tomllib.loads(data.decode())
    except OSError as error:
        raise InvalidSiteFile(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidSiteFile(f"{path} is not valid TOML: {error}") from None
    tables = content.pop("alerts", [])
    if content:
        raise InvalidSiteFile(f"{path} has {next(iter(content))!r}, which means nothing here: alerts are tables [[alerts]]")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise InvalidSiteFile(f"{path}: alerts must be tables: write [[alerts]] above each")
    folder = os.path.dirname(os.path.abspath(path))
    return [_alert(f"{path}, alert {n}", folder, table) for n, table in enumerate(tables, 1)]


def _alert(what: str, folder: str, table: dict[str, Any]) -> SiteAlert:
    name = table.get("name")
    if isinstance(name, str):
        what = f"{what} ({name!r})"
    for key in table:
        if key not in _KEYS:
            raise InvalidSiteFile(f"{what}: there is no key {key!r}: use {', '.join(_KEYS)}")
    where, abort = table.get("where", ""), table.get("abort", False)
    if not isinstance(abort, bool):
        raise InvalidSiteFile(f"{what}: abort must be true or false, not {abort!r}")
    if not isinstance(where, str):
        raise InvalidSiteFile(f"{what}: where must be text, not {where!r}: use {_TERMS}")
    source = table.get("source", "events" if "pattern" in table else "alerts" if "when" in table else "metrics")
    if source == "user":
        raise InvalidSiteFile(f"{what}: source 'user' is for scripts, which set its state: use metrics, events or alerts")
    reference = _reference(what, folder, table.get("reference"))
    given = {key: table[key] for key in _DEFINITION if key in table} | ({"reference": _LATER} if reference else {})
    try:
        body = alert_definition.define(
            name, source, description=table.get("description"), notification=table.get("notification", "none"), trigger_abort=abort, **given
        )
        parse_rule(body)  # RE2 is not Python's
    except (InvalidRecord, InvalidRule) as error:
        raise InvalidSiteFile(f"{what}: {error}") from None
    try:
        matcher = parse_where(where)
    except InvalidRecord as error:
        raise InvalidSiteFile(f"{what}: where: {error}") from None
    if reference is not None and reference.kind == "file":
        try:
            curve_from_file(reference.text)
        except SpoolError as error:
            raise InvalidSiteFile(f"{what}: {error}") from None
    return SiteAlert(body | {"by": "site", "since": 0.0}, matcher, where, reference)


def _reference(what: str, folder: str, given: Any) -> Reference | None:
    """Return what a table compares with; a file's path is relative to the folder of the file of alerts."""
    if given is None:
        return None
    kind, text = next(iter(given.items())) if isinstance(given, dict) and len(given) == 1 else ("", None)
    if kind not in {"run", "file"} or not isinstance(text, str) or not text:
        raise InvalidSiteFile(f'{what}: reference must be {{ run = "NAME" }} or {{ file = "FILE" }}, not {given!r}'[:400])
    return Reference(kind, os.path.join(folder, text) if kind == "file" else text, what)


def meant(alerts: list[SiteAlert], state: Mapping[str, Any]) -> list[SiteAlert]:
    """Return those for a run of this folded state; of several with one name, the first that matches."""
    found: dict[str, SiteAlert] = {}
    for alert in alerts:
        if alert.body["name"] not in found and alert.matcher.matches(state):
            found[alert.body["name"]] = alert
    return list(found.values())


def matching(alerts: list[SiteAlert], state: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the bodies of those for a run of this folded state, to be recorded as they are.

    Raises InvalidSiteFile for one with a reference, whose curve an agent makes for each run.
    """
    found = meant(alerts, state)
    for alert in found:
        if alert.reference is not None:
            raise InvalidSiteFile(f"{alert.reference.said_by}: a reference is for the agent's own file of alerts ([agent] alerts)")
    return [alert.body for alert in found]


class SiteFile:
    """The rules of a file, read again when it changes. A file that became unusable leaves the rules as they were, and is reported.

    Calling it gives a run's alerts (see `meant`). Raises InvalidSiteFile when it is made; `lenient` reports that too, and has no
    rules until the file is usable.
    """

    def __init__(self, path: str, report: Callable[[str], None] = lambda _: None, *, lenient: bool = False) -> None:
        self.path = os.path.abspath(path)
        self._report = report
        self._alerts: list[SiteAlert] = []
        self._read: tuple[int, int, int] | None = (0, 0, 0)
        self.problem = ""
        if lenient:
            self.refresh()
        else:
            self._read = self._stamp()
            self._alerts = load(self.path)

    def __call__(self, state: Mapping[str, Any]) -> list[SiteAlert]:
        """Return those for a run of this folded state. Safe to call from any thread."""
        return meant(self._alerts, state)

    def __len__(self) -> int:
        return len(self._alerts)

    def read_again(self) -> None:
        """Have the next `refresh` read the file, changed or not."""
        self._read = (0, 0, 0)

    def refresh(self) -> bool:
        """Read the file again if it changed; True when there are other rules now."""
        stamp = self._stamp()
        if stamp == self._read:
            return False
        self._read = stamp
        try:
            alerts = load(self.path)
        except InvalidSiteFile as error:
            if str(error) != self.problem:
                self.problem = str(error)
                self._report(f"{error}; the alerts stay as they were")
            return False
        self.problem = ""
        changed, self._alerts = alerts != self._alerts, alerts
        if changed:
            self._report(f"{self.path} was read again: {len(alerts)} alerts")
        return changed

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino
