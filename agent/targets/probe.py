"""Trying a target: what it says of itself, and how long its answers take. Nothing is left on it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from simspool.spool import ids

from .build import make_target
from .port import Limits, Target
from .settings import TargetSettings


@dataclass(frozen=True, slots=True)
class Probed:
    """A target that let us in: itself (closed), its server's id, its limits, and the round trips of some questions (s)."""

    target: Target
    server: str
    limits: Limits
    trips: list[float]


async def probe(settings: TargetSettings, *, times: int, patience: float) -> Probed:
    """Connect to a target and ask it something so many times, within `patience` seconds.

    Raises Refused and Unreachable as the target does, ConfigError for settings that cannot be used, and TimeoutError.
    """
    target = make_target(settings)
    try:
        async with asyncio.timeout(patience):
            server, limits = await target.connect()
            trips = []
            for _ in range(times):
                began = time.perf_counter()
                # a run that nobody has: it needs the token, and leaves nothing
                await target.marks([(ids.to_text(ids.new_id()), ids.to_text(ids.new_id()))])
                trips.append(time.perf_counter() - began)
            return Probed(target, server, limits, trips)
    finally:
        await target.close()
