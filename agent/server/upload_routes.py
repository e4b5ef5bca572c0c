"""Blobs over HTTP: whole, or in parts that resume (docs/drain-protocol.md)."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from aiohttp import web

from simspool.spool.ids import is_digest

from . import bodies
from .context import Server, answer, server, who, whole
from .errors import Conflict, Invalid, NoRoom, TooLarge
from .identity import Principal
from .parts import CHECKSUM, PARTS_A_REQUEST, Upload

_log = logging.getLogger(__name__)


def _digest(request: web.Request) -> str:
    digest = request.match_info["digest"]
    if not is_digest(digest):
        raise Invalid("the digest must be a SHA-256 in lower-case hex")
    return digest


@contextlib.contextmanager
def _trouble_is_no_room() -> Iterator[None]:
    """A disk that is full, or fails, is no room for a file now: only this upload waits for it."""
    try:
        yield
    except (ConnectionError, FileNotFoundError):
        raise
    except OSError as error:
        _log.warning("an upload failed: %s", error)
        raise NoRoom(f"the server's disk takes no upload now ({error.strerror or 'i/o error'}): it may be taken later") from None


async def put_blob(request: web.Request) -> web.Response:
    """Take a blob's bytes."""
    digest = _digest(request)
    context, caller = server(request), who(request)
    known = await context.store.readable_digests(caller, [digest])
    with _trouble_is_no_room():
        size = await context.blobs.receive(bodies.blocks(request, context.blob_limit), digest, context.blob_limit)
    await context.store.add_blob(caller.user, digest, size)
    return answer({"digest": digest, "size": size}, 200 if known else 201)


async def post_parts(request: web.Request) -> web.Response:
    """Open an upload in parts, or tell how far it is; the whole becomes a blob when all parts are there."""
    digest, context, caller = _digest(request), server(request), who(request)
    size = (await bodies.mapping(request)).get("size")
    if type(size) is not int or not 0 < size < 1 << 62:
        raise Invalid("size: the bytes of the file are expected, 1 or more")
    if size > context.blob_limit:
        raise TooLarge(f"{size} bytes are over this server's limit of {context.blob_limit}")
    while not await context.store.readable_digests(caller, [digest]):
        with _trouble_is_no_room():
            upload = await context.uploads.open(caller.user, digest, size)
            async with upload.lock:
                if not context.uploads.has(upload):
                    continue  # another request has ended it
                if not all(upload.have) or not await _finish(context, caller, upload):
                    return answer(
                        {"stored": False, "part": upload.part, "missing": upload.missing(), "unverified": upload.unverified}
                    )
    return answer({"stored": True})


async def _finish(context: Server, caller: Principal, upload: Upload) -> bool:
    if not await context.uploads.finish(upload):
        return False
    await context.store.add_blob(caller.user, upload.digest, upload.size)
    await context.uploads.forget(upload)
    return True


async def put_parts(request: web.Request) -> web.Response:
    """Take some parts of an open upload; they are durable when the answer goes."""
    digest, context, caller = _digest(request), server(request), who(request)
    first, count, size = int(request.match_info["first"]), whole(request, "count") or 0, whole(request, "size") or 0
    upload = context.uploads.find(caller.user, digest, size)
    if not 0 < count <= PARTS_A_REQUEST or first + count > upload.count:
        raise Invalid(f"1 to {PARTS_A_REQUEST} parts are taken at a time, of {upload.count}")
    length = sum(upload.length(number) + CHECKSUM for number in range(first, first + count))
    try:
        with _trouble_is_no_room():
            await upload.receive(bodies.blocks(request, length), first, count)
    except FileNotFoundError:
        raise Conflict("this upload was ended meanwhile: open it again") from None
    return answer({"first": first, "count": count})


def add(app: web.Application, base: str) -> None:
    """Add the routes."""
    app.router.add_put(f"{base}/blobs/{{digest}}", put_blob)
    app.router.add_post(f"{base}/blobs/{{digest}}/parts", post_parts)
    app.router.add_put(f"{base}/blobs/{{digest}}/parts/{{first:[0-9]{{1,12}}}}", put_parts)
