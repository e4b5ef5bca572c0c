"""The process watch: told at once, few descriptors, nothing left over; and heartbeats only for what lives."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from in_process import serve, until
from memory_target import MemoryTarget
from victims import Victim

from simspool.agent.app import Agent
from simspool.agent.live import LiveWriter
from simspool.agent.survivors import ProcessWatch, watch
from simspool.sdk import process_exit as exits
from simspool.sdk.process_exit import Exit, how_it_ended, open_process
from simspool.spool import Spool, open_spool
from simspool.spool.process import start_ticks, this_host


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spool:
    """An empty spool, and an agent's folders, in the environment."""
    runtime = tmp_path / "rt"
    runtime.mkdir(mode=0o700)
    for name, value in {"SIMSPOOL_DIR": "spool", "SIMSPOOL_STATE": "state", "XDG_RUNTIME_DIR": "rt", "HOME": "."}.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    for name in ("SIMSPOOL_URL", "SIMSPOOL_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return open_spool(tmp_path / "spool", create=True)


@pytest.fixture
def sleeper() -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Start processes that sleep; at the end they are gone."""
    made: list[subprocess.Popen[bytes]] = []

    def begin() -> subprocess.Popen[bytes]:
        made.append(subprocess.Popen(["sleep", "600"]))
        return made[-1]

    yield begin
    for one in made:
        one.kill()
        one.wait(20)


def writer_of(pid: int, name: str = "w", role: str = "creator", **different: Any) -> LiveWriter:
    """A live writer of a process of this host."""
    here, ticks = this_host(), (start_ticks(pid) or (0, ""))[0]
    parts = {"pid": pid, "start_ticks": ticks, "boot_id": here.boot_id, "pid_namespace": here.pid_namespace, **different}
    header: Any = SimpleNamespace(**parts)
    return LiveWriter("run", name, role, header, {})


def watching(live: list[LiveWriter], story: Callable[[ProcessWatch, list[list[str]]], Awaitable[None]]) -> list[str]:
    """Let a watch run while a story is told; returns what it reported."""
    said: list[str] = []

    async def day() -> None:
        died: list[list[str]] = []
        found = ProcessWatch(lambda: list(live), died.append, report=said.append)
        running = asyncio.create_task(found.run())
        async with asyncio.timeout(30):
            await story(found, died)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(day())
    return said


def pidfds() -> int:
    """Return how many pidfds this process has."""
    count = 0
    for entry in Path("/proc/self/fdinfo").iterdir():
        try:
            count += "Pid:\t" in entry.read_text()
        except OSError:
            continue
    return count


def test_all_writers_of_a_process_are_told_of_at_once(sleeper: Callable[[], subprocess.Popen[bytes]]) -> None:
    one = sleeper()
    live = [writer_of(one.pid, "a"), writer_of(one.pid, "b"), writer_of(one.pid, "c", role="agent")]
    before = pidfds()

    async def story(found: ProcessWatch, died: list[list[str]]) -> None:
        await until(lambda: pidfds() == before + 1)
        assert found.death(live[0].header) is False
        one.send_signal(signal.SIGUSR2)
        await until(lambda: died)
        assert died == [["a", "b"]]
        death = found.death(live[0].header)
        assert death
        assert death.exit == Exit(signal=signal.SIGUSR2)

    watching(live, story)
    assert pidfds() == before


def test_what_has_closed_is_let_go_of(sleeper: Callable[[], subprocess.Popen[bytes]]) -> None:
    live = [writer_of(sleeper().pid, "a")]
    before = pidfds()

    async def story(found: ProcessWatch, _: list[list[str]]) -> None:
        await until(lambda: pidfds() == before + 1)
        header = live.pop().header
        found.wake()
        await until(lambda: pidfds() == before)
        assert found.death(header) is None

    watching(live, story)


def test_others_processes_are_not_watched(sleeper: Callable[[], subprocess.Popen[bytes]]) -> None:
    one = sleeper()
    live = [
        writer_of(one.pid, "a", pid_namespace=1), writer_of(one.pid, "b", boot_id=bytes(16)), writer_of(one.pid, "c", start_ticks=1),
        writer_of(one.pid, "d", role="agent"),
    ]  # fmt: skip
    before = pidfds()

    async def story(found: ProcessWatch, died: list[list[str]]) -> None:
        await asyncio.sleep(0)
        found.look()
        assert pidfds() == before
        assert [found.death(w.header) for w in live] == [None] * 4
        assert died == []

    watching(live, story)


def test_beyond_a_number_processes_are_not_held(sleeper: Callable[[], subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "MOST", 2)
    live = [writer_of(sleeper().pid, str(n)) for n in range(4)]
    before = pidfds()

    async def story(found: ProcessWatch, _: list[list[str]]) -> None:
        await until(lambda: pidfds() == before + 2)
        found.look()
        assert pidfds() == before + 2
        assert [found.death(w.header) for w in live].count(None) == 2

    assert watching(live, story) == ["more than 2 processes record: of the others it is not known how they end"]


def test_a_kernel_without_pidfds_is_said_once(sleeper: Callable[[], subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int, __: int = 0) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(exits.os, "pidfd_open", refuse)
    live = [writer_of(sleeper().pid)]

    async def story(found: ProcessWatch, _: list[list[str]]) -> None:
        found.look()
        found.look()
        assert found.death(live[0].header) is None

    assert watching(live, story) == ["processes cannot be watched (Function not implemented): how they end is not known"]


def test_a_process_is_held_only_by_its_whole_identity(sleeper: Callable[[], subprocess.Popen[bytes]]) -> None:
    one = sleeper()
    ticks = (start_ticks(one.pid) or (0, ""))[0]
    assert open_process(one.pid, ticks + 1) is None
    fd = open_process(one.pid, ticks)
    assert fd is not None
    assert how_it_ended(fd, one.pid, ticks) is None
    one.kill()
    one.wait(20)
    assert how_it_ended(fd, one.pid, ticks) == Exit(signal=signal.SIGKILL)
    assert open_process(one.pid, ticks) is None
    os.close(fd)


def test_an_older_kernel_tells_only_of_zombies(sleeper: Callable[[], subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exits, "_GET_INFO", 0xFF0B)  # a call that no kernel knows
    monkeypatch.setattr(watch, "_PATIENCE", 0.2)
    seen, missed = sleeper(), sleeper()
    live = [writer_of(seen.pid, "seen"), writer_of(missed.pid, "missed")]
    before = pidfds()

    async def story(found: ProcessWatch, died: list[list[str]]) -> None:
        await until(lambda: pidfds() == before + 2)
        seen.kill()
        await until(lambda: died == [["seen"]])
        assert found.death(live[0].header).exit == Exit(signal=signal.SIGKILL)  # type: ignore[union-attr]
        missed.kill()
        missed.wait(20)  # before the loop comes to it
        await until(lambda: died == [["seen"], ["missed"]])
        assert found.death(live[1].header).exit is None  # type: ignore[union-attr]

    watching(live, story)


def test_nothing_is_said_of_a_zombie_whose_status_is_hidden(tmp_path: Path) -> None:
    """Another user's zombie shows status 0 in place of its own: that is no exit code 0."""
    program = (
        "import os, sys\n"
        "from simspool.sdk.process_exit import exit_of_zombie\n"
        "from simspool.spool.process import start_ticks\n"
        "pid = os.fork()\n"
        "if pid == 0: os._exit(0)\n"
        "os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)\n"
        "ticks = start_ticks(pid)[0]\n"
        "mine = exit_of_zombie(pid, ticks)\n"
        "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        "print(mine, exit_of_zombie(pid, ticks))\n"
    )
    if os.geteuid() != 0:
        pytest.skip("SKIPPED: needs root to become somebody else")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd="/")
    assert done.stdout == "Exit(code=0, signal=None, core=False) None\n", done.stderr


