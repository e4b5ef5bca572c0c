"""Rows of numbers under a line of names: CSV files, columns of a solver's log, LAMMPS thermo output."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import re2

from .expressions import Found, metric_name, options
from .numerals import number, whole_number

STEP_TITLES = frozenset({"step", "iter", "iteration", "timestep", "time_step", "epoch"})
_NUMERAL = r"(?:[+-]?(?:\d+\.?\d*|\.\d+)(?:[eEdDqQ]?[+-]?\d+)?|[+-]?(?i:nan|inf|infinity)|\*+)"
_ROW = rf"(?m)^[ \t|]*{_NUMERAL}(?:[ \t]*[,;|]?[ \t]*{_NUMERAL})+[ \t|,;]*$"
_TITLE = re.compile(rb"[^\W\d][^\n]*")
_LONGEST_TITLES = 1 << 16
_MOST_COLUMNS = 4096
_THERMO_BEGIN = re.compile(rb"^(?:Per MPI rank memory allocation|Memory usage per processor)[^\n]*\n", re.MULTILINE)
_THERMO_END = b"Loop time of "
_MULTI_STEP = re.compile(rb"-{4,} Step +(-?\d+) -{4,} CPU = +(\S+) \(sec\) -+ *")
_MULTI_VALUE = re.compile(rb"([^\W\d]\S*) += +(\S+)")
_YAML_TITLES = re.compile(rb"keywords: \[(.*)\] *")
_YAML_ROW = re.compile(rb" *- \[(.*)\] *")


class Row(NamedTuple):
    """A row's place in the block, and what it says."""

    start: int
    found: Found


class Columns:
    """The names above a table, and the reading of its rows."""

    __slots__ = ("_separator", "_step", "_time", "_values", "count")

    def __init__(self, titles: list[str], separator: bytes | None) -> None:
        self.count, self._separator = len(titles), separator
        lowered = [title.lower() for title in titles]
        self._step = next((at for at, title in enumerate(lowered) if title in STEP_TITLES), -1)
        self._time = lowered.index("time") if "time" in lowered else -1
        names: list[tuple[int, str]] = []
        seen: dict[str, int] = {}
        for at, title in enumerate(titles):
            if at not in {self._step, self._time}:
                name = metric_name(title)
                seen[name] = seen.get(name, 0) + 1
                names.append((at, name if seen[name] == 1 else f"{name} ({seen[name]})"))
        self._values = tuple(names)

    @classmethod
    def above(cls, titles: bytes, row: bytes) -> Columns | None:
        """Return the columns when the line is a header of that row: as many names as the row has numbers, and no number among them."""
        separator = next((mark for mark in (b",", b";", b"|") if mark in row), None)
        columns = cls.titled(titles.strip().removeprefix(b"#!").lstrip(b"#% \t").removeprefix(b"FIELDS "), separator)
        return columns if columns is not None and columns.count == len(_cells(row, separator)) else None

    @classmethod
    def titled(cls, titles: bytes, separator: bytes | None) -> Columns | None:
        """Return the columns of these names (blanks between them where there is no separator); None when they cannot be names."""
        names = [name.strip(b" \t\"'") for name in _cells(titles, separator)]
        if not 2 <= len(names) <= _MOST_COLUMNS or any(_TITLE.match(name) is None or number(name) is not None for name in names):
            return None
        return cls([name.decode(errors="replace") for name in names], separator)

    def read(self, row: bytes) -> Found | None:
        """Return what a row says; None when it has another number of columns, or a cell that is no number."""
        cells = _cells(row, self._separator)
        if len(cells) != self.count:
            return None
        refused: list[tuple[str, bytes]] = []
        values: dict[str, float | int] = {}
        for at, name in self._values:
            value = number(cells[at])
            if value is not None:
                values[name] = value
            elif cells[at].strip(b"* \t"):
                return None
            else:
                refused.append((name, cells[at]))
        step = whole_number(cells[self._step]) if self._step >= 0 else None
        time = number(cells[self._time]) if self._time >= 0 else None
        return Found(values, step, None if time is None else float(time), tuple(refused))


