"""A hostile server: what the faulty proxy does, and lies about what was stored, long silences, and refusals of what is sent."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import zstandard
from aiohttp import web
from faulty_proxy import FAULTS, FaultyProxy

SILENCE = 2.0  # seconds before a connection that hangs is cut
LIES = ("ack-low", "ack-high", "ack-twice", "ack-shuffled", "ack-other-chain", "ack-of-another", "ack-null")
ALL = (*FAULTS, "500", "429-date", "429-garbage", "hang-before", "hang-after", *LIES)


class Hostile(FaultyProxy):
    """`choose` may name any fault of ALL. `poison(body)` says that a drain request, as its ranges lie in it, is refused for good."""

    def __init__(self, upstream: str, choose: Callable[[str, str, int], str], poison: Callable[[bytes], bool] | None = None) -> None:
        super().__init__(upstream, self._name_of_base)
        self._pick, self._poison, self._base = choose, poison, "ok"
        self.requests = 0

    def _name_of_base(self, _method: str, _path: str, _n: int) -> str:
        return self._base

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        fault = self._pick(request.method, request.path, self.requests)
        self.requests += 1
        if self._poison is not None and request.path.endswith("/drain"):
            body = zstandard.ZstdDecompressor().decompress(await request.read(), max_output_size=1 << 26)
            if self._poison(body):
                return web.json_response({"detail": "this server never takes that"}, status=422)
        refusals: dict[str, tuple[int, dict[str, str]]] = {
            "500": (500, {}), "429-date": (429, {"Retry-After": formatdate(time.time() + 1, usegmt=True)}),
            "429-garbage": (429, {"Retry-After": "soon\u00e9"}),
        }  # fmt: skip
        if fault in refusals:
            status, headers = refusals[fault]
            return web.Response(status=status, headers=headers, text="no")
        if fault == "hang-before":
            await asyncio.sleep(SILENCE)
            return self._cut(request)
        self._base = fault if fault in FAULTS else "ok"
        try:
            answer = await super()._handle(request)
        except ConnectionResetError:  # who asked is gone
            return self._cut(request)
        if fault == "hang-after":
            await asyncio.sleep(SILENCE)
            return self._cut(request)
        if fault in LIES and request.path.endswith("/drain") and isinstance(answer, web.Response) and answer.status == 200:
            return web.json_response(lie(fault, json.loads(answer.body or b"{}")))  # type: ignore[arg-type]
        return answer


def lie(fault: str, value: dict[str, Any]) -> Any:
    """Return what a server that stored everything says instead of the truth."""
    verdicts = value["ranges"]
    if fault == "ack-twice":
        return value | {"ranges": verdicts + verdicts}
    if fault == "ack-shuffled":
        return value | {"ranges": verdicts[::-1]}
    if fault == "ack-null":
        return None
    for verdict in verdicts:
        if fault == "ack-low":
            verdict["mark"] = max(verdict["mark"] - 3, 0)
        elif fault == "ack-high":
            verdict["mark"] += 1000
        elif fault == "ack-other-chain":
            verdict["verdict"], verdict["reason"] = "retry", "gap"
        else:
            verdict["writer"] = "0" * 22
    return value
