"""The local API's part of receipts: the running agent keeps the journal, so it applies them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from simspool.agent.targets.settings import BUNDLE

if TYPE_CHECKING:
    from simspool.agent.app import Agent

    from .applying import Applied


def add(app: web.Application, agent: Agent) -> None:
    """Add `POST /receipt?target=NAME` with a receipt's document; the answer is what it changed (applying.Applied).

    409 {"detail"} says why it is not taken. Whoever posts has checked its signature: only this user can.
    """
    from .applying import apply_receipt
    from .parts import NotTaken
    from .receipts import LIMIT, parse_receipt

    def apply(data: bytes, name: str) -> Applied:
        return apply_receipt(agent.spool, agent.catalog, agent.journal, parse_receipt(data), name)

    async def receipt(request: web.Request) -> web.Response:
        name = request.query.get("target", "")
        await agent.refresh_targets()  # it may have been added a moment ago
        if agent.drains is None or name not in agent.drains.carried:
            return _refused(f"the running agent knows no target {name!r} of kind {BUNDLE!r}: `agent target ls` lists what there is")
        data = bytearray()
        async for block in request.content.iter_chunked(1 << 20):
            data += block
            if len(data) > LIMIT:
                return _refused("this is no receipt: it is larger than any")
        try:
            found = await agent.work(apply, bytes(data), name)
        except NotTaken as error:
            return _refused(str(error))
        return web.json_response(found.as_dict())

    app.router.add_post("/receipt", receipt)


def _refused(why: str) -> web.Response:
    return web.json_response({"detail": why}, status=409)
