"""Requests to a target over HTTP: bounded in time and size, paced, few kinds of errors. What the answers mean is the target's own."""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import ssl
import time
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from simspool.sdk import tls
from simspool.sdk.address import check_address, hide
from simspool.sdk.errors import ConfigError
from simspool.sdk.way import Way

from .pace import Pace
from .port import Refused, TooLarge, Unreachable

ANSWER_LIMIT = 16 << 20  # bytes
PLAIN = (200, 201, 204, 400, 404, 409, 422)
"""Statuses whose meaning depends on what was asked."""
_BLOCK = 256 << 10
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504, 507})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said: `status`, `headers` (any case), and the body as it came."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def value(self) -> Any:
        """The body as JSON; None where it is none."""
        return _parse(self.body)

    @property
    def detail(self) -> str:
        """": " and what a JSON body says in `detail`, `message` or `error_code`, for people; "" without."""
        return _detail(self.body)

    @property
    def after(self) -> float:
        """Seconds that the server asks us to wait; 0 where it does not."""
        return retry_after(self.headers.get("Retry-After"))


class Body(Protocol):
    """What is too large to be held: `size` bytes in blocks.

    `broken` says afterwards what was wrong with where they come from, where something was: aiohttp hides why a body ended early.
    """

    size: int
    broken: str

    def blocks(self, block: int) -> AsyncIterator[bytes | memoryview]:
        """Give out the bytes, at most `block` at a time. An error ends the request."""


class FileBody:
    """A part of an open file as a body: `size` bytes from `start`, read in threads."""

    def __init__(self, file: BinaryIO, size: int, start: int = 0) -> None:
        self._file, self.size, self._start = file, size, start
        self.broken = ""

    async def blocks(self, block: int) -> AsyncIterator[bytes]:
        """Give out its bytes. Raises OSError or EOFError, and `broken` says why."""
        at, end = self._start, self._start + self.size
        while at < end:
            try:
                data = await asyncio.to_thread(os.pread, self._file.fileno(), min(block, end - at), at)
            except OSError as error:
                self.broken = f"it cannot be read: {error.strerror}"
                raise
            if not data:
                self.broken = "it became shorter while it was sent"
                raise EOFError
            at += len(data)
            yield data


