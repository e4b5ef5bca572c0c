"""The loop of either side of a relay: turn after turn, with backoff after failures, each said once."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable

from simspool.agent.carry.parts import NotTaken
from simspool.agent.drain.backoff import Backoff
from simspool.spool import SpoolError

FAILURES = (OSError, SpoolError, NotTaken, sqlite3.Error)
"""What a turn may raise: it is tried again. SpoolError has those of places."""


class Sayer:
    """Says what there is to say, and each thing again only when it has changed. `problems` is what is wrong now, by what it concerns."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._said: dict[str, str] = {}
        self.problems: dict[str, str] = {}

    def say(self, text: str) -> None:
        """Say it."""
        self._report(text)

    def wrong(self, about: str, text: str) -> None:
        """Say that something is wrong, once."""
        self.problems[about] = text
        if self._said.get(about) != text:
            self._said[about] = text
            self._report(text)

    def right(self, about: str) -> None:
        """It is wrong no longer."""
        self.problems.pop(about, None)
        self._said.pop(about, None)


async def keep(turn: Callable[[], Awaitable[float]], sayer: Sayer, backoff: Backoff | None = None) -> None:
    """Do turns until cancelled; each returns how long (s) to wait for the next one. A failing one is tried again, ever later."""
    backoff = backoff or Backoff()
    while True:
        try:
            wait = await turn()
        except FAILURES as error:
            sayer.wrong("", words(error))
            wait = backoff.failed(0.1)
        else:
            if backoff.failures:
                sayer.say("the relay goes on")
            backoff.succeeded()
            sayer.right("")
        await asyncio.sleep(wait)


def words(error: BaseException) -> str:
    """Return an error in words."""
    name = getattr(error, "filename", None)
    strerror = getattr(error, "strerror", None)
    return f"{name}: {strerror}" if strerror and name else str(strerror or error)
