"""What a target may note for itself of one server, and ask of runs (see targets.port.Memory)."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from simspool.agent.catalog import Catalog
from simspool.agent.journal import Journal


class ServerMemory:
    """The notes of one server. `worker` runs a function in the agent's worker thread."""

    def __init__(self, catalog: Catalog, journal: Journal, server: str, worker: Callable[..., Awaitable[Any]]) -> None:
        self._catalog, self._journal, self._server, self._worker = catalog, journal, server, worker

    async def recall(self, keys: Sequence[str]) -> dict[str, str]:
        """See Memory."""
        found: dict[str, str] = await self._worker(self._recall, keys)
        return found

    def _recall(self, keys: Sequence[str]) -> dict[str, str]:
        found = {}
        for key in keys:
            row = self._catalog.one("SELECT value FROM ids WHERE server = ? AND key = ?", (self._server, key))
            if row is not None:
                found[key] = str(row[0])
        return found

    async def note(self, items: Mapping[str, str]) -> None:
        """See Memory."""
        await self._worker(self._journal.note_ids, self._server, dict(items))

    async def run_state(self, run: str) -> dict[str, Any]:
        """See Memory."""
        row = await self._worker(self._catalog.one, "SELECT state FROM runs WHERE id = ?", (run,))
        return dict(json.loads(row[0])) if row and row[0] else {}
