"""An agent that a script starts: it drains, outlives the script, never comes twice, and ends by itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from in_process import serve, until
from memory_target import MemoryTarget
from on_demand import LOG, agents_of, ended_after, note_of, served, starts, wait_for
from real_server import RealServer, agent
from recorded import begin, fill, whole

from simspool.agent import on_demand
from simspool.agent.app import Agent
from simspool.agent.config import host_file
from simspool.agent.on_demand import IdleEnd
from simspool.agent.targets.port import Unreachable
from simspool.sdk.agent_start import LONGEST_PAUSE, serving_agent
from simspool.spool import Spool
from simspool.spool.lock import SpoolLock

SCRIPT = """
    import signal, sys, time
    from simspool.sdk import Run
    asked = []
    signal.signal(signal.SIGUSR1, lambda *_: asked.append("to end"))
    run = Run()
    run.init(sys.argv[1])
    print(run.id, flush=True)
    end = time.monotonic() + float(sys.argv[2])
    n = 0
    while time.monotonic() < end and not asked:
        assert run.log_metrics({"n": n}, step=n)
        n += 1
        time.sleep(0.01)
    print(n, flush=True)
    run.close()
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a script that records; agents on demand are wanted, and end after a second with nothing to do."""
    monkeypatch.setenv("SIMSPOOL_AGENT", "auto")
    monkeypatch.setenv("SIMSPOOL_IDLE_END", "1")
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(SCRIPT))
    started: list[subprocess.Popen[str]] = []

    def start(name: str, seconds: float, **env: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "error", str(path), name, str(seconds)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **env})
        started.append(process)
        return process

    with ended_after(tmp_path):
        yield start
        for process in started:
            process.kill()
            process.communicate()


def finish(process: subprocess.Popen[str]) -> tuple[str, int]:
    """Wait for a script that ends well; return its run and how many points it recorded."""
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, ""), (out, err)
    run, points = out.split()
    return run, int(points)


def arrived(server: RealServer, run: str) -> int:
    """Return how many points the server has of a run, 0 while it does not know the run."""
    return len(server.points(run, "n")) if server.get(f"/runs/{run}") else 0


def everything_ended(spool: Path) -> None:
    wait_for(lambda: not agents_of(spool), f"the agent's end; its log: {(spool / LOG).read_text()}")


def test_it_starts_drains_and_ends(spool: Spool, server: RealServer, script: Any) -> None:
    process = script("story", 7.0, **server.environment)
    pid = served(Path(spool.path))
    shown = json.loads(agent("status", "--json", check=True).stdout)["agent"]
    assert (shown["pid"], shown["on_demand"]) == (pid, True)
    assert "on demand" in agent("status", check=True).stdout
    run, points = finish(process)
    everything_ended(Path(spool.path))
    assert len(server.points(run, "n")) == points
    assert server.get(f"/runs/{run}")["status"] == "completed"
    log = (Path(spool.path) / LOG).read_text()
    assert "nothing is left to do" in log
    assert "Traceback" not in log
    assert not os.path.exists(host_file(spool))
    assert "not running" in agent("status", check=True).stdout


def test_it_outlives_a_killed_script_and_says_so_of_the_run(spool: Spool, server: RealServer, script: Any) -> None:
    process = script("killed", 60.0, **server.environment)
    run = process.stdout.readline().strip()
    served(Path(spool.path))
    process.send_signal(signal.SIGKILL)
    process.wait()
    everything_ended(Path(spool.path))
    ended = server.get(f"/runs/{run}")["status"]
    assert ended not in {"running", "created", "completed"}
    assert server.points(run, "n")


def test_a_script_of_a_moment_is_sent_too(spool: Spool, server: RealServer, script: Any) -> None:
    run, points = finish(script("short", 0.05, **server.environment))
    wait_for(lambda: arrived(server, run) == points, "the points at the server")
    everything_ended(Path(spool.path))
    assert starts(Path(spool.path)) == 1


def test_twenty_processes_that_begin_together_get_one(spool: Spool, server: RealServer, script: Any) -> None:
    processes = [script(f"rank-{i}", 3.0, **server.environment) for i in range(20)]
    seen: set[int] = set()
    while any(p.poll() is None for p in processes):
        seen.update(agents_of(Path(spool.path)))
        time.sleep(0.05)
    runs = dict(finish(p) for p in processes)
    everything_ended(Path(spool.path))
    assert len(seen) == 1
    assert starts(Path(spool.path)) == 1
    assert {run: arrived(server, run) for run in runs} == runs


def test_each_spool_gets_its_own(tmp_path: Path, script: Any) -> None:
    spools = [tmp_path / "first", tmp_path / "second"]
    processes = [script("two", 4.0, SIMSPOOL_DIR=str(where)) for where in spools]
    first, second = (served(where) for where in spools)
    assert first != second
    for process in processes:
        finish(process)
    for where in spools:
        everything_ended(where)


def test_without_a_server_it_watches_and_what_is_recorded_waits(spool: Spool, server: RealServer, script: Any) -> None:
    process = script("nowhere", 60.0)
    run = process.stdout.readline().strip()
    served(Path(spool.path))
    process.send_signal(signal.SIGKILL)
    process.wait()
    everything_ended(Path(spool.path))
    assert "no server is configured" in (Path(spool.path) / LOG).read_text()
    assert json.loads(agent("show", "--json", run, check=True).stdout)["status"] not in {"running", "completed"}
    agent("sync", env=server.environment, check=True)
    assert server.points(run, "n")


def test_a_log_that_cannot_be_written_is_done_without(spool: Spool, script: Any) -> None:
    (Path(spool.path) / LOG).mkdir(parents=True)
    process = script("quiet", 3.0)
    pid = served(Path(spool.path))
    assert os.readlink(f"/proc/{pid}/fd/2") == "/dev/null"
    finish(process)
    wait_for(lambda: not agents_of(Path(spool.path)), "the agent's end")


def test_a_long_log_is_cut(spool: Spool, script: Any) -> None:
    log = Path(spool.path) / LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("x" * (1 << 20) + "x")
    finish(script("log", 0.0))
    everything_ended(Path(spool.path))
    assert 0 < log.stat().st_size < 10_000


def test_a_run_that_begins_while_it_ends_is_not_forgotten(spool: Spool, server: RealServer, script: Any) -> None:
    """Nine short runs, with pauses about as long as the agent's patience."""
    runs = {}
    for i in range(9):
        run, points = finish(script(f"turn-{i}", 0.1, SIMSPOOL_IDLE_END="0.4", **server.environment))
        runs[run] = points
        time.sleep(0.3 + 0.1 * i)
    wait_for(lambda: {run: arrived(server, run) for run in runs} == runs, "all points at the server")
    everything_ended(Path(spool.path))
    assert starts(Path(spool.path)) > 1


