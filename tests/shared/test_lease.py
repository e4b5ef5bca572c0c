"""The lease: one holder at a time, taken over when it is silent or dead, given back when it is asked for."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from simspool.spool import Spool
from simspool.spool.lease import LINE, Holder, Lease
from simspool.spool.process import this_host


@dataclass
class Clock:
    """A host's boot clock."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def elsewhere(name: str) -> Holder:
    """Return an agent of another host."""
    return Holder(name, f"host-{name}", b"m" * 16, b"b" * 16, 1, 10, 100)


def lease_of(spool: Spool, name: str, clock: Callable[[], float], lives: bool | None = None) -> Lease:
    return Lease(spool, patience=60.0, clock=clock, me=elsewhere(name), lives=lambda _: lives)


def passes(clock: Clock, seconds: float, *leases: Lease) -> None:
    """Let time pass, with a look a second."""
    for _ in range(int(seconds)):
        clock.now += 1.0
        for lease in leases:
            lease.turn()


def test_the_first_has_it_and_others_do_not(spool: Spool) -> None:
    clock = Clock()
    a, b = lease_of(spool, "a", clock), lease_of(spool, "b", clock)
    assert a.turn()
    assert not b.turn()
    passes(clock, 600, a, b)
    assert (a.held, b.held, a.mine) == (True, False, 1)
    assert a.still()
    assert a.is_fresh
    assert not b.still()
    assert b.is_elsewhere
    assert b.holder == a.me


def test_a_silent_holder_is_taken_for_gone_after_its_time_by_the_clock_of_whoever_looks(spool: Spool) -> None:
    here, there = Clock(5.0), Clock(9e6)  # boot clocks have nothing to do with each other
    a, b = lease_of(spool, "a", here), lease_of(spool, "b", there)
    assert a.turn()
    passes(there, 59, b)
    assert not b.held
    passes(there, 3, b)
    assert b.held
    assert b.mine == 2
    assert not a.still()  # it was suspended, and goes on
    assert not a.held
    assert not a.turn()


def test_a_lease_that_names_nobody_is_taken_sooner(spool: Spool) -> None:
    """A power cut keeps the file's name, and may take what was in it."""
    clock = Clock()
    a, b = lease_of(spool, "a", clock), lease_of(spool, "b", clock)
    a.turn()
    for left in (b"", bytes(3 * LINE)):
        Path(spool.agent, f"lease-{b.highest or 1}.jsonl").write_bytes(left)
        passes(clock, 8, b)
        assert not b.held
        passes(clock, 4, b)
        assert b.held
        b.release()
        clock.now += 60


def test_who_was_suspended_itself_does_not_take_the_pause_for_silence(spool: Spool) -> None:
    here, there = Clock(), Clock()
    a, b = lease_of(spool, "a", here), lease_of(spool, "b", there)
    a.turn()
    b.turn()
    b.turn()
    there.now += 3600.0  # the machine slept
    assert not b.turn()
    passes(here, 20, a)
    passes(there, 20, b)
    assert not b.held


def test_a_dead_holder_of_this_host_is_followed_at_once(spool: Spool) -> None:
    clock = Clock()
    a, b = lease_of(spool, "a", clock), lease_of(spool, "b", clock, lives=False)
    assert a.turn()
    assert b.turn()
    assert not a.still()


def test_this_process_is_known_to_live_and_another_incarnation_of_its_pid_is_not(spool: Spool) -> None:
    me = Holder.this()
    first = Lease(spool, me=me)
    assert first.turn()
    other = Lease(spool)
    if not any(this_host().machine):
        pytest.skip("this machine has no machine id")
    assert not other.turn()
    again = Holder("x", me.host, me.machine, me.boot_id, me.pid_namespace, me.pid, me.start_ticks - 1)
    first.release()
    before = Lease(spool, me=again)
    assert before.turn()
    assert other.turn()


def test_what_was_given_back_is_free(spool: Spool) -> None:
    clock = Clock()
    a, b = lease_of(spool, "a", clock), lease_of(spool, "b", clock)
    a.turn()
    a.release()
    assert not a.held
    assert not a.turn()  # others first
    assert b.turn()
    passes(clock, 30, a, b)
    b.release()
    assert a.turn()
    assert a.mine == 3


