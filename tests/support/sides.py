"""The two sides of a gap in one process: spools with catalog and journal as agents have them, and carrying between them."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from simspool.agent.carry.applying import Applied, apply_receipt
from simspool.agent.carry.incoming import Incoming
from simspool.agent.carry.outgoing import Outgoing
from simspool.agent.carry.receipts import encode, make_receipt, parse_receipt
from simspool.agent.catalog import Catalog
from simspool.agent.catalog.store import catalog_path
from simspool.agent.drain.ranges import RangeCutter
from simspool.agent.ingest import Ingest
from simspool.agent.journal import Journal
from simspool.agent.retention import Retention
from simspool.agent.targets.settings import TargetSettings
from simspool.agent.truth.known import KnownTarget
from simspool.spool import Spool, open_spool

BUNDLE = TargetSettings("bundle", "bundle", "bundle:bundle")
SERVER = BUNDLE.address
CARRIED_BY = KnownTarget("bundle", "bundle", SERVER, True, SERVER)
A = TargetSettings("a", "simspool", "http://a")


class Side:
    """A spool with its catalog and journal open. `take_in` reads what is new."""

    def __init__(self, path: Path) -> None:
        self.spool: Spool = open_spool(path, create=True)
        self._open()

    def _open(self) -> None:
        self.catalog = Catalog(catalog_path(self.spool))
        self.journal = Journal(self.spool, self.catalog)
        self.ingest = Ingest(self.spool, self.catalog)

    def close(self) -> None:
        """Let go of everything, as an agent that ends."""
        self.ingest.close()
        self.journal.close()
        self.catalog.close()

    def again(self, *, without_catalog: bool = False) -> None:
        """End and begin; the catalog may be deleted in between."""
        self.close()
        if without_catalog:
            shutil.rmtree(os.path.dirname(catalog_path(self.spool)))
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def take_in(self) -> None:
        """Ingest everything that is there."""
        self.ingest.scan()
        while self.ingest.read().more:
            pass
        self.ingest.read()

    def serves(self, *targets: TargetSettings) -> None:
        """Have it known which servers these targets are: each one's is its name."""
        with self.catalog.transaction() as db:
            for target in targets:
                row = (target.address, target.name, time.time())
                db.execute("INSERT OR REPLACE INTO servers(url, server, seen) VALUES (?,?,?)", row)

    def recorded(self, run: str) -> dict[str, int]:
        """Return the last ingested sequence of each writer of a run."""
        return dict(self.catalog.rows("SELECT id, sequence - 1 FROM writers WHERE run = ?", (run,)))

    def mark(self, server: str, writer: str) -> int:
        """Return how far a server has a writer."""
        row = self.catalog.one("SELECT mark FROM cursors WHERE server = ? AND writer = ?", (server, writer))
        return int(row[0]) if row else 0

    def deliver(self, server: str, run: str, upto: Mapping[str, int] | None = None, **said: Any) -> None:
        """Have a server acknowledge a run's writers up to marks, or all; `said` is what else the receipt of it has (Journal.receive)."""
        cutter = RangeCutter(self.spool, self.catalog)
        found = [cutter.locate(writer, run, mark) for writer, mark in (self.recorded(run) if upto is None else upto).items()]
        self.journal.receive(server, time.time(), [c for c in found if c is not None and c.mark], **said)

    def receipt(self, origin: Side, *targets: TargetSettings) -> bytes:
        """Make the document of a receipt for an origin."""
        return encode(make_receipt(self.spool, self.catalog, targets or (A,), origin.spool.id))

    def apply(self, document: bytes, name: str = "bundle") -> Applied:
        """Apply a receipt."""
        return apply_receipt(self.spool, self.catalog, self.journal, parse_receipt(document), name)

    def prune(self, *servers: str) -> list[str]:
        """Do retention without a grace; returns the runs that went."""
        retention = Retention(self.spool, self.catalog, self.journal, 0.0)
        return [run for run in retention.eligible(*servers) if retention.prune(run, *servers) is not None]


def carry(origin: Side, far: Side, *runs: str, full: bool = False) -> None:
    """Bring to the far side what it lacks of what the origin has ingested, as a bundle would."""
    outgoing = Outgoing(origin.spool, origin.catalog, SERVER, runs, full=full)

    def pruned(run: str) -> dict[str, int] | None:
        row = far.catalog.one("SELECT last FROM pruned WHERE run = ?", (run,))
        return None if row is None else dict(json.loads(row[0]))

    with Incoming(far.spool, origin.spool.id, via="bundle", pruned=pruned) as incoming:
        for part in outgoing.runs():
            incoming.begin_run(part)
            for blob, path in outgoing.blobs(part.run):
                incoming.blob(blob, [Path(path).read_bytes()])
            for segment, frames in outgoing.segments(part.run):
                incoming.segment(segment, frames)
            incoming.end_run(part)
    assert not outgoing.problems
