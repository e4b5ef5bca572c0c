"""An MLflow tracking server as a target: idempotent, since MLflow keeps equal points once (docs/targets.md says what is changed for it)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

from .mlflow_api import Api, Rejected, RunThere
from .mlflow_files import Files
from .mlflow_runs import Entry, Runs
from .mlflow_sending import Sender
from .mlflow_state import NAME, status_here
from .mlflow_words import RECORDS, resource_here
from .port import File, Limits, Memory, Range, Recount, Traits, Unreachable, Verdict
from .settings import TargetSettings

EXPERIMENT = "simspool"  # where the settings name none
_RUNS_AT_ONCE = 8
_REQUEST = 1 << 20  # bytes of ranges: MLflow takes some 100 to 2,000 points a second, and a repeated range is to be a small one
_DEEPEST = 12  # folders of artifacts

T = TypeVar("T")
U = TypeVar("U")


class MLflowTarget:
    """Speaks MLflow's REST API, to one experiment of one server. A run is found by its tag `simspool.run`."""

    def __init__(self, settings: TargetSettings) -> None:
        self.url = settings.address
        self.traits = Traits("idempotent", files_by_record=True, senders=2, uploaders=settings.uploads or 6)
        experiment = str(settings.options.get("experiment") or EXPERIMENT)
        self._api = Api(settings.url, experiment, settings.token, settings.bandwidth, settings.way)
        self._runs = Runs(self._api)
        self._sender = Sender(self._api, self._runs)
        self._files = Files(self._api, self._runs)

    async def connect(self) -> tuple[str, Limits]:
        """See Target."""
        self._runs.forget()
        self._sender.forget()
        self._files.forget()
        try:
            own = await self._api.connect()
        except Rejected as error:
            raise Unreachable(f"{self._api.url} says {error.status}: {error}") from None
        return f"mlflow:{own}", Limits(body=_REQUEST, decoded=_REQUEST, ranges=256)

    def bind(self, memory: Memory) -> None:
        """See Target."""
        self._runs.bind(memory)

    async def send(self, ranges: Sequence[Range]) -> list[Verdict]:
        """See Target. Runs are sent side by side: most of a small one's time is round trips."""
        by_run: dict[str, list[int]] = {}
        for i, sent in enumerate(ranges):
            by_run.setdefault(sent.run, []).append(i)
        found: list[Verdict] = [Verdict("unsent")] * len(ranges)

        async def one(of: tuple[str, list[int]]) -> None:
            run, places = of
            for i, verdict in zip(places, await self._sender.send(run, [ranges[i] for i in places]), strict=True):
                found[i] = verdict

        await _each(by_run.items(), one)
        return found

    async def marks(self, writers: Sequence[tuple[str, str]]) -> dict[str, int] | None:
        """See Target."""
        by_run: dict[str, list[str]] = {}
        for run, writer in writers:
            by_run.setdefault(run, []).append(writer)
        found: dict[str, int] = {}

        async def one(of: tuple[str, list[str]]) -> None:
            run, some = of
            entry = self._runs.entry(run)
            await self._runs.find(entry)
            found.update({writer: entry.mark(writer)[0] for writer in some})

        await self._plainly(_each(by_run.items(), one))
        return found

    async def missing(self, files: Sequence[File]) -> list[str]:
        """See Target. What is there is told by its size."""
        return await self._plainly(self._files.missing(files))

    async def put(self, file: File, path: str) -> str | None:
        """See Target."""
        return await self._files.put(file, path)

    async def heartbeat(self, runs: dict[str, float]) -> dict[str, dict[str, Any]]:
        """See Target. MLflow has no such thing."""
        return {}

    async def recount(self, run: str) -> Recount | None:
        """See Target."""
        return await self._plainly(self._recount(run))

    async def _recount(self, run: str) -> Recount | None:
        entry = Entry(run)  # as it is there now, not as it was
        there = await self._runs.find(entry)
        if there is None or there.deleted:
            return None
        metrics: dict[str, int] = {}
        first: dict[str, tuple[int, float]] = {}
        last: dict[str, tuple[int, float]] = {}

        async def one(key: str) -> None:
            metrics[key], first[key], last[key] = await self._api.history(there.id, key)

        await _each(there.metrics, one)
        files = {path: size async for path, size in self._walk(there, "")}
        names = {resource_here(key): key for key in metrics if key.startswith("system/")}
        names |= {ours: key.removeprefix(NAME) for key, ours in there.tags.items() if key.startswith(NAME)}
        with self._api.sensible("marks"):
            said = {key.removeprefix("simspool.mark."): v for key, v in there.tags.items() if key.startswith("simspool.mark.")}
            marks = {writer: int(v.split()[0]) for writer, v in said.items()}
        return Recount(
            metrics, await self._events(there, files), {path: size for path, size in files.items() if not _is_ours(path)},
            status_here(there.status, there.tags), first, last, {ours: key for ours, key in names.items() if key in metrics}, marks,
        )  # fmt: skip

    async def _walk(self, there: RunThere, folder: str, depth: int = 0) -> AsyncIterator[tuple[str, int]]:
        if there.files is None or depth > _DEEPEST:
            return
        below = await self._api.listed(f"{there.files}/{folder}".rstrip("/"))
        for name, size in sorted(below.items()):
            path = f"{folder}/{name}".lstrip("/")
            if size is not None:
                yield path, size
            else:
                async for found in self._walk(there, path, depth + 1):
                    yield found

    async def _events(self, there: RunThere, files: Iterable[str]) -> int:
        """Count events; a line that is in two files (they are put together now and then) is one."""
        seen: set[tuple[str, int]] = set()

        async def one(path: str) -> None:
            data = await self._api.get(f"{there.files}/{path}") or b""
            with self._api.sensible("records"):
                lines = [json.loads(line) for line in data.splitlines() if b'"kind":"event"' in line]
                seen.update((line["writer"], line["seq"]) for line in lines if line["kind"] == "event")

        await _each([path for path in files if path.startswith(RECORDS)], one)
        return len(seen)

    async def _plainly(self, what: Awaitable[T]) -> T:
        try:
            return await what
        except Rejected as error:
            raise Unreachable(f"{self._api.url} says {error.status}: {error}") from None

    async def close(self) -> None:
        """See Target."""
        await self._api.close()


def _is_ours(path: str) -> bool:
    return path.startswith("simspool/") and not path.startswith("simspool/files/")


async def _each(items: Iterable[U], do: Callable[[U], Awaitable[None]]) -> None:
    """Do something for each, some side by side. The first error ends all, and is raised as it is."""
    gate = asyncio.Semaphore(_RUNS_AT_ONCE)

    async def one(item: U) -> None:
        async with gate:
            await do(item)

    tasks = [asyncio.ensure_future(one(item)) for item in items]
    try:
        for task in tasks:
            await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
