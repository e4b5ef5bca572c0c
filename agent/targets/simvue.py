"""A Simvue server as a target: at least once, and in nearly all cases exactly once (docs/targets.md says when not)."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Any

from simspool.spool import runstate

from .http import FileBody
from .port import File, Limits, Memory, NotNow, Range, Recount, Refused, TooLarge, Traits, Unreachable, Verdict
from .settings import TargetSettings
from .simvue_api import Api, Rejected, RunThere
from .simvue_books import NAMES, RUN, Books
from .simvue_known import Never
from .simvue_run import SimvueRun
from .simvue_words import clean, name_there

_AT_ONCE = 8  # runs of one request
_RUNS = 1000  # that are remembered
_CATEGORIES = ("input", "output", "code")
_KEY, _NAME = "simspool.file", "simspool.name"  # in a file's metadata
_MOST_READ = 100_000  # points of a metric that a recount reads one by one
_NO_ROOM = 60.0  # seconds


class SimvueTarget:
    """Speaks Simvue's REST dialect. See Target."""

    def __init__(self, settings: TargetSettings, *, timeout: float = 60.0) -> None:
        self.url = settings.address
        self._api = Api(self.url, settings.token or "", settings.bandwidth, timeout, settings.way)
        self.traits = Traits("at-least-once", files_by_record=True, uploaders=settings.uploads or 6)
        self._runs: OrderedDict[str, SimvueRun] = OrderedDict()
        self._memory: Memory | None = None

    async def connect(self) -> tuple[str, Limits]:
        """See Target."""
        return await self._api.connect(), Limits()

    def bind(self, memory: Memory) -> None:
        """See Target."""
        self._memory = memory
        self._runs.clear()  # it may be another server, or one that was put back

    def _of(self, run: str) -> SimvueRun:
        assert self._memory is not None
        found = self._runs.pop(run, None) or SimvueRun(self._api, self._memory, run)
        self._runs[run] = found
        for old in list(self._runs)[: max(len(self._runs) - _RUNS, 0)]:
            if not self._runs[old].lock.locked():
                del self._runs[old]
        return found

    async def send(self, ranges: Sequence[Range]) -> list[Verdict]:
        """See Target."""
        by_run: dict[str, list[int]] = {}
        for i, sent in enumerate(ranges):
            by_run.setdefault(sent.run, []).append(i)
        verdicts: dict[int, Verdict] = {}
        room = asyncio.Semaphore(_AT_ONCE)

        async def one(run: str, mine: list[int]) -> None:
            async with room:
                verdicts.update(zip(mine, await self._of(run).deliver([ranges[i] for i in mine]), strict=True))

        await _each([one(run, mine) for run, mine in by_run.items()])
        return [verdicts[i] for i in range(len(ranges))]

    async def marks(self, writers: Sequence[tuple[str, str]]) -> dict[str, int]:
        """See Target: what each run's metadata say."""
        runs = dict.fromkeys(run for run, _ in writers)
        books: dict[str, Books] = {}
        room = asyncio.Semaphore(_AT_ONCE)

        async def one(run: str) -> None:
            async with room:
                found = await self._find(run)
                books[run] = Books() if found is None else Books.read(found.metadata, 0, 0)

        await _each([one(run) for run in runs])
        return {writer: books[run].mark(writer) for run, writer in writers}

    async def _find(self, run: str) -> RunThere | None:
        """Return a run as it is there now."""
        key = f"{run}/id"
        noted = (await self._memory.recall([key])).get(key) if self._memory is not None else None
        found = await self._api.run(noted) if noted else None
        return found if found is not None and found.metadata.get(RUN) == run else await self._api.find(run)

    # files
    async def missing(self, files: Sequence[File]) -> list[str]:
        """See Target: a file is there when the run has it, whole, with the record's key among its metadata."""
        by_run: dict[str, list[File]] = {}
        for file in files:
            by_run.setdefault(file.run, []).append(file)
        gone: list[str] = []
        room = asyncio.Semaphore(_AT_ONCE)

        async def one(run: str, mine: list[File]) -> None:
            async with room:
                known = self._of(run).known
                identity = known.id if known is not None else getattr(await self._find(run), "id", None)
                has = {_key(a): a for a in await self._api.artifacts(identity)} if identity else {}
                gone.extend(f.key for f in mine if f.key not in has or has[f.key].get("checksum") != f.digest)

        try:
            await _each([one(run, mine) for run, mine in by_run.items()])
        except Rejected as error:
            raise Unreachable(f"{self.url} does not list files: {error}") from None
        return gone

    async def put(self, file: File, path: str) -> str | None:
        """See Target."""
        category = file.category if file.category in _CATEGORIES else "output"
        metadata = {_KEY: file.key} | ({_NAME: clean(file.name)} if name_there(file.name) != file.name else {})
        with open(path, "rb") as source:  # noqa: ASYNC230 - blocks are read in a thread
            size = os.fstat(source.fileno()).st_size
            told = {
                "name": name_there(file.name), "size": size, "checksum": file.digest, "original_path": "",
                "mime_type": file.mime or "application/octet-stream", "metadata": metadata,
            }  # fmt: skip
            try:
                run = await self._of(file.run).ensure()
                made = await self._api.announce(told)
                identity, url = made["id"], made.get("url")
                if url:  # without, the server has these bytes
                    fields = made.get("fields")
                    form = fields if isinstance(fields, dict) else None
                    problem = await self._api.upload(str(url), form, FileBody(source, size), file.name)
                    if problem is not None:
                        return problem
                    await self._api.uploaded(identity)
                await self._api.attach(run, identity, category)
            except TooLarge:
                return f"the server's limit is below its {size} bytes"
            except Never as error:
                return str(error)
            except Refused as error:  # of this file alone: a connect says whether it is the token
                raise Unreachable(str(error)) from None
            except Rejected as error:
                if error.status == 404:
                    raise NotNow(f"{self.url} says 404 to file {file.name}: {error}", _NO_ROOM) from None
                return f"the server says {error.status}: {error}"
        return None

    # live runs
    async def heartbeat(self, runs: dict[str, float]) -> dict[str, dict[str, Any]]:
        """See Target. Runs that are not there yet, or have ended, get none."""
        flags: dict[str, dict[str, Any]] = {}
        room = asyncio.Semaphore(_AT_ONCE)

        async def one(run: str) -> None:
            async with room:
                flag = await self._beat(run)
                if flag is not None:
                    flags[run] = flag

        await _each([one(run) for run in runs])
        return flags

    async def _beat(self, run: str) -> dict[str, Any] | None:
        assert self._memory is not None
        state = await self._memory.run_state(run)
        if not state or runstate.ended(state):
            return None
        known = self._of(run).known
        noted = await self._memory.recall([f"{run}/id", f"{run}/abort"])
        identity = known.id if known is not None else noted.get(f"{run}/id")
        if not identity:
            return None
        try:
            up = await self._api.beat(identity)
        except Rejected:  # gone there: what is sent next makes it again
            return None
        before = noted.get(f"{run}/abort", "")
        if not up:
            if before:
                await self._memory.note({f"{run}/abort": ""})
            return None
        if not before:
            # the dialect does not say when, or whom it meant: those that were open when it was first seen, and no later ones
            writers = sorted(w for w, entry in state["writers"].items() if not runstate.is_ended(entry))
            before = json.dumps({"reason": f"aborted on {self.url}", "at": int(time.time() * 1e6), "writers": writers})
            await self._memory.note({f"{run}/abort": before})
        return dict(json.loads(before))

    async def recount(self, run: str) -> Recount | None:
        """See Target. Metrics of up to 100,000 points are read and counted, larger ones counted by the server."""
        found = await self._find(run)
        if found is None:
            return None
        metrics: dict[str, int] = {}
        first: dict[str, tuple[int, float]] = {}
        last: dict[str, tuple[int, float]] = {}
        try:
            for name, count in found.counts.items():
                metrics[name] = count
                if count > _MOST_READ:
                    continue
                points = await self._api.points(found.id, name)
                metrics[name] = len(points)
                steps = Counter(step for step, _ in points)
                for edge, step in ((first, min(steps, default=0)), (last, max(steps, default=0))):
                    if steps[step] == 1:  # of several, nothing says which came first
                        edge[name] = next(point for point in points if point[0] == step)
            events = await self._api.count_events(found.id, exact=True)
            files = {_name(a): str(a["checksum"]) for a in await self._api.artifacts(found.id) if a.get("uploaded") and "checksum" in a}
        except (Rejected, TooLarge) as error:
            raise Unreachable(f"{self.url} does not show all of run {run}: {error}") from None
        names = _names(found.metadata.get(NAMES))
        marks = {writer: mark for writer, (mark, _) in Books.read(found.metadata, 0, 0).marks.items()}
        return Recount(metrics, events, files, found.status, first, last, names, marks)

    async def close(self) -> None:
        """See Target."""
        await self._api.close()


def _key(artifact: Any) -> str | None:
    metadata = artifact.get("metadata")
    key = metadata.get(_KEY) if isinstance(metadata, dict) and artifact.get("uploaded") else None
    return key if isinstance(key, str) else None


def _name(artifact: Any) -> str:
    metadata = artifact.get("metadata")
    ours = metadata.get(_NAME) if isinstance(metadata, dict) else None
    return str(ours or artifact.get("name"))


def _names(text: Any) -> dict[str, str]:
    try:
        found = json.loads(str(text or "{}"))
    except (ValueError, RecursionError):
        return {}
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


async def _each(jobs: list[Any]) -> None:
    """Do all side by side. Raises the first error, when none is left running."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
