"""Our own face over HTTP: docs/drain-protocol.md."""

from __future__ import annotations

import asyncio
import math
from importlib import metadata
from typing import Any

from aiohttp import web

from simspool.spool import ids

from . import bodies, checks
from .blobstore import is_digest
from .context import answer, server, store, who
from .drain import Verdict, refuse
from .errors import Invalid
from .ranges import MAX_RANGES, Malformed, PreparedRange, RawRange, prepare, split

PROTOCOL = 1
BASE = "/api/simspool/v1"
_MAX_DIGESTS, _MAX_WRITERS, _MAX_STATES = 1000, 100_000, 100_000
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


async def post_missing(request: web.Request) -> web.Response:
    """Return which blobs this user must still send."""
    digests = (await bodies.mapping(request)).get("digests")
    if not isinstance(digests, list) or len(digests) > _MAX_DIGESTS or not all(isinstance(d, str) and is_digest(d) for d in digests):
        raise Invalid(f"digests: a list of at most {_MAX_DIGESTS} SHA-256 in lower-case hex is expected")
    known = await store(request).readable_digests(who(request), digests)
    return answer({"missing": [d for d in digests if d not in known]})


async def put_blob(request: web.Request) -> web.Response:
    """Take a blob's bytes."""
    digest = request.match_info["digest"]
    if not is_digest(digest):
        raise Invalid("the digest must be a SHA-256 in lower-case hex")
    context, caller = server(request), who(request)
    known = await context.store.readable_digests(caller, [digest])
    size = await context.blobs.receive(bodies.blocks(request, context.blob_limit), digest, context.blob_limit)
    await context.store.add_blob(caller.user, digest, size)
    return answer({"digest": digest, "size": size}, 200 if known else 201)


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
    app.router.add_post(f"{BASE}/blobs/missing", post_missing)
    app.router.add_put(f"{BASE}/blobs/{{digest}}", put_blob)
    app.router.add_post(f"{BASE}/state", post_state)
