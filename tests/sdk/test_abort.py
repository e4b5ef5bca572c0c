"""docs/abort.md, as far as the script's own process goes: each row of its table, and what may go wrong on the way."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mouth import Mouth, open_writer, until

from simspool.sdk import NotInitialised, Run, RunClosed
from simspool.sdk.process_tree import identify, is_gone
from simspool.spool import InvalidRecord, RunFolder, Spool, control, open_spool

HEAD = """
    import os, signal, subprocess, sys, time
    from simspool.sdk import Run
    def say(text):
        os.write(1, (text + "\\n").encode())
    def called(run):
        run.log_event("callback of " + run.name)
"""


class Story:
    """A script that runs, and its run."""

    def __init__(self, process: subprocess.Popen[str], spool_dir: Path) -> None:
        self.process, self._spool_dir = process, spool_dir

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    @property
    def spool(self) -> Spool:
        return open_spool(self._spool_dir)

    def run(self, number: int = 0) -> RunFolder:
        return self.spool.run(self.spool.run_ids()[number])

    def abort(self, reason: str = "enough", **more: Any) -> str:
        """Put a request into the first run's folder; returns its id."""
        request = control.make_request(self.run(), os.urandom(16).hex(), reason, by="user", **more)
        assert control.put_request(self.run(), request)
        return request.id

    def end(self) -> tuple[int, str]:
        out, err = self.process.communicate(timeout=40)
        assert "Traceback" not in err, err
        return self.process.returncode, out


@pytest.fixture
def tell(tmp_path: Path, spool_dir: Path) -> Iterator[Callable[..., Story]]:
    """Start a script that says "ready" when it is."""
    started: list[subprocess.Popen[str]] = []

    def start(body: str, *arguments: str) -> Story:
        path = tmp_path / f"story{len(started)}.py"
        path.write_text(textwrap.dedent(HEAD) + textwrap.dedent(body))
        process = subprocess.Popen(
            [sys.executable, "-W", "error", str(path), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        story = Story(process, spool_dir)
        assert story.hear() == "ready", process.communicate()[1]
        return story

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):  # with the children that were left alone
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def sleeper() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a process that is no child of the script's."""
    started = []

    def start(command: str = "exec sleep 300") -> subprocess.Popen[bytes]:
        process = subprocess.Popen(["bash", "-c", command], stdout=subprocess.PIPE)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def graces() -> Callable[..., None]:
    """Write the [abort] table."""

    def write(**seconds: float) -> None:
        Path("simspool.toml").write_text("[abort]\n" + "\n".join(f"{k}_grace = {v}" for k, v in seconds.items()))

    return write


@pytest.fixture
def mouth(spool_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Mouth]]:
    made: list[Mouth] = []

    def make() -> Mouth:
        made.append(Mouth(open_spool(spool_dir, create=True), Path(f"/tmp/simspool-test-{os.getpid()}-{len(made)}")))
        return made[-1]

    yield make
    for m in made:
        m.close()
        subprocess.run(["rm", "-r", os.path.dirname(m.bell)], check=True)


def said(found: Any) -> list[Any]:
    """Return what the records say, in order: abort states, events, statuses."""
    short = {"abort": "state", "event": "message", "status": "status", "close": "status"}
    return [(r["kind"], r[short[r["kind"]]]) for r in found.records if r["kind"] in short]


TABLE = """
    def other_called(run):
        run.log_event("callback of other")
    run, other = Run(mode="offline", abort_callback=called), Run(mode="offline", abort_callback=other_called)
    setting = eval(sys.argv[1])
    if setting is not None:
        run.config(abort_on_alert=setting)
    run.init("first"); other.init("other")
    run.set_pid(int(sys.argv[2]))
    child = subprocess.Popen(["bash", "-c", "sleep 300 & echo $!; wait"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    say("ready"); say(str(child.pid)); say(child.stdout.readline().strip())
    while not run.is_closed and not os.path.exists("go on"):
        time.sleep(0.01)
    if setting in (None, "terminate", "all"):
        time.sleep(60)
    assert run.log_metrics({"a": 1.0}) is (setting in ("ignore", False)), "later calls return False"
    assert run.log_event("late") is (setting in ("ignore", False))
    other.log_event("other goes on")
    say("children " + ("live" if child.poll() is None else "gone"))
    child.kill(); child.wait(); child.stdout.close()
    other.close()
    if not run.is_closed:
        run.close()
    say("status " + run.status)
"""


