"""A stand-in for a Simvue server: its REST dialect as the published client 2.6.2 speaks it, with faults to order.

It shares no code with the server of this project, and was written without it: from a description of the dialect, and the client's
source. The real server is closed, so what is here has one of three grounds:

VERIFIED (seen between the published client and a server): paths and bodies of folders, alerts, runs, artifacts, metrics, events and
    heartbeats, and their order; headers; msgpack for metrics, events and arrays, JSON for all else; the same batch posted twice is there
    twice, as no request has a key that would tell; arrays go to /runs/{id}/metrics without the slash that the client's code ends it
    with; a heartbeat may come after a run's end; `/nosim/version` may be missing.
READ (follows from the client's code): 200 or 409 with an id on creation; lists as {"data", "count"} with at most 100 a page, storage as
    a bare list; 422 with a list of {type, loc, msg}; 404 for what is not there; presigned addresses that want a PUT, or a multipart POST
    where the answer has `fields`; `url: null` for content that the server has; `{"uploaded": true}` as a confirmation; a metadata update
    has the new keys only, so they are merged; XML from the object storage, with "The SHA256 you specified did not match the calculated
    checksum" for content that is not what was announced; ids of 22 letters and digits; UTC times without a zone; patterns of names.
OURS (a choice where nothing is known): a batch with one bad point is refused as a whole; a run that is not there is 404, an id that can
    be none is 422; names of runs may repeat, of folders, tags, storage and tenants not; a folder must exist before its run, parents come
    by themselves; tags come by themselves; a run without heartbeats for longer than its timeout is lost, a heartbeat revives it, other
    data does not; any status may follow any but `created`; retention periods are stored and never kept; alerts are never evaluated;
    values come back in the axis' order, equal ones as they came, thinned evenly to `max_points`; a count above 100 gives 100; unknown
    filters are 422; msgpack without its content type, JSON without its own, and compressed bodies are 415; pages of runs are newest
    first, all others oldest first.

Options (a JSON object at the start): see `Options`. Outside /api: POST, GET, DELETE /_faults; GET /_dump; GET /_counts.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import msgpack
from aiohttp import BodyPartReader, web
from artifacts import Artifacts, StorageError
from faults import Fault, Faults
from filters import ME
from models import Body, Refused
from objects import Objects
from pydantic import PositiveInt
from readings import Readings
from store import KINDS, Store

LOGIN = "<html><head><title>Log in</title></head><body><form>Please log in</form></body></html>"


class Options(Body):
    """How the server is set up.

    Attributes
    ----------
        version: What /version says; log levels of events need 1.2.16.
        nosim_version: What /nosim/version says; without it that is 404.
        strict: Unknown fields are 422; else they are dropped.
        upload: "put" for raw PUTs to presigned addresses, "post" for multipart with `fields`.
        presign_seconds: Life of presigned addresses.
        known_content: Ask for no content that is there already.
        unique_run_names: 409 with the id of the run that has the name.
        require_folder: 404 for a run in a folder that does not exist.

    """

    version: str = "1.2.16"
    nosim_version: str | None = None
    strict: bool = True
    upload: Literal["put", "post"] = "put"
    presign_seconds: PositiveInt = 3600
    known_content: bool = True
    unique_run_names: bool = False
    require_folder: bool = True


class StandIn:
    """The whole server."""

    def __init__(self, folder: Path, token: str, options: Options) -> None:
        self.token, self.options, self.base = token, options, ""
        self.store, self.faults = Store(folder), Faults()
        self.objects, self.readings, self.artifacts = Objects(self), Readings(self), Artifacts(self)
        self.requests = folder / "requests.jsonl"
        # line by line and without a sync: it outlives a kill of this process, and costs no time
        self.log = open(self.requests, "a", buffering=1)  # noqa: SIM115

    def application(self) -> web.Application:
        """Return what aiohttp serves."""
        app = web.Application(client_max_size=1 << 31, middlewares=[self._misbehave, self._guard])
        self._route(app.router)
        return app

    def close(self) -> None:
        """Close its files."""
        self.store.close()
        self.log.close()

    # the way of a request
    @web.middleware
    async def _misbehave(self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        if request.path.startswith("/_") or request.path == "/login":
            return await handler(request)
        line = f"{request.method} {request.path}"
        fault = await self.faults.choose(line, request.content_length or 0)
        answer = await self._instead(request, fault)
        if answer is None:
            whole = await handler(request)
            assert isinstance(whole, web.Response)
            answer = whole
            if fault is not None and fault.do == "status":
                answer = self._status(fault)
        cut = fault is not None and fault.do in {"drop", "hang", "lose-reply", "half-reply"}
        entry = {"method": request.method, "path": request.path, "query": request.query_string, "status": 0 if cut else answer.status}
        self.log.write(json.dumps(entry | {"fault": fault.do if fault else None, "bytes": request.content_length or 0}) + "\n")
        if fault is None:
            return answer
        return await self._spoiled(request, fault, answer)

    async def _instead(self, request: web.Request, fault: Fault | None) -> web.Response | None:
        """Return the answer of a fault that keeps the request from being done."""
        if fault is None:
            return None
        if fault.do == "status" and not fault.committed:
            return self._status(fault)
        if fault.do == "html":
            return web.Response(text=LOGIN, content_type="text/html")
        if fault.do == "redirect":
            return web.Response(status=302, headers={"Location": fault.location})
        if fault.do == "body-limit":
            return web.json_response({"detail": "Request Entity Too Large"}, status=413)
        return web.Response() if fault.do in {"drop", "hang"} else None

    @staticmethod
    def _status(fault: Fault) -> web.Response:
        after = {} if fault.retry_after is None else {"Retry-After": f"{fault.retry_after:g}"}
        return web.json_response({"detail": fault.body}, status=fault.status, headers=after)

    @staticmethod
    async def _spoiled(request: web.Request, fault: Fault, answer: web.Response) -> web.StreamResponse:
        """Send what the fault leaves of the answer."""
        body = answer.body if isinstance(answer.body, bytes) else b""
        if fault.do in {"half-reply", "slow-body"}:
            headers = {"Content-Type": answer.headers.get("Content-Type", "application/json"), "Content-Length": str(len(body))}
            part = web.StreamResponse(status=answer.status, headers=headers)
            await part.prepare(request)
            if fault.do == "half-reply":
                await part.write(body[: len(body) // 2])
                assert request.transport is not None
                request.transport.close()
                return part
            size = max(1, -(-len(body) // 10))
            for start in range(0, len(body), size):
                await asyncio.sleep(fault.seconds / 10)
                await part.write(body[start : start + size])
            await part.write_eof()
            return part
        while fault.do == "hang" and request.transport is not None and not request.transport.is_closing():
            await asyncio.sleep(0.05)
        if fault.do in {"drop", "lose-reply", "hang"} and request.transport is not None:
            request.transport.abort()
        return answer

    @web.middleware
    async def _guard(self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        try:
            if request.path.startswith("/api") and request.headers.get("Authorization") != f"Bearer {self.token}":
                raise Refused(401, "Unauthorised token")
            if request.headers.get("Content-Encoding", "identity") != "identity":
                raise Refused(415, "compressed bodies are not understood")
            return await handler(request)
        except Refused as refused:
            return web.json_response({"detail": refused.detail}, status=refused.status)
        except StorageError as error:
            text = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{error.code}</Code><Message>{error.message}</Message></Error>'
            return web.Response(status=error.status, text=text, content_type="application/xml")
        except web.HTTPException as error:
            return web.json_response({"detail": error.reason}, status=error.status)

    async def _body(self, request: web.Request, kind: str) -> Any:
        raw = await request.read()
        if kind == "none":
            return None
        if request.content_type != f"application/{kind}":
            raise Refused(415, f"expected application/{kind}, not {request.content_type}")
        try:
            return json.loads(raw) if kind == "json" else msgpack.unpackb(raw)
        except Exception as error:  # noqa: BLE001 - msgpack has many
            raise Refused(400, f"There was an error parsing the body: {error}") from None

    def _route(self, router: web.UrlDispatcher) -> None:
        def add(method: str, path: str, call: Callable[[web.Request, Any], tuple[int, Any]], body: str = "none") -> None:
            async def handle(request: web.Request) -> web.Response:
                content = await self._body(request, body)
                self.base = f"{request.scheme}://{request.host}"
                with self.store.transaction():
                    status, found = call(request, content)
                return web.json_response(found, status=status)

            router.add_route(method, path, handle)

        def line(r: web.Request) -> str:
            return f"{r.method} {r.path}"

        def at(r: web.Request, name: str = "id") -> str:
            return r.match_info[name]

        def ask(r: web.Request) -> dict[str, str]:
            return dict(r.query)

        objects, readings, artifacts = self.objects, self.readings, self.artifacts
        add("GET", "/api/version", lambda _r, _b: (200, {"version": self.options.version}))
        add("GET", "/api/nosim/version", lambda _r, _b: self._nosim())
        add("GET", "/api/whoami", lambda _r, _b: (200, {"username": ME, "fullname": ME, "tenant": ME, "manager": False, "admin": False}))
        add("GET", "/api/stats", lambda _r, _b: objects.stats())
        # what has a path of its own comes before what has an id in its place
        add("POST", "/api/metrics", lambda r, b: readings.post_metrics(b, line(r)), "msgpack")
        add("GET", "/api/metrics", lambda r, _b: readings.metrics(ask(r)))
        add("GET", "/api/metrics/names", lambda r, _b: readings.names(ask(r)))
        add("GET", "/api/metrics/span", lambda _r, b: readings.span(b), "json")
        add("POST", "/api/events", lambda r, b: readings.post_events(b, line(r)), "msgpack")
        add("GET", "/api/events", lambda r, _b: readings.events(ask(r)))
        add("GET", "/api/events/histogram", lambda r, _b: readings.histogram(ask(r)))
        add("POST", r"/api/runs/{id}/metrics{slash:/?}", lambda r, b: readings.post_grid_metrics(at(r), b, line(r)), "msgpack")
        add("GET", "/api/runs/{id}/metrics/{name:.+?}/values", lambda r, _b: readings.grid_values(at(r), at(r, "name").strip("/"), ask(r)))
        add("GET", "/api/runs/{id}/metrics/{name:.+?}/span", lambda r, _b: readings.grid_span(at(r), at(r, "name").strip("/")))
        add("GET", "/api/runs/{id}/grids", lambda r, _b: readings.grids_of(at(r)))
        add("PUT", "/api/runs/{id}/grids/{grid}", lambda r, b: readings.attach_grid(at(r), at(r, "grid"), b), "json")
        add("PUT", "/api/runs/{id}/heartbeat", lambda r, _b: objects.heartbeat(at(r)))
        add("PUT", "/api/runs/{id}/abort", lambda r, b: objects.abort(at(r), b), "json")
        add("GET", "/api/runs/{id}/abort", lambda r, _b: objects.aborted(at(r)))
        add("GET", "/api/runs/{id}/artifacts", lambda r, _b: artifacts.listed(at(r), ask(r)))
        add("PUT", "/api/runs/{id}/artifacts/{artifact}", lambda r, b: artifacts.attach(at(r), at(r, "artifact"), b), "json")
        add("GET", "/api/runs/{id}/artifacts/{artifact}", lambda r, _b: artifacts.category(at(r), at(r, "artifact")))
        add("PUT", "/api/alerts/{id}/status/{run}", lambda r, b: objects.set_alert(at(r), at(r, "run"), b), "json")
        add("GET", "/api/alerts/{id}/status/{run}", lambda r, _b: objects.alert_state(at(r), at(r, "run")))
        add("POST", "/api/artifacts", lambda r, b: artifacts.create(b, f"{r.scheme}://{r.host}", line(r)), "json")
        add("PUT", "/api/artifacts/{id}", lambda r, b: artifacts.confirm(at(r), b), "json")

        def add_kind(kind: str) -> None:
            if kind != "artifacts":
                add("POST", f"/api/{kind}", lambda r, b: objects.create(kind, ask(r), b, line(r)), "json")
                add("PUT", f"/api/{kind}/{{id}}", lambda r, b: objects.update(kind, at(r), b, line(r)), "json")
            add("GET", f"/api/{kind}", lambda r, _b: objects.listed(kind, ask(r)))
            add("GET", f"/api/{kind}/{{id}}", lambda r, _b: objects.read(kind, at(r)))
            add("DELETE", f"/api/{kind}/{{id}}", lambda r, _b: objects.delete(kind, at(r), ask(r)))
            if kind in {"folders", "runs"}:
                add("PUT", f"/api/{kind}/{{id}}/starred", lambda r, b: objects.star(kind, at(r), b), "json")

        for kind in KINDS:
            add_kind(kind)
        router.add_route("PUT", "/storage/{id}", self._send)
        router.add_route("GET", "/storage/{id}", self._fetch)
        router.add_route("POST", "/storage", self._send_form)
        router.add_route("GET", "/login", self._login)
        add("POST", "/_faults", lambda _r, b: (200, self.faults.set(b)), "json")
        add("GET", "/_faults", lambda _r, _b: (200, self.faults.listed()))
        add("DELETE", "/_faults", lambda _r, _b: (200, self.faults.heal()))
        add("GET", "/_dump", lambda _r, _b: (200, self._dump()))
        add("GET", "/_counts", lambda _r, _b: (200, self.store.counts()))

    def _nosim(self) -> tuple[int, Any]:
        if self.options.nosim_version is None:
            raise Refused(404, "Not Found")
        return 200, {"version": self.options.nosim_version}

    @staticmethod
    async def _login(_request: web.Request) -> web.Response:
        return web.Response(text=LOGIN, content_type="text/html")

    # the object storage: no token, the address is the permission
    async def _send(self, request: web.Request) -> web.Response:
        data = await request.read()
        if self.options.upload != "put":
            raise StorageError(405, "MethodNotAllowed", "The specified method is not allowed against this resource")
        with self.store.transaction():
            status = self.artifacts.send(request.match_info["id"], dict(request.query), data, f"{request.method} {request.path}")
        return web.Response(status=status)

    async def _send_form(self, request: web.Request) -> web.Response:
        if self.options.upload != "post":
            raise StorageError(405, "MethodNotAllowed", "The specified method is not allowed against this resource")
        fields: dict[str, str] = {}
        data = b""
        async for part in await request.multipart():
            if not isinstance(part, BodyPartReader):
                raise StorageError(400, "MalformedPOSTRequest", "The body of your POST request is not well-formed multipart/form-data")
            if part.name == "file":
                data = bytes(await part.read())
            else:
                fields[str(part.name)] = (await part.read()).decode()
        with self.store.transaction():
            status = self.artifacts.send(fields.get("key", ""), fields, data, f"{request.method} {request.path}")
        return web.Response(status=status)

    async def _fetch(self, request: web.Request) -> web.Response:
        data, mime = self.artifacts.content(request.match_info["id"], dict(request.query))
        return web.Response(body=data, headers={"Content-Type": mime})

    # for assertions
    def _dump(self) -> dict[str, Any]:
        store = self.store
        contents = dict(store.db.execute("SELECT checksum, data FROM contents").fetchall())

        def stored(doc: dict[str, Any]) -> dict[str, Any]:
            data = contents.get(doc["checksum"])
            digest = None if data is None else hashlib.sha256(data).hexdigest()
            return doc | {"stored_sha256": digest, "stored_bytes": None if data is None else len(data)}

        runs = {}
        for doc in store.all("runs"):
            run = self.objects.refreshed(doc)
            identity = run["id"]
            sql = "SELECT name, step, time, timestamp, grid, array FROM grid_metrics WHERE run = ? ORDER BY seq"
            arrays: dict[str, list[Any]] = {}
            for name, step, time, timestamp, grid, array in store.db.execute(sql, (identity,)):
                arrays.setdefault(name, []).append([step, json.loads(time), timestamp, grid, json.loads(array)])
            runs[identity] = {key: value for key, value in run.items() if not key.startswith("_")} | {
                "metrics": {name: store.points(identity, name) for name in store.metric_names(identity)},
                "events": store.events(identity),
                "artifacts": [stored(each) for each in self.artifacts.of_run(identity)],
                "alerts": self.objects.alerts_of(run),
                "grids": self.readings.grids_of(identity)[1],
                "grid_metrics": arrays,
                "aborted": self.objects.aborted(identity)[1]["status"],
            }
        return {
            "runs": runs,
            "folders": {doc["path"]: doc for doc in store.all("folders")},
            "tags": {doc["name"]: doc for doc in store.all("tags")},
            "alerts": {doc["id"]: doc for doc in store.all("alerts")},
            "artifacts": {doc["id"]: stored(doc) for doc in store.all("artifacts")},
            "grids": {doc["id"]: doc for doc in store.all("grids")},
            "storage": {doc["id"]: doc for doc in store.all("storage")},
            "counts": store.counts(),
            "faults": self.faults.listed(),
            "requests": [json.loads(each) for each in self.requests.read_text().splitlines()],
        }
