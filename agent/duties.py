"""Spool duties: what one agent does for all hosts, begun and ended with the spool's lease (DESIGN 6, docs/shared-spools.md).

The drains, the relay, telling people, deleting, judging what nobody watched, copying inboxes. What each host's agent does for its own
processes (ingest, watch, aborts, samples, survivors) goes on whoever has the lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from .reach import Reach

if TYPE_CHECKING:
    from .app import Agent

_EVERY, _SOON = 1.0, 0.1  # s between looks at the lease; while somebody waits for it
_ASK_EVERY = 2.0
_REFUSED = 10.0  # s of a disk that refuses, until a command says so


class SpoolDuties:
    """The duties of one running agent. Confined to the event loop."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._tasks: list[asyncio.Task[None]] = []
        self._news = asyncio.Event()
        self._reach = Reach(agent)
        self._problem = ""

    @property
    def are_done(self) -> bool:
        """Whether they are this agent's now."""
        return bool(self._tasks)

    def wake(self) -> None:
        """Look at the lease now."""
        self._news.set()

    async def run(self) -> None:
        """Keep, take and give back the lease, and do what goes with it, until cancelled. Raises what ends a loop that should not end."""
        try:
            while True:
                await self.turn()
                self._news.clear()
                news = asyncio.create_task(self._news.wait())
                try:
                    await asyncio.wait([news, *self._tasks], timeout=_EVERY, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    news.cancel()
                for task in self._tasks:
                    if task.done():
                        self._agent.check(task)
        finally:
            self._reach.stop()
            await self._end()

    async def turn(self) -> None:
        """Look once."""
        agent, lease = self._agent, self._agent.lease
        try:
            held = await asyncio.to_thread(lease.turn)
        except OSError as error:
            held = lease.is_fresh
            self._say(f"the spool's lease cannot be kept: {error}")
        else:
            self._say("")
        if held and lease.is_wanted:
            await self._end()
            with contextlib.suppress(OSError):  # then it is taken, after a time
                await asyncio.to_thread(lease.release)
            agent.report("another agent asked for the spool's lease: it sends from now on, this one looks after its own host")
        elif held and not self._tasks:
            await self._begin()
        elif not held and self._tasks:
            await self._end()
            agent.report("another agent has the spool's lease now: it sends, this one looks after its own host")
        self._reach.look()

    def _say(self, problem: str) -> None:
        if problem and problem != self._problem:
            self._agent.report(problem)
        self._problem = problem

    async def _begin(self) -> None:
        agent = self._agent
        await agent.work(agent.take_over)
        assert agent.drains is not None
        self._tasks = [asyncio.create_task(agent.drains.run())]
        notifier = agent.notifier = agent.make_notifier()
        if notifier is not None:
            self._tasks.append(asyncio.create_task(notifier.run()))
        if agent.relay is not None:
            self._tasks.append(asyncio.create_task(agent.relay.run()))

    async def _end(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        notifier, self._agent.notifier = self._agent.notifier, None
        if notifier is not None:
            await asyncio.to_thread(notifier.stop)


async def obtain(agent: Agent, until: float | None) -> bool:
    """Have the spool's lease for an agent, asking the one that has it; False when the time (monotonic s) is over before.

    Raises OSError where the disk takes no lease for a while.
    """
    duties, asked = agent.duties, float("-inf")
    refused: float | None = None
    if duties is None and agent.lease.held:
        return True
    while not (duties.are_done if duties is not None else agent.lease.held):
        now = time.monotonic()
        if until is not None and now >= until:
            return False
        try:
            if now - asked >= _ASK_EVERY:
                asked = now
                await asyncio.to_thread(agent.lease.want)
            if duties is None:
                await asyncio.to_thread(agent.lease.turn)
        except OSError:
            refused = now if refused is None else refused
            if now - refused > _REFUSED:
                raise
        else:
            refused = None
        if duties is not None:
            duties.wake()
        await asyncio.sleep(_SOON)
    if duties is None:
        await agent.work(agent.take_over)
    return True


@contextlib.asynccontextmanager
async def kept(agent: Agent) -> AsyncIterator[None]:
    """Renew the lease of an agent that works once, as long as it works."""

    async def keep() -> None:
        while True:
            await asyncio.sleep(_EVERY)
            with contextlib.suppress(OSError):
                await asyncio.to_thread(agent.lease.turn)

    task = asyncio.create_task(keep()) if agent.duties is None else None
    try:
        yield
    finally:
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
