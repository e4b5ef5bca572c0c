"""The segment header: who wrote the file, on which clock, and what was dropped (FORMAT.md section 3)."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum

from . import ids
from .errors import DamagedSegment, NewerFormat

MAGIC = b"SIMSPOOL"
MAJOR, MINOR = 1, 0
SIZE = 1024
STATIC_SIZE = 256
CRC32_IEEE = 1
_STATIC = struct.Struct("<8sHHHBB16s16sIIQQqqqQ16sII64s16s44x")
_CRC = struct.Struct("<I")
_SLOT = struct.Struct("<QII")
_DROPS_AT, _REASONS = 256, 16


class Durability(IntEnum):
    """How soon a record survives a power cut. All levels survive the process's death at once.

    LAZY: when the system writes it back (about 30 s). INTERVAL: at most 1 s. EACH: before the call returns.
    """

    LAZY = 0
    INTERVAL = 1
    EACH = 2


class Drop(IntEnum):
    """Why a record was not taken. Counted per writer, in the segment header.

    BUDGET is a file, BUDGET_SAMPLE a resource sample, BUDGET_THINNED a call with metrics that a spool under pressure had no room for.
    """

    DISK_FULL = 0
    IO_ERROR = 1
    TOO_LARGE = 2
    INVALID = 3
    CLOSED = 4
    BUDGET = 5
    NOT_SERIALISABLE = 6
    SHUTDOWN = 7
    FILE_UNREADABLE = 8
    REENTRANT = 9
    BUDGET_SAMPLE = 10
    BUDGET_THINNED = 11

    @property
    def label(self) -> str:
        """The name used in commands and JSON."""
        return self.name.lower().replace("_", "-")


_KNOWN = frozenset(Drop)


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """The static part of a segment's header. Times are ns; `writer`, `run`, `boot_id` and `machine` are 16 bytes."""

    writer: bytes
    run: bytes
    number: int
    first: int
    durability: int
    pid: int
    start_ticks: int
    anchor_boot: int
    anchor_wall: int
    origin_boot: int
    pid_namespace: int
    boot_id: bytes
    uid: int
    rank: int | None
    host: str
    minor: int = MINOR
    machine: bytes = bytes(16)

    @property
    def seed(self) -> int:
        """The start value of every checksum in this segment."""
        return seed(self.writer, self.number)

    @property
    def writer_text(self) -> str:
        """The writer's id as text."""
        return ids.to_text(self.writer)

    @property
    def run_text(self) -> str:
        """The run's id as text."""
        return ids.to_text(self.run)

    def wall_ns(self, boot_ns: int) -> int:
        """Return the wall time (ns since 1970 UTC) of a moment of this segment's boot clock."""
        return self.anchor_wall + boot_ns - self.anchor_boot

    def pack(self) -> bytes:
        """Return the 256 bytes of the static part, checksum included."""
        body = _STATIC.pack(
            MAGIC, MAJOR, self.minor, SIZE, CRC32_IEEE, self.durability, self.writer, self.run, self.number, self.pid, self.first,
            self.start_ticks, self.anchor_boot, self.anchor_wall, self.origin_boot, self.pid_namespace, self.boot_id, self.uid,
            0 if self.rank is None else self.rank + 1, host_field(self.host), self.machine,
        )  # fmt: skip
        return body + _CRC.pack(zlib.crc32(body))

    @classmethod
    def unpack(cls, static: bytes) -> SegmentHeader:
        """Read a static part.

        Raises NewerFormat for a newer major version and DamagedSegment where the bytes do not verify.
        """
        if len(static) < STATIC_SIZE or not static.startswith(MAGIC):
            raise DamagedSegment("not a segment: the magic bytes are missing")
        body = static[: STATIC_SIZE - 4]
        if _CRC.unpack_from(static, STATIC_SIZE - 4)[0] != zlib.crc32(body):
            raise DamagedSegment("the segment header's checksum does not match")
        (_, major, minor, size, algorithm, durability, writer, run, number, pid, first, ticks, boot, wall, origin, namespace,
         boot_id, uid, rank, host, machine) = _STATIC.unpack(body)  # fmt: skip
        if major > MAJOR or algorithm != CRC32_IEEE or size != SIZE:
            raise NewerFormat(
                f"the segment has format {major}.{minor}, this simspool reads {MAJOR}.x: upgrade simspool; nothing was changed"
            )
        return cls(
            writer=writer, run=run, number=number, first=first, durability=durability, pid=pid, start_ticks=ticks, anchor_boot=boot,
            anchor_wall=wall, origin_boot=origin, pid_namespace=namespace, boot_id=boot_id, uid=uid,
            rank=rank - 1 if rank else None, host=host.rstrip(b"\0").decode(errors="replace"), minor=minor, machine=machine,
        )  # fmt: skip


def host_field(name: str) -> bytes:
    """Return a host's name as the header holds it: at most 64 bytes of UTF-8."""
    return name.encode(errors="replace")[:64].decode(errors="ignore").encode()


def seed(writer: bytes, number: int) -> int:
    """Return the start value of the checksums in a writer's segment."""
    return zlib.crc32(writer + number.to_bytes(4, "little"))


def drop_slot(reason: int, count: int, crc_seed: int) -> tuple[int, bytes]:
    """Return where in the header, and with which 16 bytes, a drop counter's new value is stored."""
    check = zlib.crc32(bytes((reason,)) + count.to_bytes(8, "little"), crc_seed)
    return _DROPS_AT + 32 * reason + 16 * (count & 1), _SLOT.pack(count, check, 0)


def read_drops(header: bytes, crc_seed: int) -> tuple[dict[str, int], list[int]]:
    """Read the drop counters of a whole header.

    Returns the counts above zero by reason, and the header offsets of slots that do not verify (their count may be one too low).
    """
    counts: dict[str, int] = {}
    damaged = []
    for reason in range(_REASONS):
        best = 0
        for slot in range(2):
            at = _DROPS_AT + 32 * reason + 16 * slot
            raw = header[at : at + 16]
            if not any(raw):
                continue
            count, check, zero = _SLOT.unpack(raw)
            if zero or check != zlib.crc32(bytes((reason,)) + count.to_bytes(8, "little"), crc_seed) or count & 1 != slot:
                damaged.append(at)
            else:
                best = max(best, count)
        if best:
            counts[Drop(reason).label if reason in _KNOWN else str(reason)] = best
    damaged += [at for at in range(_DROPS_AT + 32 * _REASONS, SIZE) if header[at]]
    return counts, damaged
