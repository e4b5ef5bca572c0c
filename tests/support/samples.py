"""The resource samples that a spool holds of a run."""

from __future__ import annotations

from typing import NamedTuple

from simspool.spool import Kind, Spool, Tail
from simspool.spool.frames import BOOT, STEP, MetricBatch


class Sample(NamedTuple):
    """One sample: who recorded it ("agent" or a writer's id), its slot, its second of the run, its values."""

    by: str
    slot: int
    at: float
    values: dict[str, float | int]


def samples(spool: Spool, run: str) -> list[Sample]:
    """Return a run's samples in the order of time."""
    found = []
    folder = spool.run(run)
    for writer in folder.writer_ids():
        by = writer
        with Tail(folder.writer(writer), run) as tail:
            for chunk in tail.read(dead=True):
                for item in chunk.items:
                    if isinstance(item, MetricBatch):
                        if item.kind == Kind.RESOURCES:
                            origin = chunk.header.origin_boot
                            found += [Sample(by, r[STEP], (r[BOOT] - origin) / 1e9, dict(item.values(r))) for r in item.rows]
                    elif item.kind == Kind.ATTACH and (item.body or {}).get("reason") == "agent":
                        by = "agent"
    return sorted(found, key=lambda s: s.at)
