"""What an agent has of a spool, for shedding; and targets that go away."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from memory_target import MemoryTarget

from simspool.agent.budget.shed import Shedder
from simspool.agent.catalog import Catalog
from simspool.agent.catalog.store import catalog_path
from simspool.agent.drain.ranges import walk
from simspool.agent.ingest import Ingest
from simspool.agent.journal import Journal
from simspool.agent.targets.port import Limits, Range, Unreachable, Verdict
from simspool.spool import Spool, frames, ids
from simspool.spool.segment_header import seed


class Opened:
    """What an agent has of a spool, everything ingested."""

    def __init__(self, spool: Spool) -> None:
        self.spool, self.catalog = spool, Catalog(catalog_path(spool))
        self.journal = Journal(spool, self.catalog)
        self.shedder = Shedder(spool, self.catalog, self.journal)
        self.freed = self.shedder.finish()
        self.ingest = Ingest(spool, self.catalog)
        self.take_in()

    def take_in(self) -> None:
        self.ingest.scan()
        while self.ingest.read().more:
            pass
        self.ingest.bury()

    def shed_all(self, *, runs: bool = False) -> list[tuple[str, str]]:
        found = []
        while (done := self.shedder.next(runs=runs)) is not None:
            found.append(done[:2])
        return found

    def close(self) -> None:
        self.ingest.close()
        self.journal.close()
        self.catalog.close()


@contextmanager
def opened(spool: Spool) -> Iterator[Opened]:
    found = Opened(spool)
    try:
        yield found
    finally:
        found.close()


def head_of(r: Range) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(r.data[4 : 4 + int.from_bytes(r.data[:4], "little")])
    return found


def stop_after(target: MemoryTarget, count: int) -> None:
    """Have a target take so many requests, and then not answer any more."""

    def send(_: Sequence[Range]) -> list[Verdict] | None:
        if len(target.requests) >= count:
            raise Unreachable("it is gone")
        return None

    def connect() -> None:
        if len(target.requests) >= count:
            raise Unreachable("it is gone")

    target.before_send = send
    target.before_connect = connect


def go_on(target: MemoryTarget) -> None:
    target.before_send = lambda _: None
    target.before_connect = lambda: None
    target.after_send = lambda verdicts: verdicts


class Server(MemoryTarget):
    """Takes some requests, and loses the reply of the last one perhaps. Knows which records it was told of as gone."""

    def __init__(self, name: str) -> None:
        super().__init__(Limits(decoded=150_000), server=name)
        self.gone: dict[str, set[int]] = {}

    def _take(self, r: Range) -> Verdict:
        mark, chain = self.marks_of.get(r.writer, (0, 0))
        head = head_of(r)
        if r.first <= mark <= r.last and self._chain_at(r, mark) != chain:
            return Verdict("permanent", mark, chain, "conflict")
        found = super()._take(r)
        if found.kind == "accepted" and self.marks_of[r.writer][0] > mark:
            told = {seq for a, b, _ in head["gaps"] for seq in range(max(a, mark + 1), b + 1)}
            self.gone.setdefault(r.writer, set()).update(told)
        return found

    @staticmethod
    def _chain_at(r: Range, mark: int) -> int:
        head = head_of(r)
        chain, expected = head["chain"], r.first
        body = r.data[len(r.data) - head["bytes"] :]
        for seq, _, crc in walk(body, 0, seed(ids.from_text(r.writer), head["segment"])):
            if seq > mark:
                break
            if seq >= expected:
                chain = frames.extend_chain(frames.extend_chain_gap(chain, seq - expected), (crc,))
                expected = seq + 1
        return frames.extend_chain_gap(chain, mark + 1 - expected)

    def be_away_after(self, count: int, *, lose: bool) -> None:
        left = [count]

        def send(_: Sequence[Range]) -> list[Verdict] | None:
            if left[0] <= 0:
                raise Unreachable("gone")
            left[0] -= 1
            return None

        def connect() -> None:
            if left[0] <= 0:
                raise Unreachable("gone")

        def answer(verdicts: list[Verdict]) -> list[Verdict]:
            if lose and left[0] <= 0:
                raise Unreachable("the reply is lost")
            return verdicts

        self.before_send, self.before_connect, self.after_send = send, connect, answer
