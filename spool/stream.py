"""A stream: what one process has of a writer. Its segments, its position, its counters.

A fork swaps the whole stream for a new one. All methods but `seal_retired` and `prepare_next` belong inside the writer's turn
(see writer.py); whoever is inside is alone, so nothing here locks.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from . import atomic, encoders, frames, ids, segment, segment_header
from .errors import InvalidRecord, SpaceExhausted
from .filesystem import is_mappable
from .forks import own_page
from .frames import MARKER, MAX_SHAPES, Shape
from .process import start_ticks, this_host
from .records import Kind
from .segment import OpenSegment
from .segment_header import Drop, Durability, SegmentHeader

PREPARE_AT = 3 / 4  # of a segment: from there on the next one is made ready
_RETRY_AFTER_NS = 100_000_000  # asking a full disk again and again costs milliseconds a time
_SPACE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
_DROPS_SIZE = 512


def boot_ns() -> int:
    """Return the boot clock, which also counts while the machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def wall_ns() -> int:
    """Return the wall clock, ns since 1970 UTC."""
    return time.time_ns()


def clocks() -> tuple[int, int]:
    """Return boot and wall clock of one moment."""
    before = boot_ns()
    wall = wall_ns()
    return (before + boot_ns()) // 2, wall


class Origin(NamedTuple):
    """When the run began: wall clock (ns since 1970 UTC), and boot clock (ns) of the machine with this boot id."""

    wall: int
    boot: int
    boot_id: bytes

    @classmethod
    def of_run(cls, info: Mapping[str, Any]) -> Origin | None:
        """Return the origin that run.json's content names; None when it names none."""
        found = info.get("origin")
        try:
            return cls(int(found["wall"]), int(found["boot"]), bytes.fromhex(found["boot_id"])) if isinstance(found, dict) else None
        except (KeyError, TypeError, ValueError):
            return None

    def run_info(self, run: str, name: str, created: str) -> dict[str, Any]:
        """Return run.json's content for a run that begins here; `created` is UTC, as text."""
        origin = {"wall": self.wall, "boot": self.boot, "boot_id": self.boot_id.hex()}
        return {"id": run, "name": name, "created": created, "origin": origin}

    @classmethod
    def now(cls) -> Origin:
        """Return an origin at this moment."""
        boot, wall = clocks()
        return cls(wall, boot, this_host().boot_id)


class Opening(NamedTuple):
    """What all streams of a writer have in common."""

    folder: str
    run: bytes
    durability: Durability
    origin: Origin
    rank: int | None
    holder: tuple[int, int] | None = None


@dataclass(slots=True)
class Current:
    """One segment and all that is true of it only. The stream changes segments by one assignment, so nothing can come in between."""

    file: OpenSegment | None
    store: Any
    first: int
    seed: int
    limit: int
    pos: int = segment_header.SIZE
    last: int = 0  # set when it gets no more records
    shape_count: int = 0
    encode: encoders.Encode = encoders.never
    encoders: dict[tuple[Any, ...], encoders.Encode] = field(default_factory=dict)
    shapes: dict[tuple[tuple[str, ...], str], Shape] = field(default_factory=dict)


def _nothing() -> Current:
    return Current(None, None, 0, 0, 0)


