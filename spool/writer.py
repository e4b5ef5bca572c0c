"""A writer: one process's opening of one run, and the path of every record into the page cache.

Guarantee (I1): a call that returns True has put its whole frame where SIGKILL cannot reach it. Against power cuts, see
Durability. The limit: a mapped page that the disk fails to write back, and a network file system's own promises.

Threads take turns. The turn is the one item of a dict: `del free[0]` takes it and `free[0] = None` gives it back, each one
bytecode at which CPython neither switches threads nor runs signal handlers, so that no exception from outside can lose it, at a
tenth of a lock's price. Who comes second looks at its own stack: when the call that holds the turn is further down there, this
is a signal handler or a destructor, which must not wait; it records into a side writer. Otherwise it is another thread's turn for
about a microsecond. A fork, also one that skips Python's hooks, is noticed by a page that the kernel wipes in the child; the
child gets a new stream.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import threading
import time as clock
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, Protocol, TypeVar

from . import frames, ids, records, segment
from .errors import InvalidRecord
from .frames import HAS_TIME, HAS_TIMESTAMP, MAX_COLUMNS
from .records import Kind
from .scalars import column_type, real, scalar, whole
from .segment_header import Drop, Durability
from .stream import PREPARE_AT, Opening, Origin, Stream, sync_segment

__all__ = ["Origin", "Writer"]

_BOOT = clock.CLOCK_BOOTTIME
_clock_ns = clock.clock_gettime_ns
_T = TypeVar("_T")
_PLAIN = {float: "d", int: "q", bool: "?"}


class _OwnTurn(Exception):
    """The turn is held further down this thread's own stack: waiting would be for ever."""


class _TooLate(Exception):
    """The interpreter is shutting down and the turn's holder will not run again."""


class Gate(Protocol):
    """Decides which calls with metrics a writer takes."""

    def refuses(
        self, writer: Writer, values: Mapping[str, Any], step: int | None, time: float | None, timestamp: int | str | None, kind: int
    ) -> bool:
        """Say whether a call is not taken; then it is counted (`Writer.pass_over`). May raise InvalidRecord."""


