"""What came of inboxes: the records of a run's inbox writers, by file and in order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from simspool.spool import Kind, RunFolder, Spool, Tail
from simspool.spool.frames import SEQ, MetricBatch


class Copied(NamedTuple):
    """A record that stands for a line: `body` of metrics is {"values", "step"}. `epoch` and `file` as its position says."""

    file: str
    epoch: int
    kind: Kind
    body: dict[str, Any]


def copied(spool: Spool, run: str) -> list[Copied]:
    """Return what was copied, writers in the order of their ids."""
    folder, found = spool.run(run), []
    for writer in folder.writer_ids():
        place: tuple[str, int] | None = None
        items = list(_items(folder, writer))
        if not items or items[0][1] != Kind.ATTACH or items[0][2].get("reason") != "inbox":
            continue
        for _, kind, body in items[1:]:
            if kind == Kind.INBOX:
                place = body["file"], body["epoch"]
            elif kind not in {Kind.CLOSE, Kind.RUN}:
                assert place is not None, "a record without a position before it"
                found.append(Copied(*place, kind, body))
    return found


def _items(folder: RunFolder, writer: str) -> Iterator[tuple[int, Kind, dict[str, Any]]]:
    with Tail(folder.writer(writer), folder.id) as tail:
        for chunk in tail.read(dead=True):
            assert not chunk.gaps, chunk.gaps
            for item in chunk.items:
                if isinstance(item, MetricBatch):
                    for row in item.rows:
                        values = dict(zip(item.shape.names, row[-1 - len(item.shape.names) : -1], strict=True))
                        yield row[SEQ], Kind(item.kind), {"values": values, "step": row[4]}
                else:
                    yield item.seq, Kind(item.kind), dict(item.body or {})
