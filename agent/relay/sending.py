"""The sending side of a relay: what the other side lacks goes as one bundle after the other, and its receipts are applied here.

One bundle at a time: the next one is made when the receipt has come for what the last one had, so it has only what is new. Whether the
last one is still on its way is looked at before the receipt is: the other side writes its receipt first, and takes the bundle away then.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simspool.agent.bundles import signing
from simspool.agent.bundles.settings import BundleSettings
from simspool.agent.bundles.writing import Order, Written, write_bundle
from simspool.agent.carry import custody
from simspool.agent.carry.outgoing import Outgoing
from simspool.agent.carry.parts import RunPart
from simspool.agent.carry.target import add, choose
from simspool.agent.catalog import Catalog
from simspool.agent.exit_codes import CommandError
from simspool.agent.leaving.gate import Gate
from simspool.agent.leaving.settings import Leaving
from simspool.agent.targets.settings import TargetSettings
from simspool.spool import Spool, atomic, ids

from .folder import claimed, discard
from .keeping import Sayer
from .place import Place, Refusal, prefix_of
from .settings import RelaySettings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_SOON = 1.0  # seconds between looks while a bundle is on its way
_REFUSALS = 3  # bundles that are refused one after the other, before the next one waits
_PENALTY, _LONGEST_PENALTY = 60.0, 3600.0
_LONGEST_FRUITLESS = 600.0
_LONG = 600.0  # seconds after which it is said that nobody takes a bundle
_LARGE = 64 << 20  # bytes of records that are to be searched for secrets: a third of a second


@dataclass(frozen=True, slots=True)
class Means:
    """What the sending side needs of whoever runs it. `view` is used in the thread that calls it, and nowhere else.

    `settle` has everything taken in that is recorded; `apply` applies a receipt's document for a target, and returns what it changed.
    """

    settle: Callable[[], Awaitable[None]]
    view: Callable[[], AbstractContextManager[Catalog]]
    apply: Callable[[bytes, str], Awaitable[Mapping[str, Any]]]
    targets: Callable[[], list[TargetSettings]]


class Sender:
    """Sends what a spool has recorded to a place. Confined to one event loop; `turn` again and again."""

    def __init__(
        self, spool: Spool, place: Place, means: Means, settings: RelaySettings, bundle: BundleSettings, leaving: Leaving, sayer: Sayer,
        *, allow_unsigned: bool = False,
    ) -> None:  # fmt: skip
        self._spool, self._place, self._means, self._settings = spool, place, means, settings
        self._bundle, self._leaving, self._sayer, self._allow_unsigned = bundle, leaving, sayer, allow_unsigned
        self._key: Ed25519PrivateKey | None = None if bundle.sign_key is None else signing.load_key(bundle.sign_key)
        self._staging = place.staging or os.path.join(spool.agent, "relay")
        self._staged = ""  # a bundle that is written, and not brought yet
        self._last = ""  # the name of the one that was brought last
        self._since = 0.0
        self._refusals = 0
        self._not_before = 0.0
        self._aside: dict[str, tuple[int, float]] = {}  # run -> times that it was refused, and until when it waits
        self._served: dict[str, int] = {}  # run -> the bundle, by number, that it had a part in last
        self._gate: Gate | None = None
        self._deferred: set[str] = set()  # large runs that wait for their turn to be searched
        self._claim: contextlib.ExitStack | None = None
        self._fruitless, self._bore_fruit = 0, True  # bundles in a row of which the receipt said nothing new
        self.sent = self.sent_bytes = 0
        self.nothing_new = False

    @property
    def target(self) -> TargetSettings:
        """The target of kind "bundle" for which receipts come; it is added where there is none. Raises CommandError."""
        present = self._means.targets()
        found = choose(present, self._settings.target)
        if found is None:
            found = add(self._spool, present)
            self._sayer.say(f'added the target {found.name!r} of kind "bundle": what no receipt covers is kept in the spool from now on')
        return found

    async def turn(self) -> float:
        """Look once, and send what is to be sent; returns how long (s) to wait. Raises what keeping.FAILURES has, Locked beside another."""
        if self._claim is None:
            await asyncio.to_thread(self._begin)
        target = await asyncio.to_thread(lambda: self.target)
        await self._means.settle()
        prefix = prefix_of(self._spool)
        names = await self._place.waiting(prefix)
        await self._take_receipt(target)
        if names:
            self._look_at_waiting(names)
            if os.path.basename(self._staged) in names:  # only the answer was lost
                await asyncio.to_thread(self._brought)
            return min(_SOON, self._settings.every)
        self._sayer.right("waiting")
        if self._last:
            await self._look_back()
        self._last = ""
        if not self._staged:
            now = time.monotonic()
            if now < self._not_before:
                return min(self._not_before - now, self._settings.every)
            written = await asyncio.to_thread(self._write, target)
            self._tell(written)
            self.nothing_new = not written.path
            if not written.path:
                return self._settings.every
            self._staged = written.path
        await self._place.put(self._staged)
        self._bore_fruit = False
        self._last, self._since = os.path.basename(self._staged), time.monotonic()
        await asyncio.to_thread(self._brought)
        return min(_SOON, self._settings.every)

    @property
    def moved(self) -> int:
        """Bytes that were brought, also of bundles that are not whole there yet."""
        return self._place.moved

    async def close(self) -> None:
        """Let go of the place, and let another process relay."""
        await self._place.close()
        if self._claim is not None:
            self._claim.close()
            self._claim = None

    def _begin(self) -> None:
        """Be the only one that relays from this spool; what one that was killed left here goes."""
        atomic.make_folder(self._spool.agent)
        claim = contextlib.ExitStack()
        claim.enter_context(claimed(os.path.join(self._spool.agent, "relay.lock"), "relays from this spool"))
        self._claim = claim
        if self._place.staging is None and os.path.isdir(self._staging):
            for name in os.listdir(self._staging):
                discard(os.path.join(self._staging, name))

    # ------------------------------------------------------------------ what comes back

    async def _take_receipt(self, target: TargetSettings) -> None:
        found = await self._place.receipt(self._spool.id)
        if found is None:
            return
        document, signature = found
        what = f"the receipt at {self._place.name}"
        try:
            signing.verify(
                document, signature, signing.RECEIPT, self._bundle.trusted, allow_unsigned=self._allow_unsigned, what=what
            )  # fmt: skip
            applied = await self._means.apply(document, target.name)
        except BaseException:
            self._place.forget()  # it is read again: its signature, which is another file, may be the right one a moment later
            raise
        self._bore_fruit = self._bore_fruit or not applied["nothing_new"]
        if applied["conflicts"]:
            first, why = next(iter(applied["conflicts"].items()))
            self._sayer.wrong("receipt", f"{what} does not fit what is here: {first}: {why}")
        else:
            self._sayer.right("receipt")
        if applied["records"] or applied["files"]:
            what = f"{applied['records']} records and {applied['files']} files are acknowledged now"
            self._sayer.say(f"{what}, {applied['complete']} runs are delivered whole")

    def _look_at_waiting(self, names: list[str]) -> None:
        if not self._last:  # one of a process before this
            self._last, self._since = names[0], time.monotonic()
        if time.monotonic() - self._since > _LONG:
            self._sayer.wrong("waiting", f"nobody takes {names[0]} at {self._place.name}: does `agent relay receive` run there?")

    async def _look_back(self) -> None:
        """See what became of the last bundle, which is not on its way any more."""
        found = await self._place.refusal(self._last)
        if found is None or found.refused:
            self._refusals = 0
            self._sayer.right("refused")
        if found is None:
            self._fruitless = 0 if self._bore_fruit else self._fruitless + 1
            if self._fruitless:  # what is sent again and again for nothing is not to keep both sides busy
                self._not_before = time.monotonic() + min(self._settings.every * 2.0 ** min(self._fruitless, 10), _LONGEST_FRUITLESS)
            return
        if found.refused:
            await asyncio.to_thread(self._set_aside, found)
            return
        self._refusals += 1
        said = f"the other side refuses {self._last}: {found.reason}"
        if self._refusals >= _REFUSALS:
            wait = _penalty(self._refusals - _REFUSALS)
            self._not_before = time.monotonic() + wait
            said += f" (the {self._refusals}. in a row: the next one is sent in {math.ceil(wait / 60)} min; see {self._place.name}/refused)"
        self._sayer.wrong("refused", said)

    def _set_aside(self, refusal: Refusal) -> None:
        """The runs that the other side does not take wait; the others go on."""
        with self._means.view() as catalog:
            for name, why in refusal.refused.items():
                sql = "SELECT id FROM runs WHERE id = ?1 UNION SELECT run FROM writers WHERE id = ?1 UNION SELECT run FROM artifacts"
                for (run,) in catalog.rows(sql + " WHERE digest = ?1", (name,)):
                    self._put_aside(run, f"run {run} is not taken by the other side: {why}")

    def _put_aside(self, run: str, why: str, *, longer: bool = True) -> None:
        times, _ = self._aside.get(run, (0, 0.0))
        self._aside[run] = times + longer, time.monotonic() + _penalty(times if longer else 0)
        self._sayer.wrong(f"run {run}", why)

    # ------------------------------------------------------------------ what goes

    def _write(self, target: TargetSettings) -> Written:
        """Write the next bundle, in a thread of its own; one without a path where nothing is new."""
        server = target.address
        with self._means.view() as catalog:
            now = time.monotonic()
            waits = {run for run, (_, until) in self._aside.items() if until > now}
            wanted = None if not waits else {run for (run,) in catalog.rows("SELECT DISTINCT run FROM writers")} - waits
            outgoing = Outgoing(self._spool, catalog, server, wanted)
            parts = self._may_leave(catalog, outgoing, outgoing.runs())
            if not parts:
                return Written(problems=dict(outgoing.problems))
            weights = _weights(catalog)
            parts.sort(key=lambda part: (self._served.get(part.run, 0), weights.get(part.run, 0)))  # who waited longest, then small ones
            receipt = (custody.latest(catalog, server) or {}).get("id", "")
            order = Order(
                self._staging, target.name, to=custody.pinned(catalog, server) or "", receipt=receipt if ids.is_id(receipt) else "",
                volume_size=self._bundle.volume_size, key=self._key, limit=self._settings.bundle_size,
            )  # fmt: skip
            atomic.make_folder(self._staging)
            written = write_bundle(self._spool, outgoing, parts, order, lambda _: None)
        self.sent += 1
        self.sent_bytes += written.record_bytes + written.blob_bytes
        self._served |= {part.run: self.sent for part in parts[: written.runs]}
        return written

    def _may_leave(self, catalog: Catalog, outgoing: Outgoing, parts: list[RunPart]) -> list[RunPart]:
        """Return those that may leave the site; the others stay, and are named.

        A large run takes long to search: one of them at a time, and never in the way of a bundle that others can go with now.
        """
        if self._gate is None:
            self._gate = Gate(self._spool, self._leaving, "relay", self._sayer.say)
        gate = self._gate
        large = [part.run for part in parts if gate.unseen(outgoing, part.run) > _LARGE]
        turn = next((run for run in large if run in self._deferred or len(large) == len(parts)), None)
        self._deferred = {run for run in large if run != turn}
        parts = [part for part in parts if part.run not in self._deferred]
        together = [[part] for part in parts] if gate.may_refuse else [parts] if parts else []
        return [part for some in together if self._leave(gate, catalog, outgoing, some) for part in some]

    def _leave(self, gate: Gate, catalog: Catalog, outgoing: Outgoing, parts: list[RunPart]) -> bool:
        try:
            gate.let(catalog, outgoing, {part.run for part in parts})
        except CommandError as why:
            for part in parts:
                self._put_aside(part.run, f"run {part.run}: {why}")
            return False
        return True

    def _tell(self, written: Written) -> None:
        for run, why in written.problems.items():  # what cannot be read stays lacking there: other than the rest of the run, it may wait
            self._put_aside(run, f"run {run}: {why}", longer=not (written.segments or written.blobs))

    def _brought(self) -> None:
        """The local copy is not needed any more."""
        if self._place.staging is None:
            discard(self._staged)
        self._staged = ""


def _weights(catalog: Catalog) -> dict[str, int]:
    """Return how large runs are, by what the catalog knows of them: a guess at bytes, to have small ones first."""
    found = {run: 100 * count for run, count in catalog.rows("SELECT run, sum(sequence) FROM writers GROUP BY run")}
    for run, size in catalog.rows("SELECT run, sum(size) FROM artifacts GROUP BY run"):
        found[run] = found.get(run, 0) + (size or 0)
    return found


def _penalty(times: int) -> float:
    return float(min(_PENALTY * 2.0 ** min(times, 10), _LONGEST_PENALTY))
