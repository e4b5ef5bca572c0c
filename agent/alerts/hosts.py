"""Samples of a host's agents: one stream, whichever agent took them, judged in the order of their moments while the run lives."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

from .decisions import Stream, Timeline
from .windows import PointStream

Point = Callable[[float, float, float, tuple[str, int]], None]
"""Takes a point in: moment and own time (run seconds), value, (writer, sequence)."""

_OPEN, _SAMPLE, _END = 0, 1, 2  # what counts first at one moment


class HostStreams:
    """The streams of a run's hosts. Facts come in any order, and are judged by `advance`."""

    def __init__(self, line: Timeline) -> None:
        self._line = line
        self._streams: dict[str, dict[tuple[str, str], PointStream]] = {}
        self._facts: list[tuple[float, int, str, int, int, Any]] = []
        self._open: set[str] = set()
        self._count = 0

    def streams(self, host: str) -> dict[tuple[str, str], PointStream]:
        """Return the streams of a host, by rule and metric, to be extended."""
        return self._streams.setdefault(host, {})

    def all(self) -> list[Stream]:
        """Return all streams."""
        return [s for streams in self._streams.values() for s in streams.values()]

    def opened(self, moment: float, writer: str) -> None:
        """A script's writer opened the run."""
        self._put(moment, _OPEN, writer, 0, None)

    def closed(self, moment: float, writer: str) -> None:
        """A script's writer has ended."""
        self._put(moment, _END, writer, 0, None)

    def take(self, stream: PointStream) -> Point:
        """Return what takes a stream's points, to be judged when their time has come."""

        def point(moment: float, time: float, value: float, trigger: tuple[str, int]) -> None:
            self._put(moment, _SAMPLE, *trigger, (stream, time, value))

        return point

    def _put(self, moment: float, what: int, writer: str, sequence: int, more: Any) -> None:
        self._count += 1
        heapq.heappush(self._facts, (moment, what, writer, sequence, self._count, more))
        if what == _SAMPLE or self._streams:
            self._line.wake = min(self._line.wake, moment)

    def advance(self, now: float) -> None:
        """Judge everything before `now`, in order."""
        while self._facts and self._facts[0][0] < now:
            moment, what, writer, sequence, _, more = heapq.heappop(self._facts)
            if what == _SAMPLE:
                if self._open:
                    stream, time, value = more
                    stream.point(moment, time, value, (writer, sequence))
            elif what == _OPEN:
                self._open.add(writer)
            else:
                self._open.discard(writer)
                if not self._open:
                    for ended in self.all():
                        ended.pause(moment)
        if self._facts and self._streams:
            self._line.wake = min(self._line.wake, self._facts[0][0])


