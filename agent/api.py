"""The local API of a running agent: HTTP on a unix socket, for this user only (mode 0600 and the peer's credentials)."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aiohttp import web

from simspool.spool import RunNotFound, atomic, ids

from .bundles import settling
from .carry import routes as carry_routes
from .exit_codes import ExitCode
from .notify.queue import standing
from .status import overview
from .sync import Selection, SyncReport
from .truth import routes as truth_routes
from .truth.known import known_targets

if TYPE_CHECKING:
    from .app import Agent

_UCRED = struct.Struct("3i")
_SIGN_OF_LIFE = 5.0  # seconds between lines, at most


class LocalApi:
    """`GET /status`, and `POST /sync` {"runs", "folder", "tags", "where", "timeout": s}.

    A sync answers lines of JSON, its progress; the last one, with `final`, is the result. `POST /abort` {"run"} says that a
    run has a new abort request; `POST /dead` is in truth/routes.py, `POST /receipt` in carry/routes.py, `POST /settle` in
    bundles/settling.py.
    """

    def __init__(self, agent: Agent, folder: str | None) -> None:
        self._agent = agent
        self._folder = folder
        self._runner: web.AppRunner | None = None
        self.path: str | None = None

    async def start(self) -> None:
        """Listen; without a folder for sockets, there is no API, and commands read the catalog themselves."""
        if self._folder is None:
            return
        app = web.Application(middlewares=[_same_user], client_max_size=8 << 20)
        app.router.add_get("/status", self._status)
        app.router.add_post("/sync", self._sync)
        app.router.add_post("/abort", self._abort)
        truth_routes.add(app, self._agent)
        carry_routes.add(app, self._agent)
        settling.add(app, self._agent)
        path = os.path.join(self._folder, "api")
        atomic.remove(path)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        old = os.umask(0o177)
        try:
            await web.UnixSite(runner, path).start()
        finally:
            os.umask(old)
        self._runner, self.path = runner, path

    async def stop(self) -> None:
        """Close the socket; syncs in progress are cut off, and done by the next one."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
            if self.path is not None:
                atomic.remove(self.path)

    async def _status(self, _: web.Request) -> web.Response:
        agent = self._agent
        body = await agent.work(self._overview)
        drains = agent.drains
        lanes = list(drains.lanes.values()) if drains is not None else []
        counting = drains.counting if drains is not None else []
        carried = list(drains.carried.values()) if drains is not None else []
        stuck = next((lane for lane in counting if lane.drain.problem), None)
        ingest = agent.ingest_loop.problem if agent.ingest_loop else ""
        sampling, unsampled = (agent.sampler.problem or agent.sampler.gpu_problem, agent.sampler.problems) if agent.sampler else ("", {})
        emissions = agent.emissions.problem if agent.emissions else ""
        body["agent"] = {
            "pid": os.getpid(),
            "since": agent.started,
            "on_demand": agent.on_demand,
            "relay": agent.relay.describe() if agent.relay is not None else [],
            "lease": {"held": agent.lease.held, "host": agent.lease.holder.host if agent.lease.holder is not None else None},
            "url": counting[0].target.url if counting else None,
            "drain": (stuck or counting[0]).drain.state if counting else "carried by bundles" if carried else "no-target",
            "targets": [
                {
                    "name": lane.name, "url": lane.target.url, "required": lane.required, "state": lane.drain.state,
                    "problem": lane.drain.problem, "server": lane.drain.server,
                }
                for lane in lanes
            ] + [
                {"name": s.name, "url": s.address, "required": s.required, "state": "by bundles", "problem": "", "server": s.address}
                for s in carried
            ],
            "problem": ingest or (stuck.drain.problem if stuck else "") or agent.disk_problem or agent.guard.problem
            or sampling or emissions,
            "following": len(agent.ingest.active),
            "problems": {
                **agent.untold(),
                **(agent.relay.problems() if agent.relay is not None else {}),
                **unsampled,
                **agent.inboxes.problems,
                **agent.ingest.problems,
                **{key: why for lane in lanes for key, why in lane.drain.delivered.problems.items()},
                **{f"target {name}": why for name, why in (drains.problems if drains is not None else {}).items()},
            },
        }  # fmt: skip
        return web.json_response(body)

    def _overview(self) -> dict[str, Any]:
        agent = self._agent
        lanes = list(agent.drains.lanes.values()) if agent.drains is not None else []
        known = known_targets(agent.catalog, agent.drains.settings if agent.drains is not None else [])
        servers = {lane.name: lane.drain.server for lane in lanes}
        body = overview(agent.catalog, agent.spool, [replace(t, server=servers.get(t.name) or t.server) for t in known])
        body["budget"] = agent.guard.as_dict()
        return body | {"notifications": standing(agent.catalog, agent.notifier.channels() if agent.notifier else {}, time.time())}

    async def _abort(self, request: web.Request) -> web.Response:
        try:
            run = (await request.json())["run"]
        except (ValueError, TypeError, KeyError, RecursionError):
            run = None
        if not isinstance(run, str) or not ids.is_id(run):
            raise web.HTTPUnprocessableEntity(text='{"detail": "a body {run: id} is expected"}')
        if self._agent.aborts is not None:
            self._agent.aborts.look(run)
        return web.json_response({})

    async def _sync(self, request: web.Request) -> web.StreamResponse:
        try:
            body = await request.json()
            selection, timeout = Selection.parse(body), body.get("timeout")
            if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 <= timeout < 1e9):
                raise ValueError("timeout")
        except (ValueError, AttributeError, TypeError, RecursionError):
            raise web.HTTPUnprocessableEntity(text='{"detail": "a body {runs, folder, tags, where, timeout} is expected"}') from None
        answer = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await answer.prepare(request)
        lines: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

        def progress(report: SyncReport) -> None:
            if lines.qsize() < 4:  # a slow reader gets fewer lines, never a slower sync
                lines.put_nowait(report.as_dict())

        self._agent.syncs += 1
        task = asyncio.create_task(self._agent.sync(selection, timeout=timeout, progress=progress))
        try:
            last: dict[str, Any] = {}
            while not task.done():
                getter = asyncio.ensure_future(lines.get())
                await asyncio.wait([task, getter], return_when=asyncio.FIRST_COMPLETED, timeout=_SIGN_OF_LIFE)
                if getter.done():
                    last = getter.result()
                else:
                    getter.cancel()
                if last and not task.done():
                    await answer.write(json.dumps(last).encode() + b"\n")
            try:
                result = (await task).as_dict()
            except RunNotFound as error:
                result = {"error": str(error), "exit_code": ExitCode.RUN_NOT_FOUND}
            except Exception as error:  # noqa: BLE001 - the other process has to be told
                result = {"error": f"the running agent could not do it: {error}", "exit_code": ExitCode.ERROR}
            await answer.write(json.dumps({**result, "final": True}).encode() + b"\n")
            await answer.write_eof()
        except ConnectionResetError:
            pass  # whoever asked has gone
        finally:
            self._agent.syncs -= 1
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return answer


@web.middleware
async def _same_user(request: web.Request, handler: Any) -> web.StreamResponse:
    """Refuse other users, whatever the socket's mode has become."""
    found = request.transport.get_extra_info("socket") if request.transport is not None else None
    if found is None:
        raise web.HTTPForbidden(text='{"detail": "unknown peer"}')
    raw = found.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    uid = _UCRED.unpack(raw)[1]
    if uid not in {os.geteuid(), 0}:
        raise web.HTTPForbidden(text='{"detail": "the agent belongs to another user"}')
    answer: web.StreamResponse = await handler(request)
    return answer
