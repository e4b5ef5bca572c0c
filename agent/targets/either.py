"""A server whose kind nobody said: `[server]` may be ours or one that speaks Simvue's REST dialect; it is asked at a connect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .embedded import EmbeddedTarget
from .port import File, Foreign, Limits, Memory, Range, Recount, Target, Traits, Verdict
from .settings import TargetSettings


class EitherTarget:
    """Ours when it has our drain endpoint, else Simvue's. Each connect asks anew: a server may be upgraded."""

    def __init__(self, settings: TargetSettings) -> None:
        self._settings = settings
        self._found: Target = EmbeddedTarget.of(settings)
        self.url = self._found.url

    @property
    def traits(self) -> Traits:
        """Those of the target that was found."""
        return self._found.traits

    @property
    def version(self) -> str:
        """That of the server that was found, where it tells one."""
        return str(getattr(self._found, "version", ""))

    async def connect(self) -> tuple[str, Limits]:
        """See Target."""
        try:
            return await self._found.connect()
        except Foreign:
            other: Target
            if isinstance(self._found, EmbeddedTarget):
                from .simvue import SimvueTarget

                other = SimvueTarget(self._settings)
            else:
                other = EmbeddedTarget.of(self._settings)
            try:
                found = await other.connect()
            except BaseException:
                await other.close()
                raise
            await self._found.close()
            self._found = other
            return found

    def bind(self, memory: Memory) -> None:
        """See Target."""
        self._found.bind(memory)

    async def send(self, ranges: Sequence[Range]) -> list[Verdict]:
        """See Target."""
        return await self._found.send(ranges)

    async def marks(self, writers: Sequence[tuple[str, str]]) -> dict[str, int] | None:
        """See Target."""
        return await self._found.marks(writers)

    async def missing(self, files: Sequence[File]) -> list[str]:
        """See Target."""
        return await self._found.missing(files)

    async def put(self, file: File, path: str) -> str | None:
        """See Target."""
        return await self._found.put(file, path)

    async def heartbeat(self, runs: dict[str, float]) -> dict[str, dict[str, Any]]:
        """See Target."""
        return await self._found.heartbeat(runs)

    async def recount_deep(self, run: str) -> Recount | None:
        """See EmbeddedTarget; the other kind can only count."""
        return await (self._found.recount_deep(run) if isinstance(self._found, EmbeddedTarget) else self._found.recount(run))

    async def recount(self, run: str) -> Recount | None:
        """See Target."""
        return await self._found.recount(run)

    async def close(self) -> None:
        """See Target."""
        await self._found.close()
