"""A writer's chain, followed through the bytes of its frames (docs/drain-protocol.md, "The chain")."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from simspool.spool import frames
from simspool.spool.records import UNSEQUENCED_KINDS

NONE = -1
"""No chain: it equals none."""


def walk(data: bytes, base: int, crc_seed: int) -> Iterator[tuple[int, int, int]]:
    """Yield (sequence, byte offset after, checksum) of the sequenced frames in `data`, which begins at offset `base` of its file."""
    at = 0
    while at + frames.MIN_FRAME <= len(data):
        verdict, length = frames.check_frame(data, crc_seed, at)
        if verdict != "valid":
            return
        kind, seq = data[at + 2], frames.HEAD.unpack_from(data, at)[4]
        at += length
        if kind not in UNSEQUENCED_KINDS:
            yield seq, base + at, int.from_bytes(data[at - 4 : at], "little")


def chain_over(found: Iterable[tuple[int, int]], chain: int, first: int, last: int) -> int:
    """Return the chain at `last`, from `chain` before `first`, over (sequence, checksum) of what was found in that order.

    What is not there is a gap; what comes again is passed over. NONE where something lies beyond `last`.
    """
    expected = first
    for seq, crc in found:
        if seq >= expected:
            chain = frames.extend_chain(frames.extend_chain_gap(chain, seq - expected), (crc,))
            expected = seq + 1
    return frames.extend_chain_gap(chain, last + 1 - expected) if expected <= last + 1 else NONE
