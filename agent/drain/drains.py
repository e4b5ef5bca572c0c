"""The drains of one spool side by side, one a target: each has its own cursors and backoff, and none waits for another."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass

from simspool.agent.targets.build import make_target
from simspool.agent.targets.port import Refused, Target
from simspool.agent.targets.settings import BUNDLE, TargetSettings
from simspool.sdk.errors import ConfigError

from .loop import Drain


@dataclass(slots=True)
class Lane:
    """A target and its drain. `over`: it was changed or removed, and drains no more."""

    settings: TargetSettings
    target: Target
    drain: Drain
    over: bool = False

    @property
    def name(self) -> str:
        """The target's name."""
        return self.settings.name

    @property
    def required(self) -> bool:
        """Whether what it lacks is kept, and a sync fails without it."""
        return self.settings.required


MakeDrain = Callable[[TargetSettings, Target], Drain]


class Drains:
    """The lanes in force. Confined to the event loop.

    `load` returns the settings (it may raise ConfigError), `make` a drain for one of them, `build` a target. `problems` tells of targets
    that cannot be used as they are configured, by name; the key "targets" is about all of them: then those of before go on. Targets to
    which bundles carry have no lane: they are in `carried`, and what they lack is kept like any other's.
    """

    def __init__(
        self, load: Callable[[], list[TargetSettings]], make: MakeDrain, *, watched: str | None = None,
        report: Callable[[str], None] = lambda _: None, build: Callable[[TargetSettings], Target] = make_target,
    ) -> None:  # fmt: skip
        self._load, self._make, self._build, self._report = load, make, build, report
        self._watched = watched
        self._stamp: tuple[int, int, int] | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._said: set[str] = set()
        self.lanes: dict[str, Lane] = {}
        self.carried: dict[str, TargetSettings] = {}
        self._wanted: list[TargetSettings] = []
        self.problems: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self.lanes)

    @property
    def settings(self) -> list[TargetSettings]:
        """Those of all targets in force, in their order."""
        return [s for s in self._wanted if s.name in self.lanes or s.name in self.carried]

    @property
    def counting(self) -> list[Lane]:
        """The lanes that decide whether something is delivered: the required ones; all of them where none is required."""
        return [lane for lane in self.lanes.values() if lane.required] or list(self.lanes.values())

    @property
    def required_servers(self) -> list[str] | None:
        """The ids of the servers whose receipts must be there before anything is deleted.

        None while one of the required targets is not known, cannot be used, or none is required: then nothing is.
        """
        servers = [lane.drain.server for lane in self.lanes.values() if lane.required]
        servers += [settings.address for settings in self.carried.values() if settings.required]
        return servers if servers and all(servers) and not self.problems else None

    async def load(self) -> None:
        """Make the lanes that the settings want: new ones begin, changed ones begin anew, those that are gone end."""
        try:
            wanted = {s.name: s for s in await asyncio.to_thread(self._load)}
        except ConfigError as error:
            if self.problems.get("targets") != str(error):
                self._report(f"the targets are left as they are: {error}")
            self.problems["targets"] = str(error)
            return
        self.problems.clear()
        for concern in dict.fromkeys(c for settings in wanted.values() for c in settings.concerns):
            if concern not in self._said:
                self._said.add(concern)
                self._report(f"not safe: {concern}")
        for name in [n for n, lane in self.lanes.items() if wanted.get(n) != lane.settings]:
            await self._end(name)
        self._wanted = list(wanted.values())
        self.carried = {name: settings for name, settings in wanted.items() if settings.kind == BUNDLE}
        for name, settings in wanted.items():
            if name in self.lanes or name in self.carried:
                continue
            try:
                target = self._build(settings)
            except Refused as error:
                self.problems[name] = str(error)
                continue
            self.lanes[name] = Lane(settings, target, self._make(settings, target))
        self.lanes = {name: self.lanes[name] for name in wanted if name in self.lanes}
        self._changed.set()

    async def refresh(self) -> None:
        """Load again where the watched file has changed."""
        if self._watched is None:
            return
        stamp = await asyncio.to_thread(_stamp, self._watched)
        if stamp != self._stamp:
            self._stamp = stamp
            await self.load()

    async def run(self) -> None:
        """Drain to every target, for ever. Ends only by cancellation, or by an error that nobody foresaw."""
        try:
            while True:
                self._changed.clear()
                for name, lane in self.lanes.items():
                    if name not in self._tasks:
                        self._tasks[name] = asyncio.create_task(lane.drain.run())
                changed = asyncio.create_task(self._changed.wait())
                try:
                    await asyncio.wait([changed, *self._tasks.values()], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    changed.cancel()
                for task in self._tasks.values():
                    if task.done() and not task.cancelled():
                        task.result()
        finally:
            for name in list(self._tasks):
                await self._stop(name)

    async def _stop(self, name: str) -> None:
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _end(self, name: str) -> None:
        await self._stop(name)
        lane = self.lanes.pop(name)
        lane.over = True
        await lane.target.close()

    async def close(self) -> None:
        """End all lanes, and let go of their connections."""
        for name in list(self.lanes):
            with contextlib.suppress(OSError):
                await self._end(name)

    def wake(self) -> None:
        """There is something new to send."""
        for lane in self.lanes.values():
            lane.drain.wake()

    def retry(self) -> None:
        """Do not wait out the backoff: the network changed, or somebody asks."""
        for lane in self.lanes.values():
            lane.drain.retry()

    def doing(self) -> str:
        """Return what they do, in a line for people."""
        if not self.lanes:
            return "; ".join(self.problems.values()) or ("carried by bundles" if self.carried else "no server is configured")
        words = [
            (f"{lane.name}: " if len(self.lanes) > 1 else "") + lane.drain.state + (f": {lane.drain.problem}" if lane.drain.problem else "")
            for lane in self.lanes.values()
        ]
        return ", ".join([*words, *(f"{name}: {why}" for name, why in self.problems.items())])


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_ino, info.st_mtime_ns, info.st_size
