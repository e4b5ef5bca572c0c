"""Slots and turns: pure arithmetic."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from simspool.sdk.sampling.slots import AHEAD, Turn, slot_of, start_of

SECOND = 1_000_000_000


@settings(deadline=None)
@given(st.integers(0, 1 << 60), st.integers(0, 1 << 60), st.integers(1, 100_000))
def test_a_moment_lies_in_its_slot(origin: int, after: int, interval: int) -> None:
    slot = slot_of(origin + after, origin, interval)
    assert start_of(slot, origin, interval) <= origin + after < start_of(slot + 1, origin, interval)


def test_before_the_runs_start_is_its_first_slot() -> None:
    assert slot_of(5, 10, 1) == 0


def test_who_was_always_alone_has_every_turn() -> None:
    turn = Turn()
    turn.saw(None, 10)
    assert turn.has(0)
    assert turn.has(10)


def test_after_somebody_else_only_slots_that_begin_later() -> None:
    turn = Turn()
    turn.saw("agent", 10)
    turn.saw(None, 20)
    assert not turn.has(20)
    assert turn.has(21)
    turn.saw(None, 30)
    assert turn.has(21)
    turn.saw("agent", 40)
    turn.saw("another", 50)
    assert not turn.has(50)


def test_who_came_and_went_between_two_looks() -> None:
    turn = Turn(ahead=AHEAD)
    turn.saw(None, 10 * SECOND)
    turn.saw(None, 20 * SECOND)
    assert turn.has(12 * SECOND), "an agent that came after the last look takes no slot so soon"
    assert not turn.has(15 * SECOND)


@settings(max_examples=1000, deadline=None)
@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.sampled_from(["start", "kill", "look", "nothing"]), st.sampled_from([0, 1, 5, 10, 14, 30])), max_size=60),
)
def test_no_slot_is_ever_sampled_twice(interval: int, story: list[tuple[str, int]]) -> None:
    """A script that looks, and agents that start and are killed at any moment: the rules alone keep them apart.

    Agents announce themselves before they sample; the script looks before it samples. Nothing else is assumed, but that an
    announcement is written within the 3 s that it runs ahead.
    """
    turn, now, taken = Turn(ahead=AHEAD), 0, []
    agent: tuple[int, int] | None = None  # (number, samples from)
    number, last_own, last_agents = 0, -1, -1
    for what, wait in story:
        now += wait * SECOND // 10
        slot = slot_of(now, 0, interval)
        start = start_of(slot, 0, interval)
        if agent is not None and start >= agent[1] and slot > last_agents:
            last_agents = slot
            taken.append(slot)
        if what == "start":
            number += 1
            agent, last_agents = (number, now + AHEAD), -1
        elif what == "kill":
            agent = None
        elif what == "look":
            turn.saw(agent, now)
            if slot > last_own:
                last_own = slot
                if not (agent is not None and start >= agent[1]) and turn.has(start):
                    taken.append(slot)
    assert len(taken) == len(set(taken))
