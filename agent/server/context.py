"""What a request's handler has at hand: the store, the blobs, the secret, and who asks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from . import filters, signing
from .artifacts import Link
from .blobstore import BlobStore
from .errors import Invalid
from .identity import Principal
from .listing import Page, parse_sorting
from .parts import Uploads
from .port import Store

MAX_IDS = 10_000


@dataclass(frozen=True, slots=True)
class Server:
    """The parts that handlers share. `blob_limit` is the largest upload in bytes, `public` the URL to put into signed links."""

    store: Store
    blobs: BlobStore
    uploads: Uploads
    secret: bytes
    blob_limit: int
    public: str | None = None


SERVER = web.AppKey("simspool_server", Server)
WHO = web.RequestKey("simspool_who", Principal)


def server(request: web.Request) -> Server:
    """Return the server of a request."""
    return request.app[SERVER]


def store(request: web.Request) -> Store:
    """Return the store of a request."""
    return request.app[SERVER].store


def who(request: web.Request) -> Principal:
    """Return on whose behalf a request runs; the middleware has put it there."""
    return request[WHO]


def flag(request: web.Request, key: str, default: bool = False) -> bool:
    """Return a boolean of the query. Raises Invalid."""
    value = request.query.get(key)
    if value is None:
        return default
    if value.lower() in {"true", "1", "yes", "on"}:
        return True
    if value.lower() in {"false", "0", "no", "off", "", "none"}:
        return False
    raise Invalid(f"{key}: true or false is expected")


def whole(request: web.Request, key: str, default: int | None = None) -> int | None:
    """Return a number from 0 on of the query. Raises Invalid."""
    value = request.query.get(key)
    if value is None or value in {"", "None"}:
        return default
    if not (value.isascii() and value.isdigit() and len(value) < 16):
        raise Invalid(f"{key}: a number from 0 on is expected")
    return int(value)


def page(request: web.Request) -> Page:
    """Return what a list request asks for. Raises Invalid."""
    return Page(
        start=whole(request, "start", 0) or 0,
        count=whole(request, "count"),
        filters=filters.parse(request.query.getall("filters", [])),
        sorting=parse_sorting(request.query.get("sorting")),
    )


def listed(request: web.Request, key: str) -> list[str] | None:
    """Return a list of text of the query: JSON, or the key repeated. None when the key is absent. Raises Invalid."""
    values: Sequence[str] = request.query.getall(key, [])
    if not values:
        return None
    out: list[str] = []
    for value in values:
        if value.lstrip().startswith("["):
            try:
                found = json.loads(value)
            except (ValueError, RecursionError):
                raise Invalid(f"{key}: not a JSON list") from None
            if not isinstance(found, list) or not all(isinstance(v, str) for v in found):
                raise Invalid(f"{key}: a JSON list of text is expected")
            out += found
        else:
            out.append(value)
    if len(out) > MAX_IDS or any("\0" in v or any(0xD800 <= ord(c) < 0xE000 for c in v) for v in out):
        raise Invalid(f"{key}: at most {MAX_IDS} entries of plain text")
    return list(dict.fromkeys(out))


def links(request: web.Request) -> Link:
    """Return the function that makes download URLs for this client."""
    context = server(request)
    base = signing.base_url(request, context.public)
    return lambda artifact, digest: base + signing.sign(context.secret, "GET", artifact, digest)


def answer(body: Any, status: int = 200) -> web.Response:
    """Return a JSON response. Non-finite numbers are written as Python's json reads them (NaN, Infinity)."""
    return web.json_response(body, status=status)
