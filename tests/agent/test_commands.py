"""`agent run`, `agent sync`, `agent status`, `agent ls` and `agent show`, as processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_server import RealServer, agent
from recorded import begin, fill, killed, whole

from simspool.agent.cli.handover import agent_sync, api_path
from simspool.spool import Spool


@pytest.fixture
def daemon(spool: Spool, server: RealServer) -> Iterator[subprocess.Popen[str]]:
    """`agent run`, ready."""
    with start_daemon(server.environment) as found:
        try:
            yield found
        finally:
            found.send_signal(signal.SIGTERM)
            code = found.wait(20)
        assert code == 0


def start_daemon(env: dict[str, str]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "simspool.agent", "run"], env={**os.environ, **env}, stderr=subprocess.PIPE, text=True
    )  # fmt: skip
    assert process.stderr is not None
    while "serving" not in (line := process.stderr.readline()):
        assert line, "agent run ended"
    return process


def until(condition, seconds: float = 20.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
    return found


def test_a_running_agent_drains_by_itself_and_stops_clean(spool: Spool, server: RealServer, daemon: subprocess.Popen[str]) -> None:
    run, writer = begin(spool, "live")
    fill(writer, 100)
    until(lambda: len(server.points(run, "loss")) == 100 if server.get(f"/runs/{run}") else False)
    fill(writer, 50, start=100)
    writer.close({"status": "completed"})
    until(lambda: server.get(f"/runs/{run}")["status"] == "completed")
    assert len(server.points(run, "loss")) == 150


def test_beside_a_running_agent_sync_hands_over_and_shows_the_same(spool: Spool, server: RealServer, daemon: subprocess.Popen[str]) -> None:
    run = whole(spool, points=200)
    done = agent("sync", "--json", env=server.environment, check=True)
    report = json.loads(done.stdout)
    assert (report["state"], report["records_left"], report["exit_code"]) == ("done", 0, 0)
    assert len(server.points(run, "loss")) == 200
    status = json.loads(agent("status", "--json", check=True).stdout)
    assert status["agent"]["pid"] == daemon.pid
    assert status["records"]["waiting"] == 0
    missing = agent("sync", "no-such-run", env=server.environment)
    assert missing.returncode == 9
    assert "agent ls" in missing.stderr


def test_a_second_agent_on_one_spool_is_refused_with_the_owner_named(
    spool: Spool, server: RealServer, daemon: subprocess.Popen[str]
) -> None:
    second = agent("run", env=server.environment)
    assert second.returncode == 10
    assert str(daemon.pid) in second.stderr


def test_a_killed_run_is_noticed_closed_as_lost_and_drained(spool: Spool, server: RealServer, daemon: subprocess.Popen[str]) -> None:
    run = killed(spool, points=77)
    until(lambda: (server.get(f"/runs/{run}") or {}).get("status") == "lost")
    assert len(server.points(run, "loss")) == 77


def test_exit_codes_of_sync(spool: Spool, server: RealServer) -> None:
    whole(spool)
    assert agent("sync").returncode == 5
    unreachable = agent("sync", env={"SIMSPOOL_URL": "http://127.0.0.1:9", "SIMSPOOL_TOKEN": "t"})
    assert unreachable.returncode == 3
    assert "nothing is lost" in unreachable.stderr
    late = agent("sync", "--timeout", "0", env={"SIMSPOOL_URL": "http://127.0.0.1:9", "SIMSPOOL_TOKEN": "t"})
    assert late.returncode in {3, 7}
    assert agent("sync", "nobody", env=server.environment).returncode == 9
    assert agent("sync", "--where", "novalue", env=server.environment).returncode == 2
    assert agent("sync", env=server.environment).returncode == 0
    assert agent("sync", env={"SIMSPOOL_DIR": "/proc"}).returncode == 10


def test_a_newer_format_is_left_untouched_and_makes_sync_exit_with_its_code(spool: Spool, server: RealServer) -> None:
    whole(spool)
    marker = Path(spool.path) / "SPOOL"
    marker.write_text(json.dumps({"format": [2, 0], "id": spool.id}))
    before = sorted(str(p) for p in Path(spool.path).rglob("*"))
    done = agent("sync", env=server.environment)
    assert done.returncode == 6
    assert "upgrade simspool" in done.stderr
    assert sorted(str(p) for p in Path(spool.path).rglob("*")) == before


def test_ls_and_show_tell_what_is_recorded(spool: Spool) -> None:
    whole(spool, "one", points=12, folder="/f", metadata={"a": 1})
    whole(spool, "two", points=3)
    lines = [json.loads(line) for line in agent("ls", "--json", check=True).stdout.splitlines()]
    assert [r["name"] for r in lines] == ["two", "one"]
    assert [r["waiting"] for r in lines] == [r["records"] for r in lines]
    shown = json.loads(agent("show", "one", "--json", check=True).stdout)
    assert (shown["name"], shown["status"], shown["folder"], shown["metadata"]) == ("one", "completed", "/f", {"a": 1})
    assert shown["metrics"]["count"] == {"count": 12, "last": 11, "step": 11}
    assert shown["events"] == {"count": 3, "last": "event 2"}
    assert agent("show", shown["id"][:-3], check=True).returncode == 0
    text = agent("show", "one", check=True).stdout
    assert "completed" in text
    assert "loss" in text


def test_nonsense_in_place_of_a_server_is_a_clear_error(spool: Spool, tmp_path: Path) -> None:
    whole(spool)
    page = tmp_path / "www" / "api" / "simspool" / "v1"
    page.mkdir(parents=True)
    (page / "server").write_text("<html>Please log in to the guest network</html>")
    web = subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(tmp_path / "www")],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert web.stdout is not None
        port = web.stdout.readline().split(" port ")[1].split()[0]
        done = agent("sync", env={"SIMSPOOL_URL": f"http://127.0.0.1:{port}", "SIMSPOOL_TOKEN": "t"})
    finally:
        web.terminate()
        web.wait()
        assert web.stdout is not None
        web.stdout.close()
    assert done.returncode == 3
    assert "login page" in done.stderr


def test_a_bell_path_that_is_too_long_is_said_and_the_scan_is_sufficient(
    spool: Spool, server: RealServer, tmp_path: Path, monkeypatch
) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir(mode=0o700)
    process = start_daemon({**server.environment, "XDG_RUNTIME_DIR": str(deep)})
    try:
        run = whole(spool, points=40)
        until(lambda: server.get(f"/runs/{run}") and len(server.points(run, "loss")) == 40)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stderr is not None
        process.stderr.close()


def test_two_syncs_at_once_both_end_well_and_nothing_arrives_twice(spool: Spool, server: RealServer) -> None:
    runs = [whole(spool, f"r{n}", points=500) for n in range(20)]
    env = {**os.environ, **server.environment}
    command = [sys.executable, "-m", "simspool.agent"]
    started = [subprocess.Popen([*command, "sync", "--json"], env=env, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    looking = subprocess.Popen([*command, "status", "--json"], env=env, stdout=subprocess.PIPE, text=True)
    for process in [*started, looking]:
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0, out
    for run in runs:
        assert len(server.points(run, "loss")) == 500


def test_an_agent_that_starts_while_a_command_has_the_spool_waits_for_it(spool: Spool, server: RealServer) -> None:
    from simspool.spool.lock import SpoolLock

    lock = SpoolLock(spool)
    lock.acquire()
    process = subprocess.Popen(
        [sys.executable, "-m", "simspool.agent", "run"], env={**os.environ, **server.environment}, stderr=subprocess.PIPE, text=True
    )
    with process:
        time.sleep(1.5)
        assert process.poll() is None
        lock.release()
        assert process.stderr is not None
        until(lambda: "serving" in process.stderr.readline())
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def slow_server(tmp_path: Path) -> subprocess.Popen[str]:
    """A server that takes every request and answers none."""
    script = "import socket, time; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True)"
    script += "; held = s.accept(); print('asked', flush=True); time.sleep(60)"
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=tmp_path)


@pytest.mark.parametrize(
    ("command", "number", "code"), [("sync", signal.SIGINT, 130), ("run", signal.SIGTERM, 0), ("run", signal.SIGINT, 0)]
)
def test_a_signal_in_the_middle_of_a_drain_ends_it_clean_and_the_next_sync_is_exact(
    spool: Spool, server: RealServer, tmp_path: Path, command: str, number: signal.Signals, code: int
) -> None:
    run = whole(spool, points=300)
    with slow_server(tmp_path) as other:
        assert other.stdout is not None
        port = other.stdout.readline().strip()
        env = {**os.environ, "SIMSPOOL_URL": f"http://127.0.0.1:{port}", "SIMSPOOL_TOKEN": "t"}
        process = subprocess.Popen([sys.executable, "-m", "simspool.agent", command], env=env, stderr=subprocess.PIPE, text=True)
        assert other.stdout.readline().strip() == "asked"
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
        other.kill()
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert agent("sync", env=server.environment).returncode == 0
    assert len(server.points(run, "loss")) == 300


def test_status_on_a_spool_that_cannot_be_written_is_read_from_the_spool(spool: Spool, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    import errno

    from simspool.agent.cli.view import open_view
    from simspool.spool.lock import SpoolLock

    run = whole(spool, points=5)

    def refused(_: SpoolLock) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(SpoolLock, "acquire", refused)
    with open_view(spool) as catalog:
        assert catalog.path is None
        assert catalog.rows("SELECT id FROM runs") == [(run,)]


def test_a_catalog_that_is_damaged_inside_is_rebuilt_by_the_next_command(spool: Spool, server: RealServer) -> None:
    from simspool.agent.catalog.store import catalog_path

    runs = [whole(spool, f"r{n}", points=10) for n in range(50)]
    assert agent("sync", env=server.environment).returncode == 0
    path = Path(catalog_path(spool))
    data = bytearray(path.read_bytes())
    for at in range(4096, len(data), 4096):
        data[at : at + 100] = b"\xff" * 100
    path.write_bytes(bytes(data))
    shown = json.loads(agent("status", "--json", check=True).stdout)
    assert (shown["runs"]["total"], shown["records"]["waiting"]) == (50, 0)
    again = json.loads(agent("sync", "--json", env=server.environment, check=True).stdout)
    assert (again["state"], again["sent_records"]) == ("done", 0)
    assert len(server.points(runs[7], "loss")) == 10


def test_a_sync_whose_asker_goes_away_leaves_no_traceback(spool: Spool, server: RealServer) -> None:
    """Before the end, and right after the last line."""
    whole(spool, points=100)
    process = start_daemon(server.environment)
    try:
        for _ in range(3):
            agent("sync", "--json", env=server.environment, check=True)
        for answer in agent_sync(str(api_path(spool)), {"runs": [], "folder": None, "tags": [], "where": [], "timeout": None}):
            assert answer
            break
        agent("status", check=True)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        said = process.stderr.read()
        process.stderr.close()
        assert process.wait(20) == 0
    assert "Traceback" not in said