def table_row(tell: Any, sleeper: Any, found: Any, setting: str) -> tuple[int, str, list[Any], list[Any], bool, list[bool]]:
    foreign = sleeper()
    story = tell(TABLE, setting, str(foreign.pid))
    children = [identify(int(story.hear())), identify(int(story.hear()))]
    story.abort()
    if setting in {"'ignore'", "False"}:
        until(lambda: ("abort", "ignored") in said(found(story.run().id)))
        Path("go on").touch()
    code, out = story.end()
    stopped = [is_gone(c) for c in children if c is not None]
    first, other = (found(story.run(n).id) for n in (0, 1))
    return code, out, said(first), said(other), foreign.poll() is not None, stopped


@pytest.mark.parametrize("setting", ["None", "'terminate'"])
def test_terminate_stops_the_script_and_all_that_belongs_to_it(tell: Any, sleeper: Any, found: Any, setting: str) -> None:
    code, out, first, other, foreign_gone, children_gone = table_row(tell, sleeper, found, setting)
    assert code == -signal.SIGTERM
    assert out == ""
    assert first == [
        ("abort", "received"), ("event", "callback of first"), ("status", "terminated"), ("abort", "done"), ("close", "terminated")
    ]  # fmt: skip
    assert other == [("close", "terminated")]
    assert foreign_gone
    assert children_gone == [True, True]


@pytest.mark.parametrize("setting", ["'run'", "True"])
def test_run_ends_the_run_and_lets_the_script_go_on(tell: Any, sleeper: Any, found: Any, setting: str) -> None:
    code, out, first, other, foreign_gone, _ = table_row(tell, sleeper, found, setting)
    assert code == 0
    assert out.split("\n") == ["children live", "status terminated", ""]
    assert first == [
        ("abort", "received"), ("event", "callback of first"), ("status", "terminated"), ("abort", "done"), ("close", "terminated")
    ]  # fmt: skip
    assert other == [("event", "other goes on"), ("close", "completed")]
    assert foreign_gone


def test_all_aborts_the_other_runs_too(tell: Any, sleeper: Any, found: Any) -> None:
    code, _, first, other, foreign_gone, children_gone = table_row(tell, sleeper, found, "'all'")
    assert code == -signal.SIGTERM
    assert first == [
        ("abort", "received"), ("event", "callback of first"), ("status", "terminated"), ("abort", "done"), ("close", "terminated")
    ]  # fmt: skip
    assert other == [
        ("abort", "received"), ("event", "callback of other"), ("status", "terminated"), ("abort", "done"), ("close", "terminated")
    ]  # fmt: skip
    assert foreign_gone
    assert children_gone == [True, True]


@pytest.mark.parametrize("setting", ["'ignore'", "False"])
def test_ignore_calls_the_callback_and_nothing_else(tell: Any, sleeper: Any, found: Any, setting: str) -> None:
    code, out, first, other, foreign_gone, _ = table_row(tell, sleeper, found, setting)
    assert code == 0
    assert out.split("\n") == ["children live", "status completed", ""]
    assert first == [
        ("abort", "received"), ("event", "callback of first"), ("abort", "ignored"), ("event", "late"), ("close", "completed")
    ]  # fmt: skip
    assert other == [("event", "other goes on"), ("close", "completed")]
    assert not foreign_gone


