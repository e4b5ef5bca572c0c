"""A32 to A35: programs by argument vector, the right process or none, ends in the middle of an fsync, and a poisoned environment."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from real_server import RealServer, agent
from recorded import whole

from simspool.agent.notify.program import Program
from simspool.sdk import process_tree
from simspool.spool import Spool, Tail

INJECTIONS = ["; touch OWNED", "$(touch OWNED)", "`touch OWNED`", "| touch OWNED", "&& touch OWNED", "\n touch OWNED", "' ; touch OWNED '",
"-e evil", "%n"]


@pytest.mark.parametrize("text", INJECTIONS)
def test_a32_what_a_run_is_called_is_one_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    status, said = Program().run(
        [sys.executable, "-c", "import sys; print(len(sys.argv), ascii(sys.argv[1]))", text], text.encode(), {"SIMSPOOL_RUN_NAME": text},
        30.0
    )
    assert (status, said) == (0, f"2 {text!a}")
    assert not list(place.iterdir())
    assert not Path("/OWNED").exists()


@pytest.mark.parametrize("text", INJECTIONS)
def test_a32_no_command_of_ours_goes_through_a_shell(spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    done = agent("exec", "--name", "x", "--tag", text.replace("\n", " "), "--", sys.executable, "-c", "import sys; print(sys.argv[1])",
    text)
    assert done.stdout.rstrip("\n") == text.rstrip("\n"), done.stderr
    assert not (tmp_path / "OWNED").exists()


def test_a33_a_pid_alone_means_nobody() -> None:
    """A process is its pid and start time (and boot and namespace): a later one with its number is another."""
    first = subprocess.Popen(["sleep", "60"])
    known = process_tree.identify(first.pid)
    assert known is not None
    first.kill()
    first.wait()
    again = process_tree.identify(first.pid)
    assert again is None or again != known


@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace here: it holds an fsync while the signal comes")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a34_a_signal_in_the_middle_of_an_fsync(spool: Spool, server: RealServer, tmp_path: Path, number: signal.Signals) -> None:
    """`agent sync` is told to end while the disk is slow: it ends, the journal is whole, and the next one sends everything once."""
    run = whole(spool, points=200)
    probe = subprocess.run(["strace", "-e", "trace=none", "true"], check=False, capture_output=True)
    if probe.returncode:
        pytest.skip("strace does not work here")
    command = [
        "strace", "-f", "-qq", "-o", str(tmp_path / "trace"), "-e", "trace=fsync,fdatasync", "-e",
        "inject=fsync,fdatasync:delay_enter=150000",
        sys.executable, "-m", "simspool.agent", "sync",
    ]  # fmt: skip
    process = subprocess.Popen(command, env={**os.environ, **server.environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 60
    while not (tmp_path / "trace").exists() or not (tmp_path / "trace").stat().st_size:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    for child in process_tree_of(process.pid):
        os.kill(child, number)
    process.communicate(timeout=90)
    assert agent("sync", "--json", "--timeout", "60", env=server.environment).returncode == 0
    assert len(server.points(run, "loss")) == 200
    for writer in (Path(spool.agent) / "w").iterdir():
        with Tail(str(writer), spool.id) as tail:
            damage = [d for chunk in tail.read(dead=True) for d in chunk.damage if d.kind != "torn"]
        assert damage == []


def process_tree_of(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


POISON = "import os\nopen(os.environ['POISONED'], 'a').write(__name__ + '\\n')\n"


def test_a35_modules_of_the_working_folder_are_not_the_agents(spool: Spool, server: RealServer, tmp_path: Path) -> None:
    """An agent that is started in a run's folder, by a service or on demand, imports nothing from there."""
    work = tmp_path / "work"
    work.mkdir()
    for name in ("aiohttp", "simspool", "json", "sqlite3", "click", "zstandard", "psutil", "sitecustomize", "usercustomize", "logging"):
        (work / f"{name}.py").write_text(POISON)
    whole(spool)
    marks = tmp_path / "marks"
    env = {**os.environ, **server.environment, "POISONED": str(marks)}
    for unit in (Path(__file__).parents[3] / "systemd").glob("*.service"):
        (line,) = [text for text in unit.read_text().splitlines() if text.startswith("ExecStart=")]
        assert " -P -m simspool.agent " in line or " -I -m simspool.agent " in line, unit
    done = subprocess.run([sys.executable, "-P", "-m", "simspool.agent", "sync", "--json"], cwd=work, env=env, capture_output=True,
    text=True,
                          timeout=90, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    script = tmp_path / "script.py"
    script.write_text("from simspool.sdk import Run\nrun = Run(mode='online'); run.init('x'); run.log_metrics({'a': 1}); run.close()\n")
    done = subprocess.run([sys.executable, str(script)], cwd=work, env={**env, "SIMSPOOL_IDLE_END": "0.5"}, capture_output=True, text=True,
                          timeout=90, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    host = list((Path(spool.agent) / "hosts").glob("*.json"))
    deadline = time.monotonic() + 60
    while (Path(spool.agent) / "hosts").is_dir() and list((Path(spool.agent) / "hosts").glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not marks.exists(), (marks.read_text(), host)


def test_a35_plug_ins_of_sqlite_utils_are_not_run(spool: Spool, server: RealServer, tmp_path: Path) -> None:
    """An installed package with a plug-in for sqlite-utils has no say in the agent or the server."""
    place = tmp_path / "site"
    (place / "evil-1.dist-info").mkdir(parents=True)
    (place / "evil.py").write_text(POISON + "\nfrom sqlite_utils import hookimpl\n\n@hookimpl\ndef prepare_connection(conn):\n"
                                   "    open(os.environ['POISONED'], 'a').write('prepared\\n')\n")  # fmt: skip
    (place / "evil-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1\n")
    (place / "evil-1.dist-info" / "entry_points.txt").write_text("[sqlite_utils]\nevil = evil\n")
    marks = tmp_path / "marks"
    whole(spool)
    env = {**server.environment, "PYTHONPATH": str(place), "POISONED": str(marks)}
    check = "import sqlite_utils\nsqlite_utils.Database(memory=True)\n"
    subprocess.run([sys.executable, "-c", check], env={**os.environ, **env}, check=True, timeout=60)
    assert "prepared" in marks.read_text(), "the plug-in works where it is asked"
    marks.unlink()
    done = agent("sync", "--json", env=env)
    assert done.returncode == 0, done.stderr
    with RealServer(tmp_path / "another"):
        pass
    assert not marks.exists() or "prepared" not in marks.read_text()
    assert json.loads(agent("status", "--json", env=env).stdout.splitlines()[-1])
