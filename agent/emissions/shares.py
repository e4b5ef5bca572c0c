"""What part of the machine's energy is a run's: the formula of docs/emissions.md, and nothing else.

Whatever the inputs, the parts of all runs together are at most the whole: where runs overlap (a process that records two runs) or the
kernel's counters disagree, all parts are scaled down.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Use:
    """What a run's process tree used in an interval: processor seconds, bytes of memory times seconds, the pids that it had, and the
    graphics cards that these held open.
    """

    processor: float = 0.0
    memory: float = 0.0
    pids: set[int] = field(default_factory=set)
    cards: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Card:
    """A graphics card: its weight in the energy of all, {pid: bytes times seconds} of its processes, and whether these can be seen here."""

    index: int
    weight: float
    held: Mapping[int, float]
    visible: bool


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine in an interval: energy in kWh, busy processor seconds, memory in bytes times seconds."""

    cpu: float
    ram: float
    gpu: float
    busy: float
    memory: float
    cards: Sequence[Card] = ()


def shares(machine: Machine, uses: Mapping[str, Use]) -> dict[str, float]:
    """Return each run's energy in kWh."""
    found = dict.fromkeys(uses, 0.0)
    _give(found, machine.cpu, {run: use.processor for run, use in uses.items()}, machine.busy)
    _give(found, machine.ram, {run: use.memory for run, use in uses.items()}, machine.memory)
    drawn = sum(card.weight for card in machine.cards)
    for card in machine.cards:
        if drawn > 0.0:
            _give(found, machine.gpu * card.weight / drawn, *_on_card(card, uses))
    return found


def _give(found: dict[str, float], energy: float, parts: Mapping[str, float], whole: float) -> None:
    """Add to each run its part of an energy."""
    whole = max(whole, sum(parts.values()))
    if whole > 0.0 and energy > 0.0:
        for run, part in parts.items():
            found[run] += energy * (part / whole)


def _on_card(card: Card, uses: Mapping[str, Use]) -> tuple[dict[str, float], float]:
    """Return the runs' parts of a card, and the whole: memory held there, or equal parts where the driver's pids are not ours."""
    held = {run: sum(size for pid, size in card.held.items() if pid in use.pids) for run, use in uses.items()}
    if card.visible or any(held.values()):
        return held, sum(card.held.values())
    return {run: 1.0 for run, use in uses.items() if card.index in use.cards}, 0.0


def open_cards(links: Collection[str]) -> set[int]:
    """Return the NVIDIA cards among the files that a process has open."""
    return {int(rest) for link in links if (rest := link.removeprefix("/dev/nvidia")) != link and rest.isdecimal()}