def test_the_reason_is_in_every_record_of_the_abort(tell: Any, found: Any) -> None:
    story = tell("run = Run(mode='offline'); run.init('r'); say('ready'); time.sleep(60)")
    identity = story.abort("the mesh is torn")
    assert story.end()[0] == -signal.SIGTERM
    records = found()
    assert [(r["id"], r["by"], r["mode"], r["reason"]) for r in records.of("abort")] == [
        (identity, "user", "terminate", "the mesh is torn")
    ] * 2
    assert records.only("status")["reason"] == records.only("close")["reason"] == "the mesh is torn"
    assert records.of("abort")[0]["graces"] == {"callback": 90.0, "term": 30.0}


# ---------------------------------------------------------------------- the callback


def test_an_exception_in_the_callback_is_recorded_and_the_ladder_goes_on(tell: Any, found: Any) -> None:
    story = tell("""
        def broken(run):
            raise RuntimeError("no space for the checkpoint")
        run = Run(mode="offline", abort_callback=broken)
        run.init("r"); say("ready"); time.sleep(60)
    """)
    story.abort()
    assert story.end()[0] == -signal.SIGTERM
    records = found()
    assert [a["state"] for a in records.of("abort")] == ["received", "callback-failed", "done"]
    assert records.of("abort")[1]["error"] == "RuntimeError: no space for the checkpoint"
    assert "in broken" in records.only("event")["message"]
    assert records.only("close")["status"] == "terminated"


def test_an_exit_in_the_callback_is_no_end_of_the_ladder(tell: Any, found: Any) -> None:
    story = tell("""
        run = Run(mode="offline", abort_callback=lambda run: sys.exit(3))
        run.init("r"); say("ready"); time.sleep(60)
    """)
    story.abort()
    assert story.end()[0] == -signal.SIGTERM
    assert [a["state"] for a in found().of("abort")] == ["received", "callback-failed", "done"]


def test_a_callback_that_does_not_return_is_gone_past(tell: Any, found: Any, graces: Any) -> None:
    graces(callback=0.2)
    story = tell("""
        run = Run(mode="offline", abort_callback=lambda run: time.sleep(300))
        run.init("r"); say("ready"); time.sleep(60)
    """)
    story.abort()
    assert story.end()[0] == -signal.SIGTERM
    assert found().of("abort")[1]["error"] == "abort_callback did not return within 0.2 s"
    assert found().only("close")["status"] == "terminated"


def test_a_script_that_ends_meanwhile_waits_for_its_callback(tell: Any, found: Any) -> None:
    story = tell("""
        def slow(run):
            time.sleep(0.5)
            assert run.log_event("checkpoint written")
        with Run(mode="offline", abort_callback=slow) as run:
            run.config(abort_on_alert="run")
            run.init("r"); say("ready")
            while not run.abort_requested:
                time.sleep(0.01)
        say(run.status)
        assert run.log_metrics({"a": 1.0}) is False
    """)
    story.abort()
    assert story.end() == (0, "terminated\n")
    assert ("event", "checkpoint written") in said(found())
    assert found().only("close")["status"] == "terminated"


def test_a_script_that_ends_without_closing_waits_as_well(tell: Any, found: Any) -> None:
    story = tell("""
        def slow(run):
            time.sleep(0.5)
            assert run.log_event("checkpoint written")
        run = Run(mode="offline", abort_callback=slow)
        run.config(abort_on_alert="run")
        run.init("r"); say("ready")
        while not run.abort_requested:
            time.sleep(0.01)
    """)
    story.abort()
    assert story.end()[0] == 0
    assert said(found())[1:] == [
        ("event", "checkpoint written"), ("status", "terminated"), ("abort", "done"), ("close", "terminated")
    ]  # fmt: skip


def test_an_exception_that_follows_an_abort_leaves_its_traceback_and_the_status_terminated(tell: Any, found: Any) -> None:
    story = tell("""
        try:
            with Run(mode="offline", abort_callback=called) as run:
                run.config(abort_on_alert="run")
                run.init("r"); say("ready")
                while not run.abort_requested:
                    time.sleep(0.001)
                raise ValueError("half way")
        except ValueError:
            say(run.status)
    """)
    story.abort()
    assert story.end() == (0, "terminated\n")
    assert found().only("close")["status"] == "terminated"


