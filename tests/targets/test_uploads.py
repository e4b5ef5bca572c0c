"""Large files in parts: what arrived stays, whatever breaks; the whole is visible only when it is right; nothing waits for them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import json
import os
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from counting_relay import CountingRelay
from in_process import serve_agent, the_drain, until
from real_server import RealServer
from recorded import add_file, begin, fill

from simspool.agent.app import Agent, AgentConfig
from simspool.agent.drain.backoff import Backoff
from simspool.agent.server import issue_token
from simspool.agent.targets.embedded import EmbeddedTarget
from simspool.agent.targets.port import File, NotNow
from simspool.spool import Kind, Spool, Writer

PART = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    with RealServer(tmp_path_factory.mktemp("uploads") / "data") as found:
        yield found


def content(size: int, seed: int) -> tuple[bytes, str]:
    data = random.Random(seed).randbytes(size)
    return data, hashlib.sha256(data).hexdigest()


def call(
    server: RealServer, method: str, path: str, body: bytes | None = None, *, token: str = "", kind: str = "application/json"
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    headers = {"Authorization": f"Bearer {token or server.token}", "Content-Type": kind}
    with contextlib.closing(connection):
        connection.request(method, f"/api/simspool/v1{path}", body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def ask(server: RealServer, digest: str, size: int, *, token: str = "") -> tuple[int, Any]:
    return call(server, "POST", f"/blobs/{digest}/parts", json.dumps({"size": size}).encode(), token=token)


def framed(data: bytes, first: int, count: int) -> bytes:
    parts = [data[n * PART : (n + 1) * PART] for n in range(first, first + count)]
    return b"".join(part + hashlib.sha256(part).digest() for part in parts)


def send(server: RealServer, digest: str, data: bytes, first: int, count: int, body: bytes | None = None) -> tuple[int, Any]:
    path = f"/blobs/{digest}/parts/{first}?size={len(data)}&count={count}"
    return call(server, "PUT", path, framed(data, first, count) if body is None else body, kind="application/x-simspool-parts")


def blob(server: RealServer, digest: str) -> Path:
    return server.data / "blobs" / digest[:2] / digest


def uploads(server: RealServer) -> list[str]:
    return [p.name for p in (server.data / "blobs" / "uploads").iterdir()]


def a_file(path: Path, digest: str) -> File:
    return File(digest, digest, path.stat().st_size, "r", "w", 1, path.name, "output", "")


def put(url: str, token: str, path: Path, digest: str, **options: Any) -> str | None:
    async def once() -> str | None:
        target = EmbeddedTarget(url, token, **options)
        try:
            await target.connect()
            return await target.put(a_file(path, digest), str(path))
        finally:
            await target.close()

    return asyncio.run(once())


def test_parts_in_any_order_survive_a_killed_server_and_damage_costs_only_its_part(server: RealServer) -> None:
    data, digest = content(5 * PART + 12345, 1)
    assert ask(server, digest, len(data)) == (200, {"stored": False, "part": PART, "missing": [[0, 5]], "unverified": len(data)})
    assert send(server, digest, data, 4, 2)[0] == 200
    good, bad = framed(data, 0, 1), bytearray(framed(data, 1, 1))
    bad[1000] ^= 1
    status, said = send(server, digest, data, 0, 2, good + bytes(bad))
    assert status == 422
    assert "part 1" in said["detail"]
    assert ask(server, digest, len(data))[1]["missing"] == [[1, 3]]
    assert not blob(server, digest).exists()
    server.kill()
    server.start()
    assert ask(server, digest, len(data))[1]["missing"] == [[1, 3]]
    assert send(server, digest, data, 1, 3)[0] == 200
    assert ask(server, digest, len(data)) == (200, {"stored": True})
    assert blob(server, digest).read_bytes() == data
    assert ask(server, digest, len(data)) == (200, {"stored": True})
    assert uploads(server) == []


def test_a_broken_connection_keeps_the_parts_before_the_break(server: RealServer) -> None:
    data, digest = content(4 * PART, 2)
    ask(server, digest, len(data))
    body = framed(data, 0, 4)
    head = (
        f"PUT /api/simspool/v1/blobs/{digest}/parts/0?size={len(data)}&count=4 HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {server.token}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(head.encode() + body[: 2 * (PART + 32) + 900_000])
    deadline = time.monotonic() + 60
    while ask(server, digest, len(data))[1]["missing"] != [[2, 3]]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_wrong_digest_at_the_end_shows_nothing_and_leaves_nothing(server: RealServer) -> None:
    data, digest = content(2 * PART, 3)
    wrong = hashlib.sha256(b"something else").hexdigest()
    ask(server, wrong, len(data))
    before = len(uploads(server))
    assert send(server, wrong, data, 0, 2)[0] == 200
    status, said = ask(server, wrong, len(data))
    assert status == 422
    assert "SHA256" in said["detail"]
    assert not blob(server, wrong).exists()
    assert len(uploads(server)) == before - 2
    assert ask(server, wrong, len(data))[1]["missing"] == [[0, 1]]
    assert call(server, "POST", "/blobs/missing", json.dumps({"digests": [wrong]}).encode())[1] == {"missing": [wrong]}


def test_what_is_durable_is_never_written_again(server: RealServer) -> None:
    data, digest = content(2 * PART, 4)
    other, _ = content(2 * PART, 5)
    ask(server, digest, len(data))
    assert send(server, digest, data, 0, 1)[0] == 200
    assert send(server, digest, other, 0, 1)[0] == 200  # a part is as good as its checksum; this one comes too late
    assert send(server, digest, data, 1, 1)[0] == 200
    assert ask(server, digest, len(data)) == (200, {"stored": True})
    assert blob(server, digest).read_bytes() == data


def test_another_user_learns_nothing_and_has_an_upload_of_its_own(server: RealServer) -> None:
    data, digest = content(2 * PART, 6)
    stranger = issue_token(server.data, "stranger", "default")
    ask(server, digest, len(data))
    send(server, digest, data, 0, 1)
    assert ask(server, digest, len(data), token=stranger)[1]["missing"] == [[0, 1]]
    send(server, digest, data, 1, 1)
    assert ask(server, digest, len(data))[1] == {"stored": True}
    assert ask(server, digest, len(data), token=stranger)[1]["missing"] == [[0, 1]]


def test_limits_are_told_before_a_byte_is_sent(server: RealServer) -> None:
    digest = "ab" * 32
    assert ask(server, digest, (1 << 40) + 1)[0] == 413
    assert ask(server, digest, (1 << 40) - 1)[0] == 507  # no machine of a test has a TiB to spare
    for size in (0, -1, True, "7", None, 1.5, 1 << 62):
        assert call(server, "POST", f"/blobs/{digest}/parts", json.dumps({"size": size}).encode())[0] == 422
    assert call(server, "POST", "/blobs/nonsense/parts", b'{"size": 5}')[0] == 422
    data, _ = content(3 * PART, 7)
    assert send(server, digest, data, 0, 1)[0] == 409  # never opened
    ask(server, digest, len(data))
    for first, count in ((0, 0), (0, 9), (3, 1), (2, 2), (1 << 30, 1)):
        assert send(server, digest, data, first, count)[0] == 422
    assert send(server, digest, data, 0, 1, framed(data, 0, 1) + b"x")[0] == 413
    assert send(server, digest, data, 0, 2, framed(data, 0, 1))[0] == 422
    assert ask(server, digest, len(data))[1]["missing"] == [[1, 2]]


def test_a_user_has_so_many_uploads_open_and_the_others_are_not_concerned(server: RealServer) -> None:
    hoarder = issue_token(server.data, "hoarder", "default")
    statuses = [ask(server, f"{n:064x}", 5, token=hoarder)[0] for n in range(257)]
    assert statuses == [200] * 256 + [429]
    assert ask(server, "cd" * 32, 5)[0] == 200


def test_what_a_dead_server_left_is_gone_or_goes_on(tmp_path: Path) -> None:
    with RealServer(tmp_path / "data") as own:
        old, old_digest = content(2 * PART, 8)
        ask(own, old_digest, len(old))
        send(own, old_digest, old, 0, 1)
        [listing] = [p for p in (own.data / "blobs" / "uploads").iterdir() if p.suffix == ".parts"]
        data, digest = content(2 * PART, 9)
        ask(own, digest, len(data))
        send(own, digest, data, 0, 2)
        own.kill()
        # killed when the whole had its place, and before the store knew of it
        [whole] = [p for p in (own.data / "blobs" / "uploads").iterdir() if p.suffix != ".parts" and p.name != listing.stem]
        blob(own, digest).parent.mkdir(exist_ok=True)
        whole.rename(blob(own, digest))
        # got nothing for eight days; and bytes without a list, and a list that is none
        os.utime(listing, (time.time() - 8 * 86400,) * 2)
        (own.data / "blobs" / "uploads" / "stray").write_bytes(b"x")
        (own.data / "blobs" / "uploads" / "none.parts").write_bytes(b"nonsense")
        own.start()
        assert ask(own, digest, len(data)) == (200, {"stored": True})
        deadline = time.monotonic() + 60
        while uploads(own):
            assert time.monotonic() < deadline, uploads(own)
            time.sleep(0.05)
        assert ask(own, old_digest, len(old))[1]["missing"] == [[0, 1]]


def test_two_agents_with_one_file_do_not_disturb_each_other(server: RealServer, tmp_path: Path) -> None:
    data, digest = content(24 * PART + 1, 10)
    path = tmp_path / "file"
    path.write_bytes(data)
    other = issue_token(server.data, "another", "default")

    async def all_at_once() -> list[str | None]:
        targets = [EmbeddedTarget(server.url, token) for token in (server.token, server.token, other)]
        try:
            for target in targets:
                await target.connect()
            return await asyncio.gather(*(target.put(a_file(path, digest), str(path)) for target in targets))
        finally:
            for target in targets:
                await target.close()

    assert asyncio.run(all_at_once()) == [None, None, None]
    assert blob(server, digest).read_bytes() == data


def test_a_way_that_damages_is_noticed_and_little_is_sent_again(server: RealServer, tmp_path: Path) -> None:
    data, digest = content(16 * PART, 11)
    path = tmp_path / "file"
    path.write_bytes(data)
    with CountingRelay(server.url) as relay:
        relay.damage = 7 * PART
        assert put(relay.url, server.token, path, digest) is None
        assert relay.total > 7 * PART
        assert relay.total < len(data) + 4 * 8 * PART
    assert blob(server, digest).read_bytes() == data


def test_a_file_that_shrinks_or_vanishes_is_named_and_is_not_the_servers_fault(server: RealServer, tmp_path: Path) -> None:
    data, digest = content(12 * PART, 12)
    path = tmp_path / "file"
    path.write_bytes(data)

    async def shrinking() -> str | None:
        with CountingRelay(server.url, rate=8e6) as relay:
            target = EmbeddedTarget(relay.url, server.token)
            await target.connect()
            sending = asyncio.create_task(target.put(a_file(path, digest), str(path)))
            while relay.total < 2 * PART and not sending.done():
                await asyncio.sleep(0.01)
            os.truncate(path, PART)
            try:
                return await sending
            finally:
                await target.close()

    assert asyncio.run(shrinking()) == "it became shorter while it was sent"


def test_a_capped_target_sends_at_its_cap_and_no_faster(server: RealServer, tmp_path: Path) -> None:
    cap = 4e6
    data, digest = content(14_000_000, 13)
    path = tmp_path / "file"
    path.write_bytes(data)
    with CountingRelay(server.url) as relay:
        assert put(relay.url, server.token, path, digest, bandwidth=cap) is None
        sent = relay.sent
    start = sent[0][0]
    after = [(at - start, size) for at, size in sent if at - start > 0.5]  # the burst is over
    rate = sum(size for _, size in after) / (after[-1][0] - after[0][0])
    print(f"cap {cap / 1e6:.1f} MB/s, measured {rate / 1e6:.2f} MB/s over {after[-1][0] - after[0][0]:.1f} s")
    assert rate <= 1.1 * cap
    assert len(data) / (sent[-1][0] - start) >= 0.3 * cap  # it is a cap and not a stop


def huge_file(spool: Spool, run: str, writer: Writer, size: int) -> str:
    """Record a sparse file whose digest nobody has computed."""
    digest = hashlib.sha256(f"{size}".encode()).hexdigest()
    folder = spool.run(run).blobs
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, digest), "wb") as file:
        file.truncate(size)
    body = {"name": "huge.bin", "category": "output", "digest": digest, "size": size, "mime": "", "path": ""}
    assert writer.record(Kind.ARTIFACT, body)
    return digest


@pytest.mark.parametrize("size", [2 << 40, (1 << 40) - 1], ids=["over the limit", "no room now"])
def test_a_huge_file_that_is_not_taken_delays_no_metrics(spool: Spool, server: RealServer, size: int) -> None:
    run, writer = begin(spool, "huge")
    digest = huge_file(spool, run, writer, size)
    problems: dict[str, str] = {}

    def make() -> Agent:
        return Agent(AgentConfig(spool, server.url, server.token), backoff=Backoff(lambda: 0.01))

    async def story(agent: Agent) -> None:
        drain = the_drain(agent)
        for start in range(0, 500, 100):
            fill(writer, 100, start=start)
            await until(lambda wanted=start + 100: server.get(f"/runs/{run}") and len(server.points(run, "count")) == wanted)
        await until(lambda: digest in drain.delivered.problems)
        assert drain.attempts == 0  # nothing has failed as a whole
        problems.update(drain.delivered.problems)

    serve_agent(make, story, seconds=90)
    assert ("limit" if size > 1 << 40 else "no room") in problems[digest]
    writer.close({"status": "completed"})


def test_metrics_pass_a_large_file_on_a_capped_link(spool: Spool, server: RealServer, tmp_path: Path) -> None:
    data, _ = content(40 * PART, 14)
    path = tmp_path / "large.bin"
    path.write_bytes(data)
    run, writer = begin(spool, "capped")
    digest = add_file(spool, run, writer, path)

    def make() -> Agent:
        target = EmbeddedTarget(server.url, server.token, bandwidth=300_000.0)  # the file takes minutes
        return Agent(AgentConfig(spool, server.url, server.token), target=target, backoff=Backoff(lambda: 0.01))

    async def story(agent: Agent) -> None:
        await until(lambda: ask(server, digest, len(data))[1]["missing"] != [[0, 39]])
        for start in range(0, 300, 100):
            fill(writer, 100, start=start)
            await until(lambda wanted=start + 100: server.get(f"/runs/{run}") and len(server.points(run, "count")) == wanted)
        assert the_drain(agent).attempts == the_drain(agent).delivered.blobs == 0

    serve_agent(make, story, seconds=60)
    assert ask(server, digest, len(data))[1]["stored"] is False
    writer.close({"status": "completed"})


def test_no_room_is_said_as_it_is(server: RealServer, tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate((1 << 40) - 1)
    with pytest.raises(NotNow, match="no room"):
        put(server.url, server.token, path, "ef" * 32)
    with path.open("wb") as file:
        file.truncate((1 << 40) + 1)
    assert put(server.url, server.token, path, "ef" * 32) == f"the server's limit is below its {(1 << 40) + 1} bytes"
