"""A running agent with a budget: scripts hear it, runs are not hurt, everything balances, and what is shed is declared to a real server."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from in_process import serve, serve_agent, until
from memory_target import MemoryTarget
from real_server import RealServer
from recorded import add_file, begin, fill, whole

from simspool.agent import housekeeping
from simspool.agent.app import Agent, AgentConfig
from simspool.agent.budget import duty
from simspool.agent.config import DAY
from simspool.agent.status import overview
from simspool.agent.targets.port import Unreachable
from simspool.agent.truth.known import KnownTarget
from simspool.sdk import Client
from simspool.sdk.budget import Budget, Floor
from simspool.spool import Spool, pressure, shed
from simspool.spool.pressure import FILES, FREE

NO_FLOOR = Floor()


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look five times a second."""
    monkeypatch.setattr(housekeeping, "LOOK_EVERY", 0.2)
    monkeypatch.setattr(duty, "_AGED_EVERY", 0.2)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    with RealServer(tmp_path_factory.mktemp("server") / "data") as found:
        yield found


SCRIPT = """
import os, sys, time
from simspool.sdk import Run
run = Run(agent="off")
run.init("long")
run.config(resources_metrics_interval=1)
calls = true = false = 0
def log(n):
    global calls, true, false
    for _ in range(n):
        ok = run.log_metrics({"a": calls * 0.5, "b": calls})
        calls, true, false = calls + 1, true + ok, false + (not ok)
def until(condition):
    deadline = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < deadline, run.drops
        log(20)
        time.sleep(0.01)
log(500)
print("begun", flush=True)
until(lambda: "budget-thinned" in run.drops and run._recording.level == 3)
files = run.save_object([1, 2, 3], "output", "o")
event = run.log_event("all the same")
print("refused", flush=True)
until(lambda: run._recording.level == 0)
before = false
log(500)
print(files, event, false - before, run.save_object([1, 2, 3], "output", "o"))
dropped = run.drops
print(calls, true, false, dropped["budget"], dropped["budget-thinned"], run.close())
"""


def test_a_run_goes_on_and_recovers_when_there_is_room_again(spool: Spool) -> None:
    """Another process's file takes the room; the script is told, refuses, goes on, and takes everything once the file is gone."""
    ballast = Path(spool.path) / "quarantine" / "ballast"
    ballast.parent.mkdir(exist_ok=True)
    script = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert script.stdout is not None
    lines = script.stdout
    totals = {}

    async def story(agent: Agent) -> None:
        assert await asyncio.to_thread(lines.readline) == "begun\n"
        ballast.write_bytes(os.urandom(30_000_000))
        assert await asyncio.to_thread(lines.readline) == "refused\n"
        assert agent.guard.level == FILES
        ballast.unlink()
        await asyncio.to_thread(script.wait, 50)
        await until(lambda: not agent.ingest.busy_runs() and agent.guard.level == FREE)
        totals.update(await agent.work(overview, agent.catalog, spool, []))

    try:
        serve(spool, MemoryTarget(), story, budget=Budget(bytes=30_000_000, free=NO_FLOOR))
    finally:
        script.kill()
    rest, err = script.communicate()
    out = rest.splitlines()
    assert script.returncode == 0, err
    assert out[0] == "False True 0 True", "refused while there was no room; taken again, all of it, once there was"
    calls, true, false, files, thinned, closed = out[1].split()
    assert (int(true) + int(false), int(files), closed) == (int(calls), 1, "True")
    assert int(thinned) == int(false)
    assert err.count("files are not taken") == 1
    assert totals["balanced"]
    assert totals["records"]["dropped"]["budget-thinned"] == int(thinned)
    assert totals["records"]["dropped"]["budget"] == 1
    assert pressure.read(spool.path) is None


