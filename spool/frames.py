"""Frames: a record's bytes, and back (FORMAT.md section 4). Pure functions over bytes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from . import records
from .errors import InvalidRecord
from .records import Kind

MARKER = 0x5AF7
MARKER_BYTES = MARKER.to_bytes(2, "little")
HEAD = struct.Struct("<HBBIQq")  # marker, kind, flags, length, sequence, boot ns
HEAD_SIZE = HEAD.size
MIN_FRAME, MAX_FRAME = 32, 1 << 20
MAX_COLUMNS, MAX_SHAPES, MAX_NAME = 16384, 4096, 1024
MAX_SEQUENCE = (1 << 62) - 1
HAS_TIME, HAS_TIMESTAMP = 1, 2
SEQ, BOOT, STEP = 1, 2, 4  # places in a metric row
_CRC = struct.Struct("<I")
_COLUMN = {"d": "d", "q": "q", "?": "q"}
CHAIN_P, CHAIN_B = (1 << 61) - 1, 0x1B873593CC9E2D51 % ((1 << 61) - 1)


@dataclass(frozen=True, slots=True)
class Shape:
    """Names and types of a metric frame's columns. `types` has one of `d` (float), `q` (integer), `?` (bool) a name."""

    id: int
    names: tuple[str, ...]
    types: str

    def layout(self, flags: int) -> struct.Struct:
        """Return the layout of a whole frame.

        Its first 8 bytes, sequence, boot ns, shape, step, [time], [timestamp µs], columns, checksum.
        """
        extra = ("d" if flags & HAS_TIME else "") + ("q" if flags & HAS_TIMESTAMP else "")
        return struct.Struct("<8sQqIq" + extra + "".join(_COLUMN[t] for t in self.types) + "I")


@dataclass(slots=True)
class MetricBatch:
    """Consecutive metric (or resource) frames of one shape.

    Each row is a whole frame: `(first 8 bytes, sequence, boot ns, shape, step, [time s], [timestamp µs], value, ..., checksum)`;
    see `flags`, `values_at` and the constants SEQ, BOOT, STEP. Bool columns hold 0 or 1.
    """

    kind: int
    shape: Shape
    flags: int
    rows: list[tuple[Any, ...]]

    @property
    def first(self) -> int:
        """Sequence of the first row."""
        return int(self.rows[0][SEQ])

    @property
    def last(self) -> int:
        """Sequence of the last row."""
        return int(self.rows[-1][SEQ])

    @property
    def crcs(self) -> list[int]:
        """The rows' checksums."""
        return [row[-1] for row in self.rows]

    @property
    def values_at(self) -> int:
        """Index of the first value in a row."""
        return 5 + (self.flags & HAS_TIME) + ((self.flags & HAS_TIMESTAMP) >> 1)

    def values(self, row: tuple[Any, ...]) -> dict[str, float | int | bool]:
        """Return a row's values by name, with their original types."""
        at = self.values_at
        return {
            n: bool(v) if t == "?" else v for n, t, v in zip(self.shape.names, self.shape.types, row[at:-1], strict=True)
        }


@dataclass(slots=True)
class Record:
    """A frame with a JSON payload, or of a kind that this version does not know (then `body` is None and `raw` has the payload)."""

    kind: int
    flags: int
    seq: int
    boot_ns: int
    crc: int
    body: dict[str, Any] | None
    raw: bytes = b""

    @property
    def first(self) -> int:
        """The sequence."""
        return self.seq

    @property
    def last(self) -> int:
        """The sequence."""
        return self.seq


@dataclass(slots=True)
class Decoded:
    """What one pass over bytes gave. `end` is where the first thing that is not a valid frame begins."""

    items: list[MetricBatch | Record] = field(default_factory=list)
    end: int = 0
    seal: dict[str, Any] | None = None
    last: int = 0
    marks: list[tuple[int, int]] = field(default_factory=list)


def build(kind: int, seq: int, boot_ns: int, payload: bytes, crc_seed: int) -> bytes:
    """Return the frame of a JSON payload. Raises InvalidRecord when it would be over 1 MiB."""
    length = framed_size(len(payload))
    if length > MAX_FRAME:
        raise InvalidRecord(
            f"a {records.label(kind)} record of {len(payload)} bytes is over the limit of {MAX_FRAME - 64}: save it as a file instead"
        )
    payload = payload.ljust(length - HEAD_SIZE - 4)
    head = HEAD.pack(MARKER, kind, 0, length, seq, boot_ns)
    return head + payload + _CRC.pack(zlib.crc32(payload, zlib.crc32(head, crc_seed)))


def framed_size(payload: int) -> int:
    """Return the size of the frame of a payload of so many bytes."""
    return max(MIN_FRAME, (HEAD_SIZE + payload + 4 + 7) & ~7)


def encode_json(kind: int, seq: int, boot_ns: int, body: dict[str, Any], crc_seed: int) -> bytes:
    """Return the frame of a JSON record.

    Raises InvalidRecord when the body cannot be JSON, or the frame would be over 1 MiB.
    """
    return build(kind, seq, boot_ns, records.encode(body), crc_seed)


def encode_definition(shape: Shape, boot_ns: int, crc_seed: int) -> bytes:
    """Return a definition frame. Raises InvalidRecord when the names together are over 1 MiB."""
    body = {"shape": shape.id, "names": list(shape.names), "types": shape.types}
    return encode_json(Kind.DEFINITION, 0, boot_ns, body, crc_seed)


