"""A writer: one process's opening of one run, and the path of every record into the page cache.

Guarantee (I1): a call that returns True has put its whole frame where SIGKILL cannot reach it. Against power cuts, see
Durability. The limit: a mapped page that the disk fails to write back, and a network file system's own promises.

Threads take one lock. A call from a signal handler or a destructor in the middle of another call of the same thread goes to a
side writer, so it neither deadlocks nor tears the frame. A fork, also one that skips Python's hooks, is noticed by a page that
the kernel wipes in the child, which then gets a writer of its own.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import struct
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from . import atomic, frames, ids, layout, records, segment_header
from .errors import InvalidRecord, SpaceExhausted
from .filesystem import is_mappable
from .frames import HAS_TIME, HAS_TIMESTAMP, MARKER, MAX_COLUMNS, MAX_SHAPES, Shape
from .process import start_ticks, this_host
from .records import Kind
from .segment import SEGMENT_MAX, OpenSegment, activate, discard, prepare, seal
from .segment_header import Drop, Durability, SegmentHeader

_BOOT = time.CLOCK_BOOTTIME
_boot_ns = time.clock_gettime_ns
_crc32 = zlib.crc32
_pack_crc = struct.Struct("<I").pack
_MADV_WIPEONFORK = 18
_PREPARE_AT = SEGMENT_MAX * 3 // 4
_REOPEN_AFTER_NS = 1_000_000_000
_SPACE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
_DROPS_SIZE = 512


class _PidPage:
    """Stands in for the wiped page on kernels without MADV_WIPEONFORK: a system call per look."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    def __getitem__(self, _: int) -> int:
        return int(os.getpid() == self._pid)


def _fork_page() -> Any:
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_MADV_WIPEONFORK)
    except (OSError, ValueError):
        return _PidPage()
    page[0] = 1
    return page


class _Entry(NamedTuple):
    pack: Callable[..., bytes]
    prefix: bytes
    shape: int
    size: int


class Origin(NamedTuple):
    """When the run began: wall clock (ns since 1970 UTC), and boot clock (ns) of the machine with this boot id."""

    wall: int
    boot: int
    boot_id: bytes

    @classmethod
    def now(cls) -> Origin:
        """Return an origin at this moment."""
        boot, wall = _anchor()
        return cls(wall, boot, this_host().boot_id)


def _anchor() -> tuple[int, int]:
    before = _boot_ns(_BOOT)
    wall = time.time_ns()
    return (before + _boot_ns(_BOOT)) // 2, wall