class Writer:
    """Records into one run. Methods return True when the record is kept, False for a drop that was counted.

    `folder` is the run's `w` folder. The caller's own mistakes raise InvalidRecord and record nothing; nothing else raises.
    `maintain` is to be called about once a second from another thread, or never: it only takes work off the callers.
    `check_name` sees each metric name of a new shape and raises InvalidRecord for what the caller's dialect does not allow.
    `holder` (pid, start ticks) is another process of this host for whose life the writer stands: whoever makes it records what is to be
    said in its name and goes, without closing it.
    `on_record` is the doorbell, called after a record, for metrics at most every `ring_every` ns. `gate`, which may be set at any time,
    says what is not taken of metrics and samples.
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
        holder: tuple[int, int] | None = None,
    ) -> None:
        self.run, self.durability, self.rank = run, durability, rank
        self.origin = origin or Origin.now()
        self.on_record = on_record
        self.gate: Gate | None = None
        self.ring_after = 0 if on_record is not None else 1 << 62
        self._ring_every = ring_every
        self._on_fork = on_fork
        self._check_name = check_name
        self._checked: set[tuple[Any, ...]] = set()
        self._side: Writer | None = None
        self._restarts: dict[int, Any] = {}
        self._opening = Opening(folder, run, durability, self.origin, rank, holder)
        self._stream = Stream(self._opening, mapped)

    @property
    def id(self) -> bytes:
        """The writer's id."""
        return self._stream.id

    @property
    def id_text(self) -> str:
        """The writer's id as text."""
        return ids.to_text(self._stream.id)

    @property
    def folder(self) -> str:
        """The writer's folder."""
        return self._stream.folder

    @property
    def sequence(self) -> int:
        """Sequence of the last record."""
        return self._stream.seq

    @property
    def step(self) -> int:
        """The next default step."""
        return self._stream.step

    @step.setter
    def step(self, value: int) -> None:
        self._stream.step = value

    @property
    def closed(self) -> bool:
        """Whether the writer takes no more records."""
        return self._stream.closed

    @property
    def last_error(self) -> str:
        """What the disk said last, empty when it never refused."""
        return self._stream.last_error

    @property
    def drops(self) -> dict[str, int]:
        """Records not taken, by reason, side writers included."""
        counts = {Drop(i).label: n for i, n in enumerate(self._stream.drops) if n}
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

        `step`: default counts this writer's calls from 0, resource samples left out. `time`: seconds since the run's start,
        default by the clock. `timestamp`: µs since 1970 UTC, or any text, kept as given. Values: float, int, bool, or what NumPy and
        torch have in their place.
        """
        gate = self.gate
        if gate is not None and gate.refuses(self, values, step, time, timestamp, kind):
            return False
        stream = self._stream
        if stream.page[0] != 1:
            stream = self._after_fork()
        free = stream.free
        held: Stream | None = stream
        try:
            del free[0]
        except KeyError:
            held = None
        if held is None:
            return self._metrics_anew(values, step, time, timestamp, kind)
        kept = None
        try:
            now, seq = stream.now, stream.seq + 1
            boot = _clock_ns(_BOOT)
            frame = None
            try:
                used = stream.step if step is None else step
                if kind == 16 and time is None and timestamp is None and type(values) is dict and used >= 0:
                    frame = now.encode(values, seq, boot, used)
            except (KeyError, TypeError, struct.error):
                pass
            if frame is None:
                frame = _other_shape(stream, values, seq, boot, step, time, timestamp, kind)
            if frame is not None:
                pos = now.pos
                end = pos + len(frame)
                if end <= now.limit:
                    now.store[pos:end] = frame
                    now.pos = end
                    stream.seq = seq
                    if kind == 16:
                        stream.step += 1
                    stream.dirty = True
                    kept = not stream.each or stream.sync_now()
        except OSError as error:
            kept = stream.failed(error)
        except BaseException:
            stream.reconcile()
            raise
        finally:
            free[0] = None
            held = None  # for _is_inside
            if stream.deferred is not None:
                self._close_deferred(stream)
        if kept is None:
            return self._metrics_anew(values, step, time, timestamp, kind)
        if boot > self.ring_after:
            self._ring(boot)
        return kept

    def plain(
        self, values: Mapping[str, Any], step: Any, time: Any, timestamp: Any
    ) -> tuple[dict[str, float | int | bool], int | None, float | None, int | str | None]:
        """Return what a call with metrics was given as plain numbers. Raises InvalidRecord for what is not valid."""
        if not isinstance(values, Mapping) or not values:
            raise InvalidRecord("no metrics were given: pass a dict of names and numbers")
        names = (*values,)
        if names not in self._checked:
            for name in names:
                if not isinstance(name, str) or not 0 < len(name) <= frames.MAX_NAME:
                    raise InvalidRecord(f"a metric's name must be text of 1 to {frames.MAX_NAME} characters: {name!r}"[:300])
                if self._check_name is not None:
                    self._check_name(name)
            if len(self._checked) < frames.MAX_SHAPES:
                self._checked.add(names)
        plain = {name: scalar(name, value) for name, value in values.items()}
        if step is not None:
            step = whole("step", step)
            if step < 0:
                raise InvalidRecord(f"step must be 0 or more, not {step}")
        if time is not None:
            time = real("time", time)
        if timestamp is not None and not isinstance(timestamp, str):
            timestamp = whole("timestamp", timestamp)
        return plain, step, time, timestamp

    def _metrics_anew(self, values: Mapping[str, Any], step: Any, time: Any, timestamp: Any, kind: int) -> bool:
        """Record metrics the whole way: check and convert everything, then binary where that fits, else as JSON."""
        plain, step, time, timestamp = self.plain(values, step, time, timestamp)
        names = (*plain,)
        stream = self._current()
        given = (*map(type, values.values()),)
        cached = given if type(values) is dict and all(map(column_type, given)) else None
        kept: bool | None = None
        try:
            if _fits(plain, step, timestamp):
                extra = tuple(x for x in (time, timestamp) if x is not None)
                flags = (HAS_TIME if time is not None else 0) | (HAS_TIMESTAMP if timestamp is not None else 0)
                types = "".join(_PLAIN[type(v)] for v in plain.values())
                kept = self._alone(stream, stream.put_metrics, (kind, flags, *names), types, plain, cached, step, extra)
            if kept is None:
                used = self._alone(stream, stream.next_step, kind)
                body: dict[str, Any] = {"values": plain, "step": used if step is None else step}
                body |= {} if time is None else {"time": time}
                body |= {} if timestamp is None else {"timestamp": timestamp}
                code = Kind.METRICS_JSON if kind == Kind.METRICS else Kind.RESOURCES_JSON
                kept = self._alone(stream, stream.put, code, records.encode(body))
        except _OwnTurn:
            return self._aside().metrics(plain, step, time, timestamp, kind)
        except _TooLate:
            return stream.drop(Drop.SHUTDOWN)
        self._ring(_clock_ns(_BOOT))
        return kept

    def record(self, kind: int, body: dict[str, Any]) -> bool:
        """Record a JSON body under a kind."""
        payload = records.encode(body)
        stream = self._current()
        try:
            kept = self._alone(stream, stream.put, kind, payload)
        except _OwnTurn:
            return self._aside().record(kind, body)
        except _TooLate:
            return stream.drop(Drop.SHUTDOWN)
        self._ring(0)
        return bool(kept)

    def count_drop(self, reason: Drop) -> bool:
        """Count something that the caller could not record. Always False."""
        stream = self._current()
        try:
            self._alone(stream, stream.drop, reason)
        except _OwnTurn:
            self._aside().count_drop(reason)
        except _TooLate:
            stream.drop(reason)
        return False

    def pass_over(self, reason: Drop, kind: int, step: int | None = None) -> int:
        """Count a call with metrics that the gate refuses. Returns the step that it would have had."""
        stream = self._current()
        try:
            return int(self._alone(stream, stream.pass_over, reason, kind, step))
        except _OwnTurn:
            self._aside().count_drop(reason)
        except _TooLate:
            stream.drop(reason)
        return stream.step if step is None else step

    def _ring(self, boot: int) -> None:
        """Tell whoever listens that there is something to read: at `boot` (ns) for metrics, 0 for what must not wait."""
        if self.on_record is not None and (not boot or boot > self.ring_after):
            self.ring_after = boot + self._ring_every if boot else 0
            with contextlib.suppress(Exception):  # a doorbell is a courtesy, it must not fail the record
                self.on_record()

    # ------------------------------------------------------------------ turns, forks

    def _alone(self, stream: Stream, work: Callable[..., _T], *arguments: Any) -> _T:
        """Do some work of the stream in a turn of its own. An OSError counts as a drop, and gives False."""
        free, waited = stream.free, 0
        while True:
            try:
                del free[0]
            except KeyError:
                if _is_inside(stream, sys._getframe(1)):  # noqa: SLF001 - public in all but name
                    raise _OwnTurn from None
                if sys.is_finalizing():
                    raise _TooLate from None
                clock.sleep(min(waited * 1e-5, 1e-3))
                waited += 1
                continue
            held: Stream | None = stream
            try:
                return work(*arguments)
            except OSError as error:
                return stream.failed(error)  # type: ignore[return-value]
            except InvalidRecord:
                raise
            except BaseException:
                stream.reconcile()
                raise
            finally:
                free[0] = None
                held = None  # noqa: F841 - for _is_inside
                if stream.deferred is not None:
                    self._close_deferred(stream)

    def _aside(self) -> Writer:
        """Return the writer for calls that interrupt another call of the same thread."""
        if self._side is None:
            o = self._opening
            side = Writer(
                o.folder, o.run, durability=o.durability, origin=o.origin, rank=o.rank, mapped=self._stream.mapped,
                on_record=self.on_record, check_name=self._check_name,
            )  # fmt: skip
            if self._side is None:  # it may be made twice, by a call that interrupts this one
                self._side = side
                side.record(Kind.ATTACH, {"reason": "re-entrant", "of": self.id_text, "rank": self.rank})
        return self._side

    def _current(self) -> Stream:
        """Return this process's stream."""
        stream = self._stream
        return stream if stream.page[0] == 1 else self._after_fork()

    def _after_fork(self) -> Stream:
        """In a forked child: leave the parent's stream alone (its files, turn and mapping) and begin a new one."""
        # a lock of this process's own, made in one step: any other may have been held when the fork came
        with self._restarts.setdefault(os.getpid(), threading.RLock()):
            old = self._stream
            if old.page[0] == 1:
                return old
            self._side = None
            self._stream = stream = Stream(self._opening, old.mapped, old.step, closed=old.closed)
            if not old.closed:
                self.record(Kind.ATTACH, {"reason": "fork", "of": ids.to_text(old.id), "rank": self.rank})
                if self._on_fork is not None:
                    self._on_fork(self)
            return stream

    # ------------------------------------------------------------------ upkeep

    def maintain(self) -> None:
        """fdatasync what is not yet durable (INTERVAL), prepare the next segment, seal old ones. Safe beside callers.

        An fdatasync that fails leaves the segment for good: what comes later goes to a new one.
        """
        stream = self._stream
        if stream.page[0] != 1 or stream.closed:
            return
        with contextlib.suppress(_OwnTurn, _TooLate), stream.upkeep:
            if stream.in_upkeep:  # a signal handler interrupted this very method
                return
            stream.in_upkeep = True
            try:
                if self.durability is Durability.INTERVAL and stream.dirty:
                    self._sync_beside(stream)
                if self._side is not None:
                    self._side.maintain()
                if stream.prepared is None and stream.now.pos > PREPARE_AT * segment.SEGMENT_MAX:
                    prepared = stream.prepare_next(stream.number + 1)
                    if prepared is not None:
                        self._alone(stream, stream.adopt, prepared)
                stream.seal_retired()
            finally:
                stream.in_upkeep = False

    def _sync_beside(self, stream: Stream) -> bool:
        """Make the current segment durable without keeping callers waiting; False when the disk refuses."""
        fd, number = self._alone(stream, stream.begin_sync)
        if fd < 0:
            return True
        try:
            sync_segment(fd, stream.folder, named=stream.named == number)
            stream.named = number
        except OSError as error:
            self._alone(stream, stream.give_up, number, error)
            return False
        finally:
            os.close(fd)
        return True

    def sync(self) -> bool:
        """Make everything recorded so far durable before returning; False when the disk refuses."""
        stream = self._stream
        if stream.page[0] != 1:
            return True
        try:
            with stream.upkeep:
                synced = self._sync_beside(stream)
                return stream.seal_retired() and synced
        except (_OwnTurn, _TooLate):
            return False

    def close(self, body: dict[str, Any] | None = None) -> bool:
        """Record the close, seal all segments durably, and let go of the files.

        False when the close record or a seal could not be written: what was recorded stays readable. Repeating is harmless,
        and tries again what was not sealed. A call that interrupts another call of the same thread takes effect when that one
        returns.
        """
        stream = self._current()
        if self._side is not None:
            self._side.close({"status": None, "reason": "re-entrant", "drops": {}})
        try:
            kept = self._alone(stream, self._finish, stream, body)
        except _OwnTurn:
            stream.deferred = (body,)
            return True
        except _TooLate:
            return False
        with stream.upkeep:
            sealed = stream.seal_retired()
        self._ring(0)
        return bool(kept and sealed)

    def _finish(self, stream: Stream, body: dict[str, Any] | None) -> bool:
        if stream.closed:
            return True
        kept = True
        if body is not None:
            try:
                kept = stream.put(Kind.CLOSE, records.encode({**body, "drops": self.drops}))
            except OSError as error:
                kept = stream.failed(error)
        stream.closed = True
        if stream.prepared is not None:
            prepared, stream.prepared = stream.prepared, None
            with contextlib.suppress(OSError):
                segment.discard(prepared)
        stream.retire()
        return kept

    def _close_deferred(self, stream: Stream) -> None:
        deferred, stream.deferred = stream.deferred, None
        if deferred is not None:
            self.close(deferred[0])


