"""The dead letter: what targets refused for good, and what the user decides of it: try again, or give up.

Three sorts: a writer that a target refuses as a whole (all that follows its mark), single records, and files. Nothing of it is deleted: the
records stay in the spool, and a run that has any is not pruned, until they are taken or given up.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from simspool.agent.catalog import Catalog
from simspool.agent.catalog.store import FILE_KEY
from simspool.agent.journal import Journal
from simspool.agent.targets.settings import BUNDLE

from .known import KnownTarget

FILE = "file:"
Decision = Literal["retry", "drop"]


@dataclass(frozen=True, slots=True)
class Letter:
    """One refusal. `id` names it: a writer's id, "writer.sequence", or "file:" and the file's key.

    `first` to `last` are the records that it is about (of a file: the one that names it). `given_up`: the user dropped it; `again`: it is
    to be sent again.
    """

    target: str
    server: str
    sort: str
    id: str
    run: str
    writer: str
    first: int
    last: int
    reason: str
    name: str = ""
    given_up: bool = False
    again: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


def letters(catalog: Catalog, targets: Iterable[KnownTarget], runs: Collection[str] | None = None) -> list[Letter]:
    """Return what these targets refused of some runs, or of all; also what was given up."""
    found = [letter for target in targets if target.server for letter in _of(catalog, target)]
    return [letter for letter in found if runs is None or letter.run in runs]


def _of(catalog: Catalog, target: KnownTarget) -> list[Letter]:
    rows, name, server = catalog.rows, target.name, target.server
    found = [
        Letter(name, server, "writer", writer, run, writer, mark + 1, last, reason, given_up=bool(given_up))
        for writer, run, mark, last, reason, given_up in rows(
            "SELECT w.id, w.run, c.mark, w.sequence - 1, c.blocked, EXISTS (SELECT 1 FROM given_up g WHERE g.server = c.server"
            " AND g.writer = c.writer AND g.seq = 0) FROM cursors c JOIN writers w ON w.id = c.writer"
            " WHERE c.server = ? AND c.blocked IS NOT NULL AND w.sequence - 1 > c.mark ORDER BY w.id",
            (server,),
        )
    ]
    found += [
        Letter(name, server, "record", f"{writer}.{seq}", run, writer, seq, seq, reason, given_up=bool(given_up), again=bool(again))
        for writer, seq, run, reason, given_up, again in rows(
            "SELECT r.writer, r.seq, w.run, r.reason, r.given_up, EXISTS (SELECT 1 FROM again a WHERE a.server = r.server"
            " AND a.writer = r.writer AND a.seq = r.seq) FROM (SELECT server, writer, seq, reason, 0 AS given_up FROM refused"
            " UNION ALL SELECT server, writer, seq, reason, 1 FROM given_up WHERE writer != '' AND seq > 0) r"
            " JOIN writers w ON w.id = r.writer WHERE r.server = ? ORDER BY 1, 2",
            (server,),
        )
    ]
    found += [
        Letter(name, server, "file", FILE + key, run, writer, seq, seq, reason or "", file or "", given_up=state == "dropped")
        for key, state, reason, run, writer, seq, file in rows(
            "SELECT u.digest, u.state, u.reason, a.run, a.writer, min(a.seq), a.name FROM uploads u JOIN artifacts a"  # noqa: S608
            f" ON u.digest IN (a.digest, {FILE_KEY}) WHERE u.server = ? AND u.state IN ('refused', 'dropped')"
            " GROUP BY u.digest, a.run ORDER BY a.run, a.writer, 6",
            (server,),
        )
    ]
    return found


def is_retried_elsewhere(server: str) -> bool:
    """Say whether refusals came with a receipt: it is the spool on the far side that can send again."""
    return server.startswith(f"{BUNDLE}:")


def decide(catalog: Catalog, journal: Journal, decision: Decision, targets: Sequence[tuple[str, Collection[str]]]) -> int:
    """Carry out what the user decided of the letters with these ids, by server; returns how many there were.

    What is not there (any more) is left out, and so is trying again what bundles carry: see `is_retried_elsewhere`. Raises OSError when
    the journal cannot be written.
    """
    count = 0
    for server, ids in targets:
        if decision == "retry" and is_retried_elsewhere(server):
            continue
        wanted = {letter.id: letter for letter in _of(catalog, KnownTarget("", "", "", True, server)) if letter.id in ids}
        # what was given up may be tried again, and what is tried again may be given up
        found = [letter for letter in wanted.values() if decision == "retry" or not letter.given_up]
        count += len(found)
        if decision == "drop":
            journal.give_up(server, time.time(), [_item(letter) for letter in found])
            continue
        writers = [letter.writer for letter in found if letter.sort == "writer"]
        files = [letter.id.removeprefix(FILE) for letter in found if letter.sort == "file"]
        if writers or files:
            journal.reopen(server, writers, files)
        journal.again(server, [(letter.writer, letter.first) for letter in found if letter.sort == "record" and not letter.again])
    return count


def _item(letter: Letter) -> tuple[str, int, str, str]:
    if letter.sort == "file":
        return "", 0, letter.id.removeprefix(FILE), letter.reason
    return letter.writer, letter.first if letter.sort == "record" else 0, "", letter.reason
