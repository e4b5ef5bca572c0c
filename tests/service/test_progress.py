"""The watchdog's food: a loop that waits on purpose is well, one that does not turn is not."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import in_process
import pytest
from in_process import until
from memory_target import MemoryTarget

from simspool.agent.app import Agent
from simspool.agent.config import AgentConfig
from simspool.agent.progress import Progress
from simspool.agent.service.notify import Notifier, status_line
from simspool.agent.targets.port import Range, Unreachable, Verdict
from simspool.sdk import Run
from simspool.spool import open_spool


class Time:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_rest_is_no_hang() -> None:
    time = Time()
    progress = Progress(time)
    assert progress.stuck(10) == []
    progress.turn("loop")
    progress.turn("backoff", 60)
    progress.turn("upload", math.inf)
    time.now += 11
    assert progress.stuck(10) == ["loop"]
    time.now += 60
    assert progress.stuck(10) == ["backoff", "loop"]
    progress.turn("loop")
    progress.end("backoff")
    assert progress.stuck(10) == []


def test_a_loop_that_keeps_its_own_time_is_followed() -> None:
    time = Time()
    progress, last = Progress(time), time.now
    progress.follow("watch", lambda: last, 5)
    time.now += 14
    assert progress.stuck(10) == []
    time.now += 2
    assert progress.stuck(10) == ["watch"]
    last = time.now
    assert progress.stuck(10) == []
    time.now += 100
    progress.end("watch")
    assert progress.stuck(10) == []


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """The manager's end of the notification socket, and the address that it passes on."""
    name = f"simspool-test-{os.getpid()}"
    address = str(tmp_path / "notify") if request.param == "path" else f"@{name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        ours.bind(address if request.param == "path" else f"\0{name}")
        ours.settimeout(10)
        yield ours, address


def test_ready_status_and_end_are_told(manager: tuple[socket.socket, str]) -> None:
    socket_, address = manager
    environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "2500000", "WATCHDOG_PID": str(os.getpid()), "OTHER": "1"}
    notifier = Notifier.from_environment(environ)
    assert environ == {"OTHER": "1"}  # no child speaks in our name
    assert notifier.watchdog == 2.5
    assert notifier.ready("following 1 run\nMAINPID=1")
    assert socket_.recv(1000).decode() == f"READY=1\nMAINPID={os.getpid()}\nSTATUS=following 1 run MAINPID=1"
    assert notifier.stopping()
    assert socket_.recv(1000) == b"STOPPING=1\nSTATUS=stopping"


def test_the_watchdog_is_fed_until_a_loop_hangs(manager: tuple[socket.socket, str]) -> None:
    socket_, address = manager
    socket_.setblocking(False)
    notifier, progress, said = Notifier(address, 0.2), Progress(), []

    async def feed() -> tuple[list[bytes], list[bytes]]:
        def heard() -> list[bytes]:
            found = []
            try:
                while True:
                    found.append(socket_.recv(1000))
            except BlockingIOError:
                return found

        progress.turn("well", 60)
        task = asyncio.create_task(notifier.feed(progress, lambda: "following 2 runs", said.append))
        await asyncio.sleep(0.5)
        before = heard()
        progress.turn("hung")
        await asyncio.sleep(1)
        heard()
        await asyncio.sleep(0.5)
        after = heard()
        progress.turn("hung", 60)
        await asyncio.sleep(0.5)
        again = heard()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert any(b"WATCHDOG=1" in m for m in again)
        return before, after

    before, after = asyncio.run(feed())
    assert before[0] == b"STATUS=following 2 runs\nWATCHDOG=1"
    assert before[1] == b"WATCHDOG=1"
    assert after == []
    assert said == ["no progress for 0.2 s in: hung; if it stays so, systemd restarts this agent"]


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"NOTIFY_SOCKET": "/no/such/socket", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},
        {"NOTIFY_SOCKET": "/" + "x" * 300, "WATCHDOG_USEC": "soon"},
        {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "1000000"},
    ],
)
def test_a_manager_that_does_not_listen_stops_nobody(environ: dict[str, str]) -> None:
    notifier = Notifier.from_environment(environ)
    assert notifier.watchdog is None
    assert notifier.ready("well") is False


def test_a_status_is_one_line() -> None:
    assert status_line("a\nREADY=1\r\x1b[1m\u2028" + "x" * 1000) == "STATUS=a READY=1  [1m " + "x" * (300 - 15)


class Hanging(MemoryTarget):
    """A target that never answers a request, as no real one should: it has no time limit of its own."""

    async def send(self, ranges: Sequence[Range]) -> list[Verdict]:
        await asyncio.get_running_loop().create_future()
        raise AssertionError


def test_a_request_that_never_ends_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMSPOOL_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("SIMSPOOL_DIR", str(tmp_path / "spool"))
    with Run(mode="offline") as run:
        run.init("a run")
        run.log_metrics({"x": 1.0})

    async def story(agent: Agent) -> None:
        await until(lambda: any(name.startswith("drain to server: records") for name in agent.progress.stuck(2)))
        assert len(agent.progress.stuck(2)) == 1  # the other sender, the files and the ingest are well

    in_process.serve(open_spool(tmp_path / "spool"), Hanging(), story)


def test_a_long_backoff_is_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMSPOOL_STATE", str(tmp_path / "state"))
    target = MemoryTarget()

    def away() -> None:
        raise Unreachable("it is away", after=3600)

    target.before_connect = away

    async def story(agent: Agent) -> None:
        await until(lambda: agent.doing() == "following 0 runs, waiting: it is away")
        await asyncio.sleep(3)
        assert agent.progress.stuck(1.5) == []

    in_process.serve(open_spool(tmp_path / "spool", create=True), target, story)


def test_a_real_agent_gets_on_and_a_worker_that_hangs_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle, with no server to reach, every loop of a serving agent turns; one job that does not return is named."""
    monkeypatch.setenv("SIMSPOOL_STATE", str(tmp_path / "state"))
    release = threading.Event()

    async def serve() -> tuple[list[str], list[str]]:
        stop = asyncio.Event()
        config = AgentConfig(open_spool(tmp_path / "spool", create=True), "http://127.0.0.1:9", "token")
        async with Agent(config) as agent:
            task = asyncio.create_task(agent.serve(stop))
            await asyncio.sleep(4)
            idle = agent.progress.stuck(1.5)
            assert agent.doing().startswith("following 0 runs, waiting: ")
            hung = asyncio.create_task(agent.work(release.wait))
            await asyncio.sleep(4)
            found = agent.progress.stuck(2)
            release.set()
            await hung
            stop.set()
            await task
            return idle, found

    idle, found = asyncio.run(serve())
    assert idle == []
    assert "worker thread" in found
