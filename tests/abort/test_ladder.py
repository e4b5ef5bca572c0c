"""The ladder against real processes: who is stopped, in which order, and who is left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from simspool.sdk.config import Graces
from simspool.sdk.process_tree import identify, is_gone
from simspool.spool.control import make_request, put_request, requests

A, B = "a" * 32, "b" * 32


def test_a_silent_script_is_ended_with_its_children(world) -> None:
    victim = world.victim("silent", children=3)
    aborts = world.begin()
    assert aborts.request(victim.run, A, "NaN", by="alert", alert="diverged")
    world.until(lambda: "gone" in world.states(victim.run))
    assert victim.tree_is_gone
    assert victim.popen.wait(5) == -signal.SIGTERM
    assert world.states(victim.run) == ["requested", "unanswered", "signalled", "gone"]
    signalled = world.words(victim.run)[2]
    assert (signalled["pid"], signalled["signal"], signalled["processes"]) == (victim.pid, 15, 4)
    assert (signalled["by"], signalled["reason"], signalled["alert"]) == ("alert", "NaN", "diverged")


@pytest.mark.parametrize("behaviour", ["stubborn", "hung-stubborn", "hung"])
def test_what_does_not_end_is_killed_with_its_tree(world, behaviour: str) -> None:
    victim = world.victim(behaviour, children=2)
    world.begin().request(victim.run, A, "hung", by="user")
    world.until(lambda: "gone" in world.states(victim.run))
    assert victim.tree_is_gone
    killed = [word["pid"] for word in world.words(victim.run) if word["state"] == "killed"]
    if "stubborn" in behaviour:
        assert victim.popen.wait(5) == -signal.SIGKILL
        assert sorted(killed) == sorted([victim.pid, *(c.pid for c in victim.children)])
    else:
        assert victim.popen.wait(5) == -signal.SIGTERM  # no handler: the kernel ends it, whatever holds the interpreter
        assert killed == []


def test_a_stopped_script_is_ended(world) -> None:
    victim = world.victim("silent", children=1)
    os.kill(victim.pid, signal.SIGSTOP)
    world.begin().request(victim.run, A, "stopped", by="user")
    world.until(lambda: "gone" in world.states(victim.run))
    assert victim.tree_is_gone


@pytest.mark.parametrize("behaviour", ["answers", "stays"])
def test_a_script_that_does_it_itself_is_only_watched(world, behaviour: str) -> None:
    victim = world.victim(behaviour, callback=0.8)  # longer than the grace for an answer
    world.begin().request(victim.run, A, "enough", by="user")
    world.until(lambda: victim.is_gone)
    world.until(lambda: not world.aborts.ladder.is_busy)
    expected = ["requested", "received", "done"] + (["killed", "gone"] if behaviour == "stays" else [])
    assert world.states(victim.run) == expected
    assert victim.popen.wait(5) == (-signal.SIGKILL if behaviour == "stays" else -signal.SIGTERM)


def test_a_callback_that_hangs_has_its_grace_and_no_more(world) -> None:
    victim = world.victim("callback-hangs", children=1)
    world.begin().request(victim.run, A, "enough", by="user")
    world.until(lambda: victim.tree_is_gone)
    world.until(lambda: "gone" in world.states(victim.run))
    assert world.states(victim.run) == ["requested", "received", "unanswered", "signalled", "gone"]


def test_a_script_may_have_longer_graces_than_the_agent_knows_of(world) -> None:
    victim = world.victim("answers", callback=1.5, graces={"callback": 60, "term": 60})
    world.begin(Graces(0.5, 0.3, 0.5)).request(victim.run, A, "enough", by="user")
    world.until(lambda: victim.is_gone)
    assert "done" in world.states(victim.run)
    assert "signalled" not in world.states(victim.run)


def test_children_of_a_script_that_dies_in_its_callback_are_ended(world) -> None:
    victim = world.victim("dies-in-callback", children=2, callback=0.6)
    world.begin().request(victim.run, A, "enough", by="user")
    world.until(lambda: victim.tree_is_gone)
    assert "signalled" in world.states(victim.run)


def test_mode_run_leaves_the_script_and_its_children_alone(world) -> None:
    foreign = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        silent = world.victim("silent", mode="run", children=1, foreign=foreign.pid)
        answers = world.victim("stays", mode="run", children=1)
        aborts = world.begin()
        aborts.request(silent.run, A, "enough", by="user")
        aborts.request(answers.run, B, "enough", by="user")
        assert foreign.wait(20) == -signal.SIGTERM
        world.rest()
        for victim in (silent, answers):
            assert not victim.is_gone
            assert not is_gone(victim.children[0])
        assert world.states(silent.run) == ["requested", "unanswered", "signalled", "gone"]
        assert [w["pid"] for w in world.words(silent.run) if w["state"] == "signalled"] == [foreign.pid]
        assert world.states(answers.run) == ["requested", "received", "done"]
    finally:
        foreign.kill()
        foreign.wait()


@pytest.mark.parametrize("behaviour", ["silent", "ignores"])
def test_mode_ignore_stops_nothing(world, behaviour: str) -> None:
    victim = world.victim(behaviour, mode="ignore", children=1)
    world.begin().request(victim.run, A, "enough", by="user")
    world.rest(2.5)
    assert not victim.is_gone
    assert not is_gone(victim.children[0])
    assert not {"signalled", "killed"} & set(world.states(victim.run))


def test_a_script_that_closed_before_it_heard_is_left_alone(world) -> None:
    victim = world.victim("closes", children=1)
    world.begin().request(victim.run, A, "late", by="user")
    world.rest(2.0)
    assert not victim.is_gone
    assert world.states(victim.run) == ["requested"]


def test_a_request_without_an_agent_is_found_by_the_next_one(world) -> None:
    victim = world.victim("silent")
    folder = world.spool.run(victim.run)
    assert put_request(folder, make_request(folder, A, "by hand", by="user"))
    world.begin()
    world.until(lambda: victim.is_gone)
    world.until(lambda: "gone" in world.states(victim.run))
    assert world.words(victim.run)[0]["by"] == "user"


def test_an_opening_after_the_request_is_not_meant_unless_it_is_sticky(world) -> None:
    first = world.victim("silent")
    folder = world.spool.run(first.run)
    put_request(folder, make_request(folder, A, "old", by="user"))
    later = world.victim("silent", run=first.run)
    world.begin()
    world.until(lambda: first.is_gone)
    world.rest(2.0)
    assert not later.is_gone
    put_request(folder, make_request(folder, B, "for good", by="user", sticky=True, writers=()))
    world.until(lambda: later.is_gone)


def test_a_request_is_one_however_often_it_is_made(world) -> None:
    victim = world.victim("silent", mode="ignore")
    aborts = world.begin()
    assert aborts.request(victim.run, A, "first", by="alert")
    assert not aborts.request(victim.run, A, "second", by="alert")
    world.rest(1.0)
    assert [r.reason for r in requests(world.spool.run(victim.run))] == ["first"]
    assert world.states(victim.run).count("requested") == 1
    world.end()
    world.begin()
    assert not world.aborts.request(victim.run, A, "third", by="alert")
    world.rest(1.0)
    assert world.states(victim.run).count("requested") == 1


def test_an_agent_that_is_restarted_goes_on_where_it_was(world) -> None:
    victim = world.victim("stubborn", children=1)
    world.begin(Graces(0.3, 1.0, 30.0)).request(victim.run, A, "enough", by="user")
    world.until(lambda: "signalled" in world.states(victim.run))
    world.end()
    assert not victim.is_gone
    world.begin(Graces(0.3, 1.0, 0.3))  # the grace is over by now, but it listens for a moment first
    world.until(lambda: victim.tree_is_gone)
    world.until(lambda: "gone" in world.states(victim.run))
    assert world.states(victim.run).count("signalled") == 1
    assert world.states(victim.run).count("requested") == 1


def test_an_agent_that_is_restarted_ends_the_children_of_a_script_that_went(world) -> None:
    """The tree is in the record of the signal: a parent that has died since does not hide its children."""
    victim = world.victim("stubborn", children=2)
    world.begin(Graces(0.3, 1.0, 30.0)).request(victim.run, A, "enough", by="user")
    world.until(lambda: "signalled" in world.states(victim.run))
    world.end()
    os.kill(victim.pid, signal.SIGKILL)
    victim.popen.wait(10)
    assert not any(is_gone(c) for c in victim.children)
    world.begin(Graces(0.3, 1.0, 0.3))
    world.until(lambda: victim.tree_is_gone)


def test_all_runs_of_a_process_that_is_stopped_have_the_reason(world) -> None:
    victim = world.victim("silent")
    other = world.victim("silent")
    twin = next(w for w in world.live() if w.run == victim.run)
    world.extra = [type(twin)(other.run, "0" * 22, "creator", twin.header, {}, ())]  # a second run of the first process
    world.begin().request(victim.run, A, "enough", by="user")
    world.until(lambda: victim.is_gone)
    world.until(lambda: world.states(other.run) == ["signalled"])
    assert world.words(other.run)[0]["run"] == victim.run
    assert not other.is_gone


def test_a_foreign_process_goes_with_its_tree(world) -> None:
    program = "import subprocess, sys; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()"
    foreign = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    grandchild = identify(int(foreign.stdout.readline()))
    victim = world.victim("silent", foreign=foreign.pid)
    world.begin().request(victim.run, A, "enough", by="user")
    world.until(lambda: "gone" in world.states(victim.run))
    assert foreign.wait(5) == -signal.SIGTERM
    foreign.stdout.close()
    assert is_gone(grandchild)
    assert victim.is_gone
