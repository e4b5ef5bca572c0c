"""The gate through which runs leave the site: looked at first, by the `[leaving]` table; each decision is logged before it is followed."""

from __future__ import annotations

import fnmatch
import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from simspool.agent.carry.outgoing import Outgoing
from simspool.agent.catalog import Catalog
from simspool.agent.exit_codes import CommandError, ExitCode
from simspool.sdk.errors import ConfigError
from simspool.sdk.redaction import Redactor
from simspool.spool import Spool, SpoolError

from .search import Found, Search, Seen
from .settings import Leaving, LeavingSettings

_MOST = 100  # findings that are listed of one run


@dataclass(slots=True)
class _About:
    run: str
    name: str = ""
    folder: str = "/"
    tags: list[str] = field(default_factory=list)

    def meets(self, globs: Collection[tuple[str, str]]) -> bool:
        values = {"run": [self.run, self.name], "folder": [self.folder], "tag": self.tags}
        return any(fnmatch.fnmatchcase(value, glob) for kind, glob in globs for value in values.get(kind, ()))


class Gate:
    """Lets runs leave the site, or not. What it looked at and let go, it does not look at again, nor log where nothing is found in what
    is new. Confined to one thread at a time.

    `what` is what runs leave in, for the log. `say` is given what was found. Raises CommandError for tables that cannot be used.
    """

    def __init__(self, spool: Spool, leaving: Leaving, what: str, say: Callable[[str], None]) -> None:
        self._spool, self._what, self._say = spool, what, say
        try:
            self._settings, self._redactor = LeavingSettings.of(leaving.table), Redactor.of(leaving.redact)
        except ConfigError as error:
            raise CommandError(ExitCode.USAGE, str(error)) from None
        self._seen = Seen()
        self._gone: set[str] = set()

    @property
    def may_refuse(self) -> bool:
        """Whether one run may be refused and another one not."""
        return self._settings.secrets == "refuse" or bool(self._settings.only)

    def unseen(self, outgoing: Outgoing, run: str) -> int:
        """Return about how many bytes of records will be looked at when the run is to leave."""
        if self._settings.secrets == "off":
            return 0
        try:
            return sum(max(os.fstat(span.fd).st_size - self._seen.left(span), 0) for span in outgoing.spans(run))
        except (OSError, SpoolError):
            return 0  # `let` says what is wrong with it

    def let(self, catalog: Catalog, outgoing: Outgoing, runs: Collection[str]) -> None:
        """Let these runs leave together with what `outgoing` found that the other side lacks; the decision is logged first.

        Raises CommandError for runs that may not leave, for secrets where the table says "refuse", and where the log cannot be written.
        """
        settings = self._settings
        about = list(_about(self._spool, catalog, runs))
        strangers = [one for one in about if settings.only and not one.meets(settings.only)]
        found, left_out = list[Found](), 0
        search = Search(self._spool, catalog, self._redactor, [glob for kind, glob in settings.allow if kind == "artifact"], self._seen)
        if settings.secrets != "off" and not strangers:
            for one in about:
                if not one.meets(settings.allow):
                    places = [Found(one.run, one.name, where, what) for where, what in search.run(outgoing, one.run)]
                    found += places[:_MOST]
                    left_out += len(places[_MOST:])
        refused = bool(strangers) or (bool(found) and settings.secrets == "refuse")
        if decided := {one.run for one in about} - self._gone | {place.run for place in found}:
            _log(self._spool, {
                "at": time.time(), "uid": os.geteuid(), "what": self._what, "secrets": settings.secrets, "runs": sorted(decided),
                "verdict": "refused" if refused else "left", "not_allowed": [one.run for one in strangers],
                "found": [asdict(place) for place in found], "left_out": left_out,
            })  # fmt: skip
        for place in found:
            self._say(f"looks like a secret: {place.what}, in {place.where} of run {place.run} ({place.name})")
        if left_out:
            self._say(f"{left_out} more places look like secrets")
        if strangers:
            listed = ", ".join(f"{one.run} ({one.name})" for one in strangers[:5])
            raise CommandError(
                ExitCode.ERROR, f"{len(strangers)} runs may not leave by [leaving] only: {listed}: name the runs that may"
            )  # fmt: skip
        if refused:
            raise CommandError(
                ExitCode.ERROR,
                f'nothing left: {len(found) + left_out} places look like secrets, and [leaving] secrets is "refuse": leave these runs'
                " out, or name what may leave in [leaving] allow",
            )  # fmt: skip
        self._seen.add(search.seen)
        self._gone.update(runs)


def _about(spool: Spool, catalog: Catalog, runs: Collection[str]) -> Iterator[_About]:
    rows = {run: row for run, *row in catalog.rows("SELECT id, name, folder, tags FROM runs") if run in runs}
    for run in sorted(runs):
        name, folder, tags = rows.get(run, (None, None, None))
        yield _About(run, name or str(spool.run(run).info().get("name") or ""), folder or "/", json.loads(tags) if tags else [])


def _log(spool: Spool, line: Mapping[str, Any]) -> None:
    path = os.path.join(spool.agent, "leaving.jsonl")
    text = json.dumps(line, ensure_ascii=True) + "\n"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise CommandError(ExitCode.SPOOL_UNUSABLE, f"nothing left: {path} cannot be written: {error.strerror}") from None
