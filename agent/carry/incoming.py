"""Putting what another spool recorded into this one: verified first, then durable, then noted (FORMAT.md section 13)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Self

from simspool.spool import DamagedBlob, Locked, RunFolder, Spool, atomic, blobs, ids, layout, shed
from simspool.spool.direct_io import DirectIO
from simspool.spool.ids import is_digest
from simspool.spool.stream import sync_segment

from . import carried
from .aside import Aside, HashAside
from .carried import Carried
from .landing import check_part, land, read_at
from .parts import HEAD, BlobPart, NotTaken, Position, RunPart, SegmentPart

_INFO = 1 << 20  # bytes of a run.json, as readers bound it
_SHED = 1 << 26
_LARGE = 8 << 20  # bytes of a file whose fsync is worth a thread


@dataclass(slots=True)
class _Run:
    """A run that was begun here. `made`: its folder is there. `seen`: how far its writers were found, or brought, since; durable."""

    folder: RunFolder
    part: RunPart
    pruned: Mapping[str, int] | None
    made: bool = False
    noted: Carried = field(default_factory=lambda: Carried("", ""))
    seen: dict[str, Position] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)


class Incoming:
    """Puts runs of one origin spool (its id) into a spool. Confined to one thread; works beside a running agent. A context manager.

    For each run: `begin_run`, its blobs, its segments (each writer's in order), `end_run`. Everything may be repeated, in part and in
    another order of carries, and killed anywhere: what is here is always a prefix of what the origin has. `pruned` returns, for a run that
    this spool had, delivered and pruned, its writers' last sequences: nothing of these writers is put back. Raises Locked where another
    process carries into the spool just now, NotTaken for what is refused (nothing of that is visible), OSError where the disk refuses.
    """

    def __init__(
        self, spool: Spool, origin: str, *, via: str, pruned: Callable[[str], Mapping[str, int] | None] = lambda run: None
    ) -> None:
        if not isinstance(origin, str) or not ids.is_id(origin):
            raise NotTaken(f"{origin!r} is no spool's id: this was not made by simspool")
        if origin == spool.id:
            raise NotTaken(f"this was recorded in this very spool ({origin}): carry it to another one")
        self._spool, self._origin, self._via, self._pruned = spool, origin, via, pruned
        self._runs: dict[str, _Run] = {}
        self._awaited: dict[str, dict[str, int]] = {}  # run that is not begun yet -> blobs that came for it
        self._verified: dict[str, str] = {}  # digest -> where its bytes lie, read and found right
        self._under_way: set[str] = set()  # digests that may not be durable yet
        self._homes: dict[str, tuple[str, str]] | None = None
        self._known_runs = {run.casefold(): run for run in spool.run_ids()}
        self._fd = _lock(os.path.join(spool.agent, "carry.lock"))
        self._direct, self._hashing, self._finishing = DirectIO(), Aside("hash"), Aside("finish", ahead=1)

    def close(self) -> None:
        """Let others in. Repeating is harmless."""
        self._finishing.close()
        self._hashing.close()
        self._direct.close()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # ------------------------------------------------------------------ runs

    def check_run(self, part: RunPart) -> None:
        """Raise NotTaken where this run cannot be put here: an id that is none, what lies beside its records, or another one is here."""
        run = part.run
        _check_id(run, "run")
        if self._known_runs.get(run.casefold(), run) != run:
            raise NotTaken(f"run {run}: run {self._known_runs[run.casefold()]} is here, which differs in letters' case only")
        what = f"run {run}"
        _check_table(part.info, _INFO, f"{what}: its run.json")
        if part.info.get("id", run) != run:
            raise NotTaken(f"{what}: its run.json is that of run {part.info['id']!r}")
        if part.shed is not None:
            _check_table(part.shed, _SHED, f"{what}: its shed.json")
            _shed_of(part)
        if not isinstance(part.final, Mapping):
            raise NotTaken(f"{what}: what it says of its writers is not understood")
        for writer, end in part.final.items():
            _check_id(writer, "writer")
            if not isinstance(end, (tuple, list)) or len(end) != 2 or not all(type(n) is int for n in end):
                raise NotTaken(f"{what}: the end of writer {writer} is not understood")
        folder = self._spool.run(run)
        if os.path.islink(folder.path):
            raise NotTaken(f"{what}: {folder.path} is a link: move it out of the spool")
        known = carried.read(folder)
        if known is None and _has_something(folder.path):
            raise NotTaken(f"{what} was recorded in this spool: what was carried does not take its place")
        if known is not None and known.origin != self._origin:
            where = f"from the spool {known.origin}" if known.origin else f"and its {layout.CARRIED} is damaged: restore it from a copy"
            raise NotTaken(f"{what} is here already, {where}: this carries it from the spool {self._origin}")

    def begin_run(self, part: RunPart) -> None:
        """Make the run's folder and what lies beside its records. A run that was pruned here comes back only with a writer that is new."""
        self._finishing.wait()
        self.check_run(part)
        run = self._runs[part.run] = _Run(self._spool.run(part.run), part, self._pruned(part.run))
        self._known_runs[part.run.casefold()] = part.run
        if run.pruned is None or os.path.isdir(run.folder.path):
            self._make(run)
        for digest, size in self._awaited.pop(part.run, {}).items():
            self._link(run, digest, size, self._verified[digest])

    def _make(self, run: _Run) -> None:
        """The folder says that it is foreign before it has anything that an agent looks at."""
        if run.made:
            return
        folder, part = run.folder, run.part
        atomic.make_folder(folder.path)
        known = carried.read(folder)
        if known is None:
            known = Carried(self._origin, self._via)
            carried.note(folder, known, time.time())
        run.noted = known
        info = os.path.join(folder.path, "run.json")
        if part.info and not os.path.exists(info):
            atomic.write_json(info, dict(part.info), exclusive=True)
        if part.shed is not None:
            spans, files = _shed_of(part)
            here = {w: set(shed.segments(folder.path, w)) for w in spans}
            if not all(set(s) <= here[w] for w, s in spans.items()) or not files.keys() <= shed.files(folder.path):
                shed.note(folder.path, spans, files)
        run.made = True

    def end_run(self, part: RunPart) -> None:
        """Note durably what of the run is here now, and which writers are here to their ends."""
        self._finishing.wait()
        run = self._begun(part.run)
        if not run.made:
            return
        writers = dict(run.noted.writers)
        for writer, position in run.seen.items():
            before = writers.get(writer)
            if before is None or (before.segment, before.offset) <= (position.segment, position.offset):
                writers[writer] = Position(position.segment, position.offset, position.after, before is not None and before.final)
        for writer, end in part.final.items():
            position = writers.get(writer, Position(0, 0, ""))
            if (position.segment, position.offset) == tuple(end):
                writers[writer] = Position(position.segment, position.offset, position.after, final=True)
        now = Carried(self._origin, run.noted.via or self._via, writers, {**run.noted.files, **run.files})
        if now != run.noted:
            if not os.path.isdir(run.folder.path):
                raise _gone(part.run)
            carried.note(run.folder, now, time.time())
            run.noted = now

    def _begun(self, run: str) -> _Run:
        found = self._runs.get(run)
        if found is None:
            raise NotTaken(f"a part of run {run!r} came without the run: carry it again")
        return found

    # ------------------------------------------------------------------ blobs

    def known_blob(self, digest: str) -> bool:
        """Say whether a blob's bytes are in the spool's pool, or came with this carry, whole and right. Reads them the first time."""
        return is_digest(digest) and self._find(digest, ()) is not None

    def blob(self, part: BlobPart, chunks: Iterable[bytes]) -> bool:
        """Put a blob into the runs that have it; True when its bytes were new. `chunks` are not read where they are here already.

        Runs that are not begun yet get it when they are. Raises NotTaken for other bytes than part's digest and size say.
        """
        digest = part.digest
        if not is_digest(digest) or type(part.size) is not int or part.size < 0 or not part.runs:
            raise NotTaken(f"file {digest!r}: what is said of it is not understood")
        for run in part.runs:
            _check_id(run, "run")
        runs = [self._runs[run] for run in part.runs if run in self._runs]
        if not runs:
            self._begun(part.runs[0])
        runs = [run for run in runs if run.made]  # of one that was pruned, nothing is put back
        source = self._find(digest, runs)
        if source is not None and os.stat(source).st_size != part.size:
            raise NotTaken(f"file {digest}: it has {os.stat(source).st_size} bytes, and not {part.size}")
        is_new = source is None and bool(runs)
        if is_new:
            self._take(runs, part, chunks)
        elif source is None:
            return False
        else:
            self._link_all(runs, part, source)
        for run in part.runs:
            if run not in self._runs:
                self._awaited.setdefault(run, {})[digest] = part.size
        return is_new

    def _take(self, runs: list[_Run], part: BlobPart, chunks: Iterable[bytes]) -> None:
        """Write a blob that is new; it becomes durable beside what comes next, which waits for it where it must."""
        first = runs[0].folder
        _make_inside(first, first.blobs)
        try:
            open_sink = partial(self._direct.sink, size=part.size)
            finish = blobs.land_carried(self._spool, first, part.digest, part.size, chunks, HashAside(self._hashing), open_sink)
        except DamagedBlob as error:
            raise NotTaken(f"{error}: carry it again") from None

        def end() -> None:
            finish()
            source = self._verified[part.digest] = os.path.join(first.blobs, part.digest)
            self._link_all(runs, part, source)

        if part.size < _LARGE:
            end()
            return
        self._under_way.add(part.digest)
        self._finishing.do(end)

    def _link_all(self, runs: Iterable[_Run], part: BlobPart, source: str) -> None:
        for run in runs:
            self._link(run, part.digest, part.size, source)

    def _find(self, digest: str, runs: Collection[_Run]) -> str | None:
        """Return where a blob's bytes lie that are right."""
        if digest in self._under_way:
            self._finishing.wait()
            self._under_way.clear()
        known = self._verified.get(digest)
        if known is not None and os.path.exists(known):
            return known
        for path in (self._spool.pool_path(digest), *(os.path.join(run.folder.blobs, digest) for run in runs)):
            with contextlib.suppress(OSError, DamagedBlob):
                blobs.verify(path, digest)
                self._verified[digest] = path
                return path
        return None

    def _link(self, run: _Run, digest: str, size: int, source: str) -> None:
        if not run.made:
            return
        _make_inside(run.folder, run.folder.blobs)
        blobs.link_carried(self._spool, run.folder, digest, size, source)
        run.files[digest] = size

    # ------------------------------------------------------------------ segments

    def segment(self, part: SegmentPart, frames: bytes) -> bool:
        """Put a part of a segment here; True when something of it was new. It is durable then.

        Raises NotTaken for what is damaged on its way, does not continue what is here, or is not of the run, writer and number it says.
        """
        self._finishing.wait()
        run = self._begun(part.run)
        _check_id(part.writer, "writer")
        check_part(part, frames)
        if run.pruned is not None and part.writer in run.pruned:
            return False
        self._check_home(part)
        self._make(run)
        folder = run.folder.writer(part.writer)
        _make_inside(run.folder, folder)
        noted = run.noted.writers.get(part.writer)
        is_durable = 0 if noted is None or noted.segment < part.number else noted.offset if noted.segment == part.number else 1 << 62
        try:
            changed = land(folder, part, frames, is_durable)
        except FileNotFoundError:
            raise _gone(part.run) from None
        self._see(run, part, folder)
        return changed

    def _check_home(self, part: SegmentPart) -> None:
        """A writer's id is its own in all runs: one that is in another run here already was made up, or copied."""
        if self._homes is None:
            self._homes = {
                writer.casefold(): (writer, run) for run in self._spool.run_ids() for writer in self._spool.run(run).writer_ids()
            }
        writer, run = self._homes.setdefault(part.writer.casefold(), (part.writer, part.run))
        if (writer, run) != (part.writer, part.run):
            raise NotTaken(f"writer {part.writer} of run {part.run}: writer {writer} of run {run} is here: one of them was made up")

    @staticmethod
    def _see(run: _Run, part: SegmentPart, folder: str) -> None:
        """Remember how far the writer is here, by its last segment."""
        last = layout.segments(folder)[-1]
        size = os.stat(last.path).st_size
        after = part.after
        if (part.number, part.end) != (last.number, size):
            known = run.seen.get(part.writer)
            if known is not None and (known.segment, known.offset) == (last.number, size):
                return
            fd = os.open(last.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                sync_segment(fd, folder, named=False)  # whoever brought it may have been killed before it was durable
                after = hashlib.sha256(read_at(fd, HEAD, size)).hexdigest()
            finally:
                os.close(fd)
        run.seen[part.writer] = Position(last.number, size, after)


def _lock(path: str) -> int:
    atomic.make_folder(os.path.dirname(path))
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
            raise Locked(f"another process carries runs into this spool just now ({path} is locked): try again when it has ended") from None
        raise
    return fd


def _check_id(text: object, what: str) -> None:
    if not isinstance(text, str) or not ids.is_id(text):
        raise NotTaken(f"{text!r} is no {what}'s id: this was not made by simspool")


def _check_table(value: object, limit: int, what: str) -> None:
    try:
        size = len(json.dumps(value, allow_nan=False)) if isinstance(value, dict) else limit + 1
    except (ValueError, TypeError, RecursionError):
        size = limit + 1
    if size > limit:
        raise NotTaken(f"{what} is not understood, or over {limit} bytes")


def _shed_of(part: RunPart) -> tuple[dict[str, list[tuple[int, int, int]]], dict[str, int]]:
    """Return what a run's shed.json names: spans by writer, and sizes of files. Raises NotTaken where it is not understood."""
    body: Mapping[str, Any] = part.shed or {}
    spans, files = body.get("segments") or {}, body.get("blobs") or {}
    try:
        found = {w: [(int(n), int(first), int(last)) for n, first, last in listed] for w, listed in spans.items() if ids.is_id(w)}
        return found, {digest: int(size) for digest, size in files.items() if is_digest(digest)}
    except (TypeError, ValueError, AttributeError, OverflowError):
        raise NotTaken(f"run {part.run}: its shed.json is not understood") from None


def _has_something(path: str) -> bool:
    try:
        return any(not name.startswith((".", layout.CARRIED)) for name in os.listdir(path))
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        return True


def _make_inside(run: RunFolder, path: str) -> None:
    """Make a folder inside a run's, and none above it: a run that is pruned in this moment must not come back as one without its origin."""
    try:
        if path.startswith(run.writers + os.sep) and not os.path.isdir(run.writers):
            _make_one(run.writers)
        if not os.path.isdir(path):
            _make_one(path)
    except FileNotFoundError:
        raise _gone(run.id) from None


def _make_one(path: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
        os.chmod(path, 0o700)  # the umask is the user's; the spool's modes are ours
        atomic.sync_folder(os.path.dirname(path))


def _gone(run: str) -> NotTaken:
    return NotTaken(f"run {run} was pruned or deleted in this moment: carry it again")