# ---------------------------------------------------------------------- the script's end


def test_a_script_that_handles_sigterm_may_still_record(tell: Any, found: Any) -> None:
    story = tell("""
        def handler(number, frame):
            run.log_event("in the handler")
            sys.exit(7)
        signal.signal(signal.SIGTERM, handler)
        run = Run(mode="offline")
        run.init("r"); say("ready")
        while True:
            time.sleep(1)
    """)
    story.abort()
    assert story.end()[0] == 7
    assert said(found()) == [
        ("abort", "received"), ("status", "terminated"), ("abort", "done"), ("event", "in the handler"), ("close", "terminated")
    ]  # fmt: skip


def test_a_script_that_ignores_sigterm_is_killed_after_the_grace(tell: Any, found: Any, graces: Any) -> None:
    graces(term=0.3)
    story = tell("""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen(["sleep", "300"])
        run = Run(mode="offline")
        run.init("r"); say("ready"); say(str(child.pid))
        while True:
            time.sleep(1)
    """)
    child = identify(int(story.hear()))
    story.abort()
    assert story.end()[0] == -signal.SIGKILL
    assert found().only("close")["status"] == "terminated"
    assert child is not None
    assert is_gone(child)


def test_shared_memory_keepers_are_not_waited_for(tell: Any, found: Any) -> None:
    """multiprocessing's resource tracker ignores SIGTERM; it goes when the script does."""
    story = tell("""
        from multiprocessing import resource_tracker
        resource_tracker.ensure_running()
        run = Run(mode="offline")
        run.init("r"); say("ready"); time.sleep(60)
    """)
    story.abort()
    story.process.wait(timeout=20)  # the grace is 30
    assert "error" not in found().of("abort")[1]


def test_a_process_of_set_pid_that_ignores_sigterm_is_killed_with_its_children(tell: Any, sleeper: Any, found: Any, graces: Any) -> None:
    graces(term=0.3)
    foreign = sleeper("trap '' TERM; sleep 300 & echo $!; wait")
    child = identify(int(foreign.stdout.readline()))
    story = tell("""
        run = Run(mode="offline")
        run.config(abort_on_alert="run")
        run.init("r")
        run.set_pid(int(sys.argv[1])); say("ready")
        while not run.is_closed:
            time.sleep(0.01)
    """, str(foreign.pid))  # fmt: skip
    story.abort()
    assert story.end()[0] == 0
    assert foreign.wait(timeout=20) == -signal.SIGKILL
    assert child is not None
    assert is_gone(child)


def test_children_that_record_the_run_finish_their_own_callbacks(tell: Any, found: Any) -> None:
    story = tell("""
        def slow(run):
            if os.getpid() != parent:
                time.sleep(1)
            assert run.log_event("checkpoint of " + ("the parent" if os.getpid() == parent else "the child"))
        parent = os.getpid()
        run = Run(mode="offline", abort_callback=slow)
        run.init("r")
        pid = os.fork()
        run.log_event("I am here")
        if not pid:
            say("ready")
        time.sleep(60)
    """)
    until(lambda: len(story.run().writer_ids()) == 2)
    until(lambda: len(found().of("event")) == 2)
    story.abort()
    assert story.end()[0] == -signal.SIGTERM
    records = found()
    assert sorted(e["message"] for e in records.of("event")) == [
        "I am here", "I am here", "checkpoint of the child", "checkpoint of the parent"
    ]  # fmt: skip
    assert [a["state"] for a in records.of("abort")].count("done") == 2
    assert len({a["writer"] for a in records.of("abort")}) == 2


# ---------------------------------------------------------------------- which requests


