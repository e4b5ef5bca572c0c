"""Scripts of the SDK that cannot act for themselves, beside a real agent: hung in C with the interpreter's lock, stopped, with children."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_server import agent

from simspool.sdk.process_tree import Process, identify, is_gone
from simspool.spool import Spool

GRACES = "[abort]\nanswer_grace = 0.5\ncallback_grace = 5\nterm_grace = 0.5\n"

SCRIPT = """
import ctypes, json, os, signal, subprocess, sys, time
from simspool.sdk import Run

how, busy = sys.argv[1], sys.argv[2]
child = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
children = [subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE) for _ in range(2)]
for child in children:
    child.stdout.readline()
run = Run()
run.init("hung")
run.create_alert("diverged", rule="is not finite", metric="loss", trigger_abort=True)
if how.startswith("deaf"):
    signal.signal(signal.SIGTERM, lambda *_: None)  # Python's handler never runs while C holds the lock
give_up = time.monotonic() + 20
while not run._recording.is_heard and time.monotonic() < give_up:
    time.sleep(0.05)
print(json.dumps({"run": run.id, "children": [c.pid for c in children]}), flush=True)
sys.stdin.readline()
run.log_metrics({"loss": 1.0}, step=1)
run.log_metrics({"loss": float("nan")}, step=2)
if how.endswith("sleeps"):
    ctypes.PyDLL(None).sleep(600)
elif how.endswith("computes"):
    ctypes.PyDLL(busy).compute()
else:
    os.kill(os.getpid(), signal.SIGSTOP)
"""

BUSY = "void compute(void) { volatile double x = 1; for (;;) x = x * 1.0000001; }\n"


@contextlib.contextmanager
def daemon(folder: Path) -> Iterator[None]:
    (folder / "simspool.toml").write_text(GRACES)
    process = subprocess.Popen([sys.executable, "-m", "simspool.agent", "run", "--json"], stdout=subprocess.PIPE, text=True, cwd=folder)
    try:
        while "serving" not in (line := process.stdout.readline()):
            assert line, "the agent did not start"
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> str:
    if shutil.which("gcc") is None:
        pytest.skip("a C compiler makes the loop that holds the interpreter's lock")
    folder = tmp_path_factory.mktemp("busy")
    (folder / "busy.c").write_text(BUSY)
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", str(folder / "busy.so"), str(folder / "busy.c")], check=True)
    return str(folder / "busy.so")


@pytest.mark.parametrize("how", ["sleeps", "computes", "deaf-computes", "stops"])
def test_the_whole_tree_goes(how: str, spool: Spool, busy: str, tmp_path: Path) -> None:
    with daemon(tmp_path):
        command = [sys.executable, "-c", SCRIPT, how, busy]
        script = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
        told = json.loads(script.stdout.readline())
        children = [identify(pid) for pid in told["children"]]
        tree = [identify(script.pid), *children]
        assert all(isinstance(p, Process) for p in tree)
        script.stdin.write("\n")
        began = time.monotonic()
        script.stdin.flush()
        while not all(is_gone(p) for p in tree):
            script.poll()
            time.sleep(0.01)
        took = time.monotonic() - began
        print(f"{how}: the tree was gone after {took:.2f} s, graces are 0.5 s + 0.5 s")
        script.communicate(timeout=10)
        while "gone" not in (states := _states(told["run"])):
            time.sleep(0.05)
        assert {"requested", "unanswered", "signalled", "killed"} <= set(states)
        assert script.returncode == (-signal.SIGKILL if how.startswith("deaf") else -signal.SIGTERM)
    shown = json.loads(agent("show", told["run"], "--json", check=True).stdout)
    assert shown["status"] == "terminated"
    losses = [json.loads(line)["values"]["loss"] for line in _cat(told["run"], "metrics")]
    assert losses == [1.0, "NaN"]  # the last points are there


def _states(run: str) -> list[str]:
    return [json.loads(line)["body"]["state"] for line in _cat(run, "abort")]


def _cat(run: str, kind: str) -> list[str]:
    return agent("cat", run, "--kind", kind, "--json", check=True).stdout.splitlines()


def test_an_agent_that_was_killed_meanwhile_is_followed_by_one_that_ends_it(spool: Spool, busy: str, tmp_path: Path) -> None:
    """The request was made, the agent is gone, the next one finds the file."""
    (tmp_path / "simspool.toml").write_text(GRACES)
    first = subprocess.Popen([sys.executable, "-m", "simspool.agent", "run", "--json"], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    while "serving" not in first.stdout.readline():
        assert first.poll() is None
    command = [sys.executable, "-c", SCRIPT, "deaf-computes", busy]
    script = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    told = json.loads(script.stdout.readline())
    tree = [identify(pid) for pid in (script.pid, *told["children"])]
    script.stdin.write("\n")
    script.stdin.flush()
    control = Path(spool.run(told["run"]).control)
    while not list(control.glob("abort-*.json")):
        time.sleep(0.005)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate(timeout=10)
    time.sleep(0.7)
    assert not any(is_gone(p) for p in tree)
    with daemon(tmp_path):
        while not all(is_gone(p) for p in tree):
            script.poll()
            time.sleep(0.01)
    script.communicate(timeout=10)
    assert script.returncode == -signal.SIGKILL
    assert len(list(control.glob("abort-*.json"))) == 1
