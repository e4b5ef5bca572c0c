"""The embedded server (`agent serve`) as a target: exactly-once by its marks (docs/drain-protocol.md)."""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, BinaryIO

import aiohttp
import zstandard

from .port import Limits, Poison, Range, Refused, TooLarge, Unreachable, Verdict

_BASE = "/api/simspool/v1"
_TYPE = "application/x-simspool-ranges"
_ANSWER_LIMIT, _BLOCK = 16 << 20, 256 << 10
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})


class EmbeddedTarget:
    """Speaks the drain protocol over HTTP. Redirects are not followed, proxies of the environment not used: the token stays here."""

    def __init__(self, url: str, token: str, *, timeout: float = 60.0) -> None:
        url = url.rstrip("/").removesuffix("/api")
        if not url.startswith(("http://", "https://")):
            raise Refused(f"the server's URL must begin with http:// or https://, not {url!r}: set SIMSPOOL_URL or --url")
        self.url = url
        self._timeout = timeout
        self._headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        self._session: aiohttp.ClientSession | None = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=None, connect=15, sock_connect=15, sock_read=self._timeout)
            self._session = aiohttp.ClientSession(headers=self._headers, timeout=timeout, trust_env=False)
        return self._session

    async def _call(
        self,
        method: str,
        path: str,
        *,
        ok: tuple[int, ...] = (200,),
        blocks: AsyncIterator[bytes] | None = None,
        size: int = 0,
        **kwargs: Any,
    ) -> tuple[int, Any]:
        """One request, with a body from `blocks` (`size` bytes) where it is large.

        Returns the status and the JSON answer; an answer that is not ours counts as unreachable. Each block must leave, and the whole
        answer must come, within the timeout: a server that hangs, or drips, holds nothing up for ever.
        """
        headers = kwargs.pop("headers", {})
        try:
            async with asyncio.timeout(self._timeout) as limit:
                if blocks is not None:
                    kwargs["data"] = _timed(blocks, limit, self._timeout)
                    headers = {**headers, "Content-Length": str(size)}
                async with self._open().request(
                    method, self.url + _BASE + path, allow_redirects=False, headers=headers, **kwargs
                ) as answer:
                    raw = await answer.content.read(_ANSWER_LIMIT + 1)
                    while len(raw) <= _ANSWER_LIMIT and not answer.content.at_eof():
                        raw += await answer.content.read(_ANSWER_LIMIT + 1 - len(raw))
                    status, after = answer.status, _retry_after(answer.headers.get("Retry-After"))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise Unreachable(f"{self.url} cannot be reached: {_reason(error)}") from None
        if status in _TRANSIENT:
            raise Unreachable(f"{self.url} answers {status}{_detail(raw)}", after)
        if status in {401, 403}:
            raise Refused(
                f"{self.url} refuses the token ({status}{_detail(raw)}):"
                " set SIMSPOOL_TOKEN or --token-file to the one in the server's folder"
            )
        if status in {301, 302, 303, 307, 308}:
            raise Unreachable(f"{self.url} redirects, which is not followed: is it a login page of the network, or is the URL another one?")
        value = _parse(raw)
        if status == 413 and method != "GET" and path != "/state":
            raise TooLarge(f"{self.url} says {status}{_detail(raw)}")
        if status not in ok and status not in {400, 404, 409, 422}:
            raise Unreachable(f"{self.url} answers {status}{_detail(raw)}", after)
        if status == 404:
            if isinstance(value, dict) and "detail" in value:
                raise Refused(f"{self.url} has no simspool drain endpoint: it is not an `agent serve` server")
            raise Unreachable(f"{self.url} answers 404: is the URL right?")
        if not isinstance(value, dict):
            raise Unreachable(
                f"{self.url} answers something else than a simspool server: is it a login page of the network, or is the URL another one?"
            )
        return status, value

    async def connect(self) -> tuple[str, Limits]:
        """See Target."""
        _, value = await self._call("GET", "/server")
        server, protocol, limits = value.get("server"), value.get("protocol"), value.get("limits")
        if not isinstance(server, str) or not 0 < len(server) <= 200 or not isinstance(limits, dict):
            raise Unreachable(f"{self.url} answers something else than a simspool server")
        if protocol != 1:
            raise Refused(f"{self.url} speaks version {protocol!r} of the drain protocol, this agent version 1: upgrade the older one")
        base = Limits()
        numbers = {k: v for k, v in limits.items() if isinstance(v, int) and 0 < v < 1 << 63}
        return _text(server), Limits(
            min(base.body, numbers.get("body", base.body)), min(base.decoded, numbers.get("decoded", base.decoded)),
            min(base.ranges, numbers.get("ranges", base.ranges)), numbers.get("blob", base.blob),
        )  # fmt: skip

    async def send(self, ranges: Sequence[Range]) -> list[Verdict]:
        """See Target."""
        compressor = zstandard.ZstdCompressor(level=1)  # one a call: they are not thread-safe
        body = await asyncio.to_thread(compressor.compress, b"".join([r.data for r in ranges]))
        headers = {"Content-Type": _TYPE, "Content-Encoding": "zstd"}
        status, value = await self._call("POST", "/drain", blocks=_blocks(body), size=len(body), headers=headers)
        if status != 200:
            raise Poison(f"{self.url} says {status}: {_text(value.get('detail'))[:300]}")
        found = value.get("ranges")
        if not isinstance(found, list) or len(found) != len(ranges):
            raise Unreachable(f"{self.url} answers {len(found) if isinstance(found, list) else 'no'} verdicts for {len(ranges)} ranges")
        return [self._verdict(r, v) for r, v in zip(ranges, found, strict=True)]

    def _verdict(self, sent: Range, value: Any) -> Verdict:
        try:
            kind, mark, chain = value["verdict"], value.get("mark", 0), value.get("chain", 0)
            refused = [(int(seq), _text(reason)[:500]) for seq, reason in value.get("refused", ())]
            good = (
                value["writer"] == sent.writer
                and kind in {"accepted", "retry", "permanent"}
                and type(mark) is int
                and type(chain) is int
                and 0 <= mark < 1 << 62
                and 0 <= chain < 1 << 62
                and (kind != "accepted" or mark >= sent.last)
                and all(sent.first <= seq <= sent.last for seq, _ in refused)
            )
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
            good = False
        if not good:
            raise Unreachable(
                f"{self.url} answers a verdict that makes no sense for writer {sent.writer}, records {sent.first} to {sent.last}"
            )
        return Verdict(kind, mark, chain, _text(value.get("reason", ""))[:500], refused)

    async def missing(self, digests: Sequence[str]) -> list[str]:
        """See Target."""
        try:
            _, value = await self._call("POST", "/blobs/missing", json={"digests": list(digests)})
        except TooLarge as error:
            if len(digests) == 1:
                raise Unreachable(str(error)) from None
            middle = len(digests) // 2
            return await self.missing(digests[:middle]) + await self.missing(digests[middle:])
        found = value.get("missing")
        if not isinstance(found, list):
            raise Unreachable(f"{self.url} does not say which blobs are missing")
        asked = set(digests)
        return [d for d in found if isinstance(d, str) and d in asked]

    async def put(self, digest: str, path: str) -> str | None:
        """See Target."""
        with open(path, "rb") as file:  # noqa: ASYNC230 - blocks are read in a thread
            size = os.fstat(file.fileno()).st_size
            headers = {"Content-Type": "application/octet-stream"}
            broken: list[str] = []
            blocks = _file_blocks(file, size, broken)
            try:
                status, value = await self._call("PUT", f"/blobs/{digest}", ok=(200, 201), blocks=blocks, size=size, headers=headers)
            except TooLarge:
                return f"the server's limit is below its {size} bytes"
            except Unreachable:
                if broken:  # not the server's fault: the others go on
                    return broken[0]
                raise
        return None if status in {200, 201} else f"the server says {status}: {_text(value.get('detail'))[:300]}"

    async def heartbeat(self, runs: dict[str, float]) -> dict[str, dict[str, Any]]:
        """See Target."""
        _, value = await self._call("POST", "/state", json={"runs": {run: {"heartbeat": at} for run, at in runs.items()}})
        flags = value.get("abort")
        return {run: flag for run, flag in flags.items() if run in runs and isinstance(flag, dict)} if isinstance(flags, dict) else {}

    async def close(self) -> None:
        """See Target."""
        if self._session is not None:
            await self._session.close()
            self._session = None