def test_heartbeats_are_sent_only_for_what_lives(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simspool.agent.drain.loop._HEARTBEAT", 0.05)
    environment = {**os.environ, "SIMSPOOL_AGENT": "off"}
    names = ("running", "stopped", "zombie", "killed")
    victims = {name: Victim(environment, name) for name in names}
    target = MemoryTarget()

    async def story(agent: Agent) -> None:
        await until(lambda: target.beats and set(target.beats[-1]) == {v.run for v in victims.values()})
        victims["stopped"].process.send_signal(signal.SIGSTOP)
        victims["zombie"].process.send_signal(signal.SIGKILL)
        victims["killed"].process.send_signal(signal.SIGKILL)
        victims["killed"].process.wait(20)
        living = {victims["running"].run, victims["stopped"].run}
        await until(lambda: set(target.beats[-1]) == living)
        count = len(target.beats)
        await until(lambda: len(target.beats) > count + 10)
        assert all(set(beat) == living for beat in target.beats[count:])
        assert agent.ingest.live_runs() == sorted(living)

    try:
        serve(spool, target, story)
    finally:
        for victim in victims.values():
            victim.end()


def test_a_script_of_a_container_is_neither_called_alive_nor_closed(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pid means another process here, or none: nobody here can know."""
    inside = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if subprocess.run([*inside, "true"], capture_output=True).returncode != 0:
        pytest.skip("SKIPPED: no PID namespace can be made here")
    monkeypatch.setattr("simspool.agent.drain.loop._HEARTBEAT", 0.05)
    environment = {**os.environ, "SIMSPOOL_AGENT": "off"}
    contained, plain = Victim(environment, "contained", inside=inside), Victim(environment, "plain")
    target = MemoryTarget()

    async def story(agent: Agent) -> None:
        await until(lambda: {w.run for w in agent.ingest.live_writers()} == {contained.run, plain.run})
        contained.end()
        count = len(target.beats)
        await until(lambda: len(target.beats) > count + 10)
        assert all(set(beat) == {plain.run} for beat in target.beats)
        assert agent.ingest.bury() == 0
        assert contained.run in {w.run for w in agent.ingest.live_writers()}

    try:
        serve(spool, target, story)
    finally:
        for victim in (contained, plain):
            victim.end()
