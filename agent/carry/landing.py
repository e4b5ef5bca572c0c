"""One segment's file in the far spool: what comes is compared with what is here, verified, appended, made durable, and sealed.

The file here always is a prefix of the origin's. Bytes that were once noted as durable never change; behind them, zeros at the end may be
what a power cut left of bytes that were on their way, and are written again.
"""

from __future__ import annotations

import hashlib
import os

from simspool.spool import DamagedSegment, NewerFormat, SpoolError, atomic, ids, layout, segment_header
from simspool.spool.frames import MAX_FRAME
from simspool.spool.ids import is_digest
from simspool.spool.salvage import open_regular
from simspool.spool.segment import SEGMENT_MAX
from simspool.spool.segment_header import STATIC_SIZE, SegmentHeader
from simspool.spool.stream import sync_segment

from .parts import HEAD, NotTaken, SegmentPart

LIMIT = SEGMENT_MAX + 4 * MAX_FRAME
"""Bytes of the largest segment that is carried: the rotation's bound, a frame and a seal more, and what a killed writer had allocated."""
EMPTY = hashlib.sha256().hexdigest()


def check_part(part: SegmentPart, frames: bytes) -> None:
    """Raise NotTaken for a part that contradicts itself: bounds, digests' form, or a head of another run, writer or number."""
    what = f"segment {part.number} of writer {part.writer}"
    numbers = (part.number, part.start, part.end, part.previous, part.previous_end)
    if not all(type(n) is int for n in numbers) or not 0 < part.number < 1 << 32 or not HEAD <= part.start <= part.end <= LIMIT:
        raise NotTaken(f"{what}: its bounds are impossible ({part.start} to {part.end})")
    if len(part.head) != HEAD or len(frames) != part.end - part.start or not (is_digest(part.before) and is_digest(part.after)):
        raise NotTaken(f"{what}: its parts do not fit each other")
    if not -1 <= part.previous < part.number:
        raise NotTaken(f"{what}: it cannot come behind segment {part.previous}")
    try:
        header = SegmentHeader.unpack(part.head[:STATIC_SIZE])
    except NewerFormat as error:
        raise NotTaken(f"{what}: {error}") from None
    except DamagedSegment:
        return  # it is so in the origin: the frames' checksums are seeded with the ids all the same
    if (header.run_text, header.writer_text, header.number) != (part.run, part.writer, part.number):
        raise NotTaken(f"{what}: it is segment {header.number} of writer {header.writer_text} of run {header.run_text}")


def land(folder: str, part: SegmentPart, frames: bytes, noted: int) -> bool:
    """Put a part (see `check_part`) into the writer's folder; True when something of it was new. It is durable then.

    `noted` is how many bytes of this segment are known to be durable. Raises NotTaken, with nothing changed, and OSError.
    """
    opened = _open(folder, part.number)
    if opened is None:
        _begin(folder, part, frames)
        return True
    fd, is_sealed = opened
    try:
        return _extend(folder, fd, part, frames, noted, is_sealed=is_sealed)
    finally:
        os.close(fd)


def _open(folder: str, number: int) -> tuple[int, bool] | None:
    for suffix in ("seg", "open"):
        path = layout.segment_path(folder, number, suffix)
        try:
            os.close(open_regular(path))
            return os.open(path, (os.O_RDONLY if suffix == "seg" else os.O_RDWR) | os.O_CLOEXEC | os.O_NOFOLLOW), suffix == "seg"
        except FileNotFoundError:
            continue
        except SpoolError as error:
            raise NotTaken(str(error)) from None
    return None


def _begin(folder: str, part: SegmentPart, frames: bytes) -> None:
    """Make the file: whole, verified and durable before it has its name (W4, W5)."""
    what = f"segment {part.number} of writer {part.writer}"
    _check_place(folder, part)
    if part.before != EMPTY or hashlib.sha256(frames).hexdigest() != part.after:
        raise NotTaken(f"{what}: its bytes do not have their digest: carry it again")
    path = layout.segment_path(folder, part.number, "1.next")
    atomic.remove(path)  # a kill may have left it
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            write_at(fd, part.head, 0)
            write_at(fd, frames, HEAD)
            sync_segment(fd, folder, named=True)
        finally:
            os.close(fd)
        atomic.rename(path, layout.segment_path(folder, part.number, "seg" if part.sealed else "open"))
    except BaseException:
        atomic.remove(path)
        raise


