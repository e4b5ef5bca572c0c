"""An agent that does one sync to one target in small requests, and says on stdout what it does: for tests that kill it there.

Usage: driving.py SPOOL, with the target's settings as JSON on stdin.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from simspool.agent.app import Agent, AgentConfig
from simspool.agent.drain.backoff import Backoff
from simspool.agent.targets.build import make_target
from simspool.agent.targets.port import File, Limits, Range, Target, Verdict
from simspool.agent.targets.settings import TargetSettings
from simspool.sdk.tls import Tls
from simspool.sdk.way import Way
from simspool.spool import open_spool


class Said:
    """A target, and a line for whatever is asked of it, and again when that is done."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    async def connect(self) -> tuple[str, Limits]:
        server, limits = await self._target.connect()
        print("connected", flush=True)
        return server, replace(limits, decoded=min(limits.decoded, 40_000))

    async def send(self, ranges: Sequence[Range]) -> list[Verdict]:
        print("send", len(ranges), flush=True)
        verdicts = await self._target.send(ranges)
        print("sent", *(v.kind for v in verdicts), flush=True)
        return verdicts

    async def put(self, file: File, path: str) -> str | None:
        print("put", file.name, flush=True)
        reason = await self._target.put(file, path)
        print("stored", file.name, flush=True)
        return reason


async def main(path: str, told: dict[str, Any]) -> None:
    way = told.pop("way", {})
    settings = TargetSettings(**told, way=Way(**{**way, "tls": Tls(**way.get("tls", {}))}))
    target: Any = Said(make_target(settings))
    async with Agent(AgentConfig(open_spool(path), settings.address), target=target, backoff=Backoff(lambda: 0.01)) as agent:
        report = await agent.sync(timeout=60.0)
    print("done", report.state, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], json.load(sys.stdin)))
