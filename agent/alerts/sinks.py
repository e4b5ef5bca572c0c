"""What a metric's points pass through on their way to a stream."""

from __future__ import annotations

from collections.abc import Callable

from .curves import ReferenceStream
from .gathered import Gathered
from .windows import PointStream

Point = Callable[..., None]
"""Takes a point in: moment and own time (run seconds), value, (writer, sequence), and, where that is asked for, the step."""


def in_order(gathered: Gathered, stream: PointStream, point: Point, bounds: tuple[float, int]) -> Point:
    """Return what has a point taken in when everything before is judged."""
    since, after = bounds

    def later(moment: float, time: float, value: float, trigger: tuple[str, int], *step: float) -> None:
        if moment >= since and trigger[1] > after:
            gathered.later(stream, point, moment, trigger, time, value, trigger, *step)

    return later


def with_beginning(stream: PointStream, point: Point) -> Point:
    """Return what also tells of the stream's first point."""

    def beginning(moment: float, time: float, value: float, trigger: tuple[str, int]) -> None:
        if moment >= stream.since and trigger[1] > stream.after and not stream.ended:
            stream.begin(moment, trigger)
        point(moment, time, value, trigger)

    return beginning


def as_deviations(stream: ReferenceStream, point: Point) -> Point:
    """Return what passes on how far from the curve points are; by time where no step comes with them."""

    def deviating(moment: float, time: float, value: float, trigger: tuple[str, int], *step: float) -> None:
        deviation = stream.deviation(float(step[0]) if step else time, value)
        if deviation is not None:
            point(moment, time, deviation, trigger)

    return deviating