def parse_shape(body: dict[str, Any]) -> Shape:
    """Return the shape of a definition's body. Raises ValueError when it is not one."""
    number, names, types = body.get("shape"), body.get("names"), body.get("types")
    if (
        not isinstance(number, int)
        or isinstance(number, bool)
        or not 0 <= number < MAX_SHAPES
        or not isinstance(names, list)
        or not isinstance(types, str)
        or not 0 < len(names) <= MAX_COLUMNS
        or len(types) != len(names)
        or not all(isinstance(n, str) for n in names)
        or any(t not in _COLUMN for t in types)
    ):
        raise ValueError("not a definition")
    return Shape(number, tuple(names), types)


def decode(
    buf: bytes | memoryview, crc_seed: int, shapes: dict[int, Shape], offset: int = 0, *, mark_every: int = 0
) -> Decoded:
    """Decode consecutive frames from `offset` (in `buf`) to the first thing that is not a valid frame.

    `shapes` is read and extended by the definitions met. Sequences are not checked here. With `mark_every`, `marks` lists
    (sequence of the next record, offset) about every so many bytes. A seal ends the pass.
    """
    data = bytes(buf)
    end, crc32, unpack_head, unpack_crc = len(data), zlib.crc32, HEAD.unpack_from, _CRC.unpack_from
    out = Decoded(end=offset)
    items = out.items
    layouts: dict[tuple[int, int], struct.Struct] = {}
    next_mark = offset + mark_every if mark_every else 1 << 62
    while offset + MIN_FRAME <= end:
        marker, kind, flags, length, seq, boot = unpack_head(data, offset)
        crc_at = offset + length - 4
        if marker != MARKER or length < MIN_FRAME or length > MAX_FRAME or length & 7 or crc_at + 4 > end:
            break
        if kind == 16 or kind == 20:
            shape_id = int.from_bytes(data[offset + 24 : offset + 28], "little")
            layout = layouts.get((flags, shape_id))
            if layout is None:
                shape = shapes.get(shape_id)
                if shape is None or flags & ~3:
                    break
                layout = layouts[flags, shape_id] = shape.layout(flags)
            if layout.size != length:
                break
            prefix, window = data[offset : offset + 8], offset + (min(end, next_mark + length) - offset) // length * length
            rows: list[tuple[Any, ...]] = []
            add = rows.append
            for row in layout.iter_unpack(memoryview(data)[offset:window]):
                if row[0] != prefix or row[3] != shape_id or crc32(data[offset : offset + length - 4], crc_seed) != row[-1]:
                    break
                add(row)
                offset += length
            if not rows:
                break
            before = items[-1] if items else None
            if isinstance(before, MetricBatch) and before.kind == kind and before.flags == flags and before.shape.id == shape_id:
                before.rows += rows
            else:
                items.append(MetricBatch(kind, shapes[shape_id], flags, rows))
            out.last = rows[-1][SEQ]
        else:
            crc = unpack_crc(data, crc_at)[0]
            if crc32(data[offset:crc_at], crc_seed) != crc:
                break
            payload = data[offset + HEAD_SIZE : crc_at]
            if kind == 1:
                try:
                    shape = parse_shape(records.decode(payload))
                except ValueError:
                    break
                if shapes.setdefault(shape.id, shape) != shape:
                    break
            elif kind == 2:
                try:
                    out.seal = records.decode(payload)
                except ValueError:
                    break
                offset += length
                break
            else:
                try:
                    body = records.decode(payload) if kind < 128 else None
                except ValueError:
                    body = None
                items.append(Record(kind, flags, seq, boot, crc, body, b"" if body is not None else payload))
                out.last = seq
            offset += length
        if offset >= next_mark:
            out.marks.append((out.last + 1, offset))
            next_mark = offset + mark_every
    out.end = offset
    return out


def check_frame(buf: bytes | memoryview, crc_seed: int, offset: int) -> tuple[str, int]:
    """Judge the bytes at `offset`: ("valid", length), ("corrupt", length as claimed), ("torn", bytes left) or ("none", 0).

    "torn" is a frame whose claimed length runs over the end; "none" is what does not begin like a frame.
    """
    view = memoryview(buf)
    left = len(view) - offset
    if left < HEAD_SIZE:
        return ("torn", left) if left >= 2 and view[offset : offset + 2] == MARKER_BYTES else ("none", 0)
    marker, _, _, length, _, _ = HEAD.unpack_from(view, offset)
    if marker != MARKER or not MIN_FRAME <= length <= MAX_FRAME or length & 7:
        return "none", 0
    if length > left:
        return "torn", left
    stored = _CRC.unpack_from(view, offset + length - 4)[0]
    return ("valid" if zlib.crc32(view[offset : offset + length - 4], crc_seed) == stored else "corrupt"), length


def extend_chain(chain: int, crcs: Iterable[int]) -> int:
    """Return the chain after further frames with these checksums."""
    p, b = CHAIN_P, CHAIN_B
    for crc in crcs:
        chain = (chain * b + crc + 1) % p
    return chain


def extend_chain_gap(chain: int, missing: int) -> int:
    """Return the chain after `missing` sequences inside a declared gap."""
    return chain * pow(CHAIN_B, missing, CHAIN_P) % CHAIN_P
