"""Which run of MLflow is which of ours: found by its tag before it is made, so that a lost answer or journal never makes a second one."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from simspool.spool import runstate

from .mlflow_api import Api, RunThere
from .mlflow_state import MARK, RUN, run_name
from .port import Memory, Unreachable

_MOST = 2000  # runs that are remembered: each costs a request to be found again
_NOTE = "mlflow"


@dataclass(slots=True)
class Entry:
    """What is known of one run while a connection lasts.

    `there` is as MLflow had it, and what was sent since. `stated`: its state was compared. `alerts`: as last sent.
    """

    run: str
    there: RunThere | None = None
    stated: bool = False
    alerts: str = ""
    finding: asyncio.Lock = field(default_factory=asyncio.Lock)
    sending: asyncio.Lock = field(default_factory=asyncio.Lock)
    naming: asyncio.Lock = field(default_factory=asyncio.Lock)

    def mark(self, writer: str) -> tuple[int, int]:
        """Return the last record that the server has of a writer, and the chain there; zeros where it says nothing that makes sense."""
        said = self.there.tags.get(MARK + writer, "").split() if self.there is not None else []
        if len(said) == 2 and all(one.isdecimal() and len(one) < 20 for one in said):
            return int(said[0]), int(said[1])
        return 0, 0


def mark_text(last: int, chain: int) -> str:
    """Return the value of a writer's mark."""
    return f"{last} {chain}"


class Runs:
    """The runs of one experiment. `forget` them at each connect: the server may be another one."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._memory: Memory | None = None
        self._entries: OrderedDict[str, Entry] = OrderedDict()

    def bind(self, memory: Memory) -> None:
        """Take the memory of the server that was found."""
        self._memory = memory

    @property
    def memory(self) -> Memory:
        """The memory of this server. Raises Unreachable before there is one."""
        if self._memory is None:
            raise Unreachable(f"{self._api.url} is not connected")
        return self._memory

    def forget(self) -> None:
        """Know nothing any more."""
        self._entries.clear()

    def entry(self, run: str) -> Entry:
        """Return what is known of a run."""
        found = self._entries.get(run)
        if found is None:
            found = self._entries[run] = Entry(run)
            idle = [
                key for key, one in list(self._entries.items())[: len(self._entries) - _MOST]
                if not (one.sending.locked() or one.finding.locked() or one.naming.locked() or one is found)
            ] if len(self._entries) > _MOST else []  # fmt: skip
            for key in idle:
                del self._entries[key]
        self._entries.move_to_end(run)
        return found

    async def find(self, entry: Entry) -> RunThere | None:
        """Return a run as the server has it; None when it does not."""
        async with entry.finding:
            return await self._find(entry)

    async def _find(self, entry: Entry) -> RunThere | None:
        if entry.there is None:
            key = f"{entry.run}/{_NOTE}"
            noted = (await self._recall(key)).get(key)
            found = await self._api.run(noted) if noted else None
            if found is None or found.tags.get(RUN) != entry.run:
                found = await self._api.find(RUN, entry.run)
                if found is not None and self._memory is not None:
                    await self._memory.note({key: found.id})
            entry.there = found
        return entry.there

    async def _recall(self, key: str) -> dict[str, str]:
        return await self._memory.recall([key]) if self._memory is not None else {}

    async def ensure(self, entry: Entry) -> RunThere:
        """Return a run, which is made where the server has none."""
        async with entry.finding:
            found = await self._find(entry)
            if found is None:
                state = await self.memory.run_state(entry.run)
                started = runstate.started(state) if state else None
                start = (started if started is not None else time.time_ns()) // 1_000_000
                found = await self._api.create(run_name(state), start, {RUN: entry.run})
                await self.memory.note({f"{entry.run}/{_NOTE}": found.id})
                entry.there = found
            return found
