"""docs/processes.md: the processes of a run, with real ones."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simspool.sdk import (
    InvalidRecord,
    NotInitialised,
    ProcessNotStarted,
    ProgramNotFound,
    Run,
    RunClosed,
    UnreadableFile,
    process_exit,
    process_output,
    process_watch,
)
from simspool.sdk.process_tree import identify, is_gone
from simspool.spool import control, open_spool


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + 50
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.01)
    return found


class Heard:
    """A completion callback that remembers what it was told, and by which thread."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.threads: list[int] = []

    def __call__(self, status_code: int, std_out: str, std_err: str) -> None:
        self.threads.append(threading.get_ident())
        self.told.append({"status_code": status_code, "std_out": std_out, "std_err": std_err})


@pytest.fixture
def run() -> Any:
    """A run whose processes are gone after the test."""
    with Run(mode="offline") as run:
        run.init("tested")
        yield run
        run.kill_all_processes()
        run.executor.wait_for_completion()
        if not run.is_closed and run.executor.failure:
            with pytest.raises(SystemExit):
                run.close()


# ---------------------------------------------------------------------- the seed's examples, as written


def test_the_seeds_examples(found: Any) -> None:
    Path("my_script.sh").write_text("cat $1\n")
    Path("parameters.dat").write_text("viscosity = 0.1\n")
    with pytest.raises(SystemExit) as left, Run(mode="offline") as run:  # noqa: PT012 - that is what it tests
        run.init("seed")
        executor = run.executor
        executor.add_process("my_process", "ls", "-ltr")
        executor.add_process("my_second", executable="bash", debug=True, c="return 1")
        executor.add_process("my_third", executable="bash", script="my_script.sh", input="parameters.dat")
    assert left.value.code == 2  # bash: return: can only `return' from a function or sourced script
    spool = found()
    commands = {k: v for m in spool.of("metadata") for k, v in m["set"].items()}
    assert commands == {
        "my_process_command": "ls -ltr", "my_second_command": "bash --debug -c 'return 1'",
        "my_third_command": "bash my_script.sh parameters.dat",
    }  # fmt: skip
    assert {(a["name"], a["category"]) for a in spool.of("artifact")} == {
        ("seed_my_process.out", "output"), ("seed_my_second.err", "output"), ("my_script.sh", "code"), ("parameters.dat", "input"),
        ("seed_my_third.out", "output"),
    }  # fmt: skip
    assert Path("seed_my_third.out").read_text() == "viscosity = 0.1\n"


def test_the_options_become_a_command_line(run: Run) -> None:
    Path("code.py").write_text("import sys; print(sys.argv[1:])")
    Path("data").write_text("")
    assert run.add_process(
        "all", "last", 3, executable=sys.executable, script="code.py", input_file="data", verbose=True, quiet=False, n=4, max_steps=10,
        where=Path("/tmp"), nothing=None, v=True,
    )  # fmt: skip
    run.executor.wait_for_completion()
    line = ["data", "--verbose", "-n", "4", "--max-steps", "10", "--where", "/tmp", "-v", "last", "3"]
    assert run.executor.std_out("all") == f"{line}\n"
    assert run.executor.get_command("all") == " ".join([sys.executable, "code.py", *line])


