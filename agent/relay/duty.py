"""The relay of a running agent: what `[relay]` in simspool.toml says, as long as the agent has the spool's lease."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from simspool.agent.bundles.settings import BundleSettings
from simspool.agent.carry.applying import apply_receipt
from simspool.agent.carry.receipts import parse_receipt
from simspool.agent.carry.target import choose
from simspool.agent.catalog import Catalog
from simspool.agent.catalog.store import catalog_path
from simspool.agent.leaving.settings import Leaving
from simspool.agent.status import count_waiting
from simspool.agent.targets.settings import TargetSettings

from .keeping import FAILURES, Sayer, keep
from .place import open_place, prefix_of
from .receiving import Receiver
from .sending import Means, Sender
from .settings import RelaySettings

if TYPE_CHECKING:
    from simspool.agent.app import Agent

_SOON = 1.0  # seconds between looks for what arrives
_AFTER_FAULT = 60.0
_LONG = 20.0  # s for the answer of a place


class RelayDuty:
    """Sends and receives beside everything else that an agent does; whatever happens to it, it disturbs nothing of that.

    `targets` are those in force, as they are then.
    """

    def __init__(
        self, agent: Agent, settings: RelaySettings, bundle: BundleSettings, leaving: Leaving, targets: Callable[[], list[TargetSettings]],
    ) -> None:  # fmt: skip
        self._agent, self._settings, self._bundle, self._leaving, self._targets = agent, settings, bundle, leaving, targets
        self._sayers: dict[str, Sayer] = {}

    def problems(self) -> dict[str, str]:
        """Return what is wrong, by place."""
        return {name: why for name, sayer in self._sayers.items() for why in sayer.problems.values()}

    def describe(self) -> list[str]:
        """Return what it does, a line each."""
        sends = [f"sends to {self._settings.send}"] if self._settings.send else []
        return sends + [f"takes what arrives in {path}" for path in self._settings.receive]

    @property
    def sends(self) -> bool:
        """Whether it sends."""
        return self._settings.send is not None

    async def reaches(self) -> bool:
        """Try whether the place that it sends to is there."""
        settings = self._settings
        assert settings.send is not None
        place = open_place(settings.send, settings.ssh_key, settings.known_hosts)
        try:
            async with asyncio.timeout(_LONG):
                await place.waiting(prefix_of(self._agent.spool))
        except (*FAILURES, TimeoutError):
            return False
        else:
            return True
        finally:
            await place.close()

    def waiting(self) -> int:
        """Return how many records and files are not delivered by it yet, in the agent's worker thread."""
        found = choose(self._targets(), self._settings.target) if self.sends else None
        return 0 if found is None else count_waiting(self._agent.catalog, found.address)

    async def run(self) -> None:
        """Do it until cancelled."""
        sides = [self._guarded(f"relay from {path}", partial(self._receive, path)) for path in self._settings.receive]
        if self._settings.send:
            sides.append(self._guarded(f"relay to {self._settings.send}", self._send))
        await asyncio.gather(*sides)

    async def _guarded(self, name: str, side: Callable[[Sayer], Awaitable[None]]) -> None:
        sayer = self._sayers[name] = Sayer(lambda text: self._agent.report(f"{name}: {text}"))
        while True:
            try:
                await side(sayer)
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - recording, sending and judging go on whatever a relay meets
                sayer.wrong("fault", f"it stopped, and is tried again: {type(error).__name__}: {error}")
            await asyncio.sleep(_AFTER_FAULT)

    async def _send(self, sayer: Sayer) -> None:
        settings, agent = self._settings, self._agent
        assert settings.send is not None
        place = open_place(settings.send, settings.ssh_key, settings.known_hosts)

        async def settled() -> None:
            """The ingest keeps the catalog up to date."""

        async def apply(document: bytes, target: str) -> Mapping[str, Any]:
            receipt = parse_receipt(document)
            done = await agent.work(lambda: apply_receipt(agent.spool, agent.catalog, agent.journal, receipt, target))
            return done.as_dict()

        means = Means(settled, self._view, apply, self._targets)
        sender = Sender(agent.spool, place, means, settings, self._bundle, self._leaving, sayer)
        try:
            await keep(sender.turn, sayer)
        finally:
            await sender.close()

    async def _receive(self, path: str, sayer: Sayer) -> None:
        receiver = Receiver(self._agent.spool, path, self._view, self._targets, self._bundle, sayer)
        try:
            await keep(receiving(receiver, self._settings.every), sayer)
        finally:
            receiver.close()

    @contextlib.contextmanager
    def _view(self) -> Iterator[Catalog]:
        catalog = Catalog(catalog_path(self._agent.spool), shared=True)
        try:
            yield catalog
        finally:
            catalog.close()


def receiving(receiver: Receiver, every: float) -> Callable[[], Awaitable[float]]:
    """Return the turn of a receiver: it looks for bundles every second, and what became of them every so many (s)."""
    due = float("-inf")

    async def turn() -> float:
        nonlocal due
        now = asyncio.get_running_loop().time()
        receipts_too = now >= due
        found = await asyncio.to_thread(receiver.turn, receipts_too=receipts_too)
        if receipts_too:
            due = now + every
        return 0.05 if found.bundles else min(_SOON, every)

    return turn