async def _blocks(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), _BLOCK):
        yield data[at : at + _BLOCK]


async def _file_blocks(file: BinaryIO, size: int, broken: list[str]) -> AsyncIterator[bytes]:
    """Give out a file's bytes. aiohttp hides why a body ended early, so that is said in `broken`."""
    left = size
    while left > 0:
        try:
            block = await asyncio.to_thread(file.read, min(_BLOCK, left))
        except OSError as error:
            broken.append(f"it cannot be read: {error.strerror}")
            raise
        if not block:
            broken.append("it became shorter while it was sent")
            raise EOFError
        left -= len(block)
        yield block


async def _timed(blocks: AsyncIterator[bytes], limit: asyncio.Timeout, seconds: float) -> AsyncIterator[bytes]:
    """Give out blocks; each one that is asked for says that the one before has left."""
    async for block in blocks:
        if limit.expired():
            return
        limit.reschedule(asyncio.get_running_loop().time() + seconds)
        yield block


def _text(value: Any) -> str:
    """Return text of a server's that any database takes."""
    return str(value).encode(errors="replace").decode()


def _reason(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or str(error.os_error)
    return str(error) or type(error).__name__


def _retry_after(text: str | None) -> float:
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


def _parse(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def _detail(raw: bytes) -> str:
    value = _parse(raw[:10000])
    detail = value.get("detail") if isinstance(value, dict) else None
    return f": {str(detail)[:300]}" if detail else ""
