"""Processes by identity: trees as they are, signals that hit nobody else, stops that leave nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from mouth import until

from simspool.sdk import process_tree
from simspool.sdk.process_tree import Process, descendants, identify, is_gone, protected, send, stop


@pytest.fixture
def start() -> Iterator[Callable[..., tuple[subprocess.Popen[str], Process]]]:
    """Start a program in a session of its own and wait for its first line."""
    started = []

    def begin(*command: str) -> tuple[subprocess.Popen[str], Process]:
        process = subprocess.Popen([*command], stdout=subprocess.PIPE, text=True, start_new_session=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline()
        known = identify(process.pid)
        assert known is not None
        return process, known

    yield begin
    for process in started:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.communicate()


def python(text: str) -> tuple[str, ...]:
    return sys.executable, "-c", textwrap.dedent(text)


def children_of(process: Process, count: int) -> list[Process]:
    found = until(lambda: found if len(found := descendants(process)) >= count else None)
    assert len(found) == count
    return list(found)


@pytest.mark.parametrize("files", [True, False])
def test_descendants_are_found_at_every_depth_and_from_every_thread(start: Any, monkeypatch: pytest.MonkeyPatch, files: bool) -> None:
    monkeypatch.setattr(process_tree, "_has_children_files", lambda: files)
    _, root = start(*python("""
        import subprocess, threading, time
        def work():
            subprocess.Popen(["bash", "-c", "sleep 300 & wait"])
            time.sleep(300)
        threading.Thread(target=work).start()
        subprocess.Popen(["sleep", "300"])
        print("up", flush=True)
        time.sleep(300)
    """))  # fmt: skip
    found = children_of(root, 3)
    assert len(set(found)) == 3
    assert stop([root], 10.0).left == ()
    assert all(map(is_gone, [root, *found]))


def test_a_process_with_another_start_time_is_somebody_else(start: Any) -> None:
    process, known = start("bash", "-c", "echo; sleep 300")
    stranger = Process(known.pid, known.start_ticks - 1)
    assert is_gone(stranger)
    assert not send(stranger, signal.SIGKILL)
    assert descendants(stranger) == []
    assert stop([stranger], 0.0) == process_tree.Stopped()
    assert process.poll() is None
    assert send(known, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_nobody_above_us_is_ever_signalled_nor_what_descends_from_there(start: Any) -> None:
    bystander, _ = start("bash", "-c", "echo; sleep 300")
    for pid in (1, os.getpid(), os.getppid()):
        known = identify(pid)
        assert known is not None
        assert not send(known, 0)
        assert stop([known], 0.0).left == (known,)
    assert not send(Process(0, 0), signal.SIGKILL)
    assert {0, 1, os.getpid(), os.getppid()} <= protected()
    assert bystander.poll() is None


def test_a_zombie_is_gone(start: Any) -> None:
    _, parent = start(*python("""
        import subprocess, time
        child = subprocess.Popen(["sleep", "300"])
        print("up", flush=True)
        time.sleep(300)
    """))  # fmt: skip
    (child,) = children_of(parent, 1)
    assert send(child, signal.SIGKILL)
    until(lambda: is_gone(child))
    assert os.path.exists(f"/proc/{child.pid}")
    assert identify(child.pid) is None
    assert not is_gone(parent)


def test_a_process_whose_first_thread_has_ended_is_not_gone(start: Any) -> None:
    process, known = start(*python("""
        import ctypes, threading, time
        def work():
            time.sleep(0.5)
            print("up", flush=True)
            time.sleep(300)
        threading.Thread(target=work).start()
        ctypes.CDLL(None).pthread_exit(None)
    """))  # fmt: skip
    with open(f"/proc/{known.pid}/stat") as f:
        assert f.read().split()[2] == "Z"
    assert not is_gone(known)
    assert stop([known], 0.0).left == ()
    assert process.wait() < 0


def test_those_that_end_by_sigterm_are_not_killed(start: Any) -> None:
    process, known = start(*python("""
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), sys.exit(5)))
        print("up", flush=True)
        time.sleep(300)
    """))  # fmt: skip
    done = stop([known], 20.0)
    assert (done.terminated, done.killed, done.left) == ((known,), (), ())
    assert process.wait() == 5


def test_those_that_ignore_sigterm_are_killed(start: Any) -> None:
    process, known = start("bash", "-c", "trap '' TERM; sleep 300 & echo; wait")
    (child,) = children_of(known, 1)
    done = stop([known], 0.2)
    assert set(done.killed) == {known, child}
    assert done.left == ()
    assert process.wait() == -signal.SIGKILL


def test_a_tree_that_forks_all_the_time_is_stopped_whole(start: Any) -> None:
    """Each process ignores SIGTERM and goes on making children; none may be left."""
    process, known = start(*python("""
        import os, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        os.write(1, b"up\\n")
        depth = 0
        while True:
            if os.fork() == 0:
                depth += 1
                if depth > 3:
                    time.sleep(300)
            time.sleep(0.2)
    """))  # fmt: skip
    children_of_some = until(lambda: found if len(found := descendants(known)) > 5 else None)
    done = stop([known], 0.3)
    assert done.left == ()
    assert len(done.killed) > len(children_of_some)
    assert process.wait() == -signal.SIGKILL
    session = subprocess.run(["ps", "-s", str(process.pid), "-o", "stat="], capture_output=True, text=True, check=False)
    assert [state for state in session.stdout.split() if not state.startswith("Z")] == []  # init may be slow to reap
