"""When a sample is due, and whose turn it is.

Time is cut into slots of one interval each, from the run's start. A slot's number is its sample's step, and a slot has at most one sample
on a host, whoever takes it: the host's agent those that start from a moment that it announced, 3 s ahead; before that, and where no agent
is, the script's own process. Who comes after somebody else begins with the next slot that starts after it saw that it is alone.
"""

from __future__ import annotations

AHEAD = 3_000_000_000
"""ns between an agent's announcement and the first slot that is its own: scripts look every second."""


def slot_of(moment: int, origin: int, interval: int) -> int:
    """Return the number of the slot at a moment of the boot clock; times in ns, the interval in s."""
    return max(moment - origin, 0) // (interval * 1_000_000_000)


def start_of(slot: int, origin: int, interval: int) -> int:
    """Return the moment at which a slot starts, in ns on the boot clock."""
    return origin + slot * interval * 1_000_000_000


class Turn:
    """Whether it is a script's own turn, beside one kind of others.

    `alone_from` (ns on the boot clock): after it, it is known that nobody else had the turn. `ahead` (ns): somebody new takes the first
    slot so long after it could be seen; None where nobody new can come.
    """

    def __init__(self, alone_from: int = -1, *, looked: int = 0, ahead: int | None = None) -> None:
        self._alone_from, self._looked, self._ahead = alone_from, looked, ahead
        self._doubt = (0, -1)
        self._other: object = None

    def saw(self, other: object, moment: int) -> None:
        """Tell who else there was at a moment, None for nobody."""
        if self._other is not None and other != self._other:
            self._alone_from = moment
        if self._ahead is not None:
            # who came after the last look, took a slot and went before this one, was never seen
            self._doubt = (self._looked + self._ahead, moment)
        self._other, self._looked = other, moment

    def has(self, start: int) -> bool:
        """Say whether nobody else can have taken the slot that started at this moment. One that was refused is not to be asked again."""
        first, last = self._doubt
        return start > self._alone_from and not first <= start <= last
