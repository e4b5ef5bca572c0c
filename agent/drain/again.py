"""Sending again single records that a target refused (`agent retry`), out of the order of everything else.

Each is a range of one record. An embedded server takes it when it is in its own list of what it refused, once. Other targets may have got
it from an earlier try whose end is not known: that is journaled before it is sent, and told them (`Range.doubtful`), as with all ranges.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from simspool.agent.catalog import Catalog
from simspool.agent.journal import Journal
from simspool.agent.targets.port import Range, Traits, Verdict

from .batch import Batch, Batches
from .ranges import Unreadable

_AT_ONCE = 100


class Again:
    """What is to be sent again to one server. Confined to the agent's worker thread; a writer of which something is under way is left
    alone meanwhile (see Batches.busy)."""

    def __init__(self, catalog: Catalog, journal: Journal, batches: Batches, traits: Traits, runs: Collection[str] | None = None) -> None:
        self._catalog, self._journal, self._batches = catalog, journal, batches
        self._once = traits.effect == "exactly-once"
        self._runs = None if runs is None else frozenset(runs)

    def take(self) -> Batch | None:
        """Cut what is to be sent again: at most one record of each writer. None when there is nothing."""
        rows = self._catalog.rows(
            "SELECT a.writer, w.run, min(a.seq), a.sent FROM again a JOIN writers w ON w.id = a.writer"
            " WHERE a.server = ? GROUP BY a.writer ORDER BY a.writer",
            (self._batches.server,),
        )
        ranges: list[Range] = []
        for writer, run, seq, sent in rows:
            if writer in self._batches.busy or (self._runs is not None and run not in self._runs):
                continue
            try:
                cursor = self._batches.cutter.locate(writer, run, seq - 1)
                if cursor is None or not self._batches.cutter.has(writer, seq):
                    raise Unreadable("it is not in the spool any more")
                cut = self._batches.cutter.again(writer, run, cursor if seq > 1 else None, seq)
            except Unreadable as error:
                self._settle([], [(writer, seq, f"it cannot be sent again: {error}")])
                continue
            ranges.append(replace(cut, data=_marked(cut.data), again=True, doubtful=bool(sent) and not self._once))
            if len(ranges) == _AT_ONCE:
                break
        if not ranges:
            return None
        self._journal.again(self._batches.server, [(r.writer, r.first) for r in ranges], sent=True)
        batch = Batch(ranges)
        self._batches.busy.update(batch.writers)
        return batch

    def settle(self, batch: Batch, verdicts: list[Verdict]) -> None:
        """Journal what became of them. What was not tried stays. Raises OSError when the journal cannot be written."""
        taken: list[tuple[str, int]] = []
        refused: list[tuple[str, int, str]] = []
        remarks: list[tuple[str, int, str, str, str, int]] = []
        for sent, verdict in zip(batch.ranges, verdicts, strict=True):
            if verdict.kind == "accepted" and not verdict.refused:
                taken.append((sent.writer, sent.first))
                remarks += [r.row for r in verdict.remarks]
                self._batches.delivered.records += 1
            elif verdict.kind != "unsent":
                why = verdict.refused[0][1] if verdict.refused else verdict.reason
                refused.append((sent.writer, sent.first, why or "refused again"))
        self._settle(taken, refused, remarks)
        self._batches.release(batch)

    def _settle(self, taken: list[tuple[str, int]], refused: list[tuple[str, int, str]], remarks: Any = ()) -> None:
        if taken or refused:
            self._journal.receive(self._batches.server, time.time(), taken=taken, refused=refused, remarks=remarks)


def _marked(data: bytes) -> bytes:
    """Return a range's bytes with `again` in its head."""
    size = int.from_bytes(data[:4], "little")
    text = json.dumps({**json.loads(data[4 : 4 + size]), "again": True}, separators=(",", ":")).encode()
    return len(text).to_bytes(4, "little") + text + data[4 + size :]
