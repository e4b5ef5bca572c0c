"""An agent in the test's own process, against a target in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from memory_target import MemoryTarget

from simspool.agent.app import Agent, AgentConfig
from simspool.agent.drain.backoff import Backoff
from simspool.agent.drain.loop import Drain
from simspool.agent.sync import SyncReport
from simspool.spool import Spool


def sync(spool: Spool, target: MemoryTarget, **options: Any) -> SyncReport:
    """Do what `agent sync` does."""

    async def once() -> SyncReport:
        async with Agent(AgentConfig(spool, "memory://"), target=target, backoff=Backoff(lambda: 0.001)) as agent, asyncio.timeout(30):
            return await agent.sync(**options)

    return asyncio.run(once())


def serve(
    spool: Spool, target: MemoryTarget, story: Callable[[Agent], Awaitable[None]], reports: list[str] | None = None, **config: Any
) -> None:  # fmt: skip
    """Do what `agent run` does, until the story has been told; raises what ends the agent before."""
    said = reports if reports is not None else []
    made = AgentConfig(spool, "memory://", **config)
    serve_agent(lambda: Agent(made, target=target, report=said.append, backoff=Backoff(lambda: 0.01)), story)


def serve_agent(make: Callable[[], Agent], story: Callable[[Agent], Awaitable[None]], *, seconds: float = 30) -> None:
    """Have an agent serve until the story has been told, at most so long; raises what ends it before."""

    async def day() -> None:
        stop, ready = asyncio.Event(), asyncio.Event()
        async with make() as agent:

            async def tell() -> None:
                await ready.wait()
                await story(agent)

            serving = asyncio.create_task(agent.serve(stop, ready=ready.set))
            telling = asyncio.create_task(tell())
            try:
                async with asyncio.timeout(seconds):
                    await asyncio.wait([serving, telling], return_when=asyncio.FIRST_COMPLETED)
                    if telling.done():
                        telling.result()
            finally:
                stop.set()
                telling.cancel()
                await serving

    asyncio.run(day())


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition; the story's own deadline ends a test that hangs."""
    while not condition():
        await asyncio.sleep(0.02)


def total(target: MemoryTarget) -> int:
    """Return how many records a target has."""
    return sum(mark for mark, _ in target.marks_of.values())


def drains_of(agent: Agent) -> list[Drain]:
    """Return an agent's drains."""
    return [lane.drain for lane in agent.drains.lanes.values()] if agent.drains is not None else []


def the_drain(agent: Agent) -> Drain:
    """Return an agent's only drain."""
    [drain] = drains_of(agent)
    return drain
