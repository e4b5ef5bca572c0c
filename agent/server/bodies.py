"""Request bodies, read with bounds: size, time, decompressed size, ratio, depth. Nothing here trusts a header.

A body that is over a bound is refused (413), as is one that stops arriving (408); what does not parse is 422.
"""

from __future__ import annotations

import asyncio
import io
import json
import zlib
from collections.abc import AsyncIterator
from typing import Any

import msgpack
import zstandard
from aiohttp import web

from .errors import Invalid, Refused, TooLarge

MAX_BODY = 32 << 20
MAX_DECODED = 64 << 20
_MAX_RATIO, _RATIO_FROM = 300, 4 << 20
_MAX_DEPTH = 64
_MAX_WINDOW = 1 << 25
BODY_SECONDS, BLOCK_SECONDS = 120.0, 30.0
_ZSTD_MAGIC, _GZIP_MAGIC = b"\x28\xb5\x2f\xfd", b"\x1f\x8b"


class TooSlow(Refused):
    """Raised when a body stops arriving."""

    status = 408


async def blocks(request: web.Request, limit: int) -> AsyncIterator[bytes]:
    """Yield the body as it arrives. Raises TooLarge and TooSlow."""
    if request.content_length is not None and request.content_length > limit:
        raise TooLarge(f"the body has {request.content_length} bytes, at most {limit} are taken")
    size = 0
    while True:
        try:
            async with asyncio.timeout(BLOCK_SECONDS):
                block = await request.content.readany()
        except TimeoutError:
            raise TooSlow(f"no byte of the body arrived for {BLOCK_SECONDS:.0f} s") from None
        if not block:
            return
        size += len(block)
        if size > limit:
            raise TooLarge(f"the body is over the limit of {limit} bytes")
        yield block


async def raw(request: web.Request, limit: int = MAX_BODY, decoded: int = MAX_DECODED) -> bytes:
    """Return the whole body, decompressed. Raises TooLarge, TooSlow and Invalid."""
    parts = []
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for block in blocks(request, limit):
                parts.append(block)  # noqa: PERF401 - a comprehension would hide the timeout
    except TimeoutError:
        raise TooSlow(f"the body did not arrive within {BODY_SECONDS:.0f} s") from None
    body = b"".join(parts)
    coding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if coding in {"", "identity"}:
        return body
    # aiohttp may have undone the coding already, as its runner was told to: the magic bytes say
    if coding == "zstd":
        return await asyncio.to_thread(unzstd, body, decoded) if body.startswith(_ZSTD_MAGIC) else body
    if coding == "gzip":
        return await asyncio.to_thread(gunzip, body, decoded) if body.startswith(_GZIP_MAGIC) else body
    raise Invalid(f"Content-Encoding {coding[:32]!r} is not known: use zstd, gzip or none")


def _check(size: int, packed: int, limit: int) -> None:
    if size > limit:
        raise TooLarge(f"the decompressed body is over the limit of {limit} bytes: send smaller ranges")
    if size > _RATIO_FROM and size > packed * _MAX_RATIO:
        raise TooLarge(f"the body decompresses more than {_MAX_RATIO} times: it is not taken")


def unzstd(body: bytes, limit: int) -> bytes:
    """Return a zstd body's content. Raises TooLarge for what is over the limit or the ratio, Invalid for what is not zstd."""
    out, size = [], 0
    try:
        worker = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
        with worker.stream_reader(io.BytesIO(body), read_across_frames=True) as stream:
            while block := stream.read(1 << 20):
                out.append(block)
                size += len(block)
                _check(size, len(body), limit)
    except (zstandard.ZstdError, MemoryError):
        raise Invalid("the body is not zstd") from None
    return b"".join(out)


def gunzip(body: bytes, limit: int) -> bytes:
    """Return a gzip body's content. Raises as `unzstd` does."""
    out, size, worker, rest = [], 0, zlib.decompressobj(31), body
    try:
        while not worker.eof:
            block = worker.decompress(rest, 1 << 20)
            rest = worker.unconsumed_tail
            if not block and not rest:
                raise Invalid("the gzip body is incomplete")
            out.append(block)
            size += len(block)
            _check(size, len(body), limit)
    except zlib.error:
        raise Invalid("the body is not gzip") from None
    return b"".join(out)


def check_depth(value: Any) -> None:
    """Raise Invalid for what is nested deeper than 64 levels."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(_MAX_DEPTH):
        if not level:
            return
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
    raise Invalid(f"the body is nested deeper than {_MAX_DEPTH} levels")


def parse(body: bytes, content_type: str) -> Any:
    """Return a JSON or msgpack body's value. Raises Invalid."""
    try:
        value = msgpack.unpackb(body) if "msgpack" in content_type else json.loads(body)
    except RecursionError:
        raise Invalid(f"the body is nested deeper than {_MAX_DEPTH} levels") from None
    except (ValueError, msgpack.UnpackException, MemoryError) as error:
        kind = "msgpack" if "msgpack" in content_type else "JSON"
        raise Invalid(f"the body is not {kind}: {str(error)[:120]}") from None
    check_depth(value)
    return value


async def value(request: web.Request) -> Any:
    """Return the request's JSON or msgpack value; {} for no body. Raises TooLarge, TooSlow and Invalid."""
    body = await raw(request)
    if not body:
        return {}
    if len(body) > 1 << 16:
        return await asyncio.to_thread(parse, body, request.content_type)
    return parse(body, request.content_type)


async def mapping(request: web.Request) -> dict[str, Any]:
    """Return the request's value, which must be an object. Raises as `value` does."""
    found = await value(request)
    if not isinstance(found, dict):
        raise Invalid(f"an object is expected, not {type(found).__name__}")
    return found
