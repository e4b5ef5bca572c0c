"""Script and agent take turns: a real agent is started, killed and stopped beside a real script, and no slot has two samples."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from samples import Sample, samples

from simspool.sdk.sampling.peers import sampling_agent
from simspool.sdk.sampling.slots import AHEAD
from simspool.spool import Spool

SCRIPT = """
    import sys
    from simspool.sdk import Run
    run = Run(sys.argv[1], agent="off")
    run.config(resources_metrics_interval=1)
    run.init("script")
    print(run.id, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        with open(tmp_path / "agent.log", "ab") as log:
            started.append(subprocess.Popen([sys.executable, "-m", "simspool.agent", "run"], stdout=log, stderr=log))
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(OSError):
            process.kill()
        process.wait()


def until(spool: Spool, run: str, enough: Callable[[list[Sample]], object]) -> list[Sample]:
    while not enough(found := samples(spool, run)):
        time.sleep(0.1)
    return found


@pytest.mark.parametrize(("mode", "ends"), [("online", [signal.SIGKILL, signal.SIGTERM]), ("offline", [signal.SIGKILL])])
def test_agents_that_are_killed_or_stopped_take_turns_with_the_script(
    spool: Spool, program: Callable[..., Any], agents: Callable[[], Any], mode: str, ends: list[signal.Signals]
) -> None:
    script = program(SCRIPT, mode)
    run = script.hear()
    until(spool, run, len)
    for turn, number in enumerate(ends):
        agent = agents()
        before = len(samples(spool, run))
        found = until(spool, run, lambda s, n=before: [x.by for x in s[n:]].count("agent") >= 2)
        told = sampling_agent(spool.path)
        assert told is not None
        assert told.pid == agent.pid
        agents_slots = [x for x in found[before:] if x.by == "agent"]
        assert all(x.slot * 1_000_000_000 + _origin(spool, run) >= told.samples_from for x in agents_slots), "3 s after it was announced"
        agent.send_signal(number)
        agent.wait()
        assert sampling_agent(spool.path) is None
        before = len(samples(spool, run))
        found = until(spool, run, lambda s, n=before: [x.by != "agent" for x in s[n:]].count(True) >= 2)
        assert len({x.slot for x in found}) == len(found), f"a slot has two samples after turn {turn}"
        assert "resources/cpu.usage.percentage" in found[-1].values
    assert AHEAD == 3_000_000_000


def _origin(spool: Spool, run: str) -> int:
    return int(spool.run(run).info()["origin"]["boot"])


def test_an_agent_that_is_there_first_takes_all(spool: Spool, program: Callable[..., Any], agents: Callable[[], Any]) -> None:
    agents()
    while (agent := sampling_agent(spool.path)) is None or time.clock_gettime_ns(time.CLOCK_BOOTTIME) < agent.samples_from:
        time.sleep(0.05)
    run = program(SCRIPT, "online").hear()
    found = until(spool, run, lambda s: len(s) > 3)
    assert {x.by for x in found} == {"agent"}
    assert found[0].slot <= 3
    for sample in found:
        assert sample.slot == int(sample.at)
        assert sample.values["resources/processes.count"] == 1, "the agent itself does not count"


def test_an_address_that_nobody_lives_at_is_no_agent(spool: Spool) -> None:
    from simspool.spool import atomic
    from simspool.spool.process import start_ticks, this_host

    host = this_host()
    place = Path(spool.path, "agent", "hosts")
    atomic.make_folder(str(place))
    address = str(place / f"{host.name}-{host.pid_namespace}.json")
    ticks = (start_ticks(os.getpid()) or (0, ""))[0]
    right = {"pid": os.getpid(), "start_ticks": ticks, "samples_from": 5}
    atomic.write_json(address, right)
    assert sampling_agent(spool.path) is not None
    for wrong in ({"start_ticks": ticks + 1}, {"samples_from": None}, {"pid": "x"}, {"pid": 1 << 22}):
        atomic.write_json(address, right | wrong)
        assert sampling_agent(spool.path) is None, wrong
    Path(address).write_text("[")
    assert sampling_agent(spool.path) is None
