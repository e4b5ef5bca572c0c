"""`agent abort`: stop a run, by a request that its processes act on, and that an agent sees through where they do not."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import click

from simspool.agent.exit_codes import CommandError, ExitCode
from simspool.spool import RunFolder, Spool
from simspool.spool.process import is_alive

from . import output
from .handover import agent_abort, api_path
from .settings import Settings, common

if TYPE_CHECKING:
    from simspool.agent.abort.follow import RunFollower
    from simspool.agent.abort.steps import Word
    from simspool.agent.live import LiveWriter
    from simspool.sdk.config import Graces
    from simspool.spool.control import AbortRequest
    from simspool.spool.segment_header import SegmentHeader

_LOOK = 0.1
_SPARE = 10.0  # s beyond all graces for what the kernel and the disk take
_OUTCOMES = {
    "ended": "has ended by itself, as it was asked to",
    "gone": "has ended without having answered",
    "signalled": "has ended after the agent's SIGTERM",
    "killed": "was killed by the agent (SIGKILL)",
    "closed": "has closed the run and goes on (abort_on_alert='run')",
    "ignored": "goes on: the run ignores aborts (abort_on_alert='ignore')",
    "not-ours": "is not this host's to stop, and has not answered: run `agent abort` where it runs, or end it there",
    "left": "is still there",
}
_STOPPED = frozenset({"ended", "gone", "signalled", "killed", "closed"})


@click.command(help="Stop a run, in every process that records it.")
@click.argument("run", metavar="RUN")
@click.option("--reason", default="", metavar="TEXT", help="Why; kept with the run.")
@click.option("--sticky", is_flag=True, help="Stop also what opens the run later.")
@click.option("--wait", is_flag=True, help="Return when the run's processes have ended, and say how.")
@common
def abort(settings: Settings, run: str, reason: str, *, sticky: bool, wait: bool) -> int:
    """RUN is an id, a unique prefix of one, or a name."""
    from simspool.agent.abort.notices import bell_path, send_notices
    from simspool.agent.abort.words import openings
    from simspool.spool.control import make_request, put_request

    spool = settings.open_spool()
    folder = spool.run(spool.find_own_run(run))  # the headers of a carried one may name processes of this very machine
    meant = openings(folder)
    if not meant and not sticky:
        raise CommandError(ExitCode.ERROR, f"run {run!r} has ended: there is nothing to abort (--sticky stops what opens it later)")
    request = make_request(folder, os.urandom(16).hex(), reason, by="user", sticky=sticky, writers=tuple(meant))
    told = send_notices(bell_path(spool), request)
    put_request(folder, request)
    handed_over = _hand_over(spool, folder.id)
    body: dict[str, Any] = {
        "run": folder.id, "id": request.id, "reason": request.reason, "sticky": sticky, "writers": list(meant), "told": told,
        "agent": handed_over,
    }  # fmt: skip
    code = ExitCode.OK
    if wait:
        with _Waiting(spool, folder, request, meant, settings.config.graces, alone=not handed_over) as waiting:
            waiting.wait()
            body["processes"] = waiting.outcomes()
        outcomes = {p["outcome"] for p in body["processes"]}
        code = ExitCode.TIMEOUT if "left" in outcomes else ExitCode.OK if outcomes <= _STOPPED else ExitCode.ERROR
    if settings.json:
        output.echo_json({**body, "exit_code": int(code)})
        return code
    _print(body, wait=wait)
    return code


def _hand_over(spool: Spool, run: str) -> bool:
    """Have the running agent look at once; False where none runs on this host."""
    path = api_path(spool)
    return path is not None and agent_abort(path, run)


def _print(body: dict[str, Any], *, wait: bool) -> None:
    count = len(body["writers"])
    output.echo(f"run {body['run']} is asked to stop: {count} open part{'' if count == 1 else 's'}, {body['told']} told at once")
    for process in body.get("processes", ()):
        output.echo(f"process {process['pid']} on {output.safe(process['host'])} {_OUTCOMES[process['outcome']]}")
    if not wait and not body["agent"]:
        output.note("agent: no agent runs here: a process that hangs is not stopped from outside (--wait does it, or `agent run`)")


@dataclass
class _Part:
    """A process with its writers."""

    header: SegmentHeader
    writers: list[str] = field(default_factory=list)


class _Waiting:
    """Waits until the processes that a request means have ended. Where no agent runs (`alone`), it climbs the ladder itself meanwhile."""

    def __init__(
        self, spool: Spool, folder: RunFolder, request: AbortRequest, meant: dict[str, SegmentHeader | None], graces: Graces, *, alone: bool
    ) -> None:  # fmt: skip
        self._spool, self._folder, self._request, self._graces, self._alone = spool, folder, request, graces, alone
        self._parts: dict[tuple[int, int, str, int], _Part] = {}
        for writer, header in meant.items():
            if header is not None:
                key = (header.pid, header.start_ticks, header.host, header.pid_namespace)
                self._parts.setdefault(key, _Part(header)).writers.append(writer)
        self._words: dict[tuple[int, int, str, int], list[str]] = {key: [] for key in self._parts}
        self._stack = contextlib.ExitStack()
        self._lock = threading.Lock()
        self._heard: deque[Word] = deque()

    def __enter__(self) -> Self:
        from simspool.agent.abort.follow import RunFollower

        self._follower: RunFollower = RunFollower(self._folder)
        self._stack.callback(self._follower.close)
        if self._alone:
            self._stack.enter_context(self._own_ladder())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def wait(self) -> None:
        """Return when all have ended, or when every grace is over."""
        g = self._graces
        deadline = time.monotonic() + 2 * g.answer + g.callback + 3 * g.term + _SPARE
        with output.Progress("stopping", quiet=False) as bar:
            while time.monotonic() < deadline:
                left = [p for p in self.outcomes() if p["outcome"] == "left"]
                bar.update(len(self._parts) - len(left), len(self._parts), f"{len(left)} processes left")
                if not left:
                    return
                time.sleep(_LOOK)

    @contextlib.contextmanager
    def _own_ladder(self) -> Iterator[None]:
        """Climb the ladder for one run in this process, as an agent does."""
        from simspool.agent.abort.requests import Aborts
        from simspool.agent.notes import RunNotes

        def live() -> list[LiveWriter]:
            self._hear()
            while self._heard:
                word = self._heard.popleft()
                aborts.heard(self._folder.id, word.writer, word.body, word.boot)
            with self._lock:
                return self._follower.live()

        notes = RunNotes(self._spool)
        aborts = Aborts(self._spool, notes, live, graces=self._graces, report=output.note)
        aborts.start()
        try:
            yield
        finally:
            aborts.stop()
            notes.close()

    def _hear(self) -> None:
        """Read on; note what is said of each process."""
        with self._lock:
            for told, word in self._follower.read():
                if told.is_script and self._alone:
                    self._heard.append(word)
                if word.id != self._request.id:
                    continue
                for key, part in self._parts.items():
                    if told.writer in part.writers if told.is_script else word.body.get("pid") == part.header.pid:
                        self._words[key].append(word.state)

    def outcomes(self) -> list[dict[str, Any]]:
        """Return what has become of each process."""
        alive = {key: is_alive(part.header) for key, part in self._parts.items()}
        self._hear()  # after that: who is gone has said what it said
        return [
            {"pid": part.header.pid, "host": part.header.host, "writers": part.writers, "outcome": self._outcome(key, part, alive[key])}
            for key, part in self._parts.items()
        ]

    def _outcome(self, key: tuple[int, int, str, int], part: _Part, alive: bool | None) -> str:
        words = self._words[key]
        closed = all((told := self._follower.told(w)) is not None and told.closed for w in part.writers)
        if alive is False or (alive is None and closed):
            for state in ("killed", "signalled"):
                if state in words:
                    return state
            return "ended" if closed or "received" in words else "gone"
        if "ignored" in words:
            return "ignored"
        if "not-ours" in words:
            return "not-ours"
        if closed and self._mode(part) == "run":
            return "closed"
        return "left"

    def _mode(self, part: _Part) -> str:
        from simspool.agent.abort.steps import mode_of

        found = [word.body for w in part.writers if (told := self._follower.told(w)) is not None for word in told.words]
        return mode_of({"abort_on_alert": next((b["mode"] for b in found if b.get("id") == self._request.id and "mode" in b), None)})
