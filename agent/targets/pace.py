"""A cap on the bytes that are sent to a target, shared by all of its requests. Records go first; files always keep a small share."""

from __future__ import annotations

from collections import deque

from simspool.agent.clock import Clock, SystemClock

_BURST = 0.25  # seconds' worth that may go at once after a pause
_BLOCKS = 20  # blocks a second: none holds up another for long
_SHARE = 8  # one byte in so many is a file's, however many records wait: an upload that stands still is given up by its server
_SLEEP = 0.002  # seconds, the least


class Pace:
    """A token bucket of `rate` bytes a second. Over any time t, at most rate * (t + 0.25 s) bytes and one block are let through.

    Confined to the event loop. A block that is asked for waits for those asked for before it, of its own kind.
    """

    def __init__(self, rate: float, clock: Clock | None = None) -> None:
        self.rate = rate
        self._clock = clock or SystemClock()
        self._room, self._at = rate * _BURST, self._clock.monotonic()
        self._first: deque[object] = deque()
        self._bulk: deque[object] = deque()
        self._owed = 0.0

    def block(self, most: int) -> int:
        """Return the size of blocks to ask for, in bytes: small enough that they take turns, at most `most`."""
        return max(64, min(most, int(self.rate / _BLOCKS)))

    async def take(self, size: int, *, bulk: bool = False) -> None:
        """Wait until `size` bytes may be sent. `bulk` ones give way to the others."""
        ticket, line = object(), self._bulk if bulk else self._first
        line.append(ticket)
        try:
            # a block goes as soon as there is any room, and what it takes too much delays the next: large blocks need no large bucket
            while (due := self._due()) > 0 or not self._is_next(ticket):
                await self._clock.sleep(max(due, _SLEEP))
            self._room -= size
            if bulk:
                self._owed = max(self._owed - size, 0.0)
            elif self._bulk:
                self._owed += size / (_SHARE - 1)
        finally:
            line.remove(ticket)

    def _is_next(self, ticket: object) -> bool:
        if self._bulk and (not self._first or self._owed >= self.rate / _BLOCKS):
            return self._bulk[0] is ticket
        return self._first[0] is ticket

    def _due(self) -> float:
        """Return the seconds until there is room; 0 when there is."""
        now = self._clock.monotonic()
        self._room = min(self._room + (now - self._at) * self.rate, self.rate * _BURST)
        self._at = now
        return 0.0 if self._room > 0 else -self._room / self.rate
