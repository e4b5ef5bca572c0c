"""Starting an agent beside a run: who decides, where it cannot be, and that the script never notices."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from on_demand import LOG, agents_of, ended_after, note_of, served, starts, wait_for

from simspool.sdk import ConfigError, InvalidRecord, Run
from simspool.sdk.agent_start import FIRST_PAUSE, LONGEST_PAUSE, AgentStarter, StartNote, can_run_here
from simspool.sdk.config import load_config

ROOT = Path(__file__).resolve().parents[2]

RECORD = """
    import sys, time
    from simspool.sdk import Run
    with Run(**eval(sys.argv[1])) as run:
        run.init("x")
        time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Agents are wanted in this test, keep their state in its folder, and end with it."""
    monkeypatch.delenv("SIMSPOOL_AGENT")
    monkeypatch.setenv("SIMSPOOL_IDLE_END", "1")
    monkeypatch.setenv("SIMSPOOL_STATE", str(tmp_path / "state"))
    with ended_after(tmp_path):
        yield


# ---------------------------------------------------------------------- who decides


def test_argument_then_environment_then_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_config().agent == "off"  # as all tests have it
    assert load_config(agent="auto").agent == "auto"
    monkeypatch.delenv("SIMSPOOL_AGENT")
    assert load_config().agent == "auto"
    (home / "simspool.toml").write_text('[agent]\nstart = "off"\n')
    assert load_config().agent == "off"
    monkeypatch.setenv("SIMSPOOL_AGENT", "auto")
    assert load_config().agent == "auto"


def test_a_value_that_does_not_exist_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRecord, match="agent"):
        Run(agent="always")  # type: ignore[arg-type]
    monkeypatch.setenv("SIMSPOOL_AGENT", "yes")
    with pytest.raises(ConfigError, match="'yes' .SIMSPOOL_AGENT. is not one of auto, off"):
        Run().init("x")
    monkeypatch.delenv("SIMSPOOL_AGENT")
    (home / "simspool.toml").write_text("[agent]\nstart = true\n")
    with pytest.raises(ConfigError, match="must be text"):
        Run().init("x")


@pytest.mark.parametrize(
    ("options", "env"),
    [('{"agent": "off"}', {}), ('{"mode": "offline"}', {}), ('{"mode": "disabled"}', {}), ("{}", {"SIMSPOOL_AGENT": "off"})],
)
@pytest.mark.usefixtures("wanted")
def test_where_it_is_not_wanted_nothing_is_started(script: Any, spool_dir: Path, options: str, env: dict[str, str]) -> None:
    done = script(RECORD, options, "1.5", **env)
    assert (done.returncode, "Error" in done.stderr) == (0, False), done.stderr
    assert not list(spool_dir.glob("agent/hosts/*"))
    assert agents_of(spool_dir) == []


# ---------------------------------------------------------------------- what is started


@pytest.mark.usefixtures("wanted")
def test_it_has_nothing_of_the_script_but_the_servers_settings(background: Any, spool_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PYTHONSTARTUP": "/nowhere", "PYTHONWARNINGS": "error", "PYTHONPATH": "one::/two", "NOTIFY_SOCKET": "/nowhere",
        "SIMSPOOL_RUN": "x", "MY_OWN": "kept", "SIMSPOOL_STATE": "state",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    process = background(
        """
        import os, signal, time
        from simspool.sdk import Run
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        left_open = os.open("/dev/zero", os.O_RDONLY)
        os.set_inheritable(left_open, True)
        run = Run(server_url="http://127.0.0.1:9", server_token="a-token")
        run.init("x")
        print("ready", flush=True)
        time.sleep(60)
        """
    )
    process.stdout.readline()
    pid = served(spool_dir)
    proc = Path(f"/proc/{pid}")
    environment = dict(line.split("=", 1) for line in (proc / "environ").read_text().split("\0") if line)
    assert environment["SIMSPOOL_URL"] == "http://127.0.0.1:9"
    assert environment["SIMSPOOL_TOKEN"] == "a-token"
    assert environment["SIMSPOOL_AGENT"] == "off"
    assert environment["MY_OWN"] == "kept"
    assert environment["SIMSPOOL_STATE"] == f"{os.getcwd()}/state"
    assert environment["PYTHONPATH"] == f"{os.getcwd()}/one:/two"
    assert not {"PYTHONSTARTUP", "PYTHONWARNINGS", "NOTIFY_SOCKET", "SIMSPOOL_RUN"} & set(environment)
    assert b"a-token" not in (proc / "cmdline").read_bytes()
    assert os.readlink(proc / "cwd") == "/"
    assert [os.readlink(proc / "fd" / n) for n in "012"] == ["/dev/null", "/dev/null", str(spool_dir / LOG)]
    opened = [os.readlink(fd) for fd in (proc / "fd").iterdir() if fd.is_symlink()]
    assert "/dev/zero" not in opened
    assert os.getsid(pid) == pid
    assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, 0) + 10

    def status() -> dict[str, str]:
        return dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines())

    assert int(status()["PPid"]) != process.pid
    wait_for(lambda: int(status()["SigBlk"], 16) == 0, "no signal blocked")  # the C library blocks all for the moment of a thread's start
    assert oct((spool_dir / LOG).stat().st_mode & 0o777) == "0o600"


@pytest.mark.usefixtures("wanted")
def test_the_script_sees_no_child_and_no_signal(script: Any, spool_dir: Path) -> None:
    """It waits for any child of its own, in the very moment when the agent is started, and again when it has none."""
    done = script(
        """
        import os, signal, subprocess, sys, time
        from simspool.sdk import Run
        from simspool.sdk.agent_start import serving_agent
        seen = []
        signal.signal(signal.SIGCHLD, lambda *a: seen.append(a))
        run = Run()
        run.init("x")
        own = os.posix_spawn("/bin/sleep", ["sleep", "4"], os.environ)
        assert os.wait()[0] == own
        assert len(seen) == 1, seen
        assert serving_agent(os.environ["SIMSPOOL_DIR"]) is not None
        try:
            os.wait()
        except ChildProcessError:
            print("no stranger")
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        run.close()
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
        """
    )
    assert (done.returncode, done.stdout) == (0, "no stranger\n"), done.stderr
    assert starts(spool_dir) == 1


def test_a_program_that_is_started_is_nobodys_child(script: Any, tmp_path: Path) -> None:
    """A hundred starts in a thread, while the script waits for children of its own; also programs that cannot be started."""
    done = script(
        """
        import os, signal, sys, threading
        from simspool.sdk import orphan
        seen, failed = [], []
        signal.signal(signal.SIGCHLD, lambda *a: seen.append(a))
        def starts():
            for n in range(100):
                try:
                    orphan.start("/bin/sh" if n % 5 else "/nowhere", ["sh", "-c", "echo x >> $OUT"], {"OUT": sys.argv[1]})
                except OSError as error:
                    failed.append(error)
        thread = threading.Thread(target=starts)
        thread.start()
        own = 0
        while thread.is_alive():
            child = os.posix_spawn("/bin/true", ["true"], {})
            found = os.wait()[0]
            assert found == child, "a stranger"
            own += 1
        thread.join()
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            print(len(failed), str(failed[0]).count("/nowhere"), len(seen) <= own, own > 0)
        """,
        str(tmp_path / "out"),
    )
    assert (done.returncode, done.stdout) == (0, "20 1 True True\n"), done.stderr
    wait_for(lambda: (tmp_path / "out").read_text().count("x") == 80, "all that was started")


@pytest.mark.usefixtures("wanted")
def test_a_script_that_ends_at_once_starts_one_at_its_close(script: Any, spool_dir: Path) -> None:
    done = script(RECORD, "{}", "0")
    assert (done.returncode, done.stderr) == (0, "")
    served(spool_dir)
    wait_for(lambda: not agents_of(spool_dir), "the agent's end")
    assert starts(spool_dir) == 1


# ---------------------------------------------------------------------- the start note


@pytest.mark.usefixtures("wanted")
def test_an_agent_that_never_comes_to_serve_is_tried_ever_more_rarely(
    spool_dir: Path, script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = spool_dir.parent / "broken" / "click"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('a broken installation')")
    env = {"PYTHONPATH": str(broken.parent)}
    for tries in (1, 2, 3):
        done = script(RECORD, "{}", "0", **env)
        assert done.returncode == 0, done.stderr
        wait_for(lambda: not agents_of(spool_dir), "the end of what was started")
        note = note_of(spool_dir)
        left = note["until"] - time.clock_gettime(time.CLOCK_BOOTTIME)
        assert note["tries"] == tries
        assert FIRST_PAUSE * 2 ** (tries - 1) - 20 < left <= FIRST_PAUSE * 2 ** (tries - 1)
        done = script(RECORD, "{}", "1.5", **env)
        assert note_of(spool_dir) == note
        (path,) = spool_dir.glob("agent/hosts/*.start")
        path.write_text(path.read_text().replace(f'"until": {note["until"]}', '"until": 0'))
    assert ("agent sync" in done.stderr, "broken" in done.stderr) == (True, False)
    assert (spool_dir / LOG).read_text().count("\nImportError: a broken installation") == 3


def test_a_note_is_of_this_boot_and_never_for_long(spool_dir: Path) -> None:
    with StartNote(str(spool_dir)).held(wait=False) as note:
        assert note is not None
        assert (note.tries, note.is_closed) == (0, False)
        note.write(2, 100.0)
        assert (note.tries, note.is_closed) == (2, True)
    (path,) = spool_dir.glob("agent/hosts/*.start")
    text = path.read_text()
    for damaged in ("", "{", "[]", "7", '{"tries": "x"}', text.replace('"boot_id": "', '"boot_id": "0')):
        path.write_text(damaged)
        with StartNote(str(spool_dir)).held(wait=False) as note:
            assert note is not None
            assert (note.tries, note.is_closed) == (0, False)
    assert LONGEST_PAUSE < 3600


def test_a_starter_that_was_killed_holds_nobody_up(spool_dir: Path, background: Any) -> None:
    process = background(
        """
        import os, time
        from simspool.sdk.agent_start import StartNote
        with StartNote(os.environ["SIMSPOOL_DIR"]).held(wait=False):
            print("held", flush=True)
            time.sleep(60)
        """
    )
    assert process.stdout.readline() == "held\n"
    with StartNote(str(spool_dir)).held(wait=False) as note:
        assert note is None
    assert AgentStarter(load_config(agent="auto"), str(spool_dir)).consider()  # somebody is about to
    process.kill()
    process.wait()
    with StartNote(str(spool_dir)).held(wait=False) as note:
        assert note is not None


# ---------------------------------------------------------------------- where it cannot be


def test_a_frozen_application_and_a_program_with_python_inside_do_not_start_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = []
    assert can_run_here.__wrapped__()
    for name, value in (("frozen", True), ("executable", "/usr/bin/blender"), ("executable", ""), ("executable", None)):
        with monkeypatch.context() as patch:
            patch.setattr(sys, name, value, raising=False)
            answers.append(can_run_here.__wrapped__())
    assert answers == [False] * 4


@pytest.mark.parametrize("rooms", [("spool", "sdk"), ("spool", "sdk", "agent")])
@pytest.mark.usefixtures("wanted")
def test_without_the_agent_or_what_it_needs_recording_is_all(tmp_path: Path, spool_dir: Path, rooms: tuple[str, ...]) -> None:
    """An interpreter without site-packages: as after `pip install --no-deps`."""
    place = tmp_path / "place" / "simspool"
    place.mkdir(parents=True)
    for room in rooms:
        (place / room).symlink_to(ROOT / room)
    path = tmp_path / "bare.py"
    path.write_text(f"import sys; sys.path.insert(0, {str(place.parent)!r})\n" + textwrap.dedent(RECORD))
    done = subprocess.run(
        [sys.executable, "-S", "-W", "error", str(path), "{}", "1.5"], capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "agent sync" in done.stderr
    assert not list(spool_dir.glob("agent/hosts/*"))
    assert agents_of(spool_dir) == []


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="not root: a read-only disk was not tried")
@pytest.mark.usefixtures("wanted")
def test_a_disk_that_becomes_read_only_stops_nothing(tmp_path: Path, script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(disk)], check=True)
    try:
        done = script(RECORD, "{'agent': 'off'}", "0", SIMSPOOL_DIR=str(disk / "spool"))
        assert done.returncode == 0, done.stderr
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        done = script(RECORD, "{}", "1.5", SIMSPOOL_DIR=str(disk / "spool"))
        assert done.returncode == 0, done.stderr
        assert "the run goes on" in done.stderr
        assert agents_of(disk) == []
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.usefixtures("wanted")
def test_a_start_that_the_system_refuses_is_no_error_of_the_run(script: Any, spool_dir: Path) -> None:
    done = script(
        """
        from simspool.sdk import Run, orphan
        def refuse(*_):
            raise OSError(11, "no more processes")
        orphan.start = refuse
        with Run() as run:
            run.init("x")
            assert run.log_event("kept")
        """
    )
    assert done.returncode == 0, done.stderr
    assert "agent sync" in done.stderr
