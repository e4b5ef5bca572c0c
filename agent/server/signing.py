"""Signed URLs for uploads and downloads: they carry no token, name one artifact and one digest, and expire."""

from __future__ import annotations

import hashlib
import hmac
import re
import time

from aiohttp import web

from .errors import BadRequest, Forbidden

LIFETIME = 24 * 3600
PREFIX = "/api/objects"
_HOST = re.compile(r"^(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::\d{1,5})?$")


def base_url(request: web.Request, public: str | None) -> str:
    """Return the URL under which this client sees the server: the configured one, else what its Host header says.

    Raises BadRequest for a Host that is not a host name with an optional port.
    """
    if public:
        return public.rstrip("/")
    host = request.headers.get("Host", "")
    if not _HOST.match(host):
        raise BadRequest("the Host header is not a host name with an optional port")
    return f"{request.scheme}://{host}"


def _mac(secret: bytes, method: str, artifact: str, digest: str, expires: int) -> str:
    text = f"simspool-object\n{method}\n{artifact}\n{digest}\n{expires}"
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()


def sign(secret: bytes, method: str, artifact: str, digest: str, now: float | None = None) -> str:
    """Return the path of a signed URL for `PUT` or `GET` of an artifact's bytes, valid for a day."""
    expires = int(time.time() if now is None else now) + LIFETIME
    return f"{PREFIX}/{method.lower()}/{artifact}/{digest}/{expires}/{_mac(secret, method, artifact, digest, expires)}"


def check(secret: bytes, method: str, artifact: str, digest: str, expires: str, signature: str) -> None:
    """Raise Forbidden unless the URL was signed here for this and has not expired. The comparison takes the same time for all."""
    at = int(expires) if expires.isascii() and expires.isdigit() and len(expires) < 16 else 0
    good = hmac.compare_digest(_mac(secret, method, artifact, digest, at).encode(), signature.encode("utf-8", "replace"))
    if not good:
        raise Forbidden("the URL's signature does not match: ask the server for the artifact again")
    if at < time.time():
        raise Forbidden("the URL has expired: ask the server for the artifact again")
