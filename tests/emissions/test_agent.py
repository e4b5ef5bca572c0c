"""The real agent and its child: no network, no files, no orphan; rules see the emissions."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from emitting import AgentProcess, Script, measured, measuring_children, until

from simspool.sdk import Client
from simspool.spool import Spool

Agents = Callable[..., AgentProcess]
Scripts = Callable[..., Script]
pytestmark = pytest.mark.timeout(180)  # codecarbon takes long to start on a busy machine

RULE = (
    "run.create_metric_threshold_alert(name='too much', metric='sustainability.emissions.total', threshold=1e-12, "
    "rule='is above', frequency=1, window=1, aggregation='average')"
)


def test_no_network_no_files_and_no_orphan(spool: Spool, agent: Agents, script: Scripts, tmp_path: Path) -> None:
    for tool in ("strace", "unshare"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: what the agent and codecarbon ask of the system cannot be seen")
    if subprocess.run(["unshare", "-n", "true"], check=False).returncode != 0:
        pytest.skip("this user may not make a network namespace: that no network is needed cannot be shown")
    traces = tmp_path / "traces"
    traces.mkdir()
    calls = "trace=connect,sendto,sendmsg,open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,execve,clone,clone3,vfork,fork"
    before = ("unshare", "-n", "strace", "-ff", "-qq", "-s", "300", "-o", str(traces / "t"), "-e", calls)
    (tmp_path / ".codecarbon.config").write_text("[codecarbon]\nemissions_endpoint = http://169.254.169.254/\nsave_to_file = true\n")
    started = agent(*before, SIMSPOOL_COUNTRY="DEU", CODECARBON_EMISSIONS_ENDPOINT="http://169.254.169.254/", CODECARBON_OUTPUT_DIR="/tmp")
    lazy = script("sleep", SIMSPOOL_COUNTRY="DEU")
    until(lambda: measured(spool, lazy.run), "a sample")
    (traced,) = psutil.Process(started.process.pid).children()
    (child,) = measuring_children(traced.pid)
    mine = [child, *(p.pid for p in psutil.Process(child).children(recursive=True))]
    traced.send_signal(signal.SIGKILL)
    until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in mine), "the end of the child")
    until(lambda: started.process.poll() is not None, "the end of strace")
    text = {int(trace.name[2:]): trace.read_text(errors="replace") for trace in traces.iterdir()}
    family, todo = set(), [child]  # its threads and programs
    while todo:
        family.add(task := todo.pop())
        todo += [int(new) for new in re.findall(r"^(?:clone3?|v?fork)\(.* = (\d+)$", text.get(task, ""), re.MULTILINE)]
    seen = "".join(text.get(task, "") for task in family)
    assert "global_energy_mix.json" in seen
    assert len(family) > 5
    writing = r"^(?:open(?:at)?\(.*O_(?:WRONLY|RDWR|CREAT).*|(?:creat|mkdir|rename)\w*\(.*) = \d+$"
    harmless = re.compile('"/dev/(?:null|shm/sem[.]\\w+)"')  # the latter are locks in memory of a program that asks for the processor
    assert [line for line in re.findall(writing, seen, re.MULTILINE) if not harmless.search(line)] == []
    assert "AF_INET" not in "".join(text.values())
    assert not list(tmp_path.glob("emissions*.csv"))


def test_the_agent_itself_does_not_load_codecarbon() -> None:
    text = "import sys, simspool.agent.app; sys.exit(any(name in sys.modules for name in ('codecarbon', 'pandas', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", text], check=False, timeout=60).returncode == 0


def test_rules_see_emissions_and_totals_go_on_after_a_killed_agent(spool: Spool, agent: Agents, script: Scripts) -> None:
    first = agent(SIMSPOOL_COUNTRY="DEU")
    assert measuring_children(first.process.pid) == []
    busy = script("spin", RULE)  # it has no country of its own: the agent has
    until(lambda: measured(spool, busy.run), "a sample")
    until(lambda: _alerts(spool, busy.run) == ["too much"], "an alert")
    first.kill()
    before = measured(spool, busy.run)
    second = agent(SIMSPOOL_COUNTRY="DEU")
    assert measuring_children(first.process.pid) == []
    until(lambda: len(measured(spool, busy.run)) > len(before), "a sample of the second agent")
    busy.close()
    ended = until(lambda: (found := measured(spool, busy.run)) and len(found) > len(before) + 1 and found, "the last interval")
    assert ended[: len(before)] == before
    assert [step for step, *_ in ended] == list(range(len(ended)))
    total = 0.0
    for _, energy, delta, _, _ in ended:
        total += delta
        assert energy == total
    second.kill(signal.SIGTERM)
    assert second.process.returncode == 0
    assert "codecarbon" not in second.log.read_text()


def _alerts(spool: Spool, run: str) -> list[str]:
    return [str(name) for name in Client(spool=spool.path).get_alerts(run)]
