"""The doorbell: heard when there is an agent, without effect when there is none."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from simspool.sdk import Run
from simspool.spool import open_spool, process


@pytest.fixture
def ring(spool_dir: Path, tmp_path: Path) -> Any:
    """Pretend to be an agent at some address; the fixture gives a function that starts one, and closes it."""
    opened = []

    def start(path: str | None = None, pid: int | None = None, listen: bool = True) -> socket.socket:
        spool = open_spool(spool_dir, create=True)
        bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        opened.append(bell)
        path = path or str(tmp_path / "b")
        if listen:
            bell.bind(path)
            bell.settimeout(5)
        host = process.this_host()
        file = Path(spool.agent, "hosts", f"{host.name}-{host.pid_namespace}.json")
        file.parent.mkdir(parents=True, exist_ok=True)
        pid = pid or os.getpid()
        file.write_text(json.dumps({"bell": path, "pid": pid, "start_ticks": (process.start_ticks(pid) or (1, ""))[0]}))
        return bell

    yield start
    for bell in opened:
        bell.close()


def tend(run: Run) -> None:
    assert run._recording is not None
    run._recording.tend()


def test_an_agent_hears_records_at_once_and_the_last_of_a_burst(ring: Any, capsys: pytest.CaptureFixture[str]) -> None:
    agent = ring()
    with Run() as run:
        run.init("r")
        tend(run)
        assert run._writer is not None
        writer = f"{run._writer.id_text} {run.id}".encode()
        assert len(writer) == 45
        assert agent.recv(100) == writer
        agent.setblocking(False)
        while True:
            try:
                agent.recv(100)
            except BlockingIOError:
                break
        for i in range(2000):
            run.log_metrics({"a": 1.0}, step=i)
        heard = 0
        while True:
            try:
                heard += agent.recv(100) == writer
            except BlockingIOError:
                break
        assert 1 <= heard < 500
        time.sleep(0.01)
        run.log_metrics({"a": 1.0})
        run.log_metrics({"a": 1.0})
        tend(run)
        agent.settimeout(5)
        assert agent.recv(100) == writer
    assert "agent sync" not in capsys.readouterr().err


def test_offline_rings_nobody(ring: Any) -> None:
    agent = ring()
    agent.settimeout(0.2)
    with Run(mode="offline") as run:
        run.init("r")
        tend(run)
        run.log_event("x")
    with pytest.raises(TimeoutError):
        agent.recv(100)


@pytest.mark.parametrize("case", ["long", "dead", "no socket", "nonsense"])
def test_no_bell_is_no_error(case: str, ring: Any, spool_dir: Path, found: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if case == "long":
        ring("/tmp/" + "x" * 120, listen=False)
    elif case == "dead":
        ring(pid=(1 << 22) - 1)
    elif case == "no socket":
        ring(listen=False)
    else:
        ring(listen=False)
        next((spool_dir / "agent/hosts").iterdir()).write_text('["not", "an address"]')
    with Run() as run:
        run.init("r")
        for _ in range(3):
            tend(run)
            assert run.log_metrics({"a": 1.0}) is True
    assert len(found().of("metrics")) == 3
    assert "agent sync" in capsys.readouterr().err


def test_an_agent_that_dies_is_forgotten_and_a_new_one_found(ring: Any, tmp_path: Path) -> None:
    first = ring()
    with Run() as run:
        run.init("r")
        tend(run)
        first.recv(100)
        first.close()
        assert run.log_event("nobody hears") is True
        second = ring(str(tmp_path / "second"))
        tend(run)
        assert len(second.recv(100)) == 45  # the writer and its run
