"""Makes the zoo: one small spool for each disease, from fixed ids and clocks. `python tests/zoo/make.py` writes it beside itself.

The bytes are put together here from FORMAT.md's parts, not by a Writer, so that the specimens stay what they are when the writer changes.
"""

from __future__ import annotations

import json
import shutil
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simspool.spool import encoders, frames, ids, segment_header
from simspool.spool.frames import Shape
from simspool.spool.records import Kind
from simspool.spool.segment_header import SegmentHeader

RUN, WRITER, SPOOL_ID = bytes(range(16)), bytes(range(1, 17)), bytes(range(2, 18))
LOSS = Shape(0, ("loss", "n"), "dq")
BOOT, WALL = 1_000_000_000, 1_700_000_000_000_000_000


class Segment:
    """A segment in the making."""

    def __init__(self, number: int = 1, first: int = 1) -> None:
        self.number, self.seed, self.seq, self.first = number, segment_header.seed(WRITER, number), first - 1, first
        header = SegmentHeader(
            writer=WRITER, run=RUN, number=number, first=first, durability=1, pid=4242, start_ticks=77, anchor_boot=BOOT, anchor_wall=WALL,
            origin_boot=BOOT, pid_namespace=4026531836, boot_id=bytes(range(3, 19)), uid=1000, rank=None, host="zoo",
        )  # fmt: skip
        self.data = bytearray(header.pack().ljust(segment_header.SIZE, b"\0"))
        self.spans: dict[int, tuple[int, int]] = {}  # by sequence
        self.definitions: list[int] = []

    def add(self, frame: bytes, seq: int = 0) -> None:
        if seq:
            self.spans[seq] = len(self.data), len(self.data) + len(frame)
        self.data += frame

    def record(self, kind: int, body: dict[str, Any]) -> Segment:
        self.seq += 1
        self.add(frames.encode_json(kind, self.seq, BOOT + self.seq * 1000, body, self.seed), self.seq)
        return self

    def raw(self, kind: int, payload: bytes) -> Segment:
        self.seq += 1
        self.add(frames.build(kind, self.seq, BOOT + self.seq * 1000, payload, self.seed), self.seq)
        return self

    def metrics(self, count: int) -> Segment:
        if not self.definitions:
            for _ in range(2):
                self.definitions.append(len(self.data))
                self.add(frames.encode_definition(LOSS, BOOT, self.seed))
        encode = encoders.encoder(LOSS, (float, int), Kind.METRICS, 0, self.seed)
        for _ in range(count):
            self.seq += 1
            frame = encode({"loss": 1 / self.seq, "n": self.seq}, self.seq, BOOT + self.seq * 1000, self.seq - 1)
            assert frame is not None
            self.add(frame, self.seq)
        return self

    def sealed(self) -> Segment:
        definitions = [{"shape": 0, "names": list(LOSS.names), "types": LOSS.types}] if self.definitions else []
        body = {"first": self.first, "last": self.seq, "records": self.seq - self.first + 1, "drops": {}, "definitions": definitions}
        self.add(frames.encode_json(Kind.SEAL, 0, BOOT, body, self.seed))
        return self

    def drop(self, reason: int, *counts: int) -> Segment:
        for count in counts:
            at, slot = segment_header.drop_slot(reason, count, self.seed)
            self.data[at : at + 16] = slot
        return self


def whole() -> Segment:
    """Six healthy records: attach, three metrics, event, metric."""
    s = Segment().record(Kind.ATTACH, {"reason": "zoo", "rank": None}).metrics(3)
    return s.record(Kind.EVENT, {"message": "all is well"}).metrics(1)


def torn_tail() -> dict[str, bytes]:
    """A SIGKILL in the middle of a large write(2) left the first half of the last frame."""
    s = whole()
    return {"000001.open": bytes(s.data[: s.spans[6][1] - 20])}


def torn_mapped_tail() -> dict[str, bytes]:
    """A SIGKILL in the middle of a copy into the mapping: the checksum of the last frame was never written; unused space follows."""
    s = whole()
    s.data[s.spans[6][1] - 12 :] = bytes(12 + 256)
    return {"000001.open": bytes(s.data)}


def corrupt_frame() -> dict[str, bytes]:
    """One flipped bit in the middle of a sealed segment."""
    s = whole().sealed()
    s.data[s.spans[3][0] + 40] ^= 4
    return {"000001.seg": bytes(s.data)}


def corrupt_length() -> dict[str, bytes]:
    """A flipped bit in a frame's length, so that it seems to swallow the next one."""
    s = whole().sealed()
    s.data[s.spans[2][0] + 4] ^= 64
    return {"000001.seg": bytes(s.data)}


