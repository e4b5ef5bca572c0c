"""Large files: how fast they reach the embedded server, beside a bare PUT of the same bytes, and what memory both sides need."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Self

import aiohttp
import psutil
from harness import Figure, Plan, agent, median, python, scratch, server

_SAVE = """
import json, sys
from simspool.sdk import Run
with Run(mode="offline") as run:
    run.init("large")
    run.save_file(sys.argv[1], category="output")
print(json.dumps(True))
"""


def _make(path: Path, size: int) -> str:
    """Write a file that is like no other; return its digest."""
    hasher, block = hashlib.sha256(), os.urandom(1 << 20)
    with path.open("wb") as file:
        for number in range(size >> 20):
            part = number.to_bytes(8, "little") + block[8:]
            file.write(part)
            hasher.update(part)
        file.flush()
        os.fsync(file.fileno())
    return hasher.hexdigest()


async def _put(path: Path, size: int, digest: str, to: dict[str, str]) -> None:
    async def blocks() -> AsyncIterator[bytes]:
        with path.open("rb") as file:
            while block := file.read(256 << 10):
                yield block

    headers = {"Authorization": f"Bearer {to['SIMSPOOL_TOKEN']}"}
    sized = {"Content-Length": str(size)}
    async with (
        aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=None)) as session,
        session.put(f"{to['SIMSPOOL_URL']}/api/simspool/v1/blobs/{digest}", data=blocks(), headers=sized) as answer,
    ):
        if answer.status != 201:
            raise RuntimeError(f"PUT: {answer.status} {await answer.text()}")


class _Watched:
    """The most resident memory of a process while it is watched, in bytes."""

    def __init__(self, pid: int) -> None:
        self._process, self._stop, self.most = psutil.Process(pid), threading.Event(), 0
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            with suppress(psutil.Error):
                self.most = max(self.most, self._process.memory_info().rss)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def _sync(folder: Path, name: str, size: int, to: dict[str, str]) -> tuple[float, int, int]:
    """Save a new file in a new spool and sync it; return the seconds, and the peak memory of agent and server."""
    path, spool = folder / f"{name}.bin", {"SIMSPOOL_DIR": str(folder / name)}
    _make(path, size)
    python(_SAVE, folder, path, **spool)
    path.unlink()
    agent(folder, "status", "--json", **to | spool)  # takes everything into the catalog
    with _Watched(int(to["server_pid"])) as watched:
        ran = agent(folder, "sync", "--json", **to | spool)
    if ran.last["files_left"] or ran.last["sent_file_bytes"] != size >> 20 << 20:
        raise RuntimeError(f"the file was not sent: {ran.out[-1000:]}")
    return ran.seconds, ran.peak, watched.most


def large_files(plan: Plan) -> list[Figure]:
    """`agent sync` of one large file beside a bare aiohttp PUT of as many bytes to the same server, in turns.

    What a sync of nothing takes is subtracted: the start of a Python with aiohttp, whatever there is to send.
    """
    size, rounds, huge = plan.scale(500, 100) << 20, plan.scale(5, 3), plan.scale(2048, 300) << 20
    ratios, ours, bare = [], [], []
    with scratch(plan, "large") as folder, server(folder) as to:
        python("from simspool.spool import open_spool; open_spool('empty', create=True); print(0)", folder)
        nothing = {"SIMSPOOL_DIR": str(folder / "empty")}
        start = min(agent(folder, "sync", "--json", **to | nothing).seconds for _ in range(3))
        for number in range(rounds):
            plan.say(f"  {size >> 20} MiB, {number + 1} of {rounds}")
            took = [0.0, 0.0]
            for which in (0, 1) if number % 2 else (1, 0):
                if which:
                    took[1] = _sync(folder, f"ours-{number}", size, to)[0] - start
                else:
                    path = folder / "bare.bin"
                    digest = _make(path, size)
                    began = perf_counter()
                    asyncio.run(_put(path, size, digest, to))
                    took[0] = perf_counter() - began
                    path.unlink()
            ratios.append(took[0] / took[1])
            bare.append(size / took[0] / 1e6)
            ours.append(size / took[1] / 1e6)
        plan.say(f"  {huge >> 20} MiB, for the memory")
        _, small_agent, small_server = _sync(folder, "small", 20 << 20, to)
        _, agent_peak, server_peak = _sync(folder, "huge", huge, to)
    name, n = f"a file of {huge >> 20} MiB", "1"
    return [
        Figure("large file to the embedded server, over a bare PUT", median(ratios), "x", 0.6, lower=False, n=f"{rounds} pairs",
               reference=f"bare PUT: {median(bare):.0f} MB/s",
               detail=f"{median(ours):.0f} MB/s; ratios {', '.join(f'{r:.2f}' for r in sorted(ratios))}; verified twice, resumable"),
        Figure(f"peak memory of the agent, {name}", agent_peak / 1e6, "MB", 200, n=n, detail=f"20 MiB: {small_agent / 1e6:.0f} MB"),
        Figure(f"peak memory of the server, {name}", server_peak / 1e6, "MB", n=n, detail=f"20 MiB: {small_server / 1e6:.0f} MB"),
    ]  # fmt: skip
