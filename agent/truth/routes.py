"""The local API's part of the dead letter: the running agent keeps the journal, so it carries out what a command decides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp import web

from .dead import decide

if TYPE_CHECKING:
    from simspool.agent.app import Agent

_MOST = 1_000_000


def add(app: web.Application, agent: Agent) -> None:
    """Add `POST /dead` {"decision": "retry" or "drop", "letters": {server: [id, ...]}}; the answer is {"count": n}."""

    async def dead(request: web.Request) -> web.Response:
        try:
            decision, found = _parse(await request.json())
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise web.HTTPUnprocessableEntity(text='{"detail": "a body {decision, letters: {server: [id, ...]}} is expected"}') from None
        count = await agent.work(decide, agent.catalog, agent.journal, decision, found)
        if agent.drains is not None:
            agent.drains.wake()
        return web.json_response({"count": count})

    app.router.add_post("/dead", dead)


def _parse(body: Any) -> tuple[Any, list[tuple[str, frozenset[str]]]]:
    decision, letters = body["decision"], body["letters"]
    if decision not in {"retry", "drop"} or sum(len(ids) for ids in letters.values()) > _MOST:
        raise ValueError(decision)
    found = [(str(server), frozenset(ids)) for server, ids in letters.items()]
    if not all(isinstance(one, str) for _, ids in found for one in ids):
        raise ValueError("ids")
    return decision, found