@pytest.mark.usefixtures("small_segments")
def test_what_is_over_the_budget_is_shed_and_declared(spool: Spool, server: RealServer, tmp_path: Path) -> None:
    """While the server is away, old data without receipts goes; then it is told, and has the rest, the event that says so included."""
    file = tmp_path / "f.bin"
    file.write_bytes(os.urandom(1_500_000))
    run, writer = begin(spool, "old")
    fill(writer, 10, events=1)
    fill(writer, 12_000, start=10)
    fill(writer, 10, events=1, start=12_010)
    digest = add_file(spool, run, writer, file)
    writer.close({"status": "completed"})
    young = whole(spool, "young", points=50)
    said: list[str] = []
    away = AgentConfig(spool, "http://127.0.0.1:9", "t", budget=Budget(bytes=500_000, free=NO_FLOOR, shed="data"))

    async def full(agent: Agent) -> None:
        await until(lambda: agent.guard.usage is not None and agent.guard.usage.bytes < 450_000)
        while await agent.work(agent.catalog.one, "SELECT count FROM events WHERE run = ?", (run,)) != (3,):
            await asyncio.sleep(0.02)  # the agent says in the run what it did

    serve_agent(lambda: Agent(away, report=said.append), full)
    assert any(text.startswith(f"shed: 1 file of run {run}") for text in said), said
    assert shed.files(spool.run(run).path) == {digest}
    config = AgentConfig(spool, server.url, server.token)

    async def back() -> str:
        async with Agent(config) as agent, asyncio.timeout(40):
            report = await agent.sync()
            settings = agent.config.targets()
            [known] = [KnownTarget(s.name, s.kind, s.address, True, report.server) for s in settings]
            found = await agent.work(overview, agent.catalog, spool, [known])
            assert found["balanced"], found["imbalances"]
            assert found["records"]["waiting"] == found["files"]["waiting"] == 0
            assert found["files"]["lost"] == 1
            return report.state

    assert asyncio.run(back()) == "done"
    messages = server.events(run)
    assert messages[:2] == ["event 0", "event 0"]
    assert any(m.startswith("simspool shed 1 file") for m in messages[2:]), messages
    lost = sum(last - first + 1 for _, first, last in shed.segments(spool.run(run).path, writer.id_text))
    there = Client(server_url=server.url, server_token=server.token).get_gaps(run)
    assert sum(gap["last"] - gap["first"] + 1 for gap in there) == lost > 0
    assert {(gap["writer"], gap["reason"]) for gap in there} == {(writer.id_text, "shed")}
    assert there == Client(spool=spool.path).get_gaps(run), "the same on the server and in the spool"
    assert len(server.points(run, "loss")) == 12_020 - lost
    assert len(server.points(young, "loss")) == 50


def test_without_the_users_word_nothing_goes(spool: Spool, tmp_path: Path) -> None:
    file = tmp_path / "f.bin"
    file.write_bytes(os.urandom(1_500_000))
    run, writer = begin(spool, "old")
    digest = add_file(spool, run, writer, file)
    writer.close({"status": "completed"})
    target = MemoryTarget()

    def refuse() -> None:
        raise Unreachable("away")

    target.before_connect = refuse

    async def story(agent: Agent) -> None:
        await until(lambda: agent.guard.wants_room)
        looks = agent.guard._over  # noqa: SLF001 - how often it was found to be over
        await until(lambda: agent.guard._over > looks + 5)  # noqa: SLF001

    serve(spool, target, story, budget=Budget(bytes=1_000_000, age=0.0, free=NO_FLOOR), retention_every=3600.0)
    assert os.path.exists(os.path.join(spool.run(run).blobs, digest))


def test_age_shortens_the_grace_of_what_is_acknowledged_only(spool: Spool) -> None:
    run = whole(spool)
    target = MemoryTarget()

    async def story(agent: Agent) -> None:
        await until(lambda: not os.path.exists(spool.run(run).path))
        found = await agent.work(overview, agent.catalog, spool, [KnownTarget("server", "simspool", "memory://", server="memory")])
        assert found["records"]["acknowledged"] == found["records"]["recorded"]

    serve(spool, target, story, grace=7 * DAY, budget=Budget(age=0.0, free=NO_FLOOR))


def test_the_agents_own_samples_are_refused_and_counted(spool: Spool) -> None:
    from simspool.agent.notes import RunNotes
    from simspool.sdk.pressure import Thinning

    run, writer = begin(spool)
    notes = RunNotes(spool)
    gate = notes.gate = Thinning(FREE, lambda: {"resources/memory"}, 0)
    assert notes.sample(run, {"resources/cpu": 1.0}, 0)
    gate.level = 1
    gate.refresh()
    assert notes.sample(run, {"resources/cpu": 1.0}, 1)
    assert notes.sample(run, {"resources/cpu": 1.0, "resources/memory": 5.0}, 2), "a rule looks at it"
    at = notes.position(run)
    assert at is not None
    assert at[1] == 3, "attach and two samples"
    assert notes._writers[run].drops == {"budget-sample": 1}  # noqa: SLF001
    notes.close()
    writer.close()
