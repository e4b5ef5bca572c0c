"""What servers answer, over a real socket: late, endless, elsewhere, too much, nonsense. Each has its name, and none holds us up."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from simspool.agent.targets.embedded import EmbeddedTarget
from simspool.agent.targets.http import retry_after
from simspool.agent.targets.port import File, Poison, Range, Refused, TooLarge, Unreachable, Verdict

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
RANGE = Range("r", "w", 1, 10, b"x" * 50, 77, 1, 2000)


def answering(status: str, body: bytes, headers: str = "") -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"ontent-Length" in head or b"ontent-length" in head:
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}Connection: close\r\n\r\n".encode() + body)
        await writer.drain()

    return script


def against(script: Script, call: Callable[[EmbeddedTarget], Awaitable[Any]], timeout: float = 5.0) -> Any:
    async def once() -> Any:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await script(reader, writer)
            except (OSError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        target = EmbeddedTarget(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "token", timeout=timeout)
        try:
            return await call(target)
        finally:
            await target.close()
            server.close()

    return asyncio.run(once())


def a_file(digest: str) -> File:
    return File(digest, digest, 3, "r", "w", 1, "name", "output", "text/plain")


def send(target: EmbeddedTarget) -> Awaitable[list[Verdict]]:
    return target.send([RANGE])


def verdicts(**fields: Any) -> bytes:
    return json.dumps({"server": "s", "ranges": [{"writer": "w", "verdict": "accepted", "mark": 10, "chain": 77, **fields}]}).encode()


def test_an_accepted_range_with_refused_records() -> None:
    [found] = against(answering("200 OK", verdicts(refused=[[3, "bad \ud800"]])), send)
    assert (found.kind, found.mark, found.refused) == ("accepted", 10, [(3, "bad ?")])


@pytest.mark.parametrize(
    "fields",
    [
        {"mark": 9}, {"mark": -1}, {"mark": 1 << 70}, {"mark": "10"}, {"mark": True}, {"mark": 10.5}, {"chain": None}, {"chain": 1 << 80},
        {"verdict": "maybe"}, {"writer": "other"}, {"refused": [[11, "beyond"]]}, {"refused": [5]}, {"refused": 5},
    ],
)  # fmt: skip
def test_a_verdict_that_makes_no_sense_changes_nothing(fields: dict[str, Any]) -> None:
    with pytest.raises(Unreachable, match="makes no sense"):
        against(answering("200 OK", verdicts(**fields)), send)


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b'{"ranges": []}', b'{"ranges": 5}', b"[" * 100_000, b"<html>", b"\xff"])
def test_an_answer_that_is_not_ours_is_an_unreachable_server(body: bytes) -> None:
    with pytest.raises(Unreachable):
        against(answering("200 OK", body), send)


def test_statuses_have_their_meaning() -> None:
    detail = b'{"detail": "why"}'
    for status, kind in (
        ("413 Large", TooLarge), ("400 Bad", Poison), ("422 Bad", Poison), ("401 No", Refused), ("403 No", Refused), ("404 None", Refused),
        ("302 Found", Unreachable), ("503 Busy", Unreachable), ("429 Slow", Unreachable), ("500 Oops", Unreachable),
        ("418 Tea", Unreachable),
    ):  # fmt: skip
        with pytest.raises(kind):
            against(answering(status, detail), send)
    with pytest.raises(Unreachable):
        against(answering("413 Large", detail), lambda target: target.heartbeat({"r": 1.0}))
    with pytest.raises(Unreachable):
        against(answering("413 Large", detail), lambda target: target.missing([a_file("a"), a_file("b")]))


def test_a_redirect_is_not_followed_and_the_token_stays_here() -> None:
    seen: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 307 Go\r\nLocation: /elsewhere\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()

    with pytest.raises(Unreachable, match="redirects"):
        against(script, lambda target: target.connect())
    assert len(seen) == 1


def test_retry_after_as_a_number_a_date_garbage_and_huge() -> None:
    assert retry_after("7") == 7.0
    assert retry_after("0.5") == 0.5
    assert 50 < retry_after(formatdate(time.time() + 60, usegmt=True)) <= 61
    assert retry_after(formatdate(time.time() - 60, usegmt=True)) == 0.0
    for garbage in (None, "", "soon", "nan", "-5", "\x00", "Mon, 99 Foo 2020"):
        assert retry_after(garbage) == 0.0
    for huge in ("1e300", "inf", "999999999999", formatdate(4e9, usegmt=True)):
        assert retry_after(huge) == 3600.0
    with pytest.raises(Unreachable) as caught:
        against(answering("503 Busy", b"", "Retry-After: 42\r\n"), send)
    assert caught.value.after == 42.0


def test_an_endless_answer_a_dripping_one_and_none_at_all_are_given_up() -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()

    async def dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    for script in (endless, dripping, silent):
        began = time.monotonic()
        with pytest.raises(Unreachable):
            against(script, lambda target: target.connect(), timeout=0.5)
        assert time.monotonic() - began < 10


def test_a_server_that_takes_nothing_of_a_large_file_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(30_000_000))

    async def frozen(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(3)

    began = time.monotonic()
    with pytest.raises(Unreachable):
        against(frozen, lambda target: target.put(a_file("0" * 64), str(path)), timeout=0.5)
    assert time.monotonic() - began < 10


def test_a_slow_upload_that_moves_on_is_not_given_up(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(20_000_000))

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for _ in range(10):
            await reader.readexactly(2_000_000)
            await asyncio.sleep(0.4)
        writer.write(b"HTTP/1.1 201 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        await writer.drain()

    assert against(slow, lambda target: target.put(a_file("0" * 64), str(path)), timeout=3.0) is None
