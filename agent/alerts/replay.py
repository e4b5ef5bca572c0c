"""Judging a run again from what is recorded: after the fact, after a restart, or with other rules."""

from __future__ import annotations

import contextlib
import heapq
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from simspool.spool import DamagedSegment, Kind, NewerFormat, RunFolder, Tail, runstate
from simspool.spool.frames import BOOT, MetricBatch, Record
from simspool.spool.process import is_alive, this_host
from simspool.spool.segment_header import SegmentHeader

from .curves import Curves, curves_of
from .decisions import Decision
from .engine import RunRules
from .rules import Rule

_PIECE = 4096  # rows that are fed between two looks at the other writers


@dataclass(slots=True)
class Judged:
    """What a run's records say: the rules with their states, what they decide, and what was decided and recorded before (bodies, by id)."""

    rules: RunRules
    decisions: list[Decision] = field(default_factory=list)
    recorded: dict[str, dict[str, Any]] = field(default_factory=dict)
    watched: dict[str, int] = field(default_factory=dict)
    sequences: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def missing(self) -> list[Decision]:
        """Decisions that are not recorded yet."""
        return [d for d in self.decisions if d.id not in self.recorded]

    @property
    def surplus(self) -> list[dict[str, Any]]:
        """Recorded decisions, of rules that were judged, that were not made again."""
        made = {d.id for d in self.decisions}
        return [b for i, b in self.recorded.items() if i not in made and b.get("rule") in self.rules.rules]


def moment_of(header: SegmentHeader, item: MetricBatch | Record) -> float:
    """Return the moment of an item's first record, in run seconds."""
    boot = item.boot_ns if isinstance(item, Record) else item.rows[0][BOOT]
    return float((boot - header.origin_boot) / 1e9)


def run_now(header: SegmentHeader) -> float:
    """Return the present moment in run seconds, as a writer's header lets this host know it."""
    if header.boot_id == this_host().boot_id:
        return (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - header.origin_boot) / 1e9
    return (time.time_ns() - header.wall_ns(header.origin_boot)) / 1e9


class _Source:
    """One writer's items, one after the other."""

    def __init__(self, run: RunFolder, writer: str, problems: list[str]) -> None:
        self.writer, self.role = writer, "attach"
        self.header: SegmentHeader | None = None
        self._problems = problems
        self._items = self._read(run)
        self.item: MetricBatch | Record | None = None
        self.moment = -math.inf
        self.next()

    def next(self) -> None:
        self.item = next(self._items, None)
        if self.item is not None and self.header is not None:
            self.moment = moment_of(self.header, self.item)

    def _read(self, run: RunFolder) -> Iterator[MetricBatch | Record]:
        first = True
        with Tail(run.writer(self.writer), run.id) as tail, contextlib.suppress(FileNotFoundError):
            dead = False
            for _ in range(2):
                try:
                    for chunk in tail.read(dead=dead):
                        self.header = chunk.header
                        for item in chunk.items:
                            if first and isinstance(item, Record):
                                self.role = runstate.role_of(item.kind, item.body)
                            first = False
                            yield from _pieces(item)
                except (NewerFormat, DamagedSegment, OSError) as error:
                    self._problems.append(f"writer {self.writer}: {error}")
                    return
                if tail.complete or self.header is None or is_alive(self.header) is not False:
                    return
                dead = True  # what a dead writer left behind damage counts as well


def _pieces(item: MetricBatch | Record) -> Iterator[MetricBatch | Record]:
    if isinstance(item, Record) or len(item.rows) <= _PIECE:
        yield item
        return
    for at in range(0, len(item.rows), _PIECE):
        yield MetricBatch(item.kind, item.shape, item.flags, item.rows[at : at + _PIECE])


def judge(
    run: RunFolder, known: Iterable[Rule] | None = None, *, now: float | None = None, curves: Curves | None = None
) -> Judged:  # fmt: skip
    """Judge all that a run has recorded: by its own rules, or by those of `known` alone, from the run's beginning.

    `now` (run seconds) is the moment up to which time alone may have decided; by default, the present while a process of the run
    lives, else its last record. `curves` has the references; by default, those that are kept with the run. Unreadable writers are named
    in `problems`.
    """
    own: list[Rule] = []
    for _ in range(3):
        judged = _judge(run, own if known is None else list(known), only=known is not None, now=now, curves=curves or curves_of(run))
        if not judged.rules.stale:
            break
        own = list(judged.rules.rules.values())
    return judged


def _judge(run: RunFolder, known: list[Rule], *, only: bool, now: float | None, curves: Curves) -> Judged:
    judged = Judged(RunRules(run.id, known, curves))
    rules = judged.rules
    sources = [_Source(run, w, judged.problems) for w in run.writer_ids()]
    for source in sources:
        if source.role == "agent":
            _foresee(rules, run, source.writer)
    heap = [(s.moment, i) for i, s in enumerate(sources) if s.item is not None]
    heapq.heapify(heap)
    last = -math.inf
    while heap:
        _, at = heapq.heappop(heap)
        source = sources[at]
        item, header = source.item, source.header
        assert item is not None
        assert header is not None
        if not only or not (isinstance(item, Record) and item.kind == Kind.ALERT):
            rules.feed(source.writer, header, item, source.role)
        if source.role == "agent" and isinstance(item, Record):
            _note(judged, item)
        judged.sequences[source.writer] = item.last
        source.next()
        if source.item is not None:
            heapq.heappush(heap, (source.moment, at))
        if heap:
            last = max(last, heap[0][0])
            if heap[0][0] > rules.wake:
                rules.tick(heap[0][0])
        judged.decisions += rules.take()
    if now is None:
        live = [s.header for s in sources if s.role not in runstate.AGENTS and s.header is not None and is_alive(s.header)]
        now = math.inf if rules.over else run_now(live[0]) if live else last
    rules.tick(now)
    judged.decisions += rules.take()
    return judged


def _foresee(rules: RunRules, run: RunFolder, writer: str) -> None:
    """Read an agent's notes on the run's time, which lie behind what they are about."""
    source = _Source(run, writer, [])
    while source.item is not None:
        if isinstance(source.item, Record) and source.item.body is not None:
            rules.foresee(source.item.kind, source.item.body)
        source.next()


def _note(judged: Judged, record: Record) -> None:
    body = record.body or {}
    if record.kind == Kind.DECISION and isinstance(body.get("id"), str):
        judged.recorded.setdefault(body["id"], body)
    elif record.kind == Kind.DECISION and isinstance(body.get("watched"), dict):
        judged.watched |= {w: s for w, s in body["watched"].items() if isinstance(s, int)}
