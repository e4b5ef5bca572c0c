"""A reverse proxy that hurts: it stands between an agent and a real server, and breaks requests by a schedule."""

from __future__ import annotations

import asyncio
import io
import random
import threading
from collections.abc import Callable
from typing import Any, Self

import aiohttp
from aiohttp import web

# what can happen to one request; "ok" is none of them
FAULTS = ("refuse", "lose-reply", "half-reply", "503", "429", "garbage", "html", "redirect", "reset-midway")


class FaultyProxy:
    """Runs in a thread of its own. `choose(method, path, n)` names the fault of the n-th request, or "ok"."""

    def __init__(self, upstream: str, choose: Callable[[str, str, int], str]) -> None:
        self.upstream, self.choose = upstream.rstrip("/"), choose
        self.log: list[tuple[str, str, str]] = []
        self.body_bytes = 0
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._client = aiohttp.ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2, auto_decompress=False)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._started.set()
        await self._stop.wait()
        await self._client.close()
        await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        fault = self.choose(request.method, request.path, len(self.log))
        self.log.append((request.method, request.path, fault))
        answers: dict[str, Any] = {
            "503": (503, {}, "busy"),
            "429": (429, {"Retry-After": "0.05"}, "slow down"),
            "garbage": (200, {}, "\x00\x01{not json"),
            "html": (200, {"Content-Type": "text/html"}, "<html>Please log in</html>"),
            "redirect": (302, {"Location": "http://127.0.0.1:9/elsewhere"}, ""),
        }
        if fault == "refuse":
            return self._cut(request)
        if fault == "reset-midway":
            await request.content.read(64)
            return self._cut(request)
        body = await request.read()
        if fault in answers:
            status, headers, text = answers[fault]
            return web.Response(status=status, headers=headers, text=text)
        if request.method in {"POST", "PUT"} and not request.path.endswith(("/missing", "/state", "/marks")):
            self.body_bytes += len(body)
        headers = {k: v for k, v in request.headers.items() if k.lower() not in {"host", "content-length", "transfer-encoding"}}
        data = io.BytesIO(body) if len(body) > 1 << 20 else body  # aiohttp warns of large bytes
        try:
            async with self._client.request(
                request.method, self.upstream + request.path_qs, data=data, headers=headers, allow_redirects=False
            ) as answer:
                raw = await answer.read()
                status, kept = answer.status, {"Content-Type": answer.headers.get("Content-Type", "application/json")}
        except aiohttp.ClientError:
            return self._cut(request)
        if fault == "lose-reply":
            return self._cut(request)
        if fault == "half-reply":
            half = web.StreamResponse(status=status, headers={**kept, "Content-Length": str(len(raw))})
            await half.prepare(request)
            await half.write(raw[: len(raw) // 2])
            return self._cut(request, half)
        return web.Response(status=status, headers=kept, body=raw)

    @staticmethod
    def _cut(request: web.Request, answer: web.StreamResponse | None = None) -> web.StreamResponse:
        if request.transport is not None:  # else the client was first
            request.transport.abort()
        return answer or web.Response()


def seeded(seed: int, rate: float) -> Callable[[str, str, int], str]:
    """Break this share of all requests, each with a random fault; the same seed gives the same schedule."""
    rng = random.Random(seed)

    def choose(_method: str, _path: str, _n: int) -> str:
        return rng.choice(FAULTS) if rng.random() < rate else "ok"

    return choose
