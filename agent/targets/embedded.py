"""The embedded server (`agent serve`) as a target: exactly-once by its marks (docs/drain-protocol.md)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import zstandard

from simspool.sdk.way import Way

from . import recounted
from .http import Body, FileBody, HttpCaller, plain_text
from .pace import Pace
from .parts import IN_PARTS, LATER, PartsUpload
from .port import File, Foreign, Limits, Memory, NotNow, Poison, Range, Recount, Refused, TooLarge, Traits, Unreachable, Verdict
from .settings import TargetSettings

_BASE = "/api/simspool/v1"
_TYPE = "application/x-simspool-ranges"
_FETCH = 8 << 20  # bytes
_DEEP = 86400.0  # s for a deep recount
_REQUEST_SECONDS, _SMALLEST = 20.0, 32 << 10  # what a request may take at a capped bandwidth: a server gives up those that take long
_ADVICE = "set SIMSPOOL_TOKEN or --token-file to the one in the server's folder"


class EmbeddedTarget:
    """Speaks the drain protocol over HTTP. Redirects are not followed, proxies of the environment not used: the token stays here."""

    def __init__(
        self, url: str, token: str, *, timeout: float = 60.0, bandwidth: float | None = None, uploads: int | None = None,
        way: Way | None = None,
    ) -> None:  # fmt: skip
        url = url.rstrip("/").removesuffix("/api")
        pace = Pace(bandwidth) if bandwidth else None
        self._http = HttpCaller(url, {"Authorization": f"Bearer {token}"}, timeout=timeout, pace=pace, advice=_ADVICE, way=way)
        self.url = self._http.url
        self.version = ""  # of the server, once it is known
        self.traits = Traits(uploaders=uploads) if uploads else Traits()
        self._slots = asyncio.Semaphore(self.traits.uploaders)  # of all files together
        self._bandwidth = bandwidth
        self._parts = 0  # that the server takes in a request

    @classmethod
    def of(cls, settings: TargetSettings) -> EmbeddedTarget:
        """Return the target that settings mean. Raises Refused for an address that cannot be one."""
        return cls(settings.url, settings.token or "", bandwidth=settings.bandwidth, uploads=settings.uploads, way=settings.way)

    async def _call(
        self, method: str, path: str, *, value: Any = None, body: bytes | Body | None = None, headers: Mapping[str, str] | None = None,
        ok: tuple[int, ...] = (200,), bulk: bool = False, patience: float | None = None,
    ) -> tuple[int, Any]:  # fmt: skip
        """Make one request; return the status and the JSON answer. An answer that is not ours counts as unreachable."""
        try:
            answer = await self._http.call(
                method, _BASE + path, value=value, body=body, headers=headers, expected=(*ok, 400, 404, 409, 422), bulk=bulk,
                patience=patience,
            )  # fmt: skip
        except TooLarge as error:
            if method == "GET" or path == "/state":
                raise Unreachable(str(error)) from None
            raise
        value = answer.value
        if answer.status == 404:
            if isinstance(value, dict) and "detail" in value:
                raise Foreign(f"{self.url} has no simspool drain endpoint: it is not an `agent serve` server")
            raise Unreachable(f"{self.url} answers 404: is the URL right?")
        if not isinstance(value, dict):
            raise Unreachable(
                f"{self.url} answers something else than a simspool server: is it a login page of the network, or is the URL another one?"
            )
        return answer.status, value

    async def connect(self) -> tuple[str, Limits]:
        """See Target."""
        _, value = await self._call("GET", "/server")
        server, protocol, limits = value.get("server"), value.get("protocol"), value.get("limits")
        if not isinstance(server, str) or not 0 < len(server) <= 200 or not isinstance(limits, dict):
            raise Unreachable(f"{self.url} answers something else than a simspool server")
        if protocol != 1:
            raise Refused(f"{self.url} speaks version {protocol!r} of the drain protocol, this agent version 1: upgrade the older one")
        base = Limits()
        if self._bandwidth:
            fitting = max(int(self._bandwidth * _REQUEST_SECONDS), _SMALLEST)
            base = Limits(min(base.body, fitting), min(base.decoded, fitting))
        numbers = {k: v for k, v in limits.items() if isinstance(v, int) and 0 < v < 1 << 63}
        self.version = plain_text(value.get("version", ""))[:40]
        self._parts = numbers.get("parts", 0)  # 0: a server from before there were parts
        return plain_text(server), Limits(
            min(base.body, numbers.get("body", base.body)), min(base.decoded, numbers.get("decoded", base.decoded)),
            min(base.ranges, numbers.get("ranges", base.ranges)), numbers.get("blob", base.blob),
        )  # fmt: skip

    def bind(self, memory: Memory) -> None:
        """See Target. This one needs none: the server's marks say it all."""

    async def send(self, ranges: Sequence[Range]) -> list[Verdict]:
        """See Target."""
        compressor = zstandard.ZstdCompressor(level=1)  # one a call: they are not thread-safe
        body = await asyncio.to_thread(compressor.compress, b"".join([r.data for r in ranges]))
        headers = {"Content-Type": _TYPE, "Content-Encoding": "zstd"}
        status, value = await self._call("POST", "/drain", body=body, headers=headers)
        if status != 200:
            raise Poison(f"{self.url} says {status}: {plain_text(value.get('detail'))[:300]}")
        found = value.get("ranges")
        if not isinstance(found, list) or len(found) != len(ranges):
            raise Unreachable(f"{self.url} answers {len(found) if isinstance(found, list) else 'no'} verdicts for {len(ranges)} ranges")
        return [self._verdict(r, v) for r, v in zip(ranges, found, strict=True)]

    def _verdict(self, sent: Range, value: Any) -> Verdict:
        try:
            kind, mark, chain = value["verdict"], value.get("mark", 0), value.get("chain", 0)
            refused = [(int(seq), plain_text(reason)[:500]) for seq, reason in value.get("refused", ())]
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
        if sent.again and kind == "accepted" and "taken" not in value:
            return Verdict("permanent", mark, chain, f"{self.url} is too old to take again what it refused: upgrade it")
        return Verdict(kind, mark, chain, plain_text(value.get("reason", ""))[:500], refused)

    async def marks(self, writers: Sequence[tuple[str, str]]) -> dict[str, int]:
        """See Target."""
        _, value = await self._call("POST", "/marks", value={"writers": [writer for _, writer in writers]})
        found = value.get("marks")
        if not isinstance(found, dict):
            raise Unreachable(f"{self.url} does not say what it has of writers")
        made = {}
        for _, writer in writers:
            mark = found.get(writer, [0])
            if not isinstance(mark, list) or not mark or type(mark[0]) is not int or not 0 <= mark[0] < 1 << 62:
                raise Unreachable(f"{self.url} answers a mark that makes no sense for writer {writer}")
            made[writer] = mark[0]
        return made

    async def recount(self, run: str) -> Recount | None:
        """See Target."""
        _, value = await self._call("POST", "/recount", value={"runs": [run]})
        return recounted.parse(self.url, value, run)

    async def recount_deep(self, run: str) -> Recount | None:
        """Have the server decode every point and hash every file: it may take hours."""
        _, value = await self._call("POST", "/recount", value={"runs": [run], "deep": True}, patience=_DEEP)
        return recounted.parse(self.url, value, run)

    async def fetch(self, digest: str) -> AsyncIterator[bytes]:
        """Yield the bytes of a file that the server has, in blocks. Whoever takes them verifies them. Raises Refused where it has not."""
        at = 0
        while True:
            wanted = {"Range": f"bytes={at}-{at + _FETCH - 1}"}
            answer = await self._http.call("GET", f"{_BASE}/blobs/{digest}", headers=wanted, expected=(200, 206, 404, 416))
            if answer.status == 404:
                raise Refused(f"{self.url} does not have the file with the digest {digest[:12]}")
            if answer.status != 416:  # that is one behind the end
                yield answer.body
            at += len(answer.body)
            if answer.status != 206 or len(answer.body) < _FETCH:
                return

    async def missing(self, files: Sequence[File]) -> list[str]:
        """See Target."""
        digests = [f.digest for f in files]
        try:
            _, value = await self._call("POST", "/blobs/missing", value={"digests": digests})
        except TooLarge as error:
            if len(files) == 1:
                raise Unreachable(str(error)) from None
            middle = len(files) // 2
            return await self.missing(files[:middle]) + await self.missing(files[middle:])
        found = value.get("missing")
        if not isinstance(found, list):
            raise Unreachable(f"{self.url} does not say which blobs are missing")
        asked = set(digests)
        return [d for d in found if isinstance(d, str) and d in asked]

    async def put(self, file: File, path: str) -> str | None:
        """See Target."""
        with open(path, "rb") as source:  # noqa: ASYNC230 - blocks are read in a thread
            size = os.fstat(source.fileno()).st_size
            if self._parts and size >= IN_PARTS:
                connections = max(1, self.traits.uploaders - 1)  # one large file leaves a way to the others
                return await PartsUpload(self._call, self.url, file.digest, source, self._parts, self._slots, connections).send()
            body = FileBody(source, size)
            headers = {"Content-Type": "application/octet-stream"}
            try:
                async with self._slots:
                    status, value = await self._call(
                        "PUT", f"/blobs/{file.digest}", ok=(200, 201, 507), body=body, headers=headers, bulk=True
                    )
            except TooLarge:
                return f"the server's limit is below its {body.size} bytes"
            except Unreachable:
                if body.broken:  # not the server's fault: the others go on
                    return body.broken
                raise
        if status == 507:
            raise NotNow(f"{self.url} has no room for its {size} bytes now", LATER)
        return None if status in {200, 201} else f"the server says {status}: {plain_text(value.get('detail'))[:300]}"

    async def heartbeat(self, runs: dict[str, float]) -> dict[str, dict[str, Any]]:
        """See Target."""
        _, value = await self._call("POST", "/state", value={"runs": {run: {"heartbeat": at} for run, at in runs.items()}})
        flags = value.get("abort")
        return {run: flag for run, flag in flags.items() if run in runs and isinstance(flag, dict)} if isinstance(flags, dict) else {}

    async def close(self) -> None:
        """See Target."""
        await self._http.close()