def _check_place(folder: str, part: SegmentPart) -> None:
    """A segment begins only behind the one that comes before it in the origin, of which all must be here."""
    what = f"segment {part.number} of writer {part.writer}"
    here = {s.number: s for s in layout.segments(folder)}
    if part.start != HEAD:
        raise NotTaken(f"{what}: it begins at byte {part.start}, and nothing of it is here: carry what comes before it first")
    if here and max(here) > part.number:
        raise NotTaken(f"{what}: the origin did without it when it carried what comes behind it")
    previous = part.number - 1 if part.previous < 0 else part.previous
    if not previous:
        return
    before = here.get(previous)
    if before is None or not (before.sealed or os.stat(before.path).st_size == part.previous_end):
        raise NotTaken(f"{what}: segment {previous} before it is not here, or not whole: carry that first")


def _extend(folder: str, fd: int, part: SegmentPart, frames: bytes, noted: int, *, is_sealed: bool) -> bool:
    size = os.fstat(fd).st_size
    at = _compare(fd, part, frames, size, noted, is_sealed=is_sealed)
    what = f"segment {part.number} of writer {part.writer}"
    if is_sealed:
        if size < part.end or (part.sealed and size != part.end):
            raise NotTaken(f"{what}: it is sealed here with {size} bytes, and has {part.end} in the origin: one of the spools was altered")
        sync_segment(fd, folder, named=False)
        return False
    if part.sealed and size > part.end and (part.end < noted or not _is_zero(fd, part.end, size)):
        raise NotTaken(f"{what}: it has {size} bytes here, and ends at {part.end} in the origin: one of the spools was altered")
    changed = at < part.end
    if changed:
        write_at(fd, frames[at - part.start :], at)
    if part.sealed and size > part.end:
        os.ftruncate(fd, part.end)
    if part.end >= size and (counters := _newer_counters(os.pread(fd, HEAD, 0), part)):
        write_at(fd, counters, STATIC_SIZE)
        changed = True
    sync_segment(fd, folder, named=False)  # also what was here: whoever brought it may have been killed before it was durable
    if part.sealed:
        atomic.rename(layout.segment_path(folder, part.number, "open"), layout.segment_path(folder, part.number, "seg"))
    return changed or part.sealed


def _compare(fd: int, part: SegmentPart, frames: bytes, size: int, noted: int, *, is_sealed: bool) -> int:
    """Return from which byte on the part is to be written. Raises NotTaken where it does not continue what is here."""
    what = f"segment {part.number} of writer {part.writer}"
    if os.pread(fd, STATIC_SIZE, 0) != part.head[:STATIC_SIZE]:
        raise NotTaken(f"{what}: another one of this number is here: one of the spools was altered, or copied and written on")
    if part.start > size:
        raise NotTaken(f"{what}: it goes on at byte {part.start}, and {size} are here: carry what is between first")
    found = hashlib.sha256(read_at(fd, HEAD, part.start))
    if found.hexdigest() != part.before:
        raise NotTaken(f"{what}: its bytes up to {part.start} are others here than in the origin: carry it in full (--full)")
    found.update(frames)
    if found.hexdigest() != part.after:
        raise NotTaken(f"{what}: its bytes do not have their digest: carry it again")
    upto = min(part.end, size)
    here = read_at(fd, part.start, upto)
    if here == frames[: upto - part.start]:
        return upto
    at = part.start + next(i for i, (one, other) in enumerate(zip(here, frames, strict=False)) if one != other)
    if is_sealed or at < noted or not _is_zero(fd, at, size):
        raise NotTaken(f"{what}: its bytes from {at} on are others here: one of the spools was altered, or copied and written on")
    return at


def _newer_counters(here: bytes, part: SegmentPart) -> bytes:
    """Return what lies behind the static part of the origin's head, where its drop counters are ahead of those here; else nothing."""
    seed = segment_header.seed(ids.from_text(part.writer), part.number)
    ours, theirs = (segment_header.read_drops(head, seed)[0] for head in (here, part.head))
    ahead = here[STATIC_SIZE:] != part.head[STATIC_SIZE:] and all(theirs.get(reason, 0) >= n for reason, n in ours.items())
    return part.head[STATIC_SIZE:] if ahead else b""


def _is_zero(fd: int, start: int, end: int) -> bool:
    return not any(read_at(fd, start, end))


def read_at(fd: int, start: int, end: int) -> bytes:
    """Return a file's bytes from `start` to `end`, as many as there are."""
    parts = []
    while start < end and (data := os.pread(fd, min(end - start, 1 << 20), start)):
        parts.append(data)
        start += len(data)
    return b"".join(parts)


def write_at(fd: int, data: bytes, at: int) -> None:
    """Write all of `data` at a place of a file. Raises OSError."""
    view = memoryview(data)
    while view:
        n = os.pwrite(fd, view, at)
        view, at = view[n:], at + n