def _cells(line: bytes, separator: bytes | None) -> list[bytes]:
    if separator is None:
        return line.split()
    cells = line.strip(b" \t|" if separator == b"|" else b" \t").split(separator)
    if len(cells) > 1 and not cells[-1].strip():
        cells.pop()  # a separator at the line's end
    return cells


class Table:
    """Any table whose names stand in the line directly above its first row. Rows may have other lines between them.

    A later header takes the place of the earlier one. Rows of another number of columns are passed over.
    """

    def __init__(self) -> None:
        self._columns: Columns | None = None
        self._last = b""  # the last line of the block before, when it was not a row
        self._in_rows = False  # the block before ended with a row
        self._rows = re2.compile(_ROW.encode(), options())

    def rows(self, block: bytes) -> Iterator[Row]:
        """Yield the rows of a block of whole lines."""
        end = -1 if self._in_rows else -2  # the newline before the line that follows the last row
        for match in self._rows.finditer(block):
            start, row = match.start(), match.group()
            if start != end + 1:
                self._look_above(block, start, row)
            end = match.end()
            found = None if self._columns is None else self._columns.read(row)
            if found is not None:
                yield Row(start, found)
        self._in_rows = end >= 0 and end + 1 >= len(block)
        bare = block[: len(block) - block.endswith(b"\n")]
        self._last = b"" if self._in_rows else bare[bare.rfind(b"\n") + 1 :][:_LONGEST_TITLES]

    def _look_above(self, block: bytes, start: int, row: bytes) -> None:
        above = block[block.rfind(b"\n", 0, start - 1) + 1 : start - 1] if start else self._last
        if len(above) < _LONGEST_TITLES:
            self._columns = Columns.above(above, row) or self._columns


class Thermo:
    """LAMMPS thermo output, styles one, multi, yaml and custom: between the line of memory per rank and the line of loop time.

    A run that begins again with other columns has a header of its own; lines between the rows (warnings, fix print) are passed over.
    """

    def __init__(self) -> None:
        self._inside = False
        self._titles = b""  # the last line that was no row
        self._columns: Columns | None = None
        self._step: int | None = None  # of the group of lines of style multi

    def rows(self, block: bytes) -> Iterator[Row]:
        """Yield the rows of a block of whole lines."""
        at = 0
        while at < len(block):
            if not self._inside:
                begin = _THERMO_BEGIN.search(block, at)
                if begin is None:
                    return
                self._inside, self._columns, self._titles, self._step, at = True, None, b"", None, begin.end()
                continue
            newline = block.find(b"\n", at)
            newline = len(block) if newline < 0 else newline
            line, start, at = block[at:newline], at, newline + 1
            if line.startswith(_THERMO_END):
                self._inside = False
                continue
            found = self._read(line)
            if found is not None:
                yield Row(start, found)

    def _read(self, line: bytes) -> Found | None:
        first = line.lstrip()[:1]
        if first in b"-+.0123456789nNiI*" and first:
            if first == b"-" and (found := self._begin_group(line)) is not None:
                return found
            yaml = _YAML_ROW.fullmatch(line)
            row = yaml[1] if yaml is not None else line
            if self._columns is not None and (found := self._columns.read(row)) is not None:
                return found
            columns = Columns.above(self._titles, row) if self._titles else None
            if columns is not None and (found := columns.read(row)) is not None:
                self._columns = columns
                return found
        elif (titles := _YAML_TITLES.fullmatch(line)) is not None:
            self._columns = Columns.titled(titles[1], b",")
            return None
        if self._step is not None and b" = " in line:
            values = {metric_name(name.decode(errors="replace")): number(value) for name, value in _MULTI_VALUE.findall(line)}
            return Found({name: value for name, value in values.items() if value is not None}, self._step, None, ())
        self._titles = line[:_LONGEST_TITLES]
        return None

    def _begin_group(self, line: bytes) -> Found | None:
        group = _MULTI_STEP.fullmatch(line)
        if group is None:
            return None
        self._step = int(group[1])
        cpu = number(group[2])
        return Found({} if cpu is None else {"CPU": cpu}, self._step, None, ())
