"""Work beside: in order, each call made whatever those before it raised, and what one raises is heard once."""

from __future__ import annotations

import hashlib
import threading

import pytest

from simspool.agent.carry.aside import Aside, HashAside


def test_calls_are_made_in_order_in_one_thread() -> None:
    made: list[int] = []
    threads = set()
    with Aside("test") as aside:
        for number in range(100):
            aside.do(lambda n=number: (made.append(n), threads.add(threading.current_thread())))  # type: ignore[misc]
        aside.wait()
        assert made == list(range(100))
    assert len(threads) == 1
    assert threading.current_thread() not in threads


def test_no_more_than_a_few_wait() -> None:
    go = threading.Event()
    with Aside("test", ahead=2) as aside:
        for _ in range(2):
            aside.do(lambda: go.wait(20))
        third = threading.Thread(target=aside.do, args=(lambda: None,))
        third.start()
        third.join(0.2)
        assert third.is_alive()
        go.set()
        third.join(20)
        assert not third.is_alive()


def test_what_one_raises_is_heard_once_and_those_behind_it_are_made() -> None:
    made = []
    with Aside("test") as aside:
        aside.do(lambda: 1 // 0)
        aside.do(lambda: made.append(1))
        with pytest.raises(ZeroDivisionError):
            aside.wait()
        aside.wait()
        assert made == [1]


def test_hashes_of_several_contents_do_not_mix() -> None:
    with Aside("test") as aside:
        left = HashAside(aside)
        left.update(b"never asked for")
        for content in (b"", b"abc", bytes(3_000_000)):
            hasher = HashAside(aside)
            for at in range(0, len(content), 1 << 20):
                hasher.update(content[at : at + (1 << 20)])
            assert hasher.hexdigest() == hashlib.sha256(content).hexdigest()
