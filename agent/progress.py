"""Which of the agent's loops get on: what the service's watchdog is fed from, so that a hang ends in a restart and a long wait does not."""

from __future__ import annotations

import time
from collections.abc import Callable


class Progress:
    """When each loop last made a turn. Any thread may call anything here; a turn costs one assignment.

    Times are of a clock that stands still while the machine is suspended: to have slept is not to have hung.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due: dict[str, float] = {}
        self._sources: dict[str, Callable[[], float]] = {}

    def turn(self, name: str, rest: float = 0.0) -> None:
        """The loop `name` gets on now, and may then wait for `rest` seconds on purpose (a backoff, news)."""
        self._due[name] = self._clock() + rest

    def end(self, name: str) -> None:
        """The loop has ended, or has nothing to do: nothing is expected of it."""
        self._due.pop(name, None)
        self._sources.pop(name, None)

    def end_all(self, prefix: str) -> None:
        """All loops whose names begin so have ended."""
        for name in [n for n in list(self._due) if n.startswith(prefix)]:
            self._due.pop(name, None)

    def follow(self, name: str, last_turn: Callable[[], float], rest: float) -> None:
        """Watch a loop that keeps the time of its last turn itself (`time.monotonic`), and waits for up to `rest` seconds on purpose."""
        self._sources[name] = lambda: last_turn() + rest

    def stuck(self, patience: float) -> list[str]:
        """Return the loops that made no turn for `patience` seconds beyond what they said they would rest."""
        oldest = self._clock() - patience
        found = [name for name, due in list(self._due.items()) if due < oldest]
        return sorted(found + [name for name, due in list(self._sources.items()) if due() < oldest])
