"""Following one run from its files alone, where no agent's watch does: who has it open, and what is said of aborts."""

from __future__ import annotations

import contextlib
from typing import Any

from simspool.agent.live import LiveWriter
from simspool.spool import RunFolder, SpoolError, Tail

from .steps import Word
from .words import Told


class RunFollower:
    """`read` takes in what is new; the rest tells of what was read. Confined to one thread."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self._tails: dict[str, tuple[Tail, Told]] = {}

    def read(self) -> list[tuple[Told, Word]]:
        """Read on; return the new words about aborts, with who said them. What cannot be read is left out."""
        found = []
        for writer in self.run.writer_ids():
            if writer not in self._tails:
                self._tails[writer] = Tail(self.run.writer(writer), self.run.id), Told(writer)
            tail, told = self._tails[writer]
            if not told.closed:
                before = len(told.words)
                _read_on(tail, told)
                found += [(told, word) for word in told.words[before:]]
        return sorted(found, key=lambda pair: pair[1].boot)

    def close(self) -> None:
        """Let go of the files."""
        for tail, _ in self._tails.values():
            tail.close()

    def live(self) -> list[LiveWriter]:
        """Return the scripts' writers that have not closed, with the run's options. Their processes may have died."""
        scripts = [told for _, told in self._tails.values() if told.is_script]
        options: dict[str, Any] = {}
        for told in scripts:
            options |= told.options
        return [
            told.standing.live(self.run.id, told.writer, told.header, options)
            for told in scripts
            if told.header is not None and not told.closed
        ]

    def told(self, writer: str) -> Told | None:
        """Return what a writer's records say."""
        found = self._tails.get(writer)
        return found[1] if found is not None else None


def _read_on(tail: Tail, told: Told) -> None:
    with contextlib.suppress(OSError, SpoolError):
        for chunk in tail.read():
            told.take_all(chunk)
    if told.closed:
        tail.close()
