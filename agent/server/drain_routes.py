"""Our own face over HTTP: docs/drain-protocol.md."""

from __future__ import annotations

import asyncio
import json
import math
from importlib import metadata
from typing import Any

from aiohttp import web

from simspool.spool import ids
from simspool.spool.ids import is_digest

from . import bodies, checks, recount, upload_routes
from .context import answer, server, store, who
from .drain import Verdict, refuse
from .errors import Invalid, NotFound
from .parts import PARTS_A_REQUEST
from .ranges import MAX_RANGES, Malformed, PreparedRange, RawRange, prepare, split

PROTOCOL = 1
BASE = "/api/simspool/v1"
_MAX_DIGESTS, _MAX_WRITERS, _MAX_STATES, _MAX_RUNS = 1000, 100_000, 100_000, 100
_SIGN_OF_LIFE = 5.0  # seconds
_PREPARING = web.AppKey("simspool_preparing", asyncio.Semaphore)


def _version() -> str:
    try:
        return metadata.version("simspool")
    except metadata.PackageNotFoundError:
        return "0"


async def get_server(request: web.Request) -> web.Response:
    """Say who this server is and what it takes."""
    limits = {
        "body": bodies.MAX_BODY, "decoded": bodies.MAX_DECODED, "ranges": MAX_RANGES, "blob": server(request).blob_limit,
        "parts": PARTS_A_REQUEST,
    }  # fmt: skip
    return answer(
        {"server": await store(request).server_id(), "version": _version(), "protocol": PROTOCOL, "limits": limits}
    )


def _prepare_all(body: bytes) -> list[PreparedRange | Verdict]:
    return [_prepare(raw) for raw in split(body)]


def _prepare(raw: RawRange) -> PreparedRange | Verdict:
    try:
        return prepare(raw)
    except Malformed as error:
        writer = raw.head.get("writer")
        return refuse(writer if isinstance(writer, str) and ids.is_id(writer) else None, "malformed", detail=str(error))


async def post_drain(request: web.Request) -> web.Response:
    """Take ranges; the answer is sent after the commit."""
    body = await bodies.raw(request)
    async with request.app[_PREPARING]:  # the decoded rows of a request are many times its size
        prepared = await asyncio.to_thread(_prepare_all, body)
        del body
        verdicts = await store(request).apply_ranges(who(request), prepared)
    return answer({"server": await store(request).server_id(), "ranges": verdicts})


async def post_marks(request: web.Request) -> web.Response:
    """Return marks and chains of the user's writers."""
    writers = checks.names((await bodies.mapping(request)).get("writers"), "writers")
    if len(writers) > _MAX_WRITERS:
        raise Invalid(f"writers: at most {_MAX_WRITERS}")
    found = await store(request).marks(who(request), writers)
    return answer({"server": await store(request).server_id(), "marks": found})


async def post_recount(request: web.Request) -> web.StreamResponse:
    """Count runs anew. A deep count reads every byte: blanks are sent meanwhile, so that nobody takes the server for dead."""
    body = await bodies.mapping(request)
    runs, deep = checks.names(body.get("runs"), "runs"), body.get("deep", False)
    if len(runs) > _MAX_RUNS or not isinstance(deep, bool):
        raise Invalid(f"runs: at most {_MAX_RUNS}; deep: true or false")

    async def count() -> dict[str, Any]:
        found = {}
        for run in runs:
            one = await store(request).recount(who(request), run, deep=deep)
            if one is not None:
                await recount.check_files(server(request).blobs, one["files"], deep=deep)
                found[run] = one
        return {"server": await store(request).server_id(), "runs": found}

    task = asyncio.create_task(count())
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    try:
        await asyncio.wait([task], timeout=_SIGN_OF_LIFE)
        if task.done():
            return answer(task.result())
        await response.prepare(request)
        while not task.done():
            await response.write(b" ")
            await asyncio.wait([task], timeout=_SIGN_OF_LIFE)
        await response.write(json.dumps(task.result()).encode())
        await response.write_eof()
    finally:
        task.cancel()
    return response


async def post_missing(request: web.Request) -> web.Response:
    """Return which blobs this user must still send."""
    digests = (await bodies.mapping(request)).get("digests")
    if not isinstance(digests, list) or len(digests) > _MAX_DIGESTS or not all(map(is_digest, digests)):
        raise Invalid(f"digests: a list of at most {_MAX_DIGESTS} SHA-256 in lower-case hex is expected")
    known = await store(request).readable_digests(who(request), digests)
    return answer({"missing": [d for d in digests if d not in known]})


async def get_gaps(request: web.Request) -> web.Response:
    """Return which records of a run no longer exist anywhere, and why."""
    return answer({"gaps": await store(request).gaps(who(request), request.match_info["run"])})


async def get_blob(request: web.Request) -> web.StreamResponse:
    """Give back a blob's bytes, or a range of them, to whoever may read them."""
    digest = request.match_info["digest"]
    if not is_digest(digest) or not await store(request).readable_digests(who(request), [digest]):
        raise NotFound("there is no blob with this digest that you may read")
    path = server(request).blobs.path(digest)
    if not await asyncio.to_thread(path.is_file):
        raise NotFound("the blob's bytes are gone")
    return web.FileResponse(path, headers={"Content-Type": "application/octet-stream"})


async def post_state(request: web.Request) -> web.Response:
    """Take replaceable state: heartbeats; tell which runs to abort."""
    states = (await bodies.mapping(request)).get("runs", {})
    if not isinstance(states, dict) or len(states) > _MAX_STATES:
        raise Invalid("runs: an object {run: {heartbeat}} is expected")
    beats = {checks.name({"run": run}, "run"): _heartbeat(state) for run, state in states.items()}
    return answer({"abort": await store(request).exchange_state(who(request), beats)})


def _heartbeat(state: Any) -> int | None:
    if not isinstance(state, dict):
        raise Invalid("runs: an object {run: {heartbeat}} is expected")
    at = state.get("heartbeat")
    if at is None:
        return None
    if isinstance(at, bool) or not isinstance(at, (int, float)) or not math.isfinite(at) or not 0 <= at < 1e12:
        raise Invalid("heartbeat: seconds since 1970 UTC are expected")
    return round(at * 1_000_000)


def add(app: web.Application) -> None:
    """Add the routes."""
    app[_PREPARING] = asyncio.Semaphore(2)
    app.router.add_get(f"{BASE}/server", get_server)
    app.router.add_post(f"{BASE}/drain", post_drain)
    app.router.add_post(f"{BASE}/marks", post_marks)
    app.router.add_post(f"{BASE}/recount", post_recount)
    app.router.add_post(f"{BASE}/blobs/missing", post_missing)
    upload_routes.add(app, BASE)
    app.router.add_get(f"{BASE}/runs/{{run}}/gaps", get_gaps)
    app.router.add_get(f"{BASE}/blobs/{{digest}}", get_blob)
    app.router.add_post(f"{BASE}/state", post_state)