def loss_span() -> dict[str, bytes]:
    """A page that never reached the disk: zeros where two frames were."""
    s = whole().sealed()
    start, end = s.spans[2][0], s.spans[3][1]
    s.data[start:end] = bytes(end - start)
    return {"000001.seg": bytes(s.data)}


def damaged_header() -> dict[str, bytes]:
    """The first sector was written over: the path says who wrote the file."""
    s = whole().sealed()
    s.data[0:200] = b"\xff" * 200
    return {"000001.seg": bytes(s.data)}


def damaged_definitions() -> dict[str, bytes]:
    """Both copies of a definition are damaged: the seal has it."""
    s = whole().sealed()
    for at in s.definitions:
        s.data[at + 30] ^= 1
    return {"000001.seg": bytes(s.data)}


def lost_definitions() -> dict[str, bytes]:
    """Both copies are damaged and there is no seal: the frames of that shape are lost, the others are not."""
    s = whole()
    for at in s.definitions:
        s.data[at + 30] ^= 1
    return {"000001.open": bytes(s.data)}


def missing_segment() -> dict[str, bytes]:
    """The second of three segments is gone."""
    return {
        "000001.seg": bytes(whole().sealed().data),
        "000003.seg": bytes(Segment(3, 10).metrics(2).record(Kind.CLOSE, {"status": "completed", "drops": {}}).sealed().data),
    }


def stale_next() -> dict[str, bytes]:
    """A kill left segments that were made in advance: they are not part of the spool."""
    return {"000001.open": bytes(whole().data), "000002.1.next": bytes(2048), "000002.2.next": bytes(Segment(2, 7).metrics(2).data)}


def newer_major() -> dict[str, bytes]:
    """A segment of format 2.0: refused by name, and left untouched."""
    s = whole().sealed()
    s.data[8] = 2
    s.data[252:256] = zlib.crc32(s.data[:252]).to_bytes(4, "little")
    return {"000001.seg": bytes(s.data)}


def unknown_kind() -> dict[str, bytes]:
    """Records of kinds that this version does not know, JSON and not: forwarded, not understood."""
    s = whole().record(99, {"from": "the future"}).raw(200, b"\x00\xff of a user's own tool").sealed()
    return {"000001.seg": bytes(s.data)}


def damaged_drop_counter() -> dict[str, bytes]:
    """The newest slot of a drop counter does not verify: the one before counts."""
    s = whole().drop(3, 4, 5).sealed()
    at, _ = segment_header.drop_slot(3, 5, s.seed)
    s.data[at + 1] ^= 1
    return {"000001.seg": bytes(s.data)}


def unsealed_with_seal() -> dict[str, bytes]:
    """A kill between the seal and the truncation: a whole segment under its open name, with unused space behind the seal."""
    s = whole().record(Kind.CLOSE, {"status": "completed", "drops": {}}).sealed()
    return {"000001.open": bytes(s.data) + bytes(512)}


def shortened_seal() -> dict[str, bytes]:
    """A sealed segment that was cut behind its fourth record: it ends without its seal."""
    s = whole().sealed()
    return {"000001.seg": bytes(s.data[: s.spans[4][1]])}


DISEASES: tuple[Callable[[], dict[str, bytes]], ...] = (
    torn_tail, torn_mapped_tail, corrupt_frame, corrupt_length, loss_span, damaged_header, damaged_definitions, lost_definitions,
    missing_segment, stale_next, newer_major, unknown_kind, damaged_drop_counter, unsealed_with_seal, shortened_seal,
)  # fmt: skip


def write(disease: Callable[[], dict[str, bytes]], folder: Path) -> Path:
    """Write one specimen's README and spool; return the spool."""
    at = folder / disease.__name__.replace("_", "-")
    shutil.rmtree(at / "spool", ignore_errors=True)
    writer = at / "spool" / "runs" / ids.to_text(RUN) / "w" / ids.to_text(WRITER)
    writer.mkdir(parents=True)
    title = disease.__name__.replace("_", " ").capitalize()
    (at / "README.md").write_text(f"# {title}\n\n{disease.__doc__}\n")
    (at / "spool" / "SPOOL").write_text(json.dumps({"format": [1, 0], "id": ids.to_text(SPOOL_ID)}) + "\n")
    for name, data in disease().items():
        (writer / name).write_bytes(data)
    return at / "spool"


if __name__ == "__main__":
    for each in DISEASES:
        print(write(each, Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent))