class Writer:
    """Records into one run. Methods return True when the record is kept, False for a drop that was counted.

    `folder` is the run's `w` folder. The caller's own mistakes raise InvalidRecord and record nothing; nothing else raises.
    `maintain` is to be called about once a second from another thread, or never: it only takes work off the callers.
    `check_name` sees each metric name of a new shape and raises InvalidRecord for what the caller's dialect does not allow.
    `on_record` is the doorbell, called after a record, for metrics at most every `ring_every` ns.
    """

    def __init__(
        self,
        folder: str,
        run: bytes,
        *,
        durability: Durability = Durability.INTERVAL,
        origin: Origin | None = None,
        rank: int | None = None,
        mapped: bool | None = None,
        on_fork: Callable[[Writer], None] | None = None,
        on_record: Callable[[], None] | None = None,
        ring_every: int = 2_000_000,
        check_name: Callable[[str], None] | None = None,
    ) -> None:
        self._parent_folder, self.run = folder, run
        self.durability = durability
        self._each = durability is Durability.EACH
        self.origin = origin or Origin.now()
        self.rank = rank
        self._mapped = mapped
        self._on_fork = on_fork
        self.on_record = on_record
        self._ring_every = ring_every
        self._check_name = check_name
        self.ring_after = 0 if on_record is not None else 1 << 62
        self.step = 0
        self.last_error = ""
        self._start()

    def _start(self) -> None:
        """(Re)begin as a writer of this process, with no file yet."""
        self.id = ids.new_id()
        self.folder = os.path.join(self._parent_folder, ids.to_text(self.id))
        self._lock = threading.RLock()
        self._busy = False
        self._seq = 0
        self._segment: OpenSegment | None = None
        self._next: OpenSegment | None = None
        self._retired: list[tuple[OpenSegment, int, list[Shape], int, int]] = []
        self._store: Any = None
        self._pos = self._limit = 0
        self._header: SegmentHeader | None = None
        self._number = 0
        self._seed = 0
        self._tables: tuple[dict[Any, _Entry], ...] = ({}, {}, {}, {}, {}, {}, {}, {})
        self._plain = self._tables[0]
        self._shapes: dict[tuple[tuple[str, ...], str], Shape] = {}
        self._drops = [0] * 16
        self._retry_at = 0
        self._dirty = False
        self._side: Writer | None = None
        self.closed = False
        self._fork_page = _fork_page()

    @property
    def id_text(self) -> str:
        """The writer's id as text."""
        return ids.to_text(self.id)

    @property
    def sequence(self) -> int:
        """Sequence of the last record."""
        return self._seq

    @property
    def drops(self) -> dict[str, int]:
        """Records not taken, by reason, side writers included."""
        counts = {Drop(i).label: n for i, n in enumerate(self._drops) if n}
        if self._side is not None:
            for reason, n in self._side.drops.items():
                counts[reason] = counts.get(reason, 0) + n
        return counts

    # ------------------------------------------------------------------ recording

    def metrics(
        self,
        values: Mapping[str, Any],
        step: int | None = None,
        time: float | None = None,
        timestamp: int | str | None = None,
        kind: int = 16,
    ) -> bool:
        """Record metric values (kind METRICS) or a resource sample (kind RESOURCES) as one record.

        `step`: default counts this writer's calls from 0. `time`: seconds since the run's start, default by the clock. `timestamp`: µs since
        1970 UTC, or any text, kept as given. Values: float, int, bool, or what NumPy and torch have in their place.
        """
        if self._fork_page[0] != 1:
            self._after_fork()
        key = (*values, *map(type, values.values()))
        with self._lock:
            if self._busy:
                return self._aside().metrics(values, step, time, timestamp, kind)
            self._busy = True
            try:
                if time is None and timestamp is None:
                    flags, extra = 0, ()
                else:
                    flags, extra = _given(time, timestamp)
                table = self._plain if kind == 16 and not flags else self._tables[flags if kind == 16 else flags + 4]
                entry = table.get(key)
                if entry is None or self._pos + entry[3] > self._limit:
                    entry = self._entry(table, key, values, flags, kind)
                    if entry is None:
                        return self._metrics_json(values, step, time, timestamp, kind)
                pack, prefix, shape, size = entry
                if step is None:
                    step = self.step
                elif step < 0:
                    raise InvalidRecord(f"step must be 0 or more, not {step!r}")
                pos, seq, boot = self._pos, self._seq + 1, _boot_ns(_BOOT)
                end = pos + size
                body = pack(prefix, seq, boot, shape, step, *extra, *values.values())
                self._store[pos:end] = body + _pack_crc(_crc32(body, self._seed))
                self._pos = end
                self._seq = seq
                self.step += 1
                self._dirty = True
                if self._each and not self._sync_now():
                    return False
                if boot > self.ring_after:
                    self._ring(boot)
                return True
            except (struct.error, TypeError):
                return self._metrics_json(values, step, time, timestamp, kind)
            except OSError as error:
                return self._failed(error)
            except InvalidRecord:
                raise
            except BaseException:
                self._reconcile()
                raise
            finally:
                self._busy = False

    def record(self, kind: int, body: dict[str, Any]) -> bool:
        """Record a JSON body under a kind."""
        if self._fork_page[0] != 1:
            self._after_fork()
        with self._lock:
            if self._busy:
                return self._aside().record(kind, body)
            self._busy = True
            try:
                return self._append_json(kind, body)
            except OSError as error:
                return self._failed(error)
            except InvalidRecord:
                raise
            except BaseException:
                self._reconcile()
                raise
            finally:
                self._busy = False

    def _append_json(self, kind: int, body: dict[str, Any]) -> bool:
        if self.closed:
            return self._drop(Drop.CLOSED)
        frame = frames.encode_json(kind, self._seq + 1, _boot_ns(_BOOT), body, 0)
        self._make_room(len(frame))
        frame = frames.encode_json(kind, self._seq + 1, _boot_ns(_BOOT), body, self._seed)
        pos = self._pos
        self._store[pos : pos + len(frame)] = frame
        self._pos = pos + len(frame)
        self._seq += 1
        self._dirty = True
        if self._each and not self._sync_now():
            return False
        self._ring(0)
        return True

    def _metrics_json(self, values: Mapping[str, Any], step: int | None, time: float | None, timestamp: int | str | None, kind: int) -> bool:
        """Record what the binary form does not fit; also where bad values get their error."""
        for name in values:
            self._require_name(name)
        plain = {name: scalar(name, value) for name, value in values.items()}
        if not plain:
            raise InvalidRecord("no metrics were given")
        if step is not None and (isinstance(step, bool) or not hasattr(step, "__index__")):
            raise InvalidRecord(f"step must be an integer, not {step!r}")
        if time is not None:
            time = _real("time", time)
        used = self.step if step is None else step.__index__()
        if used < 0:
            raise InvalidRecord(f"step must be 0 or more, not {step!r}")
        if plain_again(plain, values) and len(plain) <= MAX_COLUMNS and used < 1 << 63 and not isinstance(timestamp, str):
            self._busy = False
            return self.metrics(plain, used, time, timestamp, kind)
        body: dict[str, Any] = {"values": plain, "step": used}
        if time is not None:
            body["time"] = time
        if timestamp is not None:
            body["timestamp"] = timestamp
        try:
            kept = self._append_json(Kind.METRICS_JSON if kind == 16 else Kind.RESOURCES_JSON, body)
        except OSError as error:
            return self._failed(error)
        if kept:
            self.step += 1
        return kept

    def _entry(self, table: dict[Any, _Entry], key: Any, values: Mapping[str, Any], flags: int, kind: int) -> _Entry | None:
        """Return the layout for this call, with room for its frame; None when it must go as JSON."""
        if self.closed:
            raise OSError(errno.EBADF, "the run is closed")
        if not values or len(values) > MAX_COLUMNS:
            return None
        types = ""
        for name, value in values.items():
            code = _type_code(type(value))
            if code is None:
                return None
            types += code
            self._require_name(name)
        names = tuple(values)
        size = 40 + 8 * (len(names) + (flags & 1) + (flags >> 1))
        if size > frames.MAX_FRAME or (sum(map(len, names)) > frames.MAX_FRAME // 8):
            return None
        self._make_room(size)
        known = self._shapes.get((names, types))
        if known is None:
            if len(self._shapes) >= MAX_SHAPES:
                return None
            shape = Shape(len(self._shapes), names, types)
            definition = frames.encode_definition(shape, _boot_ns(_BOOT), self._seed)
            if self._pos + 2 * len(definition) + size > self._limit:
                self._make_room(2 * len(definition) + size)
                shape = Shape(len(self._shapes), names, types)
                definition = frames.encode_definition(shape, _boot_ns(_BOOT), self._seed)
            for _ in range(2):
                self._store[self._pos : self._pos + len(definition)] = definition
                self._pos += len(definition)
            known = self._shapes[names, types] = shape
        layout_ = known.layout(flags)
        pack = struct.Struct(layout_.format[:-1]).pack
        entry = _Entry(pack, struct.pack("<HBBI", MARKER, kind, flags, layout_.size), known.id, layout_.size)
        # a segment change empties the tables in place, so `table` is still the current one
        table[key] = entry
        return entry

    def _require_name(self, name: Any) -> None:
        if not isinstance(name, str) or len(name) > frames.MAX_NAME:
            raise InvalidRecord(f"a metric's name must be text of at most {frames.MAX_NAME} characters: {name!r}"[:300])
        if self._check_name is not None:
            self._check_name(name)

    # ------------------------------------------------------------------ segments

    def _make_room(self, size: int) -> None:
        """Have `size` bytes free at the position: grow, rotate, or open the first segment. Raises OSError."""
        if self._segment is None:
            now = _boot_ns(_BOOT)
            if now < self._retry_at:
                raise SpaceExhausted(errno.ENOSPC, self.last_error or "the spool cannot be written")
            self._retry_at = now + _REOPEN_AFTER_NS
            if not os.path.isdir(self.folder):
                atomic.make_folder(self.folder)
            if self._mapped is None:
                self._mapped = is_mappable(self.folder)
            self._open_next()
            self._retry_at = 0
        segment = self._segment
        assert segment is not None
        needed = self._pos + size
        if needed > SEGMENT_MAX and self._pos > segment_header.SIZE:
            self._open_next()
            segment = self._segment
            needed = self._pos + size
        if needed > segment.capacity:
            segment.grow(needed)
        self._limit = min(segment.capacity, max(SEGMENT_MAX, needed))

    def _open_next(self) -> None:
        """Make the next segment the current one; the old one is sealed later, by `maintain` or `close`."""
        number = self._number + 1
        segment = self._next or prepare(self.folder, number, mapped=bool(self._mapped))
        self._next = None
        header = self._make_header(number)
        crc_seed = header.seed
        try:
            activate(self.folder, segment, header, self._drop_slots(crc_seed))
        except BaseException:
            discard(self.folder, segment)
            raise
        if self._segment is not None:
            first = self._header.first if self._header else 1
            self._retired.append((self._segment, self._pos, list(self._shapes.values()), first, self._seed))
        self._segment, self._store, self._number, self._header, self._seed = segment, segment.store, number, header, crc_seed
        self._pos = segment_header.SIZE
        self._limit = min(segment.capacity, SEGMENT_MAX)
        self._shapes.clear()
        for table in self._tables:
            table.clear()

    def _make_header(self, number: int) -> SegmentHeader:
        host = this_host()
        boot, wall = _anchor()
        origin = self.origin
        origin_boot = origin.boot if origin.boot_id == host.boot_id and any(host.boot_id) else boot - (wall - origin.wall)
        pid = os.getpid()
        return SegmentHeader(
            writer=self.id, run=self.run, number=number, first=self._seq + 1, durability=self.durability, pid=pid,
            start_ticks=(start_ticks(pid) or (0, ""))[0], anchor_boot=boot, anchor_wall=wall, origin_boot=origin_boot,
            pid_namespace=host.pid_namespace, boot_id=host.boot_id, uid=os.geteuid(), rank=self.rank, host=host.name,
        )  # fmt: skip

    def _drop_slots(self, crc_seed: int) -> bytes:
        slots = bytearray(_DROPS_SIZE)
        for reason, count in enumerate(self._drops):
            if count:
                at, raw = segment_header.drop_slot(reason, count, crc_seed)
                slots[at - segment_header.STATIC_SIZE : at - segment_header.STATIC_SIZE + 16] = raw
        return bytes(slots)

    def _seal_retired(self) -> None:
        while self._retired:
            segment, end, shapes, first, crc_seed = self._retired[0]
            seal(self.folder, segment, end, self._seal_frame(shapes, first, self._last_before(segment.number), crc_seed))
            self._retired.pop(0)

    def _last_before(self, number: int) -> int:
        """Last sequence of a retired segment: the one before its successor's first."""
        if self._header is not None and number == self._header.number:
            return self._seq
        for segment, _, _, first, _ in self._retired:
            if segment.number == number + 1:
                return first - 1
        return (self._header.first if self._header else 1) - 1

    def _seal_frame(self, shapes: list[Shape], first: int, last: int, crc_seed: int) -> bytes:
        body: dict[str, Any] = {
            "first": first, "last": last, "records": last - first + 1, "drops": self.drops,
            "definitions": [{"shape": s.id, "names": list(s.names), "types": s.types} for s in shapes],
        }  # fmt: skip
        try:
            return frames.encode_json(Kind.SEAL, 0, _boot_ns(_BOOT), body, crc_seed)
        except InvalidRecord:  # very many long names: the doubled definitions in the segment must do
            body["definitions"] = []
            return frames.encode_json(Kind.SEAL, 0, _boot_ns(_BOOT), body, crc_seed)

    # ------------------------------------------------------------------ upkeep

    def maintain(self) -> None:
        """fdatasync what is not yet durable (INTERVAL), prepare the next segment, seal old ones. Safe beside callers.

        An fdatasync that fails leaves the segment for good: what comes later goes to a new one.
        """
        if self._fork_page[0] != 1:
            return
        with self._lock:
            if self._busy or self._segment is None or self.closed:
                return
            dirty, self._dirty = self._dirty, False
            fd = os.dup(self._segment.fd) if dirty and self.durability is Durability.INTERVAL else -1
            number = self._number + 1
            want_next = self._next is None and self._pos > _PREPARE_AT
            retired = [r for r in self._retired if not os.path.exists(layout.segment_path(self.folder, r[0].number, "seg"))]
        if fd >= 0:
            self._sync_fd(fd, number - 1)
        side = self._side
        if side is not None:
            side.maintain()
        if want_next:
            with contextlib.suppress(OSError):  # the caller's thread tries again when it must, and counts what fails
                prepared = prepare(self.folder, number, mapped=bool(self._mapped))
                with self._lock:
                    if self._next is None and self._number + 1 == number and not self.closed:
                        self._next = prepared
                        prepared = None  # type: ignore[assignment]
                if prepared is not None:
                    discard(self.folder, prepared)
        if retired:
            with self._lock, contextlib.suppress(OSError):
                if not self._busy:
                    self._seal_retired()

    def _sync_fd(self, fd: int, number: int) -> None:
        try:
            os.fdatasync(fd)
        except OSError as error:
            with self._lock:
                self.last_error = f"fdatasync of segment {number}: {error.strerror}"
                self._drop(Drop.IO_ERROR)
                if self._number == number and not self._busy:
                    self._abandon()
        finally:
            os.close(fd)

    def sync(self) -> bool:
        """Make everything recorded so far durable before returning; False when the disk refuses."""
        with self._lock:
            if self._segment is None or self._busy or self._fork_page[0] != 1:
                return self._segment is None
            self._dirty = False
            return self._sync_now()

    def _sync_now(self) -> bool:
        assert self._segment is not None
        try:
            os.fdatasync(self._segment.fd)
        except OSError as error:
            self.last_error = f"fdatasync of segment {self._number}: {error.strerror}"
            self._drop(Drop.IO_ERROR)
            self._abandon()
            return False
        self._dirty = False
        return True

    def _abandon(self) -> None:
        """Leave the current segment as it is, unsealed, and go on in a new one (never retry an fsync until it is 'ok')."""
        if self._next is not None:
            discard(self.folder, self._next)
            self._next = None
        try:
            self._open_next()
        except OSError as error:
            self.last_error = error.strerror or str(error)
            self._segment, self._limit, self._pos = None, 0, 0
            for table in self._tables:
                table.clear()
        else:
            self._retired.pop()

    # ------------------------------------------------------------------ when things go wrong

    def _drop(self, reason: Drop) -> bool:
        """Count a record that was not taken, where a kill and a full disk cannot lose the count."""
        self._drops[reason] += 1
        if self._segment is not None and not self.closed:
            at, raw = segment_header.drop_slot(reason, self._drops[reason], self._seed)
            with contextlib.suppress(OSError, ValueError):
                self._store[at : at + 16] = raw
        return False

    def count_drop(self, reason: Drop) -> bool:
        """Count something that the caller could not record. Always False."""
        if self._fork_page[0] != 1:
            self._after_fork()
        with self._lock:
            return self._drop(reason)

    def _failed(self, error: OSError) -> bool:
        self.last_error = error.strerror or str(error)
        if error.errno == errno.EBADF and self.closed:
            return self._drop(Drop.CLOSED)
        return self._drop(Drop.DISK_FULL if error.errno in _SPACE_ERRORS else Drop.IO_ERROR)

    def _reconcile(self) -> None:
        """After an exception from outside (KeyboardInterrupt in the middle): believe what the file says of the last frame."""
        if self._segment is None:
            return
        head = os.pread(self._segment.fd, frames.HEAD_SIZE, self._pos)
        if len(head) < frames.HEAD_SIZE:
            return
        marker, _, _, length, seq, _ = frames.HEAD.unpack(head)
        if marker != MARKER or seq != self._seq + 1 or length > frames.MAX_FRAME:
            return
        frame = os.pread(self._segment.fd, length, self._pos)
        if frames.check_frame(frame, self._seed, 0)[0] == "valid":
            self._pos += length
            self._seq = seq

    def _aside(self) -> Writer:
        """Return the writer for calls that interrupt another call of the same thread."""
        if self._side is None:
            self._side = Writer(
                self._parent_folder, self.run, durability=self.durability, origin=self.origin, rank=self.rank, mapped=self._mapped,
                on_record=self.on_record, check_name=self._check_name,
            )  # fmt: skip
            self._side.record(Kind.ATTACH, {"reason": "re-entrant", "of": self.id_text, "rank": self.rank})
        return self._side

    def _ring(self, boot: int) -> None:
        """Tell whoever listens that there is something to read, at most every `ring_every` ns for metrics."""
        if self.on_record is not None:
            self.ring_after = boot + self._ring_every if boot else 0
            with contextlib.suppress(Exception):  # a doorbell is a courtesy, it must not fail the record
                self.on_record()

    def _after_fork(self) -> None:
        """In a forked child: leave the parent's writer alone (its files, lock and mapping) and become a new one."""
        parent, step, was_closed = self.id_text, self.step, self.closed
        self._start()
        self.step = step
        self.closed = was_closed
        if was_closed:
            return
        self.record(Kind.ATTACH, {"reason": "fork", "of": parent, "rank": self.rank})
        if self._on_fork is not None:
            self._on_fork(self)

    def close(self, body: dict[str, Any] | None = None) -> bool:
        """Record the close, seal all segments durably, and let go of the files.

        False when the close record or a seal could not be written: what was recorded stays readable. Repeating is harmless.
        """
        if self._fork_page[0] != 1:
            self._after_fork()
        with self._lock:
            if self.closed:
                return True
            if self._side is not None:
                self._side.close({"status": None, "reason": "re-entrant", "drops": {}})
            kept = True
            if body is not None:
                try:
                    kept = self._append_json(Kind.CLOSE, {**body, "drops": self.drops})
                except OSError as error:
                    kept = self._failed(error)
            if self._next is not None:
                discard(self.folder, self._next)
                self._next = None
            try:
                self._seal_retired()
                if self._segment is not None:
                    first = self._header.first if self._header else 1
                    shapes = list(self._shapes.values())
                    seal(self.folder, self._segment, self._pos, self._seal_frame(shapes, first, self._seq, self._seed))
            except OSError as error:
                self.last_error = error.strerror or str(error)
                kept = False
            self._segment, self._limit, self.closed = None, 0, True
            for table in self._tables:
                table.clear()
            return kept


_NUMPY_CODES = {"f": "d", "i": "q", "u": "q"}


def _type_code(kind: type) -> str | None:
    """Return the column type for values of a type; None for types that need a closer look at each value."""
    if kind is float:
        return "d"
    if kind is int:
        return "q"
    if kind is bool:
        return "?"
    if kind.__module__ == "numpy" and "generic" in {base.__name__ for base in kind.__mro__}:
        if "floating" in {base.__name__ for base in kind.__mro__}:
            return "d"
        if "integer" in {base.__name__ for base in kind.__mro__}:
            return "q"
    return None


def scalar(name: str, value: Any) -> float | int | bool:
    """Return a metric's value as a plain Python number. Raises InvalidRecord, naming the metric, when it is not a single real number."""
    if isinstance(value, (bool, int, float)):
        return value if type(value) in {bool, int, float} else (int(value) if isinstance(value, int) else float(value))
    item = getattr(value, "item", None)
    if item is not None and callable(item):
        try:
            value = item()
        except (ValueError, RuntimeError, TypeError):
            raise InvalidRecord(f"metric {name!r} has {getattr(value, 'size', 'several')} values: log one number, or save_object the array") from None
        if isinstance(value, (bool, int, float)):
            return value
    return _real(f"metric {name!r}", value)


def _real(what: str, value: Any) -> float:
    if not isinstance(value, (str, bytes, bytearray, complex)) and (hasattr(value, "__float__") or hasattr(value, "__index__")):
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
    raise InvalidRecord(f"{what} must be a real number, not {type(value).__name__} {value!r}"[:300])


def plain_again(plain: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    """Say whether the plain numbers fit the binary form, and differ in type from what was given (so a second try helps)."""
    fits = all(not isinstance(v, int) or -(1 << 63) <= v < 1 << 63 for v in plain.values())
    return fits and any(type(v) is not type(plain[k]) for k, v in values.items())


def _given(time: float | None, timestamp: int | str | None) -> tuple[int, tuple[Any, ...]]:
    if isinstance(timestamp, str):
        raise TypeError  # as JSON
    if timestamp is None:
        return HAS_TIME, (time,)
    return (HAS_TIMESTAMP, (timestamp,)) if time is None else (HAS_TIME | HAS_TIMESTAMP, (time, timestamp))
