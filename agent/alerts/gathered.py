"""Streams of what agents gather: samples of a host, lines of an inbox file. They go on when another agent takes over, and are judged in
the order of moments: samples while the run lives, lines also behind its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from .decisions import Stream, Timeline
from .facts import Facts

S = TypeVar("S", bound=Stream)
Sink = Callable[..., None]
"""Takes something in: its moment first, then whatever belongs to it."""

_OPEN, _NEWS, _END = 0, 1, 2  # what counts first at one moment


class Gathered:
    """The streams of a run's hosts, or of its inbox files. Facts come in any order, and are judged by `advance`."""

    def __init__(self, line: Timeline, *, lives_on: bool) -> None:
        """`lives_on`: what comes behind the run's end is judged too, but nothing stays pending there."""
        self._line = line
        self._lives_on = lives_on
        self._streams: dict[str, dict[tuple[str, str], Stream]] = {}
        self._facts = Facts()
        self._open: set[str] = set()
        self.in_order = False  # whether what comes from now on comes in the order of moments: then it is judged at once

    def streams(self, source: str) -> dict[tuple[str, str], Stream]:
        """Return the streams of a host or file, by rule and metric, to be extended."""
        return self._streams.setdefault(source, {})

    def stream(self, source: str, rule: str, metric: str, make: Callable[[], S]) -> S:
        """Return the stream of a rule (by id) and metric; `make` makes it where there is none yet."""
        streams = self.streams(source)
        found = streams.get((rule, metric))
        if found is None:
            found = streams[rule, metric] = make()
        return found  # type: ignore[return-value]  # one rule has streams of one kind

    def all(self) -> list[Stream]:
        """Return all streams."""
        return [s for streams in self._streams.values() for s in streams.values()]

    def opened(self, moment: float, writer: str) -> None:
        """A script's writer opened the run."""
        self._put(moment, _OPEN, writer, 0, None)

    def closed(self, moment: float, writer: str) -> None:
        """A script's writer has ended."""
        self._put(moment, _END, writer, 0, None)

    def later(self, stream: Stream, sink: Sink, moment: float, trigger: tuple[str, int], *more: Any) -> None:
        """Have `sink(moment, *more)` called when everything before is judged."""
        if self.in_order:
            self.advance(moment)
            if self._facts.first > moment:
                self._judge(moment, stream, sink, more)
                return
        self._put(moment, _NEWS, *trigger, (stream, sink, more))

    def _judge(self, moment: float, stream: Stream, sink: Sink, more: tuple[Any, ...]) -> None:
        if self._open or self._lives_on:
            sink(moment, *more)
            if not self._open:
                stream.pause(moment)

    def _put(self, moment: float, what: int, writer: str, sequence: int, more: Any) -> None:
        self._facts.put(moment, what, writer, sequence, more)
        if what == _NEWS or self._streams:
            self._line.wake = min(self._line.wake, moment)

    def advance(self, now: float) -> None:
        """Judge everything before `now`, in order."""
        while self._facts.first < now:
            moment, what, writer, _, _, more = self._facts.take()
            if what == _NEWS:
                self._judge(moment, *more)
            elif what == _OPEN:
                self._open.add(writer)
            else:
                self._open.discard(writer)
                if not self._open:
                    for ended in self.all():
                        ended.pause(moment)
        if self._streams:
            self._line.wake = min(self._line.wake, self._facts.first)
