"""The dialect's other objects over HTTP: folders, tags, alerts, grids, storage, artifacts and their signed URLs."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from urllib.parse import quote

from aiohttp import web

from . import bodies, checks, signing
from .context import answer, flag, links, listed, page, server, store, who
from .errors import Invalid, NotFound

_ENDPOINTS = {"folders": "folder", "tags": "tag", "alerts": "alert", "grids": "grid", "storage": "storage"}
Handler = Callable[[str, web.Request], Awaitable[web.Response]]


async def _post(kind: str, request: web.Request) -> web.Response:
    body = checks.document(kind, await bodies.mapping(request), new=True)
    deduplicate = kind == "alert" and flag(request, "deduplicate")
    identity, _ = await store(request).create_document(who(request), kind, body, deduplicate=deduplicate)
    return answer({"id": identity})


async def _list(kind: str, request: web.Request) -> web.Response:
    data, count = await store(request).list_documents(who(request), kind, page(request))
    return answer(data if kind == "storage" else {"data": data, "count": count})


async def _get(kind: str, request: web.Request) -> web.Response:
    return answer(await store(request).get_document(who(request), kind, request.match_info["id"]))


async def _put(kind: str, request: web.Request) -> web.Response:
    body = checks.document(kind, await bodies.mapping(request), new=False)
    return answer(await store(request).update_document(who(request), kind, request.match_info["id"], body))


async def _delete(kind: str, request: web.Request) -> web.Response:
    identity = request.match_info["id"]
    if kind == "folder":
        return answer(
            await store(request).delete_folder(
                who(request), identity, recursive=flag(request, "recursive"), with_runs=flag(request, "runs"),
                runs_only=flag(request, "runs_only"),
            )
        )  # fmt: skip
    await store(request).delete_document(who(request), kind, identity)
    return answer({"id": identity})


async def put_starred_folder(request: web.Request) -> web.Response:
    """Star or unstar a folder."""
    starred = bool((await bodies.mapping(request)).get("starred"))
    return answer(await store(request).star_document(who(request), "folder", request.match_info["id"], starred))


async def put_alert_status(request: web.Request) -> web.Response:
    """Set a user alert's status for a run."""
    status = (await bodies.mapping(request)).get("status")
    if status not in {"ok", "critical"}:
        raise Invalid("status: ok or critical is expected")
    alert, run = request.match_info["id"], request.match_info["run"]
    return answer(await store(request).set_alert_status(who(request), alert, run, status))


async def get_alert_status(request: web.Request) -> web.Response:
    """Return an alert's status for a run."""
    alert, run = request.match_info["id"], request.match_info["run"]
    return answer({"status": await store(request).alert_status(who(request), alert, run)})


async def post_artifacts(request: web.Request) -> web.Response:
    """Create an artifact; the answer's `url` takes the bytes, and is None when they are known."""
    body = checks.artifact(await bodies.mapping(request))
    context, caller = server(request), who(request)
    if body["size"] > context.blob_limit:
        raise Invalid(f"size: {body['size']} bytes are over this server's limit of {context.blob_limit}")
    base = signing.base_url(request, context.public)
    identity, known = await context.store.create_artifact(caller, body)
    url = None if known else base + signing.sign(context.secret, "PUT", identity, body["checksum"])
    return answer({"id": identity, "url": url})


async def list_artifacts(request: web.Request) -> web.Response:
    """Return a page of artifacts, of some runs or of all."""
    data, count = await store(request).list_artifacts(
        who(request), page(request), listed(request, "runs"), links(request)
    )
    return answer({"data": data, "count": count})


async def get_artifact(request: web.Request) -> web.Response:
    """Return an artifact."""
    return answer(await store(request).get_artifact(who(request), request.match_info["id"], links(request)))


async def put_artifact(request: web.Request) -> web.Response:
    """Confirm an upload; what counts is whether the verified bytes are here."""
    await bodies.mapping(request)
    found = await store(request).get_artifact(who(request), request.match_info["id"], links(request))
    if not found["uploaded"]:
        raise Invalid(f"artifact {found['name']!r} has no bytes yet: send them to the URL that its creation gave")
    return answer({"id": found["id"], "uploaded": True})


async def delete_artifact(request: web.Request) -> web.Response:
    """Delete an artifact."""
    identity = request.match_info["id"]
    await store(request).delete_artifact(who(request), identity)
    return answer({"id": identity})


def _signed(request: web.Request, method: str) -> tuple[str, str]:
    parts = request.match_info
    signing.check(server(request).secret, method, parts["id"], parts["digest"], parts["expires"], parts["signature"])
    return parts["id"], parts["digest"]


async def put_object(request: web.Request) -> web.Response:
    """Take an artifact's bytes on a signed URL: no more than its size, and only with its digest."""
    identity, digest = _signed(request, "PUT")
    context = server(request)
    owner, expected, size = await context.store.expected_upload(identity)
    if expected != digest:
        raise NotFound(f"artifact {identity!r} has other content now")
    stored = await context.blobs.receive(bodies.blocks(request, size), digest, size)
    await context.store.add_blob(owner, digest, stored)
    return answer({"id": identity, "size": stored})


async def get_object(request: web.Request) -> web.StreamResponse:
    """Give an artifact's bytes on a signed URL, always as a download."""
    _, digest = _signed(request, "GET")
    path = server(request).blobs.path(digest)
    if not path.is_file():
        raise NotFound("the artifact's bytes are not here")
    headers = {
        "Content-Type": "application/octet-stream", "Content-Disposition": f"attachment; filename*=UTF-8''{quote(digest)}",
        "X-Content-Type-Options": "nosniff", "Cache-Control": "private, no-store",
    }  # fmt: skip
    return web.FileResponse(path, headers=headers)


def add(app: web.Application) -> None:
    """Add the routes."""
    route = app.router
    for endpoint, kind in _ENDPOINTS.items():
        handlers: list[tuple[str, str, Handler]] = [
            ("POST", "", _post), ("GET", "", _list), ("GET", "/{id}", _get), ("PUT", "/{id}", _put), ("DELETE", "/{id}", _delete),
        ]  # fmt: skip
        for method, tail, handler in handlers:
            route.add_route(method, f"/api/{endpoint}{tail}", functools.partial(handler, kind))
    route.add_put("/api/folders/{id}/starred", put_starred_folder)
    route.add_put("/api/alerts/{id}/status/{run}", put_alert_status)
    route.add_get("/api/alerts/{id}/status/{run}", get_alert_status)
    route.add_post("/api/artifacts", post_artifacts)
    route.add_get("/api/artifacts", list_artifacts)
    route.add_get("/api/artifacts/{id}", get_artifact)
    route.add_put("/api/artifacts/{id}", put_artifact)
    route.add_delete("/api/artifacts/{id}", delete_artifact)
    route.add_put(f"{signing.PREFIX}/put/{{id}}/{{digest}}/{{expires}}/{{signature}}", put_object)
    route.add_get(f"{signing.PREFIX}/get/{{id}}/{{digest}}/{{expires}}/{{signature}}", get_object)
