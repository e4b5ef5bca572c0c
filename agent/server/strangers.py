"""What strangers may not do: call the server by another's name, and hold all its connections.

A web page in the user's browser can have the name of its own host lead to 127.0.0.1 (DNS rebinding), and then ask this server as if it
were the page's own. It has no token, so it learns nothing; it is still sent away at once. That is only sure where the server listens on
this machine alone: elsewhere, names are given by whoever runs the network.

Connections cost descriptors, which blobs and the database need too. When there are too many, those that have been open longest end, after
the request that they are at: whoever sends requests comes again, whoever only holds connections loses them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import resource
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Middleware
from aiohttp.web_protocol import RequestHandler

from .errors import Forbidden

BACKLOG = 128  # connections that are accepted at once
_LEFT_FREE = 256  # descriptors
_FEWEST, _MOST = 64, 4000  # connections
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def is_loopback(name: str) -> bool:
    """Say whether a host's name or address can only mean this machine."""
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _host_of(text: str, *, is_origin: bool = False) -> str:
    """Return the host in a Host or an Origin header, "" for what has none."""
    try:
        return urlsplit(text if is_origin else f"//{text}").hostname or ""
    except ValueError:
        return ""


def only_for(names: frozenset[str]) -> Middleware:
    """Return the middleware of a server that listens on this machine alone: only this machine's names, and `names`, are answered.

    The port may be another one: that of a tunnel. A page of another origin is refused whatever it calls the server.
    """

    def is_ours(host: str) -> bool:
        return is_loopback(host) or host in names

    @web.middleware
    async def check(request: web.Request, handler: _Handler) -> web.StreamResponse:
        host, origin = _host_of(request.headers.get("Host", "")), request.headers.get("Origin")
        if not is_ours(host):
            raise Forbidden("this server is not called that: give --public-url where a proxy passes another name on")
        if origin is not None and not is_ours(_host_of(origin, is_origin=True)):
            raise Forbidden("pages of other hosts may not call this server")
        return await handler(request)

    return check


def most_connections() -> int:
    """Let this process have as many descriptors as it may; return how many of them may be connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST + _LEFT_FREE if hard == resource.RLIM_INFINITY else min(hard, _MOST + _LEFT_FREE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return _MOST if soft == resource.RLIM_INFINITY else max(_FEWEST, min(_MOST, soft - _LEFT_FREE))


def bound(server: web.Server, most: int) -> None:
    """From now on, have the connections that are open longest end while there are more than `most`."""
    made = server.connection_made

    def connection_made(handler: RequestHandler, transport: asyncio.Transport) -> None:
        made(handler, transport)
        for oldest in server.connections[: max(0, len(server.connections) - most)]:  # in the order in which they were made
            if oldest._current_request is None:  # noqa: SLF001 - nothing public says whether it only waits
                oldest.force_close()
            else:
                oldest.close()

    server.connection_made = connection_made  # type: ignore[method-assign]
