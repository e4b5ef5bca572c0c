"""What is known of servers that had less than their receipts say: restored from a backup, or things deleted there.

Kept in the spool's journal, among the notes about the server, so that `agent status` and `agent verify` say it also weeks later.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from simspool.agent.catalog import Catalog
from simspool.agent.journal import Journal

_KEY, _GONE = "restored", "gone-there/"


@dataclass(frozen=True, slots=True)
class Gone:
    """Records that a server had acknowledged and has no more, and that the spool has no more either (pruned): lost for good."""

    run: str
    writer: str
    first: int
    last: int

    @property
    def count(self) -> int:
        """How many."""
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class Restored:
    """When (wall s) a server was last found to have less than its receipts say, what was sent again, and what is gone for good."""

    at: float
    records: int
    files: int
    gone: tuple[Gone, ...] = ()

    @property
    def gone_records(self) -> int:
        """How many records are gone for good."""
        return sum(g.count for g in self.gone)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"at": self.at, "records_again": self.records, "files_again": self.files, "gone": [asdict(g) for g in self.gone]}

    def __str__(self) -> str:
        """Say it in a line, without the time."""
        again = f"{self.records:,} records and {self.files:,} files sent again"
        runs = len({g.run for g in self.gone})
        return again + (f"; {self.gone_records:,} records of {runs:,} pruned runs are gone for good" if self.gone else "; nothing is gone")


def note(catalog: Catalog, journal: Journal, server: str, at: float, records: int, files: int, gone: Sequence[Gone]) -> bool:
    """Note what an audit found; True when it is news: a connect that finds again what is gone for good says nothing new."""
    known = restored(catalog, server)
    before = set() if known is None else {(g.writer, g.first, g.last) for g in known.gone}
    if not records and not files and {(g.writer, g.first, g.last) for g in gone} <= before:
        return False
    notes = {_GONE + g.writer: json.dumps(asdict(g)) for g in gone}
    journal.note_ids(server, {**notes, _KEY: json.dumps({"at": at, "records": records, "files": files})})
    return True


def restored(catalog: Catalog, server: str) -> Restored | None:
    """Return what is known of a server, None where it never lost anything."""
    row = catalog.one("SELECT value FROM ids WHERE server = ? AND key = ?", (server, _KEY))
    if row is None:
        return None
    body = json.loads(row[0])
    found = catalog.rows("SELECT value FROM ids WHERE server = ? AND key >= ? AND key < ?", (server, _GONE, _GONE[:-1] + "0"))
    return Restored(body["at"], body["records"], body["files"], tuple(Gone(**json.loads(value)) for (value,) in found))
