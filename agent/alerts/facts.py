"""Facts of several writers, which come in any order and count in the order of their moments."""

from __future__ import annotations

import heapq
import math
from typing import Any, NamedTuple


class Fact(NamedTuple):
    """Something at a moment (run seconds). `what` says what counts first at one moment; then writer and sequence."""

    moment: float
    what: int
    writer: str
    sequence: int
    arrival: int
    more: Any


class Facts:
    """Put them in; take them out once nothing before a moment is missing."""

    def __init__(self) -> None:
        self._heap: list[Fact] = []
        self._count = 0

    def put(self, moment: float, what: int, writer: str, sequence: int, more: Any = None) -> None:
        """Put a fact in."""
        self._count += 1
        heapq.heappush(self._heap, Fact(moment, what, writer, sequence, self._count, more))

    @property
    def first(self) -> float:
        """The moment of the earliest; infinite when there is none."""
        return self._heap[0].moment if self._heap else math.inf

    def take(self) -> Fact:
        """Take the earliest out. There must be one."""
        return heapq.heappop(self._heap)
