"""Reading journals: those of agents before this one, and of agents of other hosts, which are followed while they write."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, NamedTuple

from simspool.spool import Chunk, Kind, Tail
from simspool.spool.frames import Record
from simspool.spool.process import is_alive


class Entry(NamedTuple):
    """A journal record. Entries are in force in the order of `generation`, `writer`, `sequence` (FORMAT.md W8)."""

    generation: int
    writer: str
    sequence: int
    kind: int
    body: dict[str, Any]


class JournalReader:
    """Reads one journal writer, again and again. Entries up to `sequence` are known. `over`: nothing more will ever come."""

    def __init__(self, folder: str, spool_id: str, sequence: int) -> None:
        self.writer, self.sequence, self.over = os.path.basename(folder), sequence, False
        self._folder, self._spool_id = folder, spool_id
        self._tail = Tail(folder, spool_id)
        self._generation = 0

    def read(self, *, salvage: bool) -> list[Entry]:
        """Return what is new. With `salvage`, also behind damage, where nobody can know whether its writer lives."""
        found: list[Entry] = []
        self._tail.close()  # NFS asks its server when a file is opened
        self._generation = self._take(self._tail.read(), self._generation, found)
        header = self._tail.header
        alive = None if header is None else is_alive(header)
        if not self.over and header is not None and (alive is False or (salvage and alive is None)):
            with Tail(self._folder, self._spool_id) as whole:
                generation = self._take(whole.read(dead=True), 0, found)
            if alive is False:
                self._generation, self.over = generation, True
        self._tail.close()
        return found

    def _take(self, chunks: Iterable[Chunk], generation: int, found: list[Entry]) -> int:
        for chunk in chunks:
            for item in chunk.items:
                if not isinstance(item, Record) or item.body is None:
                    continue
                if item.kind == Kind.CHECKPOINT and isinstance(item.body.get("generation"), int):
                    generation = item.body["generation"]
                if item.seq > self.sequence:
                    self.sequence = item.seq
                    found.append(Entry(generation, self.writer, item.seq, item.kind, item.body))
                self.over = self.over or item.kind == Kind.CLOSE
        return generation
