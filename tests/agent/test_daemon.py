"""The running agent's other duties: the local API, housekeeping, what wakes it."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from in_process import drains_of, serve, the_drain, total, until
from memory_target import MemoryTarget
from recorded import begin, fill, whole

from simspool.agent.app import Agent
from simspool.agent.cli.handover import api_path
from simspool.agent.config import host_file
from simspool.agent.housekeeping import Housekeeping
from simspool.agent.ingest import loop as ingest_loop
from simspool.agent.ingest.wake import FolderWatch
from simspool.spool import Spool, layout


def ask(path: str, method: str, url: str, body: bytes = b"") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(path)
    connection.request(method, url, body)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


# ---------------------------------------------------------------------- the local API


def test_malformed_requests_are_refused_and_the_agent_goes_on(spool: Spool) -> None:
    whole(spool, points=5)

    async def story(agent: Agent) -> None:
        path = api_path(spool)
        assert path is not None
        assert os.stat(path).st_mode & 0o777 == 0o600
        for body in (
            b"", b"{", b"[]", b"5", b"\xff", b'{"runs": 5}', b'{"runs": [5]}', b'{"where": [["a"]]}', b'{"where": [5]}',
            b'{"timeout": "x"}',
            b'{"timeout": -1}', b'{"timeout": NaN}', b'{"timeout": true}', b'{"tags": {"a": 1}, "folder": 7}', b"[" * 100_000,
        ):  # fmt: skip
            status, answer = await asyncio.to_thread(ask, path, "POST", "/sync", body)
            assert status == 422, (body[:50], status, answer)
        assert (await asyncio.to_thread(ask, path, "GET", "/nothing"))[0] == 404
        status, answer = await asyncio.to_thread(ask, path, "POST", "/sync", b'{"runs": ["nobody"]}')
        assert json.loads(answer.splitlines()[-1])["exit_code"] == 9
        status, answer = await asyncio.to_thread(ask, path, "POST", "/sync", b"{}")
        last = json.loads(answer.splitlines()[-1])
        assert (status, last["state"], last["final"]) == (200, "done", True)

    serve(spool, MemoryTarget(), story)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="not root: that other users are refused was not tried")
def test_another_user_is_refused_whatever_the_sockets_mode(spool: Spool, tmp_path: Path) -> None:
    other = (
        "import os, socket, sys; fd = os.open(os.path.dirname(sys.argv[1]), os.O_PATH);"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534);"
        "s = socket.socket(socket.AF_UNIX); s.connect(f'/proc/self/fd/{fd}/api');"
        "s.sendall(b'GET /status HTTP/1.0\\r\\n\\r\\n'); print(s.recv(20))"
    )

    async def story(_: Agent) -> None:
        path = api_path(spool)
        assert path is not None
        os.chmod(path, 0o666)
        os.chmod(os.path.dirname(path), 0o711)
        done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", other, path], capture_output=True, text=True, check=False)
        assert "403" in done.stdout, done
        assert (await asyncio.to_thread(ask, path, "GET", "/status"))[0] == 200

    serve(spool, MemoryTarget(), story)


@pytest.mark.parametrize(
    "body", ["", "{", "[]", '"x"', '{"api": 5, "pid": 1, "start_ticks": 1}', '{"api": "/x", "pid": "1", "start_ticks": 0}']
)
def test_a_host_file_of_anybody_else_is_no_agent(spool: Spool, body: str) -> None:
    path = Path(host_file(spool))
    path.parent.mkdir(parents=True)
    path.write_text(body)
    assert api_path(spool) is None


def test_status_says_what_waits_while_the_server_is_away(spool: Spool) -> None:
    from simspool.agent.targets.port import Unreachable

    target = MemoryTarget()
    run, writer = begin(spool)
    fill(writer, 10)

    async def story(agent: Agent) -> None:
        await until(lambda: total(target) == 11)

        def gone(*_: object) -> None:
            raise Unreachable("away")

        target.before_send = target.before_connect = gone
        fill(writer, 5, start=10)
        await until(lambda: drains_of(agent) and the_drain(agent).state == "waiting")
        path = api_path(spool)
        assert path is not None
        records = json.loads((await asyncio.to_thread(ask, path, "GET", "/status"))[1])["records"]
        assert (records["recorded"], records["acknowledged"], records["waiting"]) == (16, 11, 5)

    serve(spool, target, story)
    assert run


# ---------------------------------------------------------------------- housekeeping


def test_the_slow_duties_are_scheduled_and_report(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    run = whole(spool, points=50)
    [path] = [p for p in layout.walk_files(spool.run(run).writers) if p.endswith(".seg")]
    data = bytearray(Path(path).read_bytes())
    data[2000] ^= 1
    os.chmod(path, 0o600)
    Path(path).write_bytes(bytes(data))
    reports: list[str] = []

    async def story(agent: Agent) -> None:
        duties = Housekeeping(agent)
        duties.start()
        wanted = ["budget", "disk", "journals", "judge", "retention", "scrub", "site", "targets"]
        assert sorted(job.id for job in duties._scheduler.get_jobs()) == wanted
        await duties.scrub()
        found = [text for text in reports if text.startswith("scrub: corrupt")]
        assert len(found) == 1
        assert path in found[0]
        await duties.check_disk()
        await duties.check_disk()
        assert len([text for text in reports if "MiB are free" in text]) == 1
        object.__setattr__(agent.config, "disk_floor", 0)
        await duties.check_disk()
        assert reports[-1] == "the spool's disk has space again"
        duties.stop()

    serve(spool, MemoryTarget(), story, reports, disk_floor=1 << 60)


def test_housekeeping_prunes_what_is_over_its_grace_and_keeps_the_rest(spool: Spool) -> None:
    run = whole(spool, points=5)
    live, writer = begin(spool, "live")
    fill(writer, 3)
    reports: list[str] = []
    target = MemoryTarget()

    async def story(agent: Agent) -> None:
        await until(lambda: total(target) == 10 + 4)
        duties = Housekeeping(agent)
        await duties.retain()

    serve(spool, target, story, reports, grace=0.0)
    assert not os.path.exists(spool.run(run).path)
    assert os.path.isdir(spool.run(live).path)
    assert any(run in text and "bytes freed" in text for text in reports)


# ---------------------------------------------------------------------- what wakes it


def no_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FolderWatch, "start", lambda _: "no notifications")


def test_the_scan_alone_is_sufficient(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    no_watch(monkeypatch)
    target = MemoryTarget()

    async def story(_: Agent) -> None:
        await asyncio.sleep(0.3)
        run, writer = begin(spool)
        fill(writer, 10)
        await until(lambda: total(target) == 11)
        fill(writer, 10, start=10)
        await until(lambda: total(target) == 21)
        assert run

    serve(spool, target, story)


def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scan comes only after minutes."""
    monkeypatch.setattr(ingest_loop, "_SCAN_SHARE", 1e-12)
    monkeypatch.setattr(ingest_loop, "_SLOWEST_IDLE", 600.0)
    monkeypatch.setattr(ingest_loop, "_SLOWEST_LIVE", 600.0)


def test_the_doorbell_alone_is_sufficient(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    no_watch(monkeypatch)
    slow(monkeypatch)
    target = MemoryTarget()

    async def story(agent: Agent) -> None:
        run, writer = begin(spool)
        fill(writer, 10)
        bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        path = json.loads(Path(host_file(spool)).read_text())["bell"]
        await asyncio.sleep(0.5)  # the first scan is over
        for part in range(1, 4):
            fill(writer, 10, start=10 * part)
            bell.sendto(writer.id_text.encode(), path)
            await until(lambda part=part: total(target) == 11 + 10 * part)
        for nonsense in (b"", b"\xff\xfe", b"x" * 64):
            bell.sendto(nonsense, path)
        bell.close()
        assert (run, agent.ingest.active) == (run, [writer.id_text])

    serve(spool, target, story)


def test_file_notifications_alone_are_sufficient(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch)
    target = MemoryTarget()

    async def story(_: Agent) -> None:
        await asyncio.sleep(0.5)
        whole(spool, points=10)
        await until(lambda: total(target) == 15)
        whole(spool, "second", points=10)
        await until(lambda: total(target) == 30)

    serve(spool, target, story)