def test_an_agent_that_was_killed_is_started_again(spool: Spool, server: RealServer, script: Any) -> None:
    process = script("again", 60.0, **server.environment)
    run = process.stdout.readline().strip()
    first = served(Path(spool.path))
    (note,) = Path(spool.path, "agent", "hosts").glob("*.start")
    wait_for(lambda: note_of(Path(spool.path))["tries"] == 0, "its note that it serves")
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: serving_agent(spool.path) is None, "its end")
    note.write_text(json.dumps({**note_of(Path(spool.path)), "until": 0}))  # the half minute is over
    second = served(Path(spool.path))
    assert second != first
    before = arrived(server, run)
    wait_for(lambda: arrived(server, run) > before, "more points")


def test_a_lasting_agent_takes_its_place(spool: Spool, script: Any) -> None:
    process = script("long", 60.0)
    first = served(Path(spool.path))
    lasting = subprocess.Popen([sys.executable, "-m", "simspool.agent", "run"], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: served(Path(spool.path)) == lasting.pid, "the lasting agent")
        wait_for(lambda: first not in agents_of(Path(spool.path)), "the other's end")
        time.sleep(2.5)  # the script looks twice
        assert agents_of(Path(spool.path)) == []
        assert process.poll() is None
    finally:
        lasting.send_signal(signal.SIGTERM)
        assert lasting.wait(20) == 0


