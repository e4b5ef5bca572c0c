"""The local API of a running agent: HTTP on a unix socket, for this user only (mode 0600 and the peer's credentials)."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

from aiohttp import web

from simspool.spool import RunNotFound, atomic, ids

from .exit_codes import ExitCode
from .notify.queue import standing
from .status import last_server, overview
from .sync import Selection, SyncReport

if TYPE_CHECKING:
    from .app import Agent

_UCRED = struct.Struct("3i")
_SIGN_OF_LIFE = 5.0  # seconds between lines, at most


class LocalApi:
    """`GET /status`, and `POST /sync` {"runs", "folder", "tags", "where", "timeout": s}.

    A sync answers lines of JSON, its progress; the last one, with `final`, is the result. `POST /abort` {"run"} says that a
    run has a new abort request.
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
        drain = agent.drain
        ingest = agent.ingest_loop.problem if agent.ingest_loop else ""
        sampling, unsampled = (agent.sampler.problem or agent.sampler.gpu_problem, agent.sampler.problems) if agent.sampler else ("", {})
        emissions = agent.emissions.problem if agent.emissions else ""
        body["agent"] = {
            "pid": os.getpid(),
            "since": agent.started,
            "on_demand": agent.on_demand,
            "url": agent.config.url,
            "drain": drain.state if drain else "no-target",
            "problem": ingest or (drain.problem if drain else agent.target_problem) or agent.disk_problem or sampling or emissions,
            "following": len(agent.ingest.active),
            "problems": {
                **agent.untold(),
                **unsampled,
                **agent.inboxes.problems,
                **agent.ingest.problems,
                **(drain.delivered.problems if drain else {}),
            },
        }
        return web.json_response(body)

    def _overview(self) -> dict[str, Any]:
        agent = self._agent
        server = agent.drain.server if agent.drain else ""
        body = overview(agent.catalog, agent.spool, server or last_server(agent.catalog, agent.config.url))
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
