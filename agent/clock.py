"""The agent's clock, as a port: tests inject hours in milliseconds."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Time as the agent sees it."""

    def monotonic(self) -> float:
        """Seconds on a clock that never steps and counts suspended time."""

    def wall(self) -> float:
        """Seconds since 1970 UTC: for people and servers, never for intervals."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


class SystemClock:
    """The real one."""

    def monotonic(self) -> float:
        """See Clock."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall(self) -> float:
        """See Clock."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """See Clock."""
        await asyncio.sleep(seconds)