def test_a_script_alone_is_run_by_the_users_shell(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/bin/bash")
    Path("go.sh").write_text("echo $0 $BASH_VERSION")
    assert run.add_process("shell", script="go.sh")
    run.executor.wait_for_completion()
    assert run.executor.std_out("shell").startswith("go.sh 5")


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("error", "arguments", "options"),
    [
        (ProgramNotFound, ("no-such-program",), {}),
        (FileNotFoundError, (), {"executable": "./solver"}),
        (ProgramNotFound, ("./plain",), {}),
        (UnreadableFile, ("bash",), {"script": "missing.sh"}),
        (UnreadableFile, ("bash",), {"input_file": "."}),
        (ProcessNotStarted, ("ls",), {"cwd": "missing"}),
        (InvalidRecord, (), {}),
        (InvalidRecord, ("ls", None), {}),
        (InvalidRecord, ("ls",), {"depth": [1, 2]}),
        (InvalidRecord, ("ls",), {"env": {"A": 1}}),
        (InvalidRecord, ("ls",), {"completion_callback": "f"}),
        (InvalidRecord, ("ls",), {"completion_callback": lambda code: None}),
        (InvalidRecord, ("ls",), {"completion_trigger": 3}),
        (InvalidRecord, ("ls",), {"input": "plain", "input_file": "plain"}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(sorted(value)) if isinstance(value, dict) else repr(value),
)
def test_a_mistake_raises_before_anything_is_started_or_recorded(
    error: type[Exception], arguments: tuple[Any, ...], options: dict[str, Any], found: Any
) -> None:
    Path("plain").write_text("")
    with Run(mode="offline") as run:
        run.init("x")
        with pytest.raises(error):
            run.add_process("p", *arguments, **options)
        assert [r["kind"] for r in found().records] == ["run"]
        assert sorted(os.listdir()) == ["plain"]
        assert run.add_process("p", "true")  # the identifier is free


def test_an_identifier_is_used_once_and_has_the_form_of_a_name(run: Run) -> None:
    assert run.add_process("p", "true")
    with pytest.raises(InvalidRecord, match="has a process 'p' already"):
        run.add_process("p", "true")
    with pytest.raises(InvalidRecord, match="process identifier"):
        run.add_process("p;q", "true")


def test_a_process_needs_an_open_run() -> None:
    run = Run(mode="offline")
    with pytest.raises(NotInitialised):
        run.add_process("p", "true")
    run.init("x")
    run.close()
    with pytest.raises(RunClosed):
        run.add_process("p", "true")


def test_what_the_system_will_not_start_is_named(found: Any) -> None:
    Path("odd").write_text("#!/no/such/interpreter\n")
    Path("odd").chmod(0o755)
    with Run(mode="offline") as run:
        run.init("x")
        with pytest.raises(ProcessNotStarted, match="odd could not be started: No such file"):
            run.add_process("p", "./odd")
        assert run.executor.success
        assert not run.processes
    assert found().of("process-start") == []


# ---------------------------------------------------------------------- what is recorded


def test_start_and_end_are_recorded_with_the_processes_identity(found: Any) -> None:
    with Run(mode="offline") as run:
        run.init("x")
        os.mkfifo("fifo")
        assert run.add_process("p", "bash", "-c", "read line < fifo; echo done")
        (process,) = run.processes
        known = identify(process.pid)
        Path("fifo").write_text("go\n")
    spool = found()
    start, end = spool.only("process-start"), spool.only("process-exit")
    assert (start["pid"], start["start_ticks"], start["identifier"]) == (known.pid, known.start_ticks, "p")
    assert start["command"] == ["bash", "-c", "read line < fifo; echo done"]
    same = ("pid", "start_ticks", "boot_id", "pid_namespace", "host", "identifier")
    assert {k: end[k] for k in same} == {k: start[k] for k in same}
    assert end["code"] == 0
    state = spool.only("alert-state")
    assert (state["alert"], state["state"]) == ("p_exit_status", "ok")
    assert (spool.only("close")["status"], run.status) == ("completed", "completed")


def test_a_failing_process_leaves_an_event_with_the_tail_of_stderr_and_fails_the_run(found: Any) -> None:
    program = "for i in $(seq 30); do echo line $i >&2; done; exit 3"
    with pytest.raises(SystemExit) as left, Run(mode="offline") as run:  # noqa: PT012 - that is what it tests
        run.init("x")
        assert run.add_process("fine", "true")
        assert run.add_process("solver", "bash", "-c", program)
        assert run.add_process("worse", "bash", "-c", "exit 4")
    assert left.value.code == 3  # the first that failed, in the order of adding
    assert run.status == "failed"
    spool = found()
    close = spool.only("close")
    assert (close["status"], close["reason"]) == ("failed", "process 'solver' ended with exit code 3 (1 more failed)")
    message = next(e["message"] for e in spool.of("event") if "solver" in e["message"])
    first, *tail = message.splitlines()
    assert first.startswith("process 'solver' ended with exit code 3: bash -c ")
    assert tail == [f"line {n}" for n in range(21, 31)]
    assert {s["alert"]: s["state"] for s in spool.of("alert-state")} == {
        "fine_exit_status": "ok", "solver_exit_status": "critical", "worse_exit_status": "critical",
    }  # fmt: skip


def test_close_ends_the_script_with_the_status_of_the_process_and_says_why(script: Any, found: Any) -> None:
    done = script("""
        from simspool.sdk import Run
        run = Run(mode="offline")
        run.init("x")
        run.add_process("solver", "bash", "-c", "echo diverged >&2; exit 7")
        run.close()
        print("not reached")
    """)
    assert (done.returncode, done.stdout) == (7, "")
    assert "process 'solver' ended with exit code 7:\n  diverged" in done.stderr
    assert found().only("close")["status"] == "failed"


def test_an_explicit_completed_does_not_hide_a_failed_process(found: Any) -> None:
    with pytest.raises(SystemExit), Run(mode="offline") as run:  # noqa: PT012 - that is what it tests
        run.init("x")
        run.add_process("p", "false")
        run.set_status("completed")
    assert [s["status"] for s in found().of("status")] == ["completed", "failed"]
    assert run.status == "failed"


def test_an_alert_that_the_script_has_set_is_left_alone(found: Any) -> None:
    def judge(status_code: int, std_out: str, std_err: str) -> None:
        run.log_alert(name="p_exit_status", state="ok" if "converged" in std_out else "critical")

    with pytest.raises(SystemExit), Run(mode="offline") as run:  # noqa: PT012 - that is what it tests
        run.init("x")
        run.add_process("p", "bash", "-c", "echo converged; exit 1", completion_callback=judge)
    assert found().only("alert-state")["state"] == "ok"


def test_an_alert_of_the_scripts_own_is_used_and_may_abort(found: Any) -> None:
    with Run(mode="offline") as run:
        run.init("x")
        run.config(abort_on_alert="run")
        run.create_user_alert("p_exit_status", trigger_abort=True)
        run.add_process("p", "false")
        until(lambda: run.is_closed, "the failed process's alert aborts the run")
    close = found().only("close")
    assert (close["status"], close["reason"]) == ("terminated", "alert p_exit_status is critical")


# ---------------------------------------------------------------------- files and folders


def test_paths_are_the_callers_and_cwd_is_the_processs(run: Run) -> None:
    Path("there").mkdir()
    Path("here.sh").write_text("#!/bin/bash\npwd; cat $1; echo $WORD\n")
    Path("here.sh").chmod(0o755)
    Path("data").write_text("data of the caller\n")
    env = {"PATH": os.environ["PATH"], "WORD": "from env"}
    run.add_process("direct", "./here.sh", os.path.abspath("data"), cwd="there", env=env)
    run.add_process("by_bash", executable="bash", script="here.sh", input_file="data", cwd=Path("there"), env=env)
    run.executor.wait_for_completion()
    expected = f"{os.path.abspath('there')}\ndata of the caller\nfrom env\n"
    assert [run.executor.std_out(name) for name in ("direct", "by_bash")] == [expected, expected]
    assert sorted(os.listdir("there")) == []
    assert Path("tested_direct.out").read_text() == expected


def test_a_program_is_looked_for_in_the_path_of_env(run: Run) -> None:
    Path("bin").mkdir()
    Path("bin/my-solver").write_text("#!/bin/sh\necho mine $SIMSPOOL_RUN\n")
    Path("bin/my-solver").chmod(0o755)
    run.add_process("p", "my-solver", env={"PATH": f"{os.path.abspath('bin')}:/usr/bin:/bin"})
    run.add_process("in_run", "bash", "-c", "echo $SIMSPOOL_RUN")
    run.executor.wait_for_completion()
    assert run.executor.std_out("p") == "mine\n"
    assert run.executor.std_out("in_run") == f"{run.id}\n"


def test_another_runs_output_is_never_overwritten_and_what_is_safe_makes_room(found: Any) -> None:
    Path("x_p.out").write_text("of nobody knows whom")
    Path("a_b_p.err").write_text("")
    for word in ("first", "second"):
        with Run(mode="offline") as run:
            run.init("x")
            run.add_process("p", "echo", word)
    assert Path("x_p.out").read_text() == "of nobody knows whom"
    assert Path("x_p.2.out").read_text() == "second\n"  # the first one's is in its run
    assert not Path("x_p.3.out").exists()
    outputs = [found(run_id).only("artifact") for run_id in found().spool.run_ids()]
    assert [a["name"] for a in outputs] == ["x_p.out", "x_p.out"]
    assert len({a["digest"] for a in outputs}) == 2


def test_two_runs_of_one_name_at_a_time_write_to_different_files() -> None:
    with Run(mode="offline") as one, Run(mode="offline") as two:
        for run, word in ((one, "x"), (two, "y")):
            os.mkfifo(word)
            run.init("a/b")
            run.add_process("p", "bash", "-c", f"read line < {word}; echo {word}")
        for word in ("y", "x"):
            Path(word).write_text("\n")
    assert (Path("a_b_p.out").read_text(), Path("a_b_p.2.out").read_text()) == ("x\n", "y\n")


def test_what_a_process_wrote_is_saved_where_the_script_has_deleted_the_file(found: Any) -> None:
    os.mkfifo("fifo")
    with Run(mode="offline") as run:
        run.init("x")
        run.add_process("p", "bash", "-c", "echo kept; read line < fifo")
        until(lambda: run.executor.std_out("p"), "its line")
        Path("x_p.out").unlink()
        Path("fifo").write_text("\n")
    assert found().only("artifact")["size"] == 5


# ---------------------------------------------------------------------- callbacks and triggers


def test_a_callback_is_called_in_a_thread_with_what_the_process_wrote(run: Run) -> None:
    heard = Heard()
    run.add_process("p", "bash", "-c", "echo out; echo err >&2; exit 5", completion_callback=heard)
    run.executor.wait_for_completion()
    assert heard.told == [{"status_code": 5, "std_out": "out\n", "std_err": "err\n"}]
    assert heard.threads[0] != threading.get_ident()


def test_a_callback_with_other_names_gets_them_in_order(run: Run) -> None:
    told = []
    run.add_process("p", "echo", "hello", completion_callback=lambda code, out, err: told.append((code, out, err)))
    run.executor.wait_for_completion()
    assert told == [(0, "hello\n", "")]


def test_an_exception_in_a_callback_becomes_an_event_and_harms_nothing(found: Any, capfd: pytest.CaptureFixture[str]) -> None:
    def fails(status_code: int, std_out: str, std_err: str) -> None:
        raise ZeroDivisionError("of the user's")

    with Run(mode="offline") as run:
        run.init("x")
        run.add_process("p", "true", completion_callback=fails)
        run.executor.wait_for_completion()
        assert run.log_event("goes on")
    spool = found()
    message = spool.of("event")[0]["message"]
    assert message.startswith("completion_callback of process 'p' failed\nTraceback")
    assert "ZeroDivisionError: of the user's" in message
    assert spool.only("close")["status"] == "completed"
    assert "completion_callback of process 'p' failed: ZeroDivisionError" in capfd.readouterr().err


def test_a_callback_may_add_kill_and_close(found: Any) -> None:
    def on_end(status_code: int, std_out: str, std_err: str) -> None:
        run.add_process("next", "echo", "next")
        run.kill_process("sleeper")
        run.close()

    with pytest.raises(SystemExit), Run(mode="offline") as run:  # noqa: PT012 - that is what it tests
        run.init("x")
        run.add_process("sleeper", "sleep", "300")
        run.add_process("p", "true", completion_callback=on_end)
    spool = found()
    assert {e["identifier"] for e in spool.of("process-exit")} == {"sleeper", "p", "next"}
    assert spool.only("close")["reason"] == "process 'sleeper' was ended by SIGTERM (stopped by the script)"


def test_a_trigger_is_set_in_another_process(run: Run) -> None:
    context = multiprocessing.get_context("spawn")
    event, said = context.Event(), context.Event()
    other = context.Process(target=_answer, args=(event, said))
    other.start()
    assert not event.is_set()
    run.add_process("p", "true", completion_trigger=event)
    other.join(50)
    assert other.exitcode == 0
    assert said.is_set()


def _answer(event: Any, said: Any) -> None:
    if event.wait(50):
        said.set()


def test_a_text_of_more_than_the_limit_is_its_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_output, "TEXT_LIMIT", 2 << 20)
    heard = Heard()
    run.add_process("p", "bash", "-c", "head -c 3145728 /dev/zero | tr '\\0' x; echo end", completion_callback=heard)
    run.executor.wait_for_completion()
    first, rest = heard.told[0]["std_out"].split("\n", 1)
    assert first == f"[simspool: the last 2 MiB; {1048576 + 4} bytes before these are in {os.path.abspath('tested_p.out')}]"
    assert len(rest) == 2 << 20
    assert rest.endswith("xend\n")


def test_output_of_any_size_takes_no_memory(script: Any, tmp_path: Path) -> None:
    """300 MB on both streams, saved; the script's own peak is read from /proc."""
    folder = Path("/dev/shm") / f"simspool-{os.getpid()}-{time.time_ns()}"
    folder.mkdir()
    try:
        done = script(
            """
            import os, re
            from simspool.sdk import Run
            os.chdir(os.environ["WORK"])
            def peak():
                return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
            with Run(mode="offline") as run:
                run.init("big")
                run.add_process("warm", "echo", "x")
                run.executor.wait_for_completion()
                before = peak()
                run.add_process("p", "bash", "-c", "yes | head -c 250000000; yes no | head -c 50000000 >&2")
                run.executor.wait_for_completion()
                print(peak() - before)
            """,
            WORK=str(folder), SIMSPOOL_DIR=str(folder / "spool"),
        )  # fmt: skip
        lines = [line for line in done.stdout.splitlines() if line]
        assert done.returncode == 0, done.stderr
        assert int(lines[-1]) < 20_000  # KiB
        spool = open_spool(folder / "spool")
        sizes = {path.stat().st_size for path in Path(spool.run(spool.run_ids()[0]).blobs).iterdir()}
        assert {250_000_000, 50_000_000} <= sizes
    finally:
        subprocess.run(["rm", "-r", str(folder)], check=True)


# ---------------------------------------------------------------------- stopping


def test_kill_process_stops_the_tree_and_what_it_wrote_is_kept(found: Any) -> None:
    with pytest.raises(SystemExit) as left, Run(mode="offline") as run:  # noqa: PT012 - that is what it tests
        run.init("x")
        run.add_process("p", "bash", "-c", "trap '' TERM; sleep 300 & echo $!; wait")
        child = identify(int(until(lambda: run.executor.std_out("p"), "its child")))
        assert {p.pid for p in run.processes} >= {child.pid}
        assert run.kill_process("p") is True
        assert is_gone(child)
        assert run.processes == []
        assert found().only("artifact")["name"] == "x_p.out"
        assert run.kill_process("p") is True  # it has ended: left alone
        with pytest.raises(InvalidRecord, match="no process 'q': there is 'p'"):
            run.kill_process("q")
        with pytest.raises(InvalidRecord, match="this script"):
            run.kill_process(os.getpid())
    assert left.value.code == -9
    assert found().only("close")["reason"] == "process 'p' was ended by SIGKILL (stopped by the script)"


def test_kill_by_pid_and_kill_all_reach_those_of_set_pid(run: Run) -> None:
    foreign = [subprocess.Popen(["sleep", "300"]) for _ in range(2)]
    try:
        run.set_pid(foreign[0].pid)
        run.add_process("p", "sleep", "300")
        assert {p.pid for p in run.processes} >= {foreign[0].pid, run.executor.running[0].pid}
        assert run.kill_process(foreign[1].pid) is True
        assert foreign[1].wait(50) == -signal.SIGTERM
        assert run.kill_all_processes() is True
        assert foreign[0].wait(50) == -signal.SIGTERM
        assert run.executor.exit_status == -signal.SIGTERM
    finally:
        for process in foreign:
            process.kill()
            process.wait()


def test_a_process_that_a_stranger_kills_is_noticed_and_named(found: Any) -> None:
    trigger = threading.Event()
    with pytest.raises(SystemExit) as left, Run(mode="offline") as run:  # noqa: PT012 - that is what it tests
        run.init("x")
        run.add_process("p", "sleep", "300", completion_trigger=trigger)
        os.kill(run.executor.running[0].pid, signal.SIGKILL)
        assert trigger.wait(50)
    assert left.value.code == -9
    assert found().only("process-exit")["signal"] == 9
    assert found().only("close")["reason"] == "process 'p' was ended by SIGKILL"


def test_an_exception_stops_the_processes_and_goes_on(found: Any) -> None:
    with pytest.raises(ZeroDivisionError), Run(mode="offline") as run:  # noqa: PT012 - that is what it tests
        run.init("x")
        run.add_process("p", "sleep", "300")
        known = identify(run.executor.running[0].pid)
        raise ZeroDivisionError
    assert is_gone(known)
    spool = found()
    assert spool.only("process-exit")["signal"] == 15
    assert "(the script left the run by ZeroDivisionError)" in spool.of("event")[0]["message"]
    assert (spool.only("close")["status"], spool.only("close")["reason"]) == ("failed", "ZeroDivisionError")


@pytest.mark.parametrize(
    ("ending", "rc", "status", "end"),
    [("", 0, "completed", {"code": 0}), ("raise ValueError('boom')", 1, "failed", {"signal": 15})],
    ids=["ends", "raises"],
)
def test_a_script_that_never_closes_waits_at_its_end_or_stops_them(
    ending: str, rc: int, status: str, end: dict[str, int], script: Any, found: Any
) -> None:
    done = script(f"""
        from simspool.sdk import Run
        run = Run(mode="offline")
        run.init("x")
        run.add_process("p", "sleep", "{'300' if rc else '0.3'}", completion_callback=lambda code, out, err: run.log_event("called"))
        {ending}
    """)
    assert done.returncode == rc, done.stderr
    spool = found()
    assert spool.only("close")["status"] == status
    exit_ = spool.only("process-exit")
    assert {k: exit_.get(k) for k in end} == end
    assert "called" in [e["message"] for e in spool.of("event")]


def test_an_interrupt_of_the_wait_stops_the_processes(background: Any, found: Any) -> None:
    script = background("""
        from simspool.sdk import Run
        with Run(mode="offline") as run:
            run.init("x")
            run.add_process("p", "sleep", "300")
    """)
    assert "waiting for process 'p' (pid " in script.stderr.readline()
    script.send_signal(signal.SIGINT)
    script.communicate(timeout=50)
    assert script.returncode == -signal.SIGINT
    spool = found()
    assert spool.only("process-exit")["signal"] == 15
    assert spool.only("close")["status"] == "terminated"


def test_a_killed_script_leaves_its_process_and_a_truthful_record(background: Any, found: Any) -> None:
    script = background("""
        import time
        from simspool.sdk import Run
        run = Run(mode="offline")
        run.init("x")
        run.add_process("p", "bash", "-c", "exec sleep 300")
        print(run.executor.running[0].pid, flush=True)
        time.sleep(300)
    """)
    known = identify(int(script.stdout.readline()))
    script.kill()
    script.wait()
    try:
        assert not is_gone(known)
        spool = found()
        start = spool.only("process-start")
        assert (start["pid"], start["start_ticks"]) == (known.pid, known.start_ticks)
        assert spool.of("process-exit") == spool.of("close") == []
        assert spool.damage == []
        with Run(mode="offline") as again:  # the process still writes to its file
            again.init("x")
            again.add_process("p", "echo", "again")
        assert Path("x_p.2.out").read_text() == "again\n"
    finally:
        os.kill(known.pid, signal.SIGKILL)


# ---------------------------------------------------------------------- aborts


@pytest.mark.parametrize("mode", ["run", "terminate", "all"])
def test_an_abort_stops_the_processes_and_their_children(mode: str, background: Any, found: Any) -> None:
    script = background(f"""
        import time
        from simspool.sdk import Run, process_tree
        stop = process_tree.stop

        def slow(*arguments):  # the script sees their end, and closes the run, before the abort is done
            found = stop(*arguments)
            time.sleep(0.5)
            return found

        process_tree.stop = slow
        run = Run(mode="offline", abort_callback=lambda run: run.log_event("callback"))
        run.init("x")
        run.config(abort_on_alert="{mode}")
        run.add_process("p", "bash", "-c", "sleep 300 & echo $!; wait")
        while not run.executor.std_out("p"):
            pass
        print(run.executor.std_out("p").strip(), run.executor.running[0].pid, flush=True)
        closed = run.close()
        if "{mode}" == "run":
            print("goes on", closed, run.status, flush=True)
        else:
            time.sleep(300)
    """)
    child, process = (identify(int(pid)) for pid in script.stdout.readline().split())
    folder = open_spool(os.environ["SIMSPOOL_DIR"]).run(found().run_id)
    assert control.put_request(folder, control.make_request(folder, "a" * 32, "enough", by="user"))
    out, _ = script.communicate(timeout=50)
    assert is_gone(child)
    assert is_gone(process)
    assert (script.returncode, out) == ((0, "goes on True terminated\n") if mode == "run" else (-signal.SIGTERM, ""))
    spool = found()
    assert [a["state"] for a in spool.of("abort")] == ["received", "done"]
    assert spool.only("process-exit")["signal"] == 15
    assert spool.only("artifact")["name"] == "x_p.out"
    assert "(the run was aborted: enough)" in spool.of("event")[-1]["message"]
    assert (spool.only("close")["status"], spool.only("close")["reason"]) == ("terminated", "enough")


def test_a_close_in_the_abort_callback_stops_them_and_one_beside_it_leaves_them_their_grace(found: Any) -> None:
    program = "trap 'sleep 4; echo checkpoint; exit 0' TERM; echo ready; while :; do sleep 0.1; done"
    for closes_in_callback in (True, False):
        called = threading.Event()

        def on_abort(run: Run, closes: bool = closes_in_callback, called: threading.Event = called) -> None:
            if closes:
                run.close()
            called.set()

        run = Run(mode="offline", abort_callback=on_abort)
        run.init("x")
        run.config(abort_on_alert="run")
        run.add_process("p", "bash", "-c", program)
        until(lambda run=run: run.executor.std_out("p"), "it is ready")
        run.abort("enough")
        assert called.wait(50)
        assert run.close()
        assert run.executor.std_out("p") == "ready\ncheckpoint\n"  # in more than the 3 s of kill_process
        spool = found(run.id)
        assert spool.only("process-exit")["code"] == 0
        assert spool.only("close")["status"] == "terminated"


def test_an_ignored_abort_leaves_them_alone_and_an_aborted_run_starts_nothing(found: Any) -> None:
    with Run(mode="offline") as run:
        run.init("x")
        run.config(abort_on_alert="ignore")
        run.add_process("p", "sleep", "300")
        run.abort("not now")
        until(lambda: "ignored" in [a["state"] for a in found().of("abort")], "it is ignored")
        assert len(run.executor.running) == 1
        run.config(abort_on_alert="run")
        run.abort("now")
        until(lambda: run.is_closed, "the run is closed")
        assert run.executor.running == []
        assert run.add_process("late", "touch", "late") is False
    assert not Path("late").exists()


# ---------------------------------------------------------------------- forks, other waits, odd modes


def test_a_fork_is_not_the_owner_of_its_parents_processes(found: Any) -> None:
    os.mkfifo("fifo")
    with Run(mode="offline") as run:
        run.init("x")
        run.add_process("p", "bash", "-c", "read line < fifo")
        known = run.executor.running
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                assert run.processes == []
                assert run.kill_all_processes()
                assert run.add_process("p", "echo", "of the child")  # its own
                assert run.close()
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        assert run.executor.running == known
        Path("fifo").write_text("\n")
    assert [e["code"] for e in found().of("process-exit")] == [0, 0]


@pytest.mark.parametrize("code", [0, 3])
def test_a_status_that_another_wait_has_taken_is_asked_of_the_kernel_or_said_to_be_unknown(code: int, script: Any, found: Any) -> None:
    done = script(f"""
        import os, signal
        from simspool.sdk import Run
        run = Run(mode="offline")
        run.init("x")
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody gets the status
        told = []
        run.add_process("p", "bash", "-c", "exit {code}", completion_callback=lambda c, out, err: told.append(c))
        run.executor.wait_for_completion()
        print(told)
        run.close()
    """)
    spool = found()
    exit_ = spool.only("process-exit")
    if "code" in exit_:
        assert (exit_["code"], done.stdout, done.returncode) == (code, f"[{code}]\n", code)
    else:  # the kernel does not tell
        assert (done.stdout, done.returncode) == ("[None]\n", 0)
        assert "its exit status was taken by another wait in this script" in spool.only("event")["message"]
        assert spool.of("alert-state") == []


def test_an_unknown_end_is_neither_good_nor_bad(run: Run, found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_exit, "_GET_INFO", 0)  # as on a kernel that does not know this
    os.mkfifo("fifo")
    heard = Heard()
    run.add_process("p", "bash", "-c", "read line < fifo; exit 3", completion_callback=heard)
    (process,) = run.executor.running
    process_watch._watch.pause()  # so that this wait is surely the first
    try:
        Path("fifo").write_text("\n")
        os.waitpid(process.pid, 0)
    finally:
        process_watch._watch.resume()
    run.executor.wait_for_completion()
    assert heard.told[0]["status_code"] is None
    spool = found()
    assert not {"code", "signal"} & spool.only("process-exit").keys()
    assert "its exit status was taken by another wait" in spool.only("event")["message"]
    assert (run.executor.failure, run.executor.exit_status, run.executor.success) == (None, 0, False)


def test_the_scripts_own_children_are_its_own_to_wait_for(run: Run) -> None:
    children = []
    before = signal.signal(signal.SIGCHLD, lambda *_: None)
    try:
        for n in range(20):
            children.append(subprocess.Popen(["bash", "-c", f"exit {n}"]))
            run.add_process(f"p{n}", "true")
        assert [child.wait(50) for child in children] == list(range(20))
        run.executor.wait_for_completion()
        assert run.executor.success
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_without_pidfds_the_ends_are_noticed_as_well(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    run.add_process("p", "bash", "-c", "exit 3")
    run.add_process("q", "true")
    run.executor.wait_for_completion()
    assert (run.executor.exit_status, run.executor.failure) == (3, "process 'p' ended with exit code 3")


def test_disabled_the_process_does_its_work_and_nothing_is_recorded(spool_dir: Path) -> None:
    heard = Heard()
    with pytest.raises(SystemExit) as left, Run(mode="disabled") as run:  # noqa: PT012 - that is what it tests
        run.init("x")
        assert run.add_process("p", "bash", "-c", "echo worked; exit 3", completion_callback=heard) is True
    assert left.value.code == 3
    assert heard.told[0]["std_out"] == "worked\n"
    assert not spool_dir.exists()
    with Run(mode="disabled") as run:
        run.init("x")
        run.add_process("p", "echo", "again")
    assert Path("x_p.out").read_text() == "again\n"


def test_a_dormant_run_starts_its_processes_all_the_same(run: Run) -> None:
    run.config(suppress_errors=True)
    assert run.log_metrics({"a": "no number"}) is False
    assert run.add_process("p", "touch", "worked") is True
    run.executor.wait_for_completion()
    assert Path("worked").exists()


def test_a_spool_that_takes_nothing_keeps_no_process_from_its_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("")
    monkeypatch.setenv("SIMSPOOL_DIR", str(tmp_path / "blocked" / "spool"))
    Path("data").write_text("worked")
    with Run(mode="offline") as run:
        run.init("x")
        assert run.add_process("p", "bash", "-c", "cat $0", "data", input_file=None) is False
        run.executor.wait_for_completion()
        assert Path("x_p.out").read_text() == "worked"
    assert run.drops["disk-full"] > 3


def test_the_keeper_counts_the_processes_once(run: Run) -> None:
    from simspool.sdk.sampling.tree import Processes, TreeMeter

    run.add_process("p", "sleep", "300")
    roots = [(os.getpid(), identify(os.getpid()).start_ticks), *((p.pid, p.start_ticks) for p in run.executor.running)]
    processes = Processes()
    one = TreeMeter(processes).measure(roots[:1])
    assert TreeMeter(processes).measure(roots)["resources/processes.count"] == one["resources/processes.count"]


# ---------------------------------------------------------------------- read back


def test_the_published_client_reads_outputs_and_alert_back(tmp_path: Path, background: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    simvue = pytest.importorskip("simvue")
    from real_server import RealServer, agent

    monkeypatch.setenv("SIMSPOOL_STATE", str(tmp_path / "state"))
    with pytest.raises(SystemExit), Run(mode="offline") as run:  # noqa: PT012 - that is what it tests
        run.init("published")
        run.add_process("good", "echo", "all is well")
        run.add_process("bad", "bash", "-c", "echo oh no >&2; exit 3")
    script = background("""
        import os, signal
        from simspool.sdk import Run
        run = Run(mode="offline")
        run.init("killed")
        run.add_process("p", "bash", "-c", "exec sleep 300")
        print(run.id, run.executor.running[0].pid, flush=True)
        signal.pause()
    """)
    killed, orphan = script.stdout.readline().split()
    script.kill()
    script.wait()
    with RealServer(tmp_path / "data") as server:
        for name, value in (("SIMVUE_URL", server.url), ("SIMVUE_TOKEN", server.token), ("SIMVUE_OFFLINE_DIRECTORY", str(tmp_path / "sv"))):
            monkeypatch.setenv(name, value)
        report = json.loads(agent("sync", "--json", env=server.environment, check=True).stdout)
        assert report["state"] == "done"
        client = simvue.Client()
        got = client.get_run(run.id)
        assert got.status == "failed"
        assert {k: got.metadata[k] for k in ("good_command", "bad_command")} == {
            "good_command": "echo 'all is well'", "bad_command": "bash -c 'echo oh no >&2; exit 3'",
        }  # fmt: skip
        (tmp_path / "out").mkdir()
        client.get_artifacts_as_files(run.id, output_dir=tmp_path / "out", category="output")
        assert (tmp_path / "out/published_good.out").read_text() == "all is well\n"
        assert (tmp_path / "out/published_bad.err").read_text() == "oh no\n"
        critical = client.get_alerts(run_id=run.id, critical_only=True, names_only=True)
        assert critical == ["bad_exit_status"]
        os.kill(int(orphan), 0)  # nobody has stopped it
        os.kill(int(orphan), signal.SIGKILL)
        assert client.get_run(killed).status == "lost"
