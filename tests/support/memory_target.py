"""A target in memory: exact marks and chains as the protocol has them, and whatever misbehaviour a test asks for."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from simspool.agent.targets.port import Limits, Range, Verdict


class MemoryTarget:
    """Keeps (mark, chain) per writer, and digests. `before_send(ranges)` may raise, or return verdicts of its own."""

    url = "memory://"

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.marks: dict[str, tuple[int, int]] = {}
        self.blobs: set[str] = set()
        self.requests: list[list[tuple[str, int, int, int]]] = []
        self.beats: list[dict[str, float]] = []
        self.twice = 0
        self.before_send: Callable[[Sequence[Range]], list[Verdict] | None] = lambda _: None
        self.before_connect: Callable[[], None] = lambda: None
        self.after_send: Callable[[list[Verdict]], list[Verdict]] = lambda verdicts: verdicts

    async def connect(self) -> tuple[str, Limits]:
        self.before_connect()
        return "memory", self.limits

    async def send(self, ranges: Sequence[Range]) -> list[Verdict]:
        made = self.before_send(ranges)
        if made is not None:
            return made
        self.requests.append([(r.writer, r.first, r.last, len(r.data)) for r in ranges])
        return self.after_send([self._take(r) for r in ranges])

    def _take(self, r: Range) -> Verdict:
        head = json.loads(r.data[4 : 4 + int.from_bytes(r.data[:4], "little")])
        assert (head["first"], head["last"]) == (r.first, r.last)
        mark, chain = self.marks.get(r.writer, (0, 0))
        if r.first > mark + 1:
            return Verdict("retry", mark, chain, "gap")
        if r.first == mark + 1 and head["chain"] != chain:
            return Verdict("permanent", mark, chain, "conflict")
        self.twice += r.first <= mark
        if r.last > mark:
            self.marks[r.writer] = (r.last, r.chain_after)
        return Verdict("accepted", *self.marks[r.writer])

    async def missing(self, digests: Sequence[str]) -> list[str]:
        return [d for d in digests if d not in self.blobs]

    async def put(self, digest: str, path: str) -> str | None:
        import hashlib

        if hashlib.sha256(Path(path).read_bytes()).hexdigest() != digest:
            return "the server says 422: not the digest"
        self.blobs.add(digest)
        return None

    async def heartbeat(self, runs: dict[str, float]) -> dict[str, dict[str, Any]]:
        self.beats.append(runs)
        return {}

    async def close(self) -> None:
        pass
