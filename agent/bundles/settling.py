"""Before a bundle is made, everything recorded up to now is taken in: by the running agent, over its local API, or by one made for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from simspool.agent.exit_codes import ExitCode
from simspool.agent.sync import Selection
from simspool.spool import RunNotFound

if TYPE_CHECKING:
    from simspool.agent.app import Agent


def add(app: web.Application, agent: Agent) -> None:
    """Add `POST /settle` {"runs", "folder", "tags", "where"}; the answer is {"runs": [id, ...]}, or null for all of them."""

    async def on_settle(request: web.Request) -> web.Response:
        try:
            selection = Selection.parse(await request.json())
        except (ValueError, AttributeError, TypeError, RecursionError):
            raise web.HTTPUnprocessableEntity(text='{"detail": "a body {runs, folder, tags, where} is expected"}') from None
        agent.syncs += 1
        try:
            found = await settle(agent, selection)
        except RunNotFound as error:
            return web.json_response({"error": str(error), "exit_code": int(ExitCode.RUN_NOT_FOUND)})
        finally:
            agent.syncs -= 1
        return web.json_response({"runs": None if found is None else sorted(found)})

    app.router.add_post("/settle", on_settle)


async def settle(agent: Agent, selection: Selection) -> set[str] | None:
    """Take in everything that was recorded before; return the ids of the selected runs, None for all. Raises RunNotFound."""
    from simspool.agent.syncing import Syncing

    return await Syncing(agent, None, lambda _: None, patient=False).settle(selection)
