"""When to try again: full jitter, a cap, and the server's own wish as a floor."""

from __future__ import annotations

import random
from collections.abc import Callable

BASE, CAP = 0.5, 50.0  # seconds; under a minute, so that a server that is back is noticed within one


class Backoff:
    """Counts failures in a row. `random_unit` gives numbers in [0, 1)."""

    def __init__(self, random_unit: Callable[[], float] = random.random) -> None:
        self.failures = 0
        self._random = random_unit

    def failed(self, floor: float = 0.0) -> float:
        """Return how long to wait (s) after one more failure: uniform in [0, min(cap, base * 2^n)), at least `floor`."""
        bound = min(CAP, BASE * 2.0 ** min(self.failures, 20))
        self.failures += 1
        return max(floor, self._random() * bound)

    def succeeded(self) -> None:
        """Begin anew."""
        self.failures = 0
