"""Runs with something to tell, and agents in the test's own process that tell it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from in_process import serve_agent, until
from recorded import begin

from simspool.agent.app import Agent, AgentConfig
from simspool.agent.notify.settings import NotifySource
from simspool.agent.sync import SyncReport
from simspool.sdk.config import Config
from simspool.spool import Kind, Spool, Tail, Writer, alert_definition

__all__ = ["agent_of", "alarming", "notifications", "serve", "sync", "until"]


def alarming(spool: Spool, name: str = "orbit", *, alerts: int = 1, close: bool = True, **fields: Any) -> tuple[str, Writer]:
    """Record a run whose alerts fire: loss is over each one's threshold."""
    run, writer = begin(spool, name, system={"hostname": "node7"}, **fields)
    for n in range(alerts):
        alert = alert_definition.define(
            f"high {n}", "metrics", metric="loss", rule="is above", threshold=float(n), aggregation="at least one", notification="email"
        )
        assert writer.record(Kind.ALERT, {**alert, "by": "script", "since": 0.0})
    assert writer.metrics({"loss": 1e6}, step=1)
    if close:
        assert writer.close({"status": "completed"})
    return run, writer


def agent_of(spool: Spool, table: dict[str, Any], said: list[str] | None = None) -> Agent:
    """Return an agent without a server whose channels are those of a [notify] table; tables that change are read again by a SIGHUP."""
    report = (said if said is not None else []).append
    agent = Agent(AgentConfig(spool), report=report)
    agent.notify = NotifySource(lambda: Config(spool.path, notify=table), report)
    return agent


def sync(spool: Spool, table: dict[str, Any], said: list[str] | None = None) -> SyncReport:
    """Do what `agent sync` does alone."""

    async def once() -> SyncReport:
        async with agent_of(spool, table, said) as agent, asyncio.timeout(60):
            return await agent.sync()

    return asyncio.run(once())


def serve(spool: Spool, table: dict[str, Any], story: Callable[[Agent], Awaitable[None]], said: list[str] | None = None) -> None:
    """Do what `agent run` does, until the story has been told."""

    serve_agent(lambda: agent_of(spool, table, said), story, seconds=60)


def notifications(spool: Spool, run: str) -> list[dict[str, Any]]:
    """Return the bodies of a run's notification records, writer by writer."""
    found = []
    folder = spool.run(run)
    for writer in folder.writer_ids():
        with Tail(folder.writer(writer), run) as tail:
            for chunk in tail.read(dead=True):
                found += [dict(item.body or {}) for item in chunk.items if getattr(item, "kind", None) == Kind.NOTIFICATION]
    return found
