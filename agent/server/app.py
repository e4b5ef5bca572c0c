"""The application: both faces, who may call them, and what every refusal looks like."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web

from . import drain_routes, identity, object_routes, run_routes, series_routes, signing, strangers
from .blobstore import BlobStore
from .context import SERVER, WHO, Server, answer, store, who
from .errors import Forbidden, Refused
from .parts import Uploads
from .sqlite_store import SqliteStore
from .times import now_us

DIALECT_VERSION = "1.2.16"
MAX_BLOB = 1 << 40
_VERSIONS = frozenset({"/api/version", "/api/nosim/version"})
_HOUSEKEEPING, _SWEEP = 1.0, 3600.0  # seconds
log = logging.getLogger(__name__)
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def get_version(_: web.Request) -> web.Response:
    """Return the dialect's version. Without a token this is a sign of life; a wrong token is refused here too."""
    return answer({"version": DIALECT_VERSION})


async def get_whoami(request: web.Request) -> web.Response:
    """Return the caller's user and tenant."""
    caller = who(request)
    return answer({"username": caller.user, "user": caller.user, "tenant": caller.tenant, "is_admin": False})


async def get_stats(request: web.Request) -> web.Response:
    """Return how many runs the caller has, by status."""
    return answer(await store(request).statistics(who(request)))


async def get_users(request: web.Request) -> web.Response:
    """Return the users that the caller may know of: the caller."""
    caller = who(request)
    user = {"username": caller.user, "fullname": caller.user, "is_enabled": True, "is_admin": False, "is_manager": False}
    return answer({"data": [{"id": caller.user, "user": user, "tenant": caller.tenant}], "count": 1})


async def get_tenants(request: web.Request) -> web.Response:
    """Return the caller's tenant."""
    tenant = who(request).tenant
    return answer({"data": [{"id": tenant, "name": tenant, "is_enabled": True}], "count": 1})


async def administer(_: web.Request) -> web.Response:
    """Users and tenants are made by whoever holds the data folder, not over HTTP."""
    raise Forbidden("users and tenants come with tokens, which the server's owner issues: nothing to change here")


@web.middleware
async def refusals(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Turn every error into the dialect's form; what is our own fault is logged and says nothing of itself."""
    try:
        return await handler(request)
    except Refused as error:
        out = answer(error.body(), error.status)
        if error.status in {408, 413}:
            out.force_close()  # the rest of the body is not worth reading
        return out
    except web.HTTPException as error:
        return answer({"detail": f"{error.reason}: {request.method} {request.path[:200]}"}, error.status)
    except ConnectionError:
        return answer({"detail": "the connection was lost"}, 400)  # nobody is there to read it
    except OSError as error:
        log.exception("storage failed")
        return answer({"detail": f"the server cannot store it now ({error.strerror or 'i/o error'}): try again later"}, 503)
    except Exception:
        log.exception("%s %s failed", request.method, request.raw_path[:500])  # as it was sent: percent-encoded, on one line
        return answer({"detail": "the server failed: its log says why"}, 500)


@web.middleware
async def callers(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Find out who calls. Signed URLs carry their own proof; the version is told to anybody who sends no token at all."""
    header = request.headers.get("Authorization")
    if not request.path.startswith(signing.PREFIX + "/") and not (header is None and request.path in _VERSIONS):
        request[WHO] = identity.authenticate(header, request.app[SERVER].secret)
    return await handler(request)


async def _housekeeping(app: web.Application) -> AsyncIterator[None]:
    kept, uploads = app[SERVER].store, app[SERVER].uploads

    async def work() -> None:
        swept = -_SWEEP
        while True:
            try:
                if time.monotonic() - swept > _SWEEP:
                    swept = time.monotonic()
                    await uploads.sweep()
                await kept.sweep_lost(now_us())
                while await kept.fold_points():
                    pass
            except Exception:
                log.exception("housekeeping failed; it is tried again")
            await asyncio.sleep(_HOUSEKEEPING)

    task = asyncio.create_task(work())
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await uploads.close()
    await asyncio.to_thread(kept.close)


def create_app(
    data_dir: Path, *, public_url: str | None = None, blob_limit: int = MAX_BLOB, is_local: bool = False
) -> web.Application:  # fmt: skip
    """Return the application over a data folder, which is made when it is not there (mode 0700).

    `public_url`: what clients call this server, for signed links; default: what their Host header says. `is_local`: it listens on this
    machine alone, and answers to this machine's names and that of `public_url` only.
    `blob_limit`: the largest upload, in bytes.
    Raises PermissionError for a folder that is not safe to use, and what opening the database raises.
    """
    identity.prepare_folder(data_dir)
    blobs = BlobStore(data_dir / "blobs")
    kept = Server(
        SqliteStore(data_dir / "server.db"), blobs, Uploads(data_dir / "blobs", blobs), identity.secret_of(data_dir), blob_limit, public_url
    )
    names = frozenset({urlsplit(public_url).hostname or ""} if public_url else ())
    app = web.Application(middlewares=[refusals, strangers.only_for(names), callers] if is_local else [refusals, callers])
    app[SERVER] = kept
    for module in (drain_routes, run_routes, series_routes, object_routes):
        module.add(app)
    for path in _VERSIONS:
        app.router.add_get(path, get_version)
    app.router.add_get("/api/whoami", get_whoami)
    app.router.add_get("/api/stats", get_stats)
    app.router.add_get("/api/stats/", get_stats)
    app.router.add_get("/api/users", get_users)
    app.router.add_get("/api/tenants", get_tenants)
    for kind in ("users", "tenants"):
        for method, tail in (("POST", ""), ("PUT", "/{id}"), ("DELETE", "/{id}")):
            app.router.add_route(method, f"/api/{kind}{tail}", administer)
    app.cleanup_ctx.append(_housekeeping)
    return app
