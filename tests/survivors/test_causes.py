"""The table of docs/survivors.md, row by row: what ends a script, and what its run says then, everywhere."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from real_server import agent
from victims import Site, Victim

Begin = Callable[..., Victim]

KILL = "os.kill(os.getpid(), signal.{})"
ROWS = [
    ("os._exit(0)", "completed", "exit-code", "exit code 0", {"code": 0}),
    ("os._exit(3)", "failed", "exit-code", "exit code 3", {"code": 3}),
    *((KILL.format(name), "terminated", "signal", name, None) for name in ("SIGTERM", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGUSR1")),
    ("signal.signal(signal.SIGINT, signal.SIG_DFL); " + KILL.format("SIGINT"), "terminated", "signal", "SIGINT", None),
    *((KILL.format(name), "failed", "crashed", name, None) for name in ("SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSYS", "SIGTRAP")),
    ("ctypes.string_at(0)", "failed", "crashed", "SIGSEGV", None),
    ("resource.setrlimit(resource.RLIMIT_CPU, (1, 5)); list(iter(int, 1))", "failed", "crashed", "SIGXCPU", None),
    ("signal.signal(signal.SIGPIPE, signal.SIG_DFL); " + KILL.format("SIGPIPE"), "failed", "crashed", "SIGPIPE", None),
    (f"os.kill(os.getpid(), {signal.SIGRTMIN + 3})", "terminated", "signal", f"signal {signal.SIGRTMIN + 3}", None),
]


@pytest.mark.parametrize(
    ("line", "status", "cause", "words", "exit_", "reaped"),
    [pytest.param(*row, True, id=row[3].replace(" ", "-")) for row in ROWS]
    + [pytest.param(*row, False, id=f"zombie-{row[3].replace(' ', '-')}") for row in ROWS[:3]],
)
def test_a_script_that_dies_is_closed_with_how_it_ended(
    site: Site, victim: Begin, line: str, status: str, cause: str, words: str, exit_: dict[str, int] | None, reaped: bool
) -> None:
    one = victim()
    one.tell(line)
    if reaped:
        one.process.wait(20)
    assert site.ended(one.run)["status"] == status
    (said,) = site.survivors(one.run)
    assert said["status"] == status
    assert said["evidence"]["reason"] == cause
    assert words in said["reason"]
    assert said["evidence"]["pid"] == one.process.pid
    if exit_ is not None:
        assert said["evidence"]["exit"] == exit_
    assert 0 < said["ended"] < 60
    shown = [site.show(one.run), site.client("spool").get_run(one.run), site.client("server").get_run(one.run)]
    assert [(s["status"], s["reason"]) for s in shown] == [(status, said["reason"])] * 3


def test_killed_by_somebody_else_is_terminated(site: Site, victim: Begin) -> None:
    one = victim()
    one.process.send_signal(signal.SIGKILL)
    assert site.ended(one.run)["reason"] == "ended by SIGKILL"


def test_a_status_that_was_set_is_kept(site: Site, victim: Begin) -> None:
    one = victim()
    one.tell("run.set_status('completed'); " + KILL.format("SIGKILL"))
    assert site.ended(one.run)["status"] == "completed"
    site.until(lambda: site.survivors(one.run) or None)
    assert site.show(one.run)["status"] == "completed"


def test_a_fork_that_dies_says_nothing_of_the_run(site: Site, victim: Begin) -> None:
    one = victim()
    dies = "(run.log_metrics({'y': 1.0}), time.sleep(1), os.kill(os.getpid(), signal.SIGSEGV))"
    one.tell(f"child = os.fork(); child or {dies}; os.waitpid(child, 0); sys.stdin.readline()")
    (said,) = site.until(lambda: site.survivors(one.run) or None)
    assert (said["status"], said["evidence"]["exit"]["name"]) == ("failed", "SIGSEGV")
    assert site.show(one.run)["status"] == "running"
    one.tell("")
    one.process.wait(20)
    assert site.ended(one.run)["status"] == "completed"


def test_nothing_is_known_without_evidence(site: Site, tmp_path: Path) -> None:
    """The agent was not there: a command that looks afterwards finds the process gone, and that is all."""
    site.stop_agent()
    try:
        one = Victim(site.environment)
        one.tell(KILL.format("SIGTERM"))
        one.process.wait(20)
        one.end()
        shown = site.show(one.run)
        assert (shown["status"], shown["reason"]) == ("lost", "its process is gone; nothing says why")
        (said,) = site.survivors(one.run)
        assert said["evidence"].keys() == {"reason", "pid", "host", "start_ticks"}
        assert "ended" not in said
    finally:
        site.start_agent()


def test_an_agent_that_was_restarted_still_sees_how_it_ends(site: Site, victim: Begin) -> None:
    one = victim()
    site.stop_agent(signal.SIGKILL)
    site.start_agent()
    site.watched(one)
    one.tell("os._exit(7)")
    assert site.ended(one.run)["reason"] == "it ended with exit code 7"


def test_a_zombie_is_told_from_its_status_after_the_agent_was_away(site: Site, victim: Begin) -> None:
    one = victim()
    site.stop_agent()
    one.tell("os._exit(9)")
    site.until(lambda: True if Path(f"/proc/{one.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z" else None)
    site.start_agent()
    assert site.ended(one.run)["reason"] == "it ended with exit code 9"


def test_a_hung_script_that_was_aborted_says_so_with_its_reason(site: Site, victim: Begin) -> None:
    """Hung in native code with the interpreter's lock held: the agent's signal ends it, and its note says why."""
    one = victim()
    one.tell("ctypes.PyDLL(None).sleep(600)")
    abort(site, one.run, "the mesh is tangled")
    found = site.ended(one.run)
    assert (found["status"], found["reason"]) == ("terminated", "aborted: the mesh is tangled")
    (said,) = site.survivors(one.run)
    assert said["evidence"]["reason"] == "aborted"
    assert len(said["evidence"]["abort"]) == 32
    assert said["evidence"]["exit"]["name"] == "SIGTERM"


def abort(site: Site, run: str, reason: str) -> None:
    done = agent("abort", run, "--reason", reason, env=site.environment)
    assert done.returncode in {0, 1}, done.stderr
