"""A target in memory: exact marks and chains as the protocol has them, and whatever misbehaviour a test asks for."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from simspool.agent.targets.port import File, Limits, Memory, Range, Recount, Traits, Verdict


class MemoryTarget:
    """Keeps (mark, chain) per writer, and digests. `before_send(ranges)` may raise, or return verdicts of its own."""

    def __init__(self, limits: Limits | None = None, *, traits: Traits | None = None, server: str = "memory") -> None:
        self.limits = limits or Limits()
        self.traits = traits or Traits()
        self.server, self.url = server, f"{server}://"
        self.ranges: list[Range] = []
        self.files: list[File] = []
        self.memory: Memory | None = None
        self.marks_of: dict[str, tuple[int, int]] = {}
        self.blobs: set[str] = set()
        self.requests: list[list[tuple[str, int, int, int]]] = []
        self.beats: list[dict[str, float]] = []
        self.twice = 0
        self.before_send: Callable[[Sequence[Range]], list[Verdict] | None] = lambda _: None
        self.before_connect: Callable[[], None] = lambda: None
        self.after_send: Callable[[list[Verdict]], list[Verdict]] = lambda verdicts: verdicts

    async def connect(self) -> tuple[str, Limits]:
        self.before_connect()
        return self.server, self.limits

    def bind(self, memory: Memory) -> None:
        self.memory = memory

    async def marks(self, writers: Sequence[tuple[str, str]]) -> dict[str, int]:
        return {writer: self.marks_of.get(writer, (0, 0))[0] for _, writer in writers}

    async def recount(self, run: str) -> Recount | None:
        return None

    async def send(self, ranges: Sequence[Range]) -> list[Verdict]:
        self.ranges += ranges
        made = self.before_send(ranges)
        if made is not None:
            return made
        self.requests.append([(r.writer, r.first, r.last, len(r.data)) for r in ranges])
        return self.after_send([self._take(r) for r in ranges])

    def _take(self, r: Range) -> Verdict:
        head = json.loads(r.data[4 : 4 + int.from_bytes(r.data[:4], "little")])
        assert (head["first"], head["last"]) == (r.first, r.last)
        mark, chain = self.marks_of.get(r.writer, (0, 0))
        if r.first > mark + 1:
            return Verdict("retry", mark, chain, "gap")
        if r.first == mark + 1 and head["chain"] != chain:
            return Verdict("permanent", mark, chain, "conflict")
        self.twice += r.first <= mark
        if r.last > mark:
            self.marks_of[r.writer] = (r.last, r.chain_after)
        return Verdict("accepted", *self.marks_of[r.writer])

    async def missing(self, files: Sequence[File]) -> list[str]:
        return [f.key for f in files if f.digest not in self.blobs]

    async def put(self, file: File, path: str) -> str | None:
        import hashlib

        digest = file.digest

        if hashlib.sha256(Path(path).read_bytes()).hexdigest() != digest:
            return "the server says 422: not the digest"
        self.blobs.add(digest)
        self.files.append(file)
        return None

    async def heartbeat(self, runs: dict[str, float]) -> dict[str, dict[str, Any]]:
        self.beats.append(runs)
        return {}

    async def close(self) -> None:
        pass
