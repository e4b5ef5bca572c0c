"""Metrics and events in text, found by expressions and presets (docs/logs.md)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import re2

from .expressions import EventExpression, Found, InvalidPattern, MetricExpression, options, shown
from .presets import PRESETS, Rows

__all__ = ["Event", "InvalidPattern", "Metrics", "Patterns"]

_PRESET = "preset:"
_MOST_NAMES = 10_000  # metrics' names made of the text: what prints ever new ones is not a metric


@dataclass(slots=True)
class Metrics:
    """Values of one line: one record. `step` and `time` are the line's own, or the last that were found before it."""

    values: dict[str, float | int] = field(default_factory=dict)
    step: int | None = None
    time: float | None = None


class Event(NamedTuple):
    """A line that is an event. `level` is one of debug, info, warning, error, critical."""

    message: str
    level: str


class Patterns:
    """Expressions ready for use on one text. Not for several threads at once; each text has its own (`fresh`).

    Memory does not grow with the text. The time is linear in the text's length, whatever the expressions are (RE2).
    `refused` counts texts that were found where a number should be, and `first_refused` is the first of them.
    """

    def __init__(self, metrics: Sequence[str] = (), events: Sequence[str] = ()) -> None:
        """Raises InvalidPattern, with the expression, what is wrong and where."""
        metrics, events, self._tables = _expanded(metrics, events)
        self._metrics = tuple(MetricExpression.parse(expression) for expression in metrics)
        self._events = tuple(EventExpression.parse(expression) for expression in events)
        both = [one.expression for one in self._metrics] + [one.expression for one in self._events]
        # One pass of one automaton finds the lines on which anything matches; they alone are looked at closely.
        self._lines = re2.compile(f"(?m)(?:{'|'.join(f'(?:{one})' for one in both)}).*".encode(), options(capture=False)) if both else None
        self.forget()

    def __bool__(self) -> bool:
        """Say whether there is anything to look for."""
        return self._lines is not None or bool(self._tables)

    def fresh(self) -> Patterns:
        """Return the same expressions for another text."""
        other = copy.copy(self)
        other.forget()
        return other

    def forget(self) -> None:
        """Begin with another text: no step, no table and no count of it is known yet."""
        self._readers: tuple[Rows, ...] = tuple(make() for make in self._tables)
        self._step: int | None = None
        self._time: float | None = None
        self._used = False  # a record has had this step and time
        self._names: set[str] = set()
        self.refused, self.first_refused = 0, ""

    def scan(self, block: bytes) -> Iterator[Metrics | Event]:
        """Yield what a block of whole lines has, in the order of the text.

        Values of one line are one record, whichever expressions found them; a name that is found again in the line, or another step, begins
        a second one. A step and a time hold on for the lines that follow, until others are found; one that comes alone ends the
        other, unless that was found since the last record.
        """
        if not block.isascii():
            block = _valid(block)
        parts: Iterator[tuple[int, Found | Event | None]] = self._from_lines(block)
        if self._readers:
            rows = [(row.start, row.found) for reader in self._readers for row in reader.rows(block)]
            if rows:
                parts = iter(sorted([*rows, *parts], key=lambda part: part[0]))
        for _, part in parts:
            if isinstance(part, Event):
                yield part
            elif part is not None:
                record = self._record(part)
                if record.values:
                    yield record

    def _from_lines(self, block: bytes) -> Iterator[tuple[int, Found | Event | None]]:
        if self._lines is None:
            return
        done = -1
        for match in self._lines.finditer(block):
            start, end = match.span()
            if start < done:  # an expression that can match nothing, at the end of the line
                continue
            start = block.rfind(b"\n", 0, start) + 1
            end = block.find(b"\n", end)
            done = end + 1 if end >= 0 else len(block)
            line = block[start : end if end >= 0 else len(block)]
            for part in self._of_line(line):
                yield start, part

    def _of_line(self, line: bytes) -> Iterator[Found | Event]:
        found = [(match.start(), expression.read(match)) for expression in self._metrics for match in expression.ready.finditer(line)]
        if len(found) == 1:
            yield found[0][1]
        elif found:
            found.sort(key=lambda part: part[0])
            yield from _joined([part for _, part in found])
        for event in self._events:
            match = event.ready.search(line)
            if match is not None:
                yield Event(*event.read(match, line))
                return

    def _record(self, found: Found) -> Metrics:
        if found.refused:
            self.refused += len(found.refused)
            if not self.first_refused:
                name, text = found.refused[0]
                self.first_refused = f"{name} = {shown(text[:80])!r}"
        values = found.values
        if found.step is not None or found.time is not None:
            if self._used and (found.step is None or found.time is None):
                self._step = self._time = None
            self._step = self._step if found.step is None else found.step
            self._time = self._time if found.time is None else found.time
            self._used = False
        if values:
            self._used = True
        if not values.keys() <= self._names:
            if len(self._names) < _MOST_NAMES:
                self._names.update(values)
            else:
                self.refused += len(values)
                values = {name: value for name, value in values.items() if name in self._names}
                self.refused -= len(values)
                self.first_refused = self.first_refused or f"more than {_MOST_NAMES} names of metrics"
        return Metrics(values, self._step, self._time)


def _valid(block: bytes) -> bytes:
    """Return the block with bytes that are not UTF-8 replaced: no "." would match them."""
    try:
        block.decode()
    except UnicodeDecodeError:
        return block.decode("utf-8", "replace").encode()
    return block


def _joined(found: list[Found]) -> Iterator[Found]:
    """Join what several matches on one line say, in the line's order."""
    records: list[Found] = []
    values: dict[str, float | int] = {}
    refused: list[tuple[str, bytes]] = []
    step = time = None
    for part in found:
        if not values.keys().isdisjoint(part.values) or (step is not None and part.step is not None and part.step != step):
            records.append(Found(values, step, time, tuple(refused)))
            values, refused, step, time = {}, [], part.step, part.time
        values |= part.values
        refused += part.refused
        step = part.step if part.step is not None else step
        time = part.time if part.time is not None else time
    records.append(Found(values, step, time, tuple(refused)))
    # Values that stand before their step on the line have the line's first one.
    step = next((record.step for record in records if record.step is not None), None)
    time = next((record.time for record in records if record.time is not None), None)
    first = records[0]
    yield Found(first.values, step, time, first.refused)
    yield from records[1:]


def _expanded(metrics: Sequence[str], events: Sequence[str]) -> tuple[list[str], list[str], tuple[Any, ...]]:
    """Put presets' expressions in their place."""
    plain: list[str] = []
    more: list[str] = list(events)
    tables: list[Any] = []
    for given in metrics:
        if not given.startswith(_PRESET):
            plain.append(given)
            continue
        preset = PRESETS.get(given.removeprefix(_PRESET))
        if preset is None:
            known = ", ".join(_PRESET + name for name in PRESETS)
            raise InvalidPattern("the metric expression", given, f"there is no such preset; there are {known}", len(_PRESET))
        plain += preset.metrics
        more += preset.events
        if preset.table is not None and preset.table not in tables:
            tables.append(preset.table)
    return plain, more, tuple(tables)
