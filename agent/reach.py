"""Whether an agent reaches what it is to send to. The holder of a shared spool's lease that does not says so in its lease; an agent of
another host that does asks for it. So a login node sends what compute nodes without a network record, whoever was first.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from .targets.port import Refused, Unreachable

if TYPE_CHECKING:
    from .app import Agent
    from .drain.drains import Lane
    from .relay.duty import RelayDuty

_LONG = 20.0  # s for one target's answer


class Reach:
    """One agent's view of that. Confined to the event loop; `look` after each look at the lease.

    All required targets (all, where none is required) and the place of a relay must be reached; who has none of these reaches nothing.
    """

    def __init__(self, agent: Agent) -> None:
        self._agent, self._patience = agent, agent.config.patience
        self._missed: float | None = None  # since when the holder does not reach them
        self._trying: asyncio.Task[None] | None = None
        self._next = 0.0
        self._asked = ""  # the holder that was asked

    def look(self) -> None:
        """Note what is reached; try it where the holder does not reach it; ask for the lease, or do so no more."""
        lease, now = self._agent.lease, time.monotonic()
        if lease.held:
            self._forget()
            self._missed = None if self._is_reached() else now if self._missed is None else self._missed
            lease.reaches = self._missed is None or now - self._missed < self._patience
            return
        self._missed, lease.reaches = None, True
        holder = lease.holder.id if lease.holder is not None else ""
        if self._asked and (holder != self._asked or lease.holder_reaches):
            self._forget()
        if lease.is_elsewhere and not lease.holder_reaches and not self._asked and self._trying is None and now >= self._next:
            self._next = now + self._patience
            self._trying = asyncio.create_task(self._try(holder))

    def stop(self) -> None:
        """Ask and try no more."""
        if self._trying is not None:
            self._trying.cancel()
            self._trying = None

    def _forget(self) -> None:
        self.stop()
        if self._asked:
            self._asked = ""
            if not self._agent.syncs:  # a command that waits for it asks for itself
                self._agent.lease.want_no_more()

    def _is_reached(self) -> bool:
        lanes, relay = self._ways()
        if (not lanes and relay is None) or (relay is not None and relay.problems()):
            return False
        return all(lane.drain.server and not lane.drain.problem for lane in lanes)

    def _ways(self) -> tuple[list[Lane], RelayDuty | None]:
        agent = self._agent
        lanes = list(agent.drains.counting) if agent.drains is not None else []
        return lanes, agent.relay if agent.relay is not None and agent.relay.sends else None

    async def _try(self, holder: str) -> None:
        agent = self._agent
        lanes, relay = self._ways()
        try:
            if not lanes and relay is None:
                return
            for lane in lanes:  # its drain does not run without the lease
                async with asyncio.timeout(_LONG):
                    await lane.target.connect()
            if relay is not None and not await relay.reaches():
                return
            if agent.lease.holder is not None and agent.lease.holder.id == holder and not agent.lease.holder_reaches:
                where = agent.lease.holder.host
                agent.report(f"the agent of {where} has the spool's lease and does not reach its server: this one does, and asks for it")
                self._asked = holder
                with contextlib.suppress(OSError):
                    await asyncio.to_thread(agent.lease.want)
        except (Unreachable, Refused, TimeoutError):
            return
        finally:
            self._trying = None
