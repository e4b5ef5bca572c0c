"""An agent beside another host's: it looks after its own host, sends when the lease is its own, and a sync asks for it."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from in_process import serve, sync, until
from memory_target import MemoryTarget
from recorded import begin, fill, whole

from simspool.agent import duties
from simspool.agent.app import Agent
from simspool.agent.config import AgentConfig
from simspool.spool import Spool
from simspool.spool.lease import Holder, Lease


@contextmanager
def other_host(spool: Spool, *, answers: bool = True) -> Iterator[Lease]:
    """Another host's agent, that renews the lease, and gives it back where it is asked for it and `answers`."""
    lease = Lease(spool, patience=3.0, me=Holder("other", "elsewhere", b"m" * 16, b"b" * 16, 1, 10, 100))
    assert lease.turn()
    over = threading.Event()

    def keep() -> None:
        while not over.wait(0.1):
            if not lease.turn():
                return
            if lease.is_wanted and answers:
                lease.release()
                return

    thread = threading.Thread(target=keep)
    thread.start()
    try:
        yield lease
    finally:
        over.set()
        thread.join()


def test_it_sends_nothing_while_another_host_has_the_lease_and_all_when_it_is_free(spool: Spool) -> None:
    target, said = MemoryTarget(), list[str]()
    whole(spool)
    with other_host(spool) as lease:

        async def story(agent: Agent) -> None:
            await until(lambda: agent.catalog.one("SELECT 1 FROM writers WHERE sequence > 100") is not None)
            assert not agent.lease.held
            assert target.marks_of == {}
            assert agent.notifier is None
            lease.release()
            await until(lambda: target.marks_of)
            assert agent.lease.held

        serve(spool, target, story, said, patience=3.0)
    assert any("another host's agent has the spool's lease" in text for text in said)


def test_a_holder_that_is_gone_is_followed_after_its_time(spool: Spool) -> None:
    target = MemoryTarget()
    whole(spool)
    with other_host(spool):
        pass  # killed: it gives nothing back

    async def story(agent: Agent) -> None:
        assert not agent.lease.held
        await until(lambda: target.marks_of)

    serve(spool, target, story, patience=2.0)


def test_a_sync_has_the_lease_given_to_it(spool: Spool) -> None:
    target = MemoryTarget()
    run = whole(spool)
    with other_host(spool):
        report = sync(spool, target)  # of the usual patience: a minute
    assert report.state == "done"
    assert (report.runs, report.records_left) == (1, 0)
    assert target.marks_of
    assert run


def test_a_sync_that_may_not_wait_says_who_has_the_lease(spool: Spool) -> None:
    whole(spool)
    with other_host(spool, answers=False):
        report = sync(spool, MemoryTarget(), timeout=0.5)
    assert report.state == "timeout"
    assert report.problem == "the agent of elsewhere has the spool's lease"


def test_an_agent_that_is_asked_gives_it_and_looks_after_its_host(spool: Spool) -> None:
    target = MemoryTarget()
    run, writer = begin(spool)

    async def story(agent: Agent) -> None:
        await until(lambda: target.marks_of)
        other = Lease(spool, patience=60.0, me=Holder("other", "elsewhere", b"m" * 16, b"b" * 16, 1, 10, 100))
        await asyncio.to_thread(other.turn)
        await asyncio.to_thread(other.want)
        deadline = time.monotonic() + 20
        while not await asyncio.to_thread(other.turn):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        await until(lambda: agent.duties is not None and not agent.duties.are_done)
        before = dict(target.marks_of)
        fill(writer, 50)
        await until(lambda: agent.catalog.one("SELECT 1 FROM writers WHERE sequence > 50") is not None)
        assert target.marks_of == before
        await asyncio.to_thread(other.release)
        await until(lambda: target.marks_of != before)

    serve(spool, target, story)
    assert writer.close({"status": "completed"})
    assert run


def test_a_disk_that_takes_no_lease_ends_a_command_with_its_reason(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Lease) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def story() -> None:
        async with Agent(AgentConfig(spool)) as agent:
            await agent.sync()

    whole(spool, points=5)
    monkeypatch.setattr(duties, "_REFUSED", 0.3)
    monkeypatch.setattr(Lease, "turn", refuse)
    with pytest.raises(OSError, match="No space left"):
        asyncio.run(story())
