"""The body of a drain request: ranges of frames, cut apart, verified and turned into columns. Pure functions over bytes.

See docs/drain-protocol.md. What cannot be cut apart refuses the request; a range whose frames do not verify is `malformed` alone.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from simspool.spool import frames, ids
from simspool.spool.errors import SpoolError
from simspool.spool.frames import HAS_TIME, HAS_TIMESTAMP, MAX_SEQUENCE, MetricBatch, Record
from simspool.spool.segment_header import STATIC_SIZE, SegmentHeader

from . import columns, plain
from .errors import Invalid, TooLarge
from .points import PointBatch

MAX_RANGES = 4096
_MAX_HEAD = 1 << 20
_MAX_GAPS = 10_000
_LENGTH = struct.Struct("<I")


class Malformed(Exception):
    """Raised when a range's frames, header or head do not fit together."""


@dataclass(frozen=True, slots=True)
class RawRange:
    """One range of a request: its head, the segment header's static part, and its frames."""

    head: dict[str, Any]
    static: bytes
    frames: memoryview


@dataclass(slots=True)
class Part:
    """Consecutive sequences of a range: rows of points, one other record, or a declared gap (`reason` set)."""

    first: int
    last: int
    crcs: list[int] = field(default_factory=list)
    points: PointBatch | None = None
    record: Record | None = None
    wall: int = 0
    seconds: float = 0.0  # the record's default time
    reason: str | None = None

    def extend(self, chain: int, upto: int | None = None) -> int:
        """Return the chain after this part, or after its sequences up to `upto`."""
        count = self.last - self.first + 1 if upto is None else upto - self.first + 1
        if self.reason is not None:
            return frames.extend_chain_gap(chain, count)
        return frames.extend_chain(chain, self.crcs if count == len(self.crcs) else self.crcs[:count])


@dataclass(slots=True)
class PreparedRange:
    """A verified range, ready to be applied. Its parts cover `first` to `last` without holes.

    `again`: records that this server refused before, and may take now.
    """

    run: str
    writer: str
    first: int
    last: int
    chain: int
    parts: list[Part]
    again: bool = False


def split(body: bytes) -> list[RawRange]:
    """Cut a request's body into ranges. Raises Invalid where it does not add up, TooLarge for too many ranges."""
    view, at = memoryview(body), 0
    out: list[RawRange] = []
    while at < len(view):
        if len(out) >= MAX_RANGES:
            raise TooLarge(f"more than {MAX_RANGES} ranges in one request: send fewer")
        if at + 4 > len(view):
            raise Invalid("ranges: the body ends inside a head's length")
        size = _LENGTH.unpack_from(view, at)[0]
        at += 4
        if size > _MAX_HEAD or at + size + STATIC_SIZE > len(view):
            raise Invalid(f"ranges: a head of {size} bytes does not fit the body")
        try:
            head = json.loads(bytes(view[at : at + size]))
        except (ValueError, RecursionError):
            raise Invalid("ranges: a head is not JSON") from None
        at += size
        length = head.get("bytes") if isinstance(head, dict) else None
        if not isinstance(length, int) or isinstance(length, bool) or length < 0 or at + STATIC_SIZE + length > len(view):
            raise Invalid("ranges: a head's `bytes` does not fit the body")
        out.append(RawRange(head, bytes(view[at : at + STATIC_SIZE]), view[at + STATIC_SIZE : at + STATIC_SIZE + length]))
        at += STATIC_SIZE + length
    return out


def _number(head: dict[str, Any], key: str, low: int, high: int) -> int:
    found = head.get(key)
    if not isinstance(found, int) or isinstance(found, bool) or not low <= found < high:
        raise Malformed(f"`{key}` must be a number from {low} to {high - 1}")
    return found


def _gaps(head: dict[str, Any], first: int, last: int) -> list[tuple[int, int, str]]:
    listed = head.get("gaps", [])
    if not isinstance(listed, list) or len(listed) > _MAX_GAPS:
        raise Malformed("`gaps` must be a list")
    out: list[tuple[int, int, str]] = []
    least = first
    for gap in listed:
        if (
            not isinstance(gap, list)
            or len(gap) != 3
            or not all(isinstance(n, int) and not isinstance(n, bool) for n in gap[:2])
            or not isinstance(gap[2], str)
            or not least <= gap[0] <= gap[1] <= last
        ):
            raise Malformed("a gap must be [first, last, reason], inside the range, in order")
        out.append((gap[0], gap[1], gap[2][:200]))
        least = gap[1] + 1
    return out