def test_a_request_is_acted_on_once_however_often_it_is_heard(tell: Any, found: Any, mouth: Any) -> None:
    agent = mouth()
    story = tell("""
        run = Run(abort_callback=called)
        run.config(abort_on_alert="ignore")
        run.init("r"); say("ready")
        time.sleep(60)
    """)
    writer = open_writer(story.run())
    request = control.make_request(story.run(), os.urandom(16).hex(), "x", by="alert", alert="a")
    agent.say(writer, request.encode())
    assert control.put_request(story.run(), request)
    agent.say(writer, request.encode())
    second = story.abort()
    until(lambda: len(found(story.run().id).of("abort")) == 4)
    agent.say(writer, request.encode())
    third = story.abort()
    until(lambda: len(found(story.run().id).of("abort")) == 6)
    states = [(a["id"], a["state"]) for a in found(story.run().id).of("abort")]
    assert states == [(i, s) for i in (request.id, second, third) for s in ("received", "ignored")]
    assert len(found(story.run().id).of("event")) == 3


def test_a_second_request_on_the_way_down_is_answered_and_not_acted_on(tell: Any, found: Any) -> None:
    story = tell("""
        def slow(run):
            run.log_event("callback")
            while not os.path.exists("go on"):
                time.sleep(0.01)
        run = Run(mode="offline", abort_callback=slow)
        run.init("r"); say("ready"); time.sleep(60)
    """)
    first = story.abort()
    until(lambda: len(found().of("abort")) == 1)
    second = story.abort()
    until(lambda: len(found().of("abort")) == 2)
    Path("go on").touch()
    assert story.end()[0] == -signal.SIGTERM
    assert [(a["id"], a["state"]) for a in found().of("abort")] == [(first, "received"), (second, "received"), (first, "done")]
    assert len(found().of("event")) == 1


@pytest.mark.parametrize("sticky", [False, True])
def test_later_openings_ignore_an_old_request_unless_it_is_sticky(tell: Any, found: Any, sticky: bool) -> None:
    begin = "run = Run(mode='offline'); run.init('r'); say('ready'); time.sleep(60)"
    story = tell(begin)
    old = story.abort(sticky=sticky)
    assert story.end()[0] == -signal.SIGTERM
    again = tell("""
        run = Run(mode="offline")
        run.reconnect(sys.argv[1]); say("ready"); time.sleep(60)
    """, story.run().id)  # fmt: skip
    new = old if sticky else again.abort("now")
    assert again.end()[0] == -signal.SIGTERM
    received = [a["id"] for a in found(story.run().id).of("abort") if a["state"] == "received"]
    assert received == [old, new]


def test_what_is_no_request_is_left_alone(tell: Any, found: Any) -> None:
    story = tell("run = Run(mode='offline'); run.init('r'); say('ready'); time.sleep(60)")
    folder = Path(story.run().control)
    folder.mkdir()
    real = control.make_request(story.run(), os.urandom(16).hex(), "x", by="user")
    (folder / f"abort-{'0' * 32}.json").write_text("{}")
    (folder / "abort-x.json").write_bytes(real.encode())  # not under its own name
    (folder / f"abort-{'1' * 32}.json").write_text("[" * 100_000)
    (folder / f"abort-{'2' * 32}.json").mkdir()
    true = story.abort()
    assert story.end()[0] == -signal.SIGTERM
    assert {a["id"] for a in found().of("abort")} == {true}


# ---------------------------------------------------------------------- the listener


def test_a_datagram_alone_is_enough_and_only_this_users_counts(tell: Any, found: Any, mouth: Any) -> None:
    agent = mouth()
    story = tell("""
        run = Run()
        run.config(abort_on_alert="ignore")
        run.init("r"); say("ready")
        time.sleep(60)
    """)
    writer = open_writer(story.run())
    path = agent.path_of(writer)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    theirs, ours = (control.make_request(story.run(), os.urandom(16).hex(), "x", by="alert") for _ in range(2))
    path.chmod(0o666)
    path.parent.chmod(0o755)
    stranger = (
        "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); "
        "s.sendto(sys.argv[2].encode(), sys.argv[1])"
    )
    subprocess.run(["/usr/bin/python3", "-c", stranger, str(path), theirs.encode().decode()], check=True)
    agent.say(writer, ours.encode())
    until(lambda: len(found(story.run().id).of("abort")) == 2)
    assert {a["id"] for a in found(story.run().id).of("abort")} == {ours.id}