def test_the_holder_hears_that_it_is_wanted(spool: Spool) -> None:
    clock = Clock()
    a, b = lease_of(spool, "a", clock), lease_of(spool, "b", clock)
    a.turn()
    b.turn()
    b.want()
    assert a.turn()
    assert a.is_wanted
    a.release()
    assert b.turn()
    assert not b.is_wanted


def test_a_holder_that_does_not_answer_a_wish_loses_it(spool: Spool) -> None:
    clock = Clock()
    a, b = lease_of(spool, "a", clock), lease_of(spool, "b", clock)
    a.turn()
    b.want()
    passes(clock, 59, a, b)
    assert a.held
    passes(clock, 5, a, b)
    assert (a.held, b.held) == (False, True)


def test_a_half_made_lease_is_passed_over_after_its_time(spool: Spool) -> None:
    clock = Clock()
    a, b = lease_of(spool, "a", clock), lease_of(spool, "b", clock)
    a.turn()
    Path(spool.agent, "lease-2.jsonl").touch()  # killed between two calls
    assert not a.turn()
    passes(clock, 70, b)
    assert b.mine == 3


def test_generations_never_repeat_where_the_files_were_deleted(spool: Spool) -> None:
    clock = Clock()
    a = lease_of(spool, "a", clock)
    a.turn()
    os.unlink(Path(spool.agent, "lease-1.jsonl"))
    assert not a.still()
    assert a.turn()
    assert a.mine == 2
    b = lease_of(spool, "b", clock)
    b.floor = 7
    os.unlink(Path(spool.agent, "lease-2.jsonl"))
    assert b.turn()
    assert b.mine == 8


def test_old_files_go_after_a_time(spool: Spool) -> None:
    clock = Clock()
    a, b = lease_of(spool, "a", clock), lease_of(spool, "b", clock, lives=False)
    a.turn()
    b.turn()
    passes(clock, 200, b)
    assert os.listdir(spool.agent) == ["lease-2.jsonl"]
    assert not a.turn()
    assert os.path.getsize(Path(spool.agent, "lease-2.jsonl")) == LINE


def test_a_disk_that_cannot_be_read_is_no_lease(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    a = lease_of(spool, "a", clock)
    a.turn()

    def fails(*_: object) -> int:
        raise OSError(5, "input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fails)
        assert not a.still()
    assert a.still()


@dataclass
class Actor:
    """An agent of the model: its clock runs on while it is stopped."""

    name: str
    clock: Clock
    lease: Lease
    stopped: bool = False
    acts: list[int] = field(default_factory=list)


@pytest.mark.parametrize("seed", range(10))
def test_never_two_holders_at_a_time_and_never_none_for_long(tmp_path: Path, seed: int) -> None:
    """Three agents of three hosts, stopped, continued, killed and asked at random. Whoever acts has asked just before (`still`)."""
    choice = random.Random(seed)
    spool = Spool(str(tmp_path), "0" * 22)
    count = 0

    def born() -> Actor:
        nonlocal count
        count += 1
        clock = Clock(choice.uniform(0, 1e6))
        return Actor(str(count), clock, lease_of(spool, str(count), clock))

    actors = [born() for _ in range(3)]
    effects: list[tuple[int, str]] = []  # (generation, who), in the order of what happened
    nobody = 0
    for _ in range(1500):
        for one in actors:
            one.clock.now += choice.uniform(0.5, 1.5)
        for one in list(actors):
            if one.stopped:
                one.stopped = choice.random() > 0.01
                continue
            what = choice.random()
            if what < 0.004:
                one.stopped = True
            elif what < 0.006:
                actors[actors.index(one)] = born()
            elif what < 0.008:
                one.lease.release()
            elif what < 0.010:
                one.lease.want()
            elif one.lease.turn() and one.lease.is_wanted:
                one.lease.release()
        holders = [one for one in choice.sample(actors, len(actors)) if not one.stopped and one.lease.still()]
        assert len(holders) <= 1
        effects += [(one.lease.mine, one.name) for one in holders]
        nobody = 0 if holders or all(one.stopped for one in actors) else nobody + 1
        assert nobody < 300
    assert effects == sorted(effects, key=lambda e: e[0])  # a generation never acts after a later one has
    assert len({generation for generation, _ in effects}) == len(set(effects))  # and is one agent's
    assert len({generation for generation, _ in effects}) > 3
