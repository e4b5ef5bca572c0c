"""What travels: parts of segments, blobs, and what is known of a run beside its records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from simspool.spool.ids import is_digest

HEAD = 1024
"""Bytes of a segment's head (FORMAT.md section 3): drop counters in it change in place, so it is carried anew with every part."""


class NotTaken(Exception):
    """Raised when a part cannot be put into the spool: the message says why, and what to do. Nothing of the part is visible then."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far one side has a writer: every segment before `segment` whole, and of this one the bytes up to `offset`.

    `after` is the SHA-256 (hex) of the segment's bytes from HEAD to `offset`. `final`: no byte of the writer comes any more.
    """

    segment: int
    offset: int
    after: str
    final: bool = False

    @classmethod
    def of_list(cls, value: Any) -> Position | None:
        """Return the position that JSON says; None where it says none."""
        if not isinstance(value, list) or len(value) != 4:
            return None
        segment, offset, after, final = value
        sound = type(segment) is int and 0 < segment < 1 << 32 and type(offset) is int and HEAD <= offset < 1 << 40
        return cls(segment, offset, after, final) if sound and is_digest(after) and isinstance(final, bool) else None


@dataclass(frozen=True, slots=True)
class SegmentPart:
    """The bytes from `start` to `end` of a writer's segment (`start` is at least HEAD).

    `head` are its first HEAD bytes, as they were when the part was read. `before` and `after` are the SHA-256 (hex) of the segment's bytes
    from HEAD to `start` and to `end`. `sealed`: the segment is sealed and `end` its size. `previous` is the number of the writer's segment
    before this one in the origin (0: there is none; -1: not said, then it is `number` - 1) and `previous_end` where its bytes end: a part
    behind a gap is not taken.
    `start` = `end` brings the head only (drop counters of a writer that has ended).
    """

    run: str
    writer: str
    number: int
    start: int
    end: int
    sealed: bool
    head: bytes
    before: str
    after: str
    previous: int = -1
    previous_end: int = 0


@dataclass(frozen=True, slots=True)
class BlobPart:
    """A blob's bytes: SHA-256 (hex), size in bytes, and the runs that have it."""

    digest: str
    size: int
    runs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RunPart:
    """A run's state beside its records: `info` is its run.json, `shed` its shed.json (None without one).

    `final` names the writers of which no byte comes any more, each with where it ends: (number of its last segment, bytes of that).
    A writer that is not there up to this end is not taken for final.
    """

    run: str
    info: Mapping[str, Any] = field(default_factory=dict)
    shed: Mapping[str, Any] | None = None
    final: Mapping[str, tuple[int, int]] = field(default_factory=dict)
