"""A holder of the lease that does not reach its server lets an agent of another host that does have it; nobody else."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from in_process import serve, until
from memory_target import MemoryTarget
from real_server import RealServer
from recorded import whole
from test_agents import other_host

from simspool.agent.app import Agent
from simspool.agent.targets.port import Unreachable
from simspool.spool import Spool
from simspool.spool.lease import Holder, Lease


def unreachable() -> None:
    raise Unreachable("no network here")


def test_a_holder_says_in_its_lease_that_it_reaches_nothing(spool: Spool) -> None:
    now = [1000.0]
    a = Lease(spool, clock=lambda: now[0], me=Holder("a", "x", b"m" * 16, b"b" * 16, 1, 10, 100))
    b = Lease(spool, clock=lambda: now[0], me=Holder("b", "y", b"m" * 16, b"b" * 16, 1, 11, 100))
    assert a.turn()
    assert not b.turn()
    assert b.holder_reaches
    for reaches in (False, True):
        a.reaches = reaches
        now[0] += 15
        a.turn()
        b.turn()
        assert b.holder_reaches is reaches


def test_who_wants_it_no_more_does_not_take_it(spool: Spool) -> None:
    now = [1000.0]
    a = Lease(spool, clock=lambda: now[0], me=Holder("a", "x", b"m" * 16, b"b" * 16, 1, 10, 100))
    b = Lease(spool, clock=lambda: now[0], me=Holder("b", "y", b"m" * 16, b"b" * 16, 1, 11, 100))
    a.turn()
    b.turn()
    b.want()
    for _ in range(40):
        now[0] += 1
        a.turn()
        b.turn()
    b.want_no_more()
    for _ in range(200):
        now[0] += 1
        a.turn()
        b.turn()
    assert a.held
    assert not b.held


def test_an_agent_that_reaches_its_server_asks_a_holder_that_does_not(spool: Spool) -> None:
    target, said = MemoryTarget(), list[str]()
    whole(spool)
    with other_host(spool) as lease:

        async def story(agent: Agent) -> None:
            await asyncio.sleep(1.5)
            assert not agent.lease.held
            lease.reaches = False
            await until(lambda: target.marks_of)
            assert agent.lease.held

        serve(spool, target, story, said, patience=1.0)
    assert any("the agent of elsewhere has the spool's lease and does not reach its server" in text for text in said)


def test_an_agent_that_does_not_reach_it_either_does_not_ask(spool: Spool) -> None:
    target, tried = MemoryTarget(), []

    def refuse() -> None:
        tried.append(time.monotonic())
        unreachable()

    target.before_connect = refuse
    whole(spool)
    with other_host(spool) as lease:
        lease.reaches = False

        async def story(agent: Agent) -> None:
            await until(lambda: len(tried) >= 3)
            assert not agent.lease.held
            assert not lease.is_wanted

        serve(spool, target, story, patience=1.0)
    assert tried[2] - tried[1] > 0.9  # once in the lease's time


def test_an_agent_says_that_it_reaches_nothing_and_goes_on_trying(spool: Spool) -> None:
    target = MemoryTarget()
    target.before_connect = unreachable
    whole(spool)
    other = Lease(spool, patience=60.0, me=Holder("other", "elsewhere", b"m" * 16, b"b" * 16, 1, 10, 100))

    async def story(agent: Agent) -> None:
        def said() -> bool:
            other.turn()
            return not other.holder_reaches

        await until(said)
        assert agent.lease.held
        target.before_connect = lambda: None
        await until(lambda: target.marks_of)
        await until(lambda: not said())

    serve(spool, target, story, patience=1.0)


def _agent(spool: Spool, room: Path, server: RealServer, *before: str) -> subprocess.Popen[bytes]:
    room.mkdir()
    environment = {
        **os.environ, **server.environment, "SIMSPOOL_STATE": str(room / "state"), "HOME": str(room), "XDG_RUNTIME_DIR": str(room),
        "SIMSPOOL_LEASE": "2",
    }  # fmt: skip
    with open(room / "log", "wb") as log:
        return subprocess.Popen(
            ["unshare", *before, "-p", "-f", "--mount-proc", "--kill-child", sys.executable, "-m", "simspool.agent", "run",
            "--spool", spool.path],
            env=environment, stdout=log, stderr=log, cwd=room,
        )  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="namespaces need root and unshare")
def test_a_login_node_sends_what_a_compute_node_without_a_network_holds(spool: Spool, tmp_path: Path) -> None:
    """Two real agents: the first one, which has the lease, lives in a network namespace from which nothing leads anywhere."""
    run = whole(spool)
    with RealServer(tmp_path / "data") as server:
        agents = [_agent(spool, tmp_path / "compute", server, "-n")]
        try:
            deadline = time.monotonic() + 60
            while not list(Path(spool.agent).glob("lease-*.jsonl")):
                assert time.monotonic() < deadline, (tmp_path / "compute" / "log").read_text()
                time.sleep(0.05)
            agents.append(_agent(spool, tmp_path / "login", server))
            while server.get(f"/runs/{run}") is None or server.get(f"/runs/{run}")["status"] != "completed":
                assert time.monotonic() < deadline, "".join((tmp_path / n / "log").read_text() for n in ("compute", "login"))
                time.sleep(0.1)
        finally:
            for one in agents:
                one.kill()
                one.wait()
    assert "does not reach its server" in (tmp_path / "login" / "log").read_text()
