"""What a server may answer to an upload in parts: nonsense, no progress, an upload that is gone; how many requests it sees at a time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from simspool.agent.targets import parts as parts_module
from simspool.agent.targets.embedded import EmbeddedTarget
from simspool.agent.targets.port import File, Unreachable

SIZE = 9 << 20
Story = Callable[[EmbeddedTarget, Path], Awaitable[Any]]


class Scripted:
    """A server of a few lines. `asked` answers the n-th question for an upload, `sent` the n-th request with parts."""

    def __init__(self, asked: Callable[[int], Any], sent: Callable[[int], tuple[int, Any]]) -> None:
        self.asked, self.sent = asked, sent
        self.questions = self.requests = self.now = self.most = 0

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_get("/api/simspool/v1/server", self._server)
        app.router.add_post("/api/simspool/v1/blobs/{digest}/parts", self._ask)
        app.router.add_put("/api/simspool/v1/blobs/{digest}/parts/{first}", self._put)
        return app

    async def _server(self, _: web.Request) -> web.Response:
        return web.json_response({"server": "s", "protocol": 1, "limits": {"parts": 8}})

    async def _ask(self, _: web.Request) -> web.Response:
        self.questions += 1
        return web.Response(text=json.dumps(self.asked(self.questions)), content_type="application/json")

    async def _put(self, request: web.Request) -> web.Response:
        self.requests, self.now = self.requests + 1, self.now + 1
        self.most = max(self.most, self.now)
        number = self.requests
        try:
            await request.read()
            await asyncio.sleep(0.01)
        finally:
            self.now -= 1
        status, value = self.sent(number)
        return web.json_response(value, status=status)


def against(script: Scripted, folder: Path, story: Story, **options: Any) -> Any:
    path = folder / "large"
    path.write_bytes(bytes(SIZE))

    async def once() -> Any:
        runner = web.AppRunner(script.app(), access_log=None, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        target = EmbeddedTarget(f"http://127.0.0.1:{runner.addresses[0][1]}", "token", **options)
        try:
            await target.connect()
            return await story(target, path)
        finally:
            await target.close()
            await runner.cleanup()

    return asyncio.run(once())


async def send(target: EmbeddedTarget, path: Path, digest: str = "0" * 64) -> str | None:
    return await target.put(File(digest, digest, SIZE, "r", "w", 1, "name", "output", ""), str(path))


def missing(*spans: list[int], unverified: int = SIZE) -> dict[str, Any]:
    return {"stored": False, "part": 1 << 20, "missing": list(spans), "unverified": unverified}


@pytest.mark.parametrize(
    "answer",
    [
        {}, {"stored": False}, {"stored": False, "part": 1 << 20}, missing([0, 9]), missing([-1, 2]), missing([3, 2]), missing([0]),
        {**missing([0, 1]), "part": 1}, {**missing([0, 1]), "part": 1 << 40}, {**missing(), "missing": [[0, True]]},
        {**missing(), "missing": 5},
    ],
)  # fmt: skip
def test_an_answer_that_makes_no_sense_sends_nothing(answer: Any, tmp_path: Path) -> None:
    script = Scripted(lambda _: answer, lambda _: (200, {}))
    with pytest.raises(Unreachable, match="makes no sense"):
        against(script, tmp_path, send)
    assert script.requests == 0


def test_a_server_that_takes_parts_and_never_has_them_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "_AGAIN", 0.001)
    script = Scripted(lambda _: missing([0, 8]), lambda _: (200, {}))
    with pytest.raises(Unreachable, match="does not get on"):
        against(script, tmp_path, send)
    assert script.questions == 6
    script = Scripted(lambda _: missing(unverified=77), lambda _: (200, {}))
    with pytest.raises(Unreachable, match="does not get on"):
        against(script, tmp_path, send)
    assert script.requests == 0
    script = Scripted(lambda _: missing([4, 4]), lambda _: (422, {"detail": "part 4 was damaged"}))
    with pytest.raises(Unreachable, match="part 4 was damaged"):
        against(script, tmp_path, send)


def test_an_upload_that_is_gone_is_opened_again_and_a_verification_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "_AGAIN", 0.001)
    answers = [missing([0, 8]), missing([0, 8]), *(missing(unverified=left) for left in range(20, 0, -1)), {"stored": True}]
    script = Scripted(lambda n: answers[n - 1], lambda n: (409, {"detail": "not open"}) if n == 1 else (200, {}))
    assert against(script, tmp_path, send) is None
    assert script.questions == len(answers)


def test_a_wrong_digest_and_a_limit_are_reasons(tmp_path: Path) -> None:
    async def asked(_: web.Request) -> web.Response:
        return web.json_response({"detail": "did not match"}, status=422)

    script = Scripted(lambda _: {}, lambda _: (200, {}))
    script._ask = asked  # type: ignore[method-assign]
    assert against(script, tmp_path, send) == "the server says 422: did not match"


@pytest.mark.parametrize("uploads", [1, 3])
def test_no_more_requests_at_a_time_than_the_cap_says_for_all_files_together(uploads: int, tmp_path: Path) -> None:
    seen: set[int] = set()

    def asked(n: int) -> Any:
        return missing([0, 8]) if n <= 3 else {"stored": True}

    script = Scripted(asked, lambda n: (seen.add(n), (200, {}))[1])

    async def three(target: EmbeddedTarget, path: Path) -> list[str | None]:
        return await asyncio.gather(*(send(target, path, f"{n:064x}") for n in range(3)))

    assert against(script, tmp_path, three, uploads=uploads) == [None, None, None]
    assert 1 <= script.most <= uploads
    assert len(seen) >= 6