def _is_inside(stream: Stream, frame: FrameType | None) -> bool:
    """Say whether a call on this stack holds the stream's turn."""
    while frame is not None:
        if frame.f_code in _TAKERS and frame.f_locals.get("held") is stream:
            return True
        frame = frame.f_back
    return False


_TAKERS = frozenset({Writer.metrics.__code__, Writer._alone.__code__})  # noqa: SLF001 - own class


def _other_shape(
    stream: Stream, values: Any, seq: int, boot: int, step: Any, time: Any, timestamp: Any, kind: int
) -> bytes | None:
    """Return the frame for a shape that was used before in this segment, though not in the last call; None when there is none."""
    if type(values) is not dict:
        return None
    flags = (HAS_TIME if time is not None else 0) | (HAS_TIMESTAMP if timestamp is not None else 0)
    try:
        encode = stream.now.encoders.get((kind, flags, *values))
        used = stream.step if step is None else step
        if encode is None or used < 0:
            return None
        extra = () if time is None else (time,)
        if timestamp is not None:
            extra += (timestamp,)
        frame = encode(values, seq, boot, used, *extra)
    except (KeyError, TypeError, struct.error):
        return None
    if frame is not None and not flags and kind == Kind.METRICS:
        stream.now.encode = encode
    return frame


def _fits(plain: Mapping[str, Any], step: int | None, timestamp: int | str | None) -> bool:
    """Say whether plain numbers have a binary form."""
    size = 48 + 8 * len(plain)
    return (
        len(plain) <= MAX_COLUMNS
        and size <= frames.MAX_FRAME
        and sum(map(len, plain)) <= frames.MAX_FRAME // 8
        and all(type(v) is not int or -(1 << 63) <= v < 1 << 63 for v in plain.values())
        and (step is None or step < 1 << 63)
        and not isinstance(timestamp, str)
        and (timestamp is None or -(1 << 63) <= timestamp < 1 << 63)
    )
