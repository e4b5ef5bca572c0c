"""A folder as a target: JSON lines or CSV for each run, and its files, to be read without simspool (docs/targets.md)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from simspool.spool import ids

from . import directory_tree as tree
from .directory_run import OWN, RunFiles
from .directory_threads import Threads
from .pace import Pace
from .port import File, Limits, Memory, Range, Recount, Refused, Traits, Unreachable, Verdict
from .settings import TargetSettings

T = TypeVar("T")

_TMP = (OWN, "tmp")
_ABANDONED = 86400.0  # seconds after which a copy that nobody finished is deleted
_AT_ONCE, _BLOCK = 4, 4 << 20
_REMEMBERED = 100  # runs
_REQUEST = 2 << 20  # bytes, twice what is sent at once: as lines in memory it is many times that
_NO_RIGHTS = frozenset({errno.EACCES, errno.EPERM})
# of one run's folder or file: somebody has put something else there
_IN_THE_WAY = frozenset({errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, *_NO_RIGHTS})
README = """\
Runs, as simspool recorded them. Nothing but a text editor is needed to read them.

Each run has a folder, <folder of the run>/<name of the run>:
  run.json         its name, status, times, tags, metadata, alerts
  metrics.jsonl    one line a log call: step, time (s since the run's start), timestamp (UTC), values; or
  metrics.csv      one line a value: step, time, timestamp, metric, value
  events.jsonl     what the run said
  records.jsonl    all else that was recorded (metadata, statuses, alerts, processes; a "gap" names records that are lost)
  artifacts/       its files, by category; artifacts.jsonl lists them with their names as given, and SHA-256

"writer" and "seq" name a record: a process's opening of the run, and a number. JSON has no NaN and no infinity: here they
are "NaN", "Infinity" and "-Infinity". While a run is being written, the last line of a file may be incomplete.
The folder .simspool says how much of each file counts: leave it, and copy or move the whole folder with it.
"""


class DirectoryTarget:
    """Writes below one folder. The effect is exactly-once (see directory_run); several agents may write different runs, or the same ones.

    The folder must be there: one that is missing is a disk that is not mounted. `limit` is how long (s) the disk may take for one step.
    """

    def __init__(self, settings: TargetSettings, *, limit: float = 60.0) -> None:
        self.url = settings.address
        self.traits = Traits(files_by_record=True, uploaders=settings.uploads or _AT_ONCE)
        self._root = os.path.abspath(settings.url)
        self._form = str(settings.options.get("format", "jsonl"))
        if self._form not in {"jsonl", "csv"}:
            raise Refused(f"target {settings.name}: format {self._form!r} is not jsonl or csv")
        self._threads = Threads(self._root, limit)
        self._pace = Pace(settings.bandwidth) if settings.bandwidth else None
        self._some = asyncio.Semaphore(_AT_ONCE)
        self._memory: Memory | None = None
        self._runs: dict[str, RunFiles] = {}
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def connect(self) -> tuple[str, Limits]:
        """See Target."""
        try:
            return await self._threads.call(self._open), Limits(decoded=_REQUEST)
        except FileNotFoundError:
            raise Unreachable(f"the folder {self._root} is not there: is its disk mounted? (make the folder if it is a new one)") from None
        except NotADirectoryError:
            raise Refused(f"{self._root} is not a folder") from None
        except OSError as error:
            raise self._failed(error) from None

    def _open(self) -> str:
        with tree.folder(self._root, _TMP, make=True) as at:
            tree.put(at, "writable", b"")  # a folder that cannot be written is known before anything is sent
            with contextlib.suppress(OSError):
                _tidy(at)
        with tree.folder(self._root, [OWN]) as at:
            made = {"id": f"directory-{ids.to_text(ids.new_id())}", "version": 1}
            if tree.size(at, "target.json") is None:
                tree.put(at, "target.json", tree.as_json(made), exclusive=True)
            found = tree.read_json(at, "target.json")
        if not isinstance(found, dict) or not isinstance(found.get("id"), str) or not 0 < len(found["id"]) <= 100:
            raise Refused(f"{self._root}/{OWN}/target.json is damaged: restore it from a copy, or move the whole folder away")
        if found.get("version") != 1:
            raise Refused(f"{self._root} was made by a newer simspool: upgrade this one")
        with tree.folder(self._root) as at:
            if tree.size(at, "README.txt") is None:
                tree.put(at, "README.txt", README.encode(), exclusive=True)
        return str(found["id"])

    def _failed(self, error: OSError) -> Exception:
        if error.errno in _NO_RIGHTS:
            return Refused(f"{self._root} may not be written: {error.strerror}: give this user the right to")
        return Unreachable(f"{self._root}: {error.strerror or error}")

    def bind(self, memory: Memory) -> None:
        """See Target."""
        self._memory = memory

    def _run(self, run: str) -> RunFiles:
        """Return a run's files; those that were wanted last are remembered."""
        found = self._runs.pop(run, None) or RunFiles(self._root, run, self._form)
        self._runs[run] = found
        if len(self._runs) > _REMEMBERED:
            del self._runs[next(iter(self._runs))]
        return found

    async def _state(self, run: str) -> dict[str, Any]:
        return await self._memory.run_state(run) if self._memory is not None else {}

    # ------------------------------------------------------------------ records

    async def send(self, ranges: Sequence[Range]) -> list[Verdict]:
        """See Target."""
        if self._pace is not None:
            await self._pace.take(sum(len(r.data) for r in ranges))
        runs: dict[str, list[int]] = {}
        for i, one in enumerate(ranges):
            runs.setdefault(one.run, []).append(i)
        verdicts: dict[int, Verdict] = {}

        async def store(run: str, places: list[int]) -> None:
            async with self._some:
                found = await self._store(run, [ranges[i] for i in places])
            verdicts.update(zip(places, found, strict=True))

        async with asyncio.TaskGroup() as group:
            for run, places in runs.items():
                group.create_task(store(run, places))
        return [verdicts[i] for i in range(len(ranges))]

    async def _store(self, run: str, ranges: list[Range]) -> list[Verdict]:
        turn = self._turns.setdefault(run, asyncio.Lock())
        try:
            async with turn:
                await self._threads.settled(run)
                state = await self._state(run)  # in turn: an older state must not come last
                return await self._threads.call(self._run(run).store, ranges, state, key=run)
        except OSError as error:
            if error.errno in _IN_THE_WAY:
                why = f"the run's files in {self._root} cannot be written: {error.filename or run}: {error.strerror}"
                return [Verdict("permanent", reason=why) for _ in ranges]
            return [Verdict("unsent", reason=f"{self._root}: {error.strerror or error}") for _ in ranges]
        except Unreachable as error:
            return [Verdict("unsent", reason=str(error), after=error.after) for _ in ranges]

    async def marks(self, writers: Sequence[tuple[str, str]]) -> dict[str, int] | None:
        """See Target."""
        runs = {run: self._run(run) for run, _ in writers}

        def look() -> dict[str, int]:
            marks = {run: _or_nothing(files.marks, dict[str, int]()) for run, files in runs.items()}
            return {writer: marks[run].get(writer, 0) for run, writer in writers}

        return await self._ask(look)

    async def _ask(self, look: Callable[[], T]) -> T:
        try:
            return await self._threads.call(look)
        except OSError as error:
            raise self._failed(error) from None

    # ------------------------------------------------------------------ files

    async def missing(self, files: Sequence[File]) -> list[str]:
        """See Target."""
        runs: dict[str, list[File]] = {}
        for file in files:
            runs.setdefault(file.run, []).append(file)
        asked = [(self._run(run), some) for run, some in runs.items()]

        def look() -> list[str]:
            return [key for run, some in asked for key in _or_nothing(functools.partial(run.lacks, some), [f.key for f in some])]

        return await self._ask(look)

    async def put(self, file: File, path: str) -> str | None:
        """See Target. The bytes are copied, or linked from a file of the same run that has them; synced, compared, then named."""
        temporary = (*_TMP, ids.to_text(ids.new_id()))
        run = self._run(file.run)
        try:
            if not await self._threads.call(run.link_twin, file.digest, temporary):
                reason = await self._copy(file, path, temporary)
                if reason is not None:
                    return reason
            state = await self._state(file.run)
            await self._threads.call(run.adopt, file, temporary, state)
        except OSError as error:
            if error.errno in _IN_THE_WAY:
                return f"it cannot be put into {self._root}: {error.filename or file.name}: {error.strerror}"
            raise self._failed(error) from None
        finally:
            with contextlib.suppress(OSError, Unreachable):
                await self._threads.call(_discard, self._root, temporary)
        return None

    async def _copy(self, file: File, path: str, temporary: Sequence[str]) -> str | None:
        """Copy a file's bytes and sync them; return why they cannot be read, or are others."""
        copy = _Copy(self._root, path, temporary)
        try:
            await self._threads.call(copy.open)
            block = self._pace.block(_BLOCK) if self._pace is not None else _BLOCK
            while await self._threads.call(copy.block, block):
                if self._pace is not None:
                    await self._pace.take(block, bulk=True)
            if await self._threads.call(copy.finish) != file.digest:
                return "422: its bytes are others than its digest says"
        except _SourceError as error:
            return f"it cannot be read: {error}"
        finally:
            with contextlib.suppress(Unreachable):  # a disk that hangs keeps the descriptors
                await self._threads.call(copy.close)
        return None

    # ------------------------------------------------------------------ the rest

    async def heartbeat(self, runs: dict[str, float]) -> dict[str, dict[str, Any]]:
        """See Target. Nobody watches a folder, and it asks for no aborts."""
        return {}

    async def recount(self, run: str) -> Recount | None:
        """See Target. Reads every file of the run again."""

        files = self._run(run)

        def look() -> Recount | None:
            try:
                return files.recount()
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise Unreachable(f"the files of run {run} in {self._root} are not as they were written: {error}") from None

        return await self._ask(look)

    async def close(self) -> None:
        """See Target."""
        await self._threads.finish()


def _or_nothing(look: Callable[[], T], nothing: T) -> T:
    """Look into one run's folder; where something else is in its place, nothing of it is there. Raises the disk's own errors."""
    try:
        return look()
    except OSError as error:
        if error.errno not in _IN_THE_WAY:
            raise
        return nothing


class _SourceError(Exception):
    """Raised when the spool's own file cannot be read."""


class _Copy:
    """One file on its way. Each step is a call in a thread; one that nobody waits for any more holds up the next."""

    def __init__(self, root: str, path: str, temporary: Sequence[str]) -> None:
        self._root, self._path, self._temporary = root, path, temporary
        self._source = self._to = -1
        self._sum = hashlib.sha256()
        self._turn = threading.Lock()

    def open(self) -> None:
        with self._turn:
            try:
                self._source = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise _SourceError(error.strerror) from None
            self._to = tree.create(self._root, self._temporary)

    def block(self, size: int) -> int:
        """Copy so many bytes; return how many there were."""
        with self._turn:
            try:
                data = os.read(self._source, size)
            except OSError as error:
                raise _SourceError(error.strerror) from None
            self._sum.update(data)
            view = memoryview(data)
            while view:
                view = view[os.write(self._to, view) :]
            return len(data)

    def finish(self) -> str:
        """Sync; return the SHA-256 hex of what was written."""
        with self._turn:
            tree.sync(self._to)
            return self._sum.hexdigest()

    def close(self) -> None:
        with self._turn:
            for fd in (self._source, self._to):
                if fd >= 0:
                    os.close(fd)
            self._source = self._to = -1


def _discard(root: str, temporary: Sequence[str]) -> None:
    with tree.folder(root, temporary[:-1]) as at:
        tree.discard(at, temporary[-1])


def _tidy(at: int) -> None:
    for entry in os.scandir(at):
        if entry.name != "writable" and time.time() - entry.stat(follow_symlinks=False).st_mtime > _ABANDONED:
            tree.discard(at, entry.name)
