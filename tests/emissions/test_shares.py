"""The formula: parts are in proportion, and never more than the whole."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from simspool.agent.emissions.shares import Card, Machine, Use, open_cards, shares

amounts = st.floats(0.0, 1e9)
uses = st.builds(Use, amounts, amounts, st.sets(st.integers(1, 9)), st.sets(st.integers(0, 2)))
cards = st.lists(
    st.builds(Card, st.integers(0, 2), amounts, st.dictionaries(st.integers(1, 20), amounts), st.booleans()), max_size=3
)  # fmt: skip
machines = st.builds(Machine, amounts, amounts, amounts, amounts, amounts, cards)


@given(machines, st.dictionaries(st.text("abcdef", min_size=1), uses, max_size=5))
def test_runs_together_never_have_more_than_the_machine(machine: Machine, runs: dict[str, Use]) -> None:
    found = shares(machine, runs)
    assert found.keys() == runs.keys()
    assert all(math.isfinite(kwh) and kwh >= 0.0 for kwh in found.values())
    assert sum(found.values()) <= (machine.cpu + machine.ram + machine.gpu) * (1 + 1e-9)


def test_parts_are_in_proportion_to_use() -> None:
    machine = Machine(cpu=8.0, ram=10.0, gpu=0.0, busy=4.0, memory=100.0)
    found = shares(machine, {"a": Use(2.0, 10.0), "b": Use(1.0, 0.0), "c": Use()})
    assert found == {"a": 4.0 + 1.0, "b": 2.0, "c": 0.0}


def test_a_process_of_two_runs_is_divided_when_it_would_count_twice() -> None:
    machine = Machine(cpu=8.0, ram=0.0, gpu=0.0, busy=4.0, memory=100.0)
    assert shares(machine, {"a": Use(4.0), "b": Use(4.0)}) == {"a": 4.0, "b": 4.0}


def test_a_machine_that_did_nothing_gives_nothing() -> None:
    assert shares(Machine(1.0, 1.0, 1.0, 0.0, 0.0), {"a": Use()}) == {"a": 0.0}


def test_cards_are_divided_by_their_weight_and_by_the_memory_that_processes_hold() -> None:
    machine = Machine(0.0, 0.0, 9.0, 1.0, 1.0, [Card(0, 200.0, {5: 3.0, 99: 1.0}, True), Card(1, 100.0, {6: 2.0}, True)])
    found = shares(machine, {"a": Use(pids={5}), "b": Use(pids={6}), "c": Use(pids={7}, cards={0, 1})})
    assert found == {"a": 4.5, "b": 3.0, "c": 0.0}  # 99 is somebody else's


def test_where_the_drivers_pids_are_not_ours_those_who_hold_the_card_open_share_equally() -> None:
    machine = Machine(0.0, 0.0, 8.0, 1.0, 1.0, [Card(0, 1.0, {4000: 3.0}, False)])
    found = shares(machine, {"a": Use(pids={5}, cards={0}), "b": Use(pids={6}, cards={0, 1}), "c": Use(pids={7}, cards={1})})
    assert found == {"a": 4.0, "b": 4.0, "c": 0.0}
    assert open_cards({"/dev/nvidia0", "/dev/nvidia12", "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/null"}) == {0, 12}