class HttpCaller:
    """The connections to one server.

    Redirects are not followed and proxies of the environment not used: the token in `headers` goes to `url` alone, and so does our
    certificate. `way` has whom to trust and the proxy, where one is wanted. Every server's certificate is verified. `timeout` (s) is for
    each block of a body and for the whole of an answer: a server that hangs, or drips, holds nothing up for ever. `pace` caps what all
    calls send together. `advice` tells people what to do where the token is refused.
    """

    def __init__(
        self, url: str, headers: Mapping[str, str] | None = None, *, timeout: float = 60.0, pace: Pace | None = None,
        advice: str = "set another token", way: Way | None = None,
    ) -> None:  # fmt: skip
        try:
            self.url = check_address(url, "SIMSPOOL_URL, --url or the target")
        except ConfigError as error:
            raise Refused(str(error)) from None
        self._way = way or Way()
        self._contexts: dict[bool, ssl.SSLContext] = {}
        self._stamp = self._way.tls.stamp
        self._proxy: dict[str, Any] = {}
        self._headers = dict(headers or {})
        self._timeout, self._pace, self._advice = timeout, pace, advice
        self.quickest = float("inf")  # s that an answer took at least: how far away the server is, at most
        self._session: aiohttp.ClientSession | None = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            if self._way.proxy is not None:
                auth = self._way.proxy_auth()
                self._proxy = {"proxy": self._way.proxy}
                if auth is not None:
                    self._proxy["proxy_headers"] = {"Proxy-Authorization": aiohttp.encode_basic_auth(*auth)}
            self._session = aiohttp.ClientSession(trust_env=False, cookie_jar=aiohttp.DummyCookieJar())
        return self._session

    def _trust(self, url: str, *, ours: bool) -> ssl.SSLContext | bool:
        """Return how a server is to be known. Renewed files count for new connections. Raises ConfigError."""
        if not url.startswith("https://"):
            return True
        stamp = self._way.tls.stamp
        if stamp != self._stamp:
            self._contexts.clear()
            self._stamp = stamp
        if ours not in self._contexts:
            self._contexts[ours] = tls.client_context(self._way.tls, with_certificate=ours)
        return self._contexts[ours]

    async def call(
        self, method: str, path: str, *, params: Mapping[str, str] | list[tuple[str, str]] | None = None, value: Any = None,
        body: bytes | Body | None = None, headers: Mapping[str, str] | None = None, expected: Collection[int] = PLAIN,
        bulk: bool = False, patience: float | None = None,
    ) -> Answer:  # fmt: skip
        """Make one request, with `value` as JSON or `body` as it is, and return an answer whose status is one of `expected`.

        `path` begins with "/", or is a URL of its own (as servers sign them for uploads), which gets neither token nor our other headers.
        `bulk` bodies leave room for the others. `patience` (s) is for the whole of an answer that comes slowly, in place of the timeout.
        Raises Unreachable for what may pass (no answer, 408, 425, 429, 5xx, redirects, any other status), Refused for 401 and 403, and
        TooLarge for 413.
        """
        ours = path.startswith("/")
        url: str | URL = self.url + path if ours else URL(path, encoded=True)  # a signed one is not to be written anew
        name = self.url if ours else _origin(path)
        sent = {"Accept": "application/json", **self._headers, **(headers or {})} if ours else dict(headers or {})
        if value is not None:
            body = json.dumps(value).encode()
            sent.setdefault("Content-Type", "application/json")
        try:
            session, trust = self._open(), self._trust(name, ours=ours)
        except ConfigError as error:
            raise Refused(f"{name} is not called: {error}") from None
        if not name.startswith("https://"):
            sent |= self._proxy.get("proxy_headers", {})  # without a tunnel the proxy reads the request itself
        began = time.perf_counter()
        answer = await self._exchange(session, method, url, params, body, sent, name, trust, bulk=bulk, patience=patience or self._timeout)
        self.quickest = min(self.quickest, time.perf_counter() - began)
        status = answer.status
        if status in expected:
            return answer
        if status in _TRANSIENT:
            raise Unreachable(f"{name} answers {status}{answer.detail}", answer.after)
        if status in {401, 403}:
            raise Refused(f"{name} refuses the token ({status}{answer.detail}): {self._advice}")
        if status in _REDIRECTS:
            raise Unreachable(f"{name} redirects, which is not followed: is it a login page of the network, or is the URL another one?")
        if status == 413:
            raise TooLarge(f"{name} says {status}{answer.detail}")
        raise Unreachable(f"{name} answers {status}{answer.detail}", answer.after)

    async def _exchange(
        self, session: aiohttp.ClientSession, method: str, url: str | URL, params: Any, body: bytes | Body | None, headers: dict[str, str],
        name: str, trust: ssl.SSLContext | bool, *, bulk: bool, patience: float,
    ) -> Answer:  # fmt: skip
        data: Any = None
        try:
            async with asyncio.timeout(patience) as limit:
                if body is not None:
                    size = len(body) if isinstance(body, bytes) else body.size
                    headers["Content-Length"] = str(size)
                    data = self._paced(body, limit, patience, bulk=bulk) if size else b""
                waits = aiohttp.ClientTimeout(total=None, sock_connect=15, sock_read=patience)
                async with session.request(
                    method, url, params=params, data=data, headers=headers, allow_redirects=False, timeout=waits, ssl=trust, **self._proxy
                ) as answer:
                    raw = await answer.content.read(ANSWER_LIMIT + 1)
                    while len(raw) <= ANSWER_LIMIT and not answer.content.at_eof():
                        raw += await answer.content.read(ANSWER_LIMIT + 1 - len(raw))
                    return Answer(answer.status, answer.headers, raw)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise self._failed(error, name) from None

    def _failed(self, error: Exception, name: str) -> Refused | Unreachable:
        """Return what an error of a connection means."""
        said = _reason(error)
        if name.startswith("https://"):
            shown = self._way.tls if name == self.url else tls.Tls(self._way.tls.ca_file)
            wrong = tls.problem(error, shown)
            if wrong is not None and wrong.is_refusal:
                return Refused(f"{name} refuses us: {wrong.text}")
            if wrong is not None:
                said = wrong.text
            elif isinstance(error, aiohttp.ClientConnectionError) and not isinstance(error, aiohttp.ClientConnectorError | TimeoutError):
                said = tls.closed_at_once(shown)
        by = f" by the proxy {hide(self._way.proxy)}" if self._way.proxy else ""
        return Unreachable(f"{name} cannot be reached{by}: {said}")

    async def _paced(self, body: bytes | Body, limit: asyncio.Timeout, seconds: float, *, bulk: bool) -> AsyncIterator[bytes | memoryview]:
        """Give out blocks; each one that is asked for says that the one before has left. Our own pace is not the server's fault."""
        block = _BLOCK if self._pace is None else self._pace.block(_BLOCK)
        loop = asyncio.get_running_loop()
        async for data in _cut(body, block) if isinstance(body, bytes) else body.blocks(block):
            if limit.expired():
                return
            if self._pace is not None:
                limit.reschedule(None)
                await self._pace.take(len(data), bulk=bulk)
            limit.reschedule(loop.time() + seconds)
            yield data

    async def close(self) -> None:
        """Let go of the connections. Harmless when repeated."""
        if self._session is not None:
            await self._session.close()
            self._session = None


async def _cut(data: bytes, block: int) -> AsyncIterator[bytes]:
    for at in range(0, len(data), block):
        yield data[at : at + block]


def plain_text(value: Any) -> str:
    """Return text of a server's that any database takes."""
    return str(value).encode(errors="replace").decode()


def retry_after(text: str | None) -> float:
    """Return the seconds of a Retry-After header (number or date); 0 when there is none, or it is garbage. At most an hour."""
    if not text:
        return 0.0
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return min(max(seconds, 0.0), 3600.0) if seconds == seconds else 0.0


def _origin(url: str) -> str:
    parts = urlsplit(url)  # the rest of a signed URL is a secret
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _reason(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"it answers {error.status}" + (": its user and password belong into proxy_auth_file" if error.status == 407 else "")
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or str(error.os_error)
    if isinstance(error, aiohttp.InvalidURL):
        return "its URL is not one"
    return str(error) or type(error).__name__


def _parse(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def _detail(raw: bytes) -> str:
    value = _parse(raw[:10000])
    if not isinstance(value, dict):
        return ""
    detail = value.get("detail") or value.get("message") or value.get("error_code")
    return f": {plain_text(detail)[:300]}" if detail else ""