def prepare(raw: RawRange) -> PreparedRange:
    """Verify a range: the header against the head, every frame's checksum, the sequences against the gaps. Raises Malformed."""
    head = raw.head
    try:
        header = SegmentHeader.unpack(raw.static)
    except SpoolError as error:
        raise Malformed(str(error)) from None
    run, writer = ids.to_text(header.run), ids.to_text(header.writer)
    if head.get("run") != run or head.get("writer") != writer or head.get("segment") != header.number:
        raise Malformed("run, writer and segment must be those of the segment header")
    first = _number(head, "first", 1, MAX_SEQUENCE)
    last = _number(head, "last", first, MAX_SEQUENCE)
    chain = _number(head, "chain", 0, frames.CHAIN_P)
    gaps = _gaps(head, first, last)
    found = frames.decode(raw.frames, header.seed, {})
    if found.end != len(raw.frames):
        raise Malformed(f"the frame at byte {found.end} does not verify")
    parts: list[Part] = []
    expected, waiting = first, iter([*gaps, None])
    gap = next(waiting)

    def skip_gaps(expected: int) -> int:
        nonlocal gap
        while gap is not None and gap[0] == expected:
            parts.append(Part(gap[0], gap[1], reason=gap[2]))
            expected, gap = gap[1] + 1, next(waiting)
        return expected

    for item in found.items:
        for part in _parts(item, header):
            expected = skip_gaps(expected)
            if part.first != expected:
                raise Malformed(f"sequence {part.first} where {expected} was expected")
            parts.append(part)
            expected = part.last + 1
    if skip_gaps(expected) != last + 1 or gap is not None:
        raise Malformed(f"the frames do not reach sequence {last}")
    return PreparedRange(run, writer, first, last, chain, parts, head.get("again") is True)


def _parts(item: MetricBatch | Record, header: SegmentHeader) -> Iterator[Part]:
    if isinstance(item, Record):
        wall = header.wall_ns(item.boot_ns)
        seconds = (item.boot_ns - header.origin_boot) / 1e9
        yield Part(item.seq, item.seq, [item.crc], record=item, wall=wall, seconds=seconds)
        return
    rows = item.rows
    while rows:
        first = rows[0][1]
        count = len(rows)
        if [row[1] for row in rows] != list(range(first, first + count)):
            count = next((i for i, row in enumerate(rows) if row[1] != first + i), len(rows))
        taken, rows = rows[:count] if count < len(rows) else rows, rows[count:]
        yield _points_part(item, taken, header)


def _points_part(item: MetricBatch, rows: list[tuple[Any, ...]], header: SegmentHeader) -> Part:
    by_column = list(zip(*rows, strict=True))
    seqs, boots, steps = list(by_column[1]), by_column[2], list(by_column[4])
    shift, origin = header.anchor_wall - header.anchor_boot, header.origin_boot
    walls = [b + shift for b in boots]
    if not -(1 << 63) <= min(walls) <= max(walls) < 1 << 63:
        raise Malformed("a record's wall time is out of range")
    times = list(by_column[5]) if item.flags & HAS_TIME else [(b - origin) / 1e9 for b in boots]
    stamps = list(by_column[5 + (item.flags & HAS_TIME)]) if item.flags & HAS_TIMESTAMP else None
    at = item.values_at
    values = [
        [v != 0 for v in column] if kind == "?" else list(column)
        for kind, column in zip(item.shape.types, by_column[at:-1], strict=True)
    ]
    names = tuple(n.encode("utf-8", "backslashreplace").decode() for n in item.shape.names)
    batch = PointBatch(names, item.shape.types, seqs, walls, steps, times, stamps, values)
    return Part(seqs[0], seqs[-1], list(by_column[-1]), points=batch)


def json_points(record: Record, wall: int, seconds: float) -> PointBatch:
    """Return the one row of a metric record in JSON (kinds 17 and 21). `seconds` is its default time.

    Raises ValueError when it is not one.
    """
    body = record.body or {}
    values, step, time, stamp = body.get("values"), body.get("step", 0), body.get("time", seconds), body.get("timestamp")
    if not isinstance(values, dict) or not values or not all(_is_value(v) for v in values.values()):
        raise ValueError("a metric record needs `values` of numbers and bools")
    if columns.kind_of(step) != "q" or not isinstance(time, (int, float)) or isinstance(time, bool):
        raise ValueError("a metric record's step must be an integer and its time a number")
    if stamp is not None and not isinstance(stamp, str) and columns.kind_of(stamp) != "q":
        raise ValueError("a metric record's timestamp must be µs or text")
    try:
        at = float(time)
    except OverflowError:
        raise ValueError("a metric record's time is out of range") from None
    names = tuple(plain.text(name) for name in values)
    types = "".join(columns.kind_of(v) for v in values.values())
    stamps = None if stamp is None else [plain.text(stamp) if isinstance(stamp, str) else stamp]
    return PointBatch(names, types, [record.seq], [wall], [step], [at], stamps, [[v] for v in values.values()])


def _is_value(value: object) -> bool:
    return isinstance(value, (int, float))

