"""The embedded server as a target: what every target does, with a proxy that hurts on the way to it."""

from __future__ import annotations

import hashlib
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from conformance import Conformance, Counted, Fault, Promise
from faulty_proxy import FaultyProxy
from real_server import RealServer

from simspool.agent.targets.settings import TargetSettings
from simspool.spool import Kind, Spool, Writer

_NUMBERS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": -float("inf")}


class Hurting(FaultyProxy):
    """A proxy whose faults are counted, and that may refuse large bodies."""

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream, self._next)
        self.faults: list[str] = []
        self.most: int | None = None

    def _next(self, method: str, path: str, _n: int) -> str:
        writing = path.endswith("/drain") or method == "PUT"
        return self.faults.pop() if self.faults and (writing or self.faults[-1] != "lose-reply") else "ok"

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if self.most is not None and request.path.endswith("/drain") and len(await request.read()) > self.most:
            return web.json_response({"detail": "too large"}, status=413)
        return await super()._handle(request)


class EmbeddedBench:
    """See conformance.Bench."""

    name = "embedded server"
    supports: frozenset[Fault] = frozenset(
        {"kill", "backup", "temporary", "lost-reply", "poison-record", "poison-run", "small-bodies"}
    )  # fmt: skip
    promise = Promise()

    def __init__(self, server: RealServer, proxy: Hurting) -> None:
        self.server, self.proxy = server, proxy
        self._down = False

    def settings(self) -> TargetSettings:
        return TargetSettings("served", "simspool", self.proxy.url, self.server.token)

    def has(self, run: str) -> Counted | None:
        self.heal()
        ask = self.server.get
        shown = ask(f"/runs/{run}")
        if shown is None:
            return None
        metrics = {}
        for name in ask("/metrics/names", runs=[run]):
            points = self.server.points(run, name)
            metrics[name] = [(step, _NUMBERS.get(value, value) if isinstance(value, str) else value) for step, value in points]
        files = {}
        for artifact in ask(f"/runs/{run}/artifacts"):
            if artifact["uploaded"]:
                request = urllib.request.Request(artifact["url"], headers={"Authorization": f"Bearer {self.server.token}"})
                with urllib.request.urlopen(request, timeout=60) as answer:
                    files[artifact["name"]] = hashlib.sha256(answer.read()).hexdigest()
        return Counted(metrics, self.server.events(run), files, shown["status"])

    def heal(self) -> None:
        self.proxy.faults.clear()
        self.proxy.most = None
        if self._down:
            self.restart()

    def kill(self) -> None:
        self._down = True
        self.server.kill()

    def restart(self) -> None:
        if self._down:
            self.server.start()
        self._down = False

    def backup(self) -> Path:
        self.kill()
        copy = self.server.data.with_name("copy")
        shutil.copytree(self.server.data, copy)
        self.restart()
        return copy

    def restore(self, copy: Path) -> None:
        self.kill()
        shutil.rmtree(self.server.data)
        copy.rename(self.server.data)
        self.restart()

    def refuse(self, status: int, times: int, after: float | None = None) -> None:
        self.proxy.faults += [str(status)] * times

    def lose_replies(self, times: int) -> None:
        self.proxy.faults += ["lose-reply"] * times

    def poison(self, writer: Writer) -> int:
        """Events without a message."""
        for n in range(2):
            assert writer.record(Kind.EVENT, {"text": n})
        return 2

    def refuse_run(self, spool: Spool, run: str) -> None:
        """Somebody deletes the run on the server."""
        request = urllib.request.Request(
            f"{self.server.url}/api/runs/{run}", method="DELETE", headers={"Authorization": f"Bearer {self.server.token}"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.status == 200

    def limit_bodies(self, size: int) -> None:
        self.proxy.most = size


class TestEmbedded(Conformance):
    """The suite."""

    @pytest.fixture(scope="class")
    @classmethod
    def bench(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
        with RealServer(tmp_path_factory.mktemp("embedded") / "data") as server, Hurting(server.url) as proxy:
            yield EmbeddedBench(server, proxy)