def test_the_listener_follows_the_agent_and_leaves_nothing_behind(tell: Any, found: Any, mouth: Any) -> None:
    first = mouth()
    story = tell("""
        run = Run(mode="offline")
        run.config(abort_on_alert="run")
        run.init("r"); say("ready")
        while not run.is_closed:
            time.sleep(0.01)
    """)
    writer = open_writer(story.run())
    old = first.path_of(writer)
    second = mouth()
    new = second.path_of(writer)
    until(lambda: not old.exists())
    second.say(writer, control.make_request(story.run(), os.urandom(16).hex(), "x", by="alert").encode())
    assert story.end()[0] == 0
    assert not new.exists()
    assert found(story.run().id).only("close")["status"] == "terminated"


def test_a_removed_socket_is_made_again(tell: Any, found: Any, mouth: Any) -> None:
    agent = mouth()
    story = tell("run = Run(); run.init('r'); say('ready'); time.sleep(60)")
    writer = open_writer(story.run())
    agent.path_of(writer).unlink()
    agent.say(writer, control.make_request(story.run(), os.urandom(16).hex(), "x", by="alert").encode())
    assert story.end()[0] == -signal.SIGTERM


def test_forks_beside_the_listener_neither_hang_nor_warn_and_each_hears_for_itself(tell: Any, found: Any, mouth: Any) -> None:
    agent = mouth()
    story = tell("""
        import threading
        run = Run()
        run.config(abort_on_alert="run")
        run.init("r")
        names = lambda: sorted(t.name for t in threading.enumerate() if "simspool" in t.name)
        while "simspool-listener" not in names():
            time.sleep(0.01)
        for _ in range(50):
            pid = os.fork()
            if not pid:
                os._exit(bool(names()))
            assert os.waitpid(pid, 0)[1] == 0
        assert names() == ["simspool-keeper", "simspool-listener"], names()
        pid = os.fork()
        run.log_event("I am here")
        if pid:
            say("ready")
        deadline = time.monotonic() + 20
        while not run.is_closed and time.monotonic() < deadline:
            time.sleep(0.01)
        if pid:
            assert os.waitpid(pid, 0)[1] == 0
            say(run.status)
    """)
    folder = story.run()
    until(lambda: len(folder.writer_ids()) == 2)
    request = control.make_request(folder, os.urandom(16).hex(), "x", by="alert")
    for writer in folder.writer_ids():
        agent.say(writer, request.encode())
    assert story.end() == (0, "terminated\n")
    assert sorted(a["state"] for a in found(folder.id).of("abort")) == ["done", "done", "received", "received"]
    assert os.listdir(os.path.dirname(agent.bell)) == ["b"]


def test_a_script_hung_in_native_code_records_nothing_wrong(tell: Any, found: Any, mouth: Any) -> None:
    """With the interpreter's lock held nothing of ours can run: the agent acts from outside. What is recorded stays whole."""
    agent = mouth()
    story = tell("""
        import ctypes
        run = Run()
        run.init("r"); run.log_metrics({"a": 1.0}); say("ready")
        time.sleep(0.3)
        ctypes.PyDLL("libc.so.6").sleep(300)
    """)
    writer = open_writer(story.run())
    agent.path_of(writer)
    time.sleep(0.5)
    agent.say(writer, control.make_request(story.run(), os.urandom(16).hex(), "x", by="alert").encode())
    story.abort()
    time.sleep(1.5)
    assert story.process.poll() is None
    story.process.kill()
    story.process.wait()
    records = found(story.run().id)
    assert records.damage == []
    assert records.only("metrics")["values"] == {"a": 1.0}


