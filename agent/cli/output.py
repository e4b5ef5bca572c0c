"""What commands print: plain tables, lines of JSON, progress. Nothing that a run recorded can steer the terminal.

Names, messages and paths are other people's text: every control, escape and direction character in them is shown as an
escape sequence (`safe`), in tables and in error lines alike. JSON is ASCII for the same reason.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, TextIO

_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_NON_FINITE = {math.inf: "Infinity", -math.inf: "-Infinity"}


def safe(text: object) -> str:
    """Return text that is safe on a terminal and stays on one line: `\\x1b`, `\\n`, `\\u202e` in place of what is not."""
    value = str(text)
    if value.isascii() and value.isprintable():
        return value
    return "".join(c if unicodedata.category(c) not in _UNSAFE else _escape(c) for c in value)


def _escape(char: str) -> str:
    return char.encode("unicode_escape", errors="surrogatepass").decode("ascii")


def jsonable(value: Any) -> Any:
    """Return the value with what strict JSON lacks as text: `NaN`, `Infinity`, `-Infinity` (Python's `float` reads them back)."""
    if isinstance(value, float) and not math.isfinite(value):
        return _NON_FINITE.get(value, "NaN")
    if isinstance(value, dict):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    return value


def json_line(value: Any) -> str:
    """Return a value as one line of strict ASCII JSON."""
    try:
        return json.dumps(value, allow_nan=False, default=str)
    except ValueError:
        return json.dumps(jsonable(value), allow_nan=False, default=str)


def echo(text: str = "", stream: TextIO | None = None) -> None:
    """Print a line; characters that the terminal's encoding lacks are escaped."""
    out = stream or sys.stdout
    try:
        out.write(text + "\n")
    except UnicodeEncodeError:
        out.write(text.encode("ascii", errors="backslashreplace").decode() + "\n")


def echo_json(value: Any) -> None:
    """Print a value as one line of JSON."""
    sys.stdout.write(json_line(value) + "\n")


def note(text: object) -> None:
    """Print a line on stderr, escaped."""
    echo(safe(text), sys.stderr)


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in {"W", "F"} else 1 for c in text)


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, indent: str = "") -> list[str]:
    """Return the lines of a plain table. Columns of numbers are right-aligned; every cell is made safe."""
    body = [[("-" if cell is None else safe(cell)) for cell in row] for row in rows]
    numeric = [bool(body) and all(_is_number(row[i]) for row in body) for i in range(len(headers))]
    widths = [max(_width(h), *(_width(row[i]) for row in body)) if body else _width(h) for i, h in enumerate(headers)]
    return [indent + _row(row, widths, numeric) for row in [[h.upper() for h in headers], *body]]


def _row(cells: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    parts = [
        " " * (width - _width(cell)) + cell if right else cell + " " * (width - _width(cell))
        for cell, width, right in zip(cells, widths, numeric, strict=True)
    ]
    return "  ".join(parts).rstrip()


def _is_number(text: str) -> bool:
    return text == "-" or text.replace(",", "").replace(".", "", 1).isdecimal()


def pairs(items: Iterable[tuple[str, object]], *, indent: str = "") -> list[str]:
    """Return aligned `name  value` lines, made safe; values of None are left out."""
    kept = [(safe(k), v) for k, v in items if v is not None]
    width = max((_width(k) for k, _ in kept), default=0)
    return [f"{indent}{k}{' ' * (width - _width(k))}  {safe(v)}" for k, v in kept]


def human_bytes(count: float) -> str:
    """Return a size as `812 B`, `4.2 MB`."""
    if abs(count) < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB", "TB"):
        count /= 1000
        if abs(count) < 999.95 or unit == "TB":
            return f"{count:.1f} {unit}"
    raise AssertionError


def human_seconds(seconds: float) -> str:
    """Return a duration as `0.4 s`, `3 min 20 s`, `5 h 03 min`, `12 d 4 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def iso_ns(wall_ns: int) -> str:
    """Return a wall time (ns since 1970 UTC) as ISO 8601 with microseconds; out of range, the plain number."""
    try:
        whole = datetime.fromtimestamp(wall_ns // 1_000_000_000, UTC)
    except (OverflowError, ValueError, OSError):
        return str(wall_ns)
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{wall_ns % 1_000_000_000 // 1000:06d}Z"


class Progress:
    """Says on stderr how far a long command is: a bar on a terminal, else a plain line every few seconds at most.

    `update` may be called as often as one likes. With `quiet` nothing is shown at all.
    """

    def __init__(
        self,
        label: str,
        total: float = 0,
        *,
        show: Callable[[float], str] = "{:,.0f}".format,
        quiet: bool = False,
        stream: TextIO | None = None,
        every: float | None = None,
    ) -> None:
        self.label, self.total, self.done = label, total, 0.0
        self._show, self._quiet = show, quiet
        self._stream = stream or sys.stderr
        self._bar = self._stream.isatty()
        self._every = every if every is not None else 0.1 if self._bar else 5.0
        self._started = self._last = time.monotonic()
        self._drawn = False

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        """Say how much is done, of how much, and optionally what is going on."""
        self.done = done
        if total is not None:
            self.total = total
        now = time.monotonic()
        if not self._quiet and now - self._last >= self._every:
            self._last = now
            self._draw(note)

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Say that more is done."""
        self.update(self.done + amount, note=note)

    def finish(self, text: str = "") -> None:
        """Take the bar away, and leave a last line when there is something to say."""
        if self._drawn and self._bar:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
        self._drawn = False
        if text and not self._quiet:
            echo(safe(text), self._stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.finish()

    def _draw(self, note: str) -> None:
        elapsed = time.monotonic() - self._started
        parts = [f"{self._show(self.done)} of {self._show(self.total)}" if self.total else self._show(self.done)]
        if self.total and 0 < self.done <= self.total and elapsed > 1:
            parts.append(f"about {human_seconds(elapsed * (self.total - self.done) / self.done)} left")
        if note:
            parts.append(safe(note))
        tail = ", ".join(parts)
        if not self._bar:
            echo(f"{safe(self.label)}: {tail}", self._stream)
            return
        bar = ""
        if self.total:
            filled = min(20, int(20 * self.done / self.total))
            bar = f"[{'#' * filled}{'.' * (20 - filled)}] "
        line = f"{safe(self.label)} {bar}{tail}"
        self._stream.write("\r\x1b[K" + line[: max(20, shutil.get_terminal_size().columns - 1)])
        self._stream.flush()
        self._drawn = True