def test_beside_an_agent_it_ends_at_once_and_silently(spool: Spool) -> None:
    with subprocess.Popen([sys.executable, "-m", "simspool.agent", "run"], stderr=subprocess.DEVNULL) as lasting:
        try:
            served(Path(spool.path))
            done = agent("run", "--on-demand")
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
            assert lasting.poll() is None
        finally:
            lasting.send_signal(signal.SIGTERM)


def test_where_another_hosts_agent_has_the_spool_scripts_wait_longer(spool: Spool, script: Any) -> None:
    """On a network disk the lock is held from elsewhere: here, by a process whose pid means nothing to us."""
    lock = SpoolLock(spool)
    with lock:
        Path(lock.path).write_text('{"pid": 4194304}')  # beyond the largest pid
        process = script("elsewhere", 120.0)
        process.stdout.readline()
        wait_for(lambda: any(p.stat().st_size for p in Path(spool.agent, "hosts").glob("*.start")), "the start")
        wait_for(lambda: note_of(Path(spool.path))["tries"] == 0, "the agent's note that the spool is another's")
        left = note_of(Path(spool.path))["until"] - time.clock_gettime(time.CLOCK_BOOTTIME)
        assert LONGEST_PAUSE - 30 < left <= LONGEST_PAUSE
        process.send_signal(signal.SIGUSR1)
        assert "agent sync" in process.communicate(timeout=60)[1]
        wait_for(lambda: not agents_of(Path(spool.path)), "its end")
    assert starts(Path(spool.path)) == 0


# ---------------------------------------------------------------------- when it ends


def ends(agent_: Agent, idle: float = 0.4) -> tuple[asyncio.Event, asyncio.Task[None], list[str]]:
    stop, said = asyncio.Event(), list[str]()
    return stop, asyncio.create_task(IdleEnd(agent_, idle, said.append).watch(stop)), said


def test_it_stays_while_a_writer_lives(spool: Spool) -> None:
    target = MemoryTarget()
    run, writer = begin(spool)
    fill(writer, 10)

    async def story(agent_: Agent) -> None:
        stop, task, said = ends(agent_)
        await asyncio.sleep(1.5)  # several times its patience
        assert not stop.is_set()
        writer.close({"status": "completed"})
        await task
        assert stop.is_set()
        assert said == ["nothing is left to do: this agent ends"]
        assert not os.path.exists(host_file(spool))

    serve(spool, target, story)
    assert run


def test_with_a_server_that_is_away_it_waits_for_a_time(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_demand, "_PATIENCE", 2.0)
    whole(spool, points=5)
    target = MemoryTarget()

    def away(*_: object) -> None:
        raise Unreachable("away")

    target.before_connect = away

    async def story(agent_: Agent) -> None:
        stop, task, said = ends(agent_)
        await asyncio.sleep(1.2)
        assert not stop.is_set()
        await task
        assert len(said) == 1
        assert "wait for a server" in said[0]

    serve(spool, target, story)


def test_the_last_look_finds_a_writer_that_has_just_begun(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer appears when the end is announced already: the agent stays, and is announced again."""
    whole(spool, points=5)
    target = MemoryTarget()
    late: list[Any] = []

    async def story(agent_: Agent) -> None:
        withdraw = agent_.withdraw

        def withdraw_and_begin() -> None:
            withdraw()
            if not late:
                late.extend(begin(spool, "late"))
                fill(late[1], 3)

        monkeypatch.setattr(agent_, "withdraw", withdraw_and_begin)
        stop, task, _ = ends(agent_)
        await until(lambda: len(late) == 2)
        await asyncio.sleep(1.0)
        assert not stop.is_set()
        assert os.path.exists(host_file(spool))
        late[1].close({"status": "completed"})
        await task

    serve(spool, target, story)


def test_it_ends_when_the_spool_is_gone(spool: Spool, tmp_path: Path) -> None:
    whole(spool, points=5)

    async def story(agent_: Agent) -> None:
        stop, task, said = ends(agent_)
        os.rename(spool.path, tmp_path / "elsewhere")
        await task
        assert stop.is_set()
        assert said == ["the spool is gone: this agent ends"]
        os.rename(tmp_path / "elsewhere", spool.path)

    serve(spool, MemoryTarget(), story)