# ---------------------------------------------------------------------- asking


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_run_can_abort_itself(tell: Any, found: Any, mode: str) -> None:
    story = tell("""
        run = Run(mode=sys.argv[1], abort_callback=called)
        run.config(abort_on_alert="run")
        run.init("r"); say("ready")
        assert run.abort("diverged") is True
        while not run.is_closed:
            time.sleep(0.01)
        assert run.abort("again") is False
        say(repr(run.abort_requested))
    """, mode)  # fmt: skip
    assert story.end() == (0, "True\n")
    (request,) = control.requests(story.run())
    assert (request.by, request.reason, request.sticky) == ("script", "diverged", False)
    assert [a["state"] for a in found().of("abort")] == ["received", "done"]


def test_an_abort_reaches_the_runs_other_processes(tell: Any, found: Any) -> None:
    story = tell("run = Run(mode='offline'); run.init('r'); say('ready'); time.sleep(60)")
    other = tell("""
        run = Run.attach(sys.argv[1], mode="offline")
        run.config(abort_on_alert="run")
        say("ready"); run.abort("all of you")
        while not run.is_closed:
            time.sleep(0.01)
    """, story.run().id)  # fmt: skip
    assert other.end()[0] == 0
    assert story.end()[0] == -signal.SIGTERM
    assert len({a["writer"] for a in found().of("abort")}) == 2


def test_aborting_needs_a_run_and_text() -> None:
    run = Run(mode="offline")
    with pytest.raises(NotInitialised):
        run.abort()
    run.init("r")
    with pytest.raises(InvalidRecord, match="reason must be text"):
        run.abort(3)  # type: ignore[arg-type]
    with pytest.raises(InvalidRecord, match="sticky"):
        run.abort("x", sticky=1)  # type: ignore[arg-type]
    assert not run.abort_requested
    run.close()
    with pytest.raises(RunClosed):
        run.abort()
    with Run(mode="disabled") as off:
        off.init("r")
        assert off.abort() is True
        assert not off.abort_requested


def test_an_aborted_run_is_followed_by_another_in_the_same_object(tell: Any, found: Any) -> None:
    story = tell("""
        run = Run(mode="offline")
        run.config(abort_on_alert="run")
        run.init("first"); say("ready"); run.abort()
        while not run.is_closed:
            time.sleep(0.01)
        run.init("second")
        assert not run.abort_requested
        assert run.log_event("fresh")
        run.close()
        say(run.status)
    """)
    assert story.end() == (0, "completed\n")
    assert found(story.run(1).id).only("close")["status"] == "completed"


def test_set_pid_records_who_that_is(sleeper: Any, found: Any) -> None:
    foreign = sleeper()
    known = identify(foreign.pid)
    assert known is not None
    run = Run(mode="offline")
    with pytest.raises(NotInitialised):
        run.set_pid(foreign.pid)
    run.init("r")
    assert run.set_pid(foreign.pid) is True
    assert run.set_pid(os.getpid()) is True
    gone = subprocess.Popen(["true"])
    gone.wait()
    for wrong in (gone.pid, 0, -1, True, "1", None):
        with pytest.raises(InvalidRecord, match="pid"):
            run.set_pid(wrong)  # type: ignore[arg-type]
    run.close()
    body = found().only("process-start")
    assert (body["pid"], body["start_ticks"], body["foreign"]) == (foreign.pid, known.start_ticks, True)
    assert len(body["boot_id"]) == 32
    assert body["pid_namespace"] == os.stat("/proc/self/ns/pid").st_ino
    assert body["host"] == os.uname().nodename


def test_a_parent_given_to_set_pid_is_not_signalled(tell: Any, found: Any) -> None:
    story = tell("""
        run = Run(mode="offline")
        run.config(abort_on_alert="run")
        run.init("r")
        assert run.set_pid(os.getppid())
        run.abort(); say("ready")
        while not run.is_closed:
            time.sleep(0.01)
    """)
    assert story.end()[0] == 0
    assert found().of("abort")[1]["error"] == f"could not stop {os.getpid()}"