class Stream:
    """See above. `free` holds one item while nobody is inside; `page[0]` is 1 in the process that made the stream."""

    __slots__ = (
        "_retry_at", "attempts", "closed", "deferred", "dirty", "drops", "each", "folder", "free", "id", "in_upkeep", "last_error",
        "mapped", "named", "now", "number", "opening", "page", "prepared", "retired", "seq", "step", "upkeep",
    )  # fmt: skip

    def __init__(self, opening: Opening, mapped: bool | None, step: int = 0, *, closed: bool = False) -> None:
        self.opening, self.mapped, self.step, self.closed = opening, mapped, step, closed
        self.id = ids.new_id()
        self.folder = os.path.join(opening.folder, ids.to_text(self.id))
        self.free: dict[int, None] = {0: None}
        self.deferred: tuple[dict[str, Any] | None] | None = None
        self.upkeep = threading.RLock()
        self.in_upkeep = False
        self.now = _nothing()
        self.prepared: OpenSegment | None = None
        self.retired: list[Current] = []
        self.attempts = itertools.count(1)
        self.number = 0  # the highest that was used
        self.seq = 0
        self.drops = [0] * 16
        self.dirty = False
        self.named = 0  # number of the segment whose name is known to be durable
        self.each = opening.durability is Durability.EACH
        self.last_error = ""
        self._retry_at = 0
        self.page = own_page()

    # ------------------------------------------------------------------ records

    def put(self, kind: int, payload: bytes) -> bool:
        """Append a JSON payload. Raises OSError, and InvalidRecord when it is too large."""
        if self.closed:
            return self.drop(Drop.CLOSED)
        size = frames.framed_size(len(payload))
        if size <= frames.MAX_FRAME:
            self._make_room(size)
        frame = frames.build(kind, self.seq + 1, boot_ns(), payload, self.now.seed)
        self._append(frame)
        return not self.each or self.sync_now()

    def put_metrics(
        self,
        key: tuple[Any, ...],
        types: str,
        values: Mapping[str, Any],
        cached: tuple[type, ...] | None,
        step: int | None,
        extra: tuple[Any, ...],
    ) -> bool | None:
        """Append plain numbers as a binary frame; None when the segment can take no more shapes. Raises OSError.

        `key` is (kind, flags, *names), `types` has the columns' types, `cached` the exact types for which the next call may
        take the short way.
        """
        if self.closed:
            return self.drop(Drop.CLOSED)
        kind, flags, *names = key
        shape = self._define((*names,), types, 40 + 8 * (len(names) + len(extra)))
        if shape is None:
            return None
        now, exact = self.now, (*map(type, values.values()),)
        encode = encoders.encoder(shape, exact, kind, flags, now.seed)
        frame = encode(values, self.seq + 1, boot_ns(), self.step if step is None else step, *extra)
        assert frame is not None
        self._append(frame)
        self.step += kind == Kind.METRICS
        if cached is not None:
            encode = encode if cached == exact else encoders.encoder(shape, cached, kind, flags, now.seed)
            now.encoders[key] = encode
            if kind == Kind.METRICS and not flags:
                now.encode = encode
        return not self.each or self.sync_now()

    def _append(self, frame: bytes) -> None:
        now = self.now
        pos = now.pos
        end = pos + len(frame)
        now.store[pos:end] = frame
        now.pos = end
        self.seq += 1
        self.dirty = True

    def _define(self, names: tuple[str, ...], types: str, size: int) -> Shape | None:
        """Return the shape of these columns, with room for a frame of `size`; its definition is written when it is new."""
        self._make_room(size)
        known = self.now.shapes.get((names, types))
        if known is not None:
            return known
        while True:
            now = self.now
            if now.shape_count >= MAX_SHAPES:
                return None
            shape = Shape(now.shape_count, names, types)
            definition = frames.encode_definition(shape, boot_ns(), now.seed)
            self._make_room(2 * len(definition) + size)
            if self.now is now:  # otherwise it must be made again for the new segment
                break
        now.shape_count += 1  # before the first byte: a number is never used for two shapes, whatever comes in between
        for _ in range(2):
            end = now.pos + len(definition)
            now.store[now.pos : end] = definition
            now.pos = end
        now.shapes[names, types] = shape
        return shape

    def next_step(self, kind: int) -> int:
        """Return the next default step, and count it; resource samples do not count."""
        step = self.step
        self.step += kind == Kind.METRICS
        return step

    # ------------------------------------------------------------------ segments

    def _make_room(self, size: int) -> None:
        """Have `size` bytes free at the position: grow, rotate, or open the first segment. Raises OSError."""
        now = self.now
        if now.pos + size <= now.limit:
            return
        if boot_ns() < self._retry_at:
            raise SpaceExhausted(errno.ENOSPC, self.last_error or "the spool cannot be written")
        try:
            if now.file is None:
                if not os.path.isdir(self.folder):
                    atomic.make_folder(self.folder)
                if self.mapped is None:
                    self.mapped = is_mappable(self.folder)
                self.open_next()
            elif now.pos + size > segment.SEGMENT_MAX and now.pos > segment_header.SIZE:
                self.open_next()
            now = self.now
            needed = now.pos + size
            assert now.file is not None
            if needed > now.file.capacity:
                now.file.grow(needed)
            now.limit = min(now.file.capacity, max(segment.SEGMENT_MAX, needed))
        except OSError:
            self._retry_at = boot_ns() + _RETRY_AFTER_NS
            raise

    def open_next(self) -> None:
        """Make the next segment the current one; the old one is sealed later, by `seal_retired` (W5)."""
        number = self.number + 1
        prepared, self.prepared = self.prepared, None
        file = prepared or segment.prepare(self.folder, number, next(self.attempts), mapped=bool(self.mapped))
        try:
            header = self._make_header(number)
            fresh = Current(file, file.store, header.first, header.seed, min(file.capacity, segment.SEGMENT_MAX))
            segment.activate(self.folder, file, header, self._drop_slots(header.seed))
            self.number = number
            self._change_to(fresh)
        except BaseException:
            if os.path.exists(file.path):
                segment.discard(file)
            elif self.now.file is not file:
                self.number = number  # interrupted after its rename: readers may know it, the number is used
                file.close()
            raise

    def _change_to(self, fresh: Current) -> None:
        old = self.now
        old.last = self.seq
        self.now = fresh
        if old.file is not None:
            self.retired.append(old)

    def retire(self) -> None:
        """Let no more records into the current segment, and remember to seal it."""
        self._change_to(_nothing())

    def _make_header(self, number: int) -> SegmentHeader:
        host, opening = this_host(), self.opening
        boot, wall = clocks()
        origin = opening.origin
        origin_boot = origin.boot if origin.boot_id == host.boot_id and any(host.boot_id) else boot - (wall - origin.wall)
        pid, ticks = opening.holder or (os.getpid(), (start_ticks(os.getpid()) or (0, ""))[0])
        return SegmentHeader(
            writer=self.id, run=opening.run, number=number, first=self.seq + 1, durability=opening.durability, pid=pid,
            start_ticks=ticks, anchor_boot=boot, anchor_wall=wall, origin_boot=origin_boot,
            pid_namespace=host.pid_namespace, boot_id=host.boot_id, uid=os.geteuid(), rank=opening.rank, host=host.name,
            machine=host.machine,
        )  # fmt: skip

    def _drop_slots(self, crc_seed: int) -> bytes:
        slots = bytearray(_DROPS_SIZE)
        for reason, count in enumerate(self.drops):
            if count:
                at, raw = segment_header.drop_slot(reason, count, crc_seed)
                slots[at - segment_header.STATIC_SIZE : at - segment_header.STATIC_SIZE + 16] = raw
        return bytes(slots)

    def prepare_next(self, number: int) -> OpenSegment | None:
        """Make segment `number` ready, off the callers' thread; None when there is no space (the caller will find out and count)."""
        with contextlib.suppress(OSError):
            return segment.prepare(self.folder, number, next(self.attempts), mapped=bool(self.mapped))
        return None

    def adopt(self, file: OpenSegment) -> None:
        """Keep a prepared segment for the next rotation, or drop it when its turn has passed."""
        if self.prepared is None and file.number == self.number + 1 and not self.closed:
            self.prepared = file
        else:
            segment.discard(file)

    def seal_retired(self) -> bool:
        """Seal what is retired; False when something must wait or be left unsealed. Each segment is taken by one caller."""
        done = True
        for _ in range(len(self.retired)):
            try:
                old = self.retired.pop(0)
            except IndexError:  # another caller took it
                break
            assert old.file is not None
            try:
                segment.seal(self.folder, old.file, old.pos, self._seal_frame(old))
            except OSError as error:
                done = False
                self.last_error = f"sealing segment {old.file.number}: {error.strerror}"
                if error.errno in _SPACE_ERRORS:
                    self.retired.append(old)
                else:
                    old.file.close()  # an fsync is not repeated until it is 'ok'; the segment stays open, and readable
            except BaseException:
                self.retired.append(old)
                raise
        return done

    def _seal_frame(self, old: Current) -> bytes:
        counts = {Drop(i).label: n for i, n in enumerate(self.drops) if n}
        body: dict[str, Any] = {
            "first": old.first, "last": old.last, "records": old.last - old.first + 1, "drops": counts,
            "definitions": [{"shape": s.id, "names": list(s.names), "types": s.types} for s in old.shapes.values()],
        }  # fmt: skip
        try:
            return frames.encode_json(Kind.SEAL, 0, boot_ns(), body, old.seed)
        except InvalidRecord:  # very many long names: the doubled definitions in the segment must do
            body["definitions"] = []
            return frames.encode_json(Kind.SEAL, 0, boot_ns(), body, old.seed)

    # ------------------------------------------------------------------ durability

    def begin_sync(self) -> tuple[int, int]:
        """Return a new descriptor of the current segment, to be synced outside the turn (-1 without one), and its number."""
        self.dirty = False
        return (-1 if self.now.file is None else os.dup(self.now.file.fd)), self.number

    def sync_now(self) -> bool:
        """Make the current segment durable, its name too; False when the disk refuses, and the segment is given up."""
        file = self.now.file
        if file is None:
            return True
        self.dirty = False
        try:
            sync_segment(file.fd, self.folder, named=self.named == file.number)
        except OSError as error:
            self.give_up(file.number, error)
            return False
        self.named = file.number
        return True

    def give_up(self, number: int, error: OSError) -> None:
        """After a failed fsync: leave segment `number` unsealed for good and go on in a new one (W9)."""
        self.last_error = f"fdatasync of segment {number}: {error.strerror}"
        self.drop(Drop.IO_ERROR)
        if self.now.file is not None and self.now.file.number == number:
            self.retire()
            with contextlib.suppress(OSError):  # the next record tries again, and counts what fails
                self.open_next()
        for old in [r for r in self.retired if r.file is not None and r.file.number == number]:
            self.retired.remove(old)
            if old.file is not None:
                old.file.close()

    # ------------------------------------------------------------------ when things go wrong

    def drop(self, reason: Drop) -> bool:
        """Count a record that was not taken, where a kill and a full disk cannot lose the count. Always False."""
        self.drops[reason] += 1
        if self.now.file is not None:
            at, raw = segment_header.drop_slot(reason, self.drops[reason], self.now.seed)
            with contextlib.suppress(OSError, ValueError):  # ValueError: at shutdown, the map may be closed by now
                self.now.store[at : at + 16] = raw
        return False

    def pass_over(self, reason: Drop, kind: int, step: int | None) -> int:
        """Count a call with metrics that is not recorded; it is a step all the same. Returns which."""
        used = self.step if step is None else step
        self.step += kind == Kind.METRICS
        self.drop(Drop.CLOSED if self.closed else reason)
        return used

    def failed(self, error: OSError) -> bool:
        """Count a record that an error of the disk kept out. Always False."""
        self.last_error = error.strerror or str(error)
        return self.drop(Drop.DISK_FULL if error.errno in _SPACE_ERRORS else Drop.IO_ERROR)

    def reconcile(self) -> None:
        """After an exception from outside (a KeyboardInterrupt in the middle): believe what the file says of the last frame."""
        now = self.now
        if now.file is None:
            return
        head = os.pread(now.file.fd, frames.HEAD_SIZE, now.pos)
        if len(head) < frames.HEAD_SIZE:
            return
        marker, kind, _, length, seq, _ = frames.HEAD.unpack(head)
        if marker != MARKER or seq != self.seq + 1 or length > frames.MAX_FRAME:
            return
        if frames.check_frame(os.pread(now.file.fd, length, now.pos), now.seed, 0)[0] == "valid":
            now.pos += length
            self.seq = seq
            self.step += kind == Kind.METRICS


def sync_segment(fd: int, folder: str, *, named: bool) -> None:
    """fdatasync a segment; where its name may not be durable yet, fsync it and its folder. Raises OSError."""
    if named:
        os.fdatasync(fd)
    else:
        os.fsync(fd)
        atomic.sync_folder(folder)
