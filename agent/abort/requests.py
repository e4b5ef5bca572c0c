"""Abort requests as the agent makes and meets them: datagram first, then the file, then the ladder."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from simspool.agent.live import LiveWriters
from simspool.agent.notes import RunNotes
from simspool.sdk.config import Graces
from simspool.spool import RunFolder, Spool
from simspool.spool.control import make_request, open_writers, put_request

from .ladder import Ladder
from .notices import send_notices
from .steps import Word
from .words import openings


class Aborts:
    """Everything about aborts of one agent. `start` and `stop` are for its thread; the rest may be called from any thread.

    `bell` is the path of the agent's doorbell, beside which the sockets of the scripts lie.
    Guarantee: a process acts once per request id, and only if a writer of its was open when the request was decided (or
    it is sticky); a signal goes only to processes of this host and PID namespace whose start time was verified.
    """

    def __init__(
        self, spool: Spool, notes: RunNotes, live: LiveWriters, *, graces: Graces | None = None, bell: str | None = None,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:  # fmt: skip
        self._spool, self._notes, self._live, self._bell, self._report = spool, notes, live, bell, report
        self.ladder = Ladder(spool, notes, live, graces or Graces(), report)

    def start(self) -> None:
        """Begin to look for requests."""
        self.ladder.start()

    def stop(self) -> None:
        """End; what is not finished, the next agent goes on with."""
        self.ladder.stop()

    def request(
        self, run: str, identity: str, reason: str, *, by: str, alert: str | None = None, sticky: bool = False
    ) -> bool:  # fmt: skip
        """Abort a run: its processes are told within milliseconds. Returns whether the request (32 hex digits) is new.

        Never raises for the disk: a request that cannot be written acts all the same, while this agent lives.
        """
        folder = self._spool.run(run)
        if os.path.exists(_file(folder, identity)):
            self.ladder.look(run)
            return False
        try:
            writers = open_writers(folder)
        except OSError:  # the folder cannot be read just now: those that the watch follows are meant
            writers = tuple(w.writer for w in self._live() if w.run == run)
        request = make_request(folder, identity, reason, by=by, alert=alert, sticky=sticky, writers=writers)
        own = self._notes.position(run)
        if own is not None:
            request = replace(request, writers=tuple(w for w in request.writers if w != own[0]))
        send_notices(self._bell, request)
        written = True
        try:
            new = put_request(folder, request)
        except OSError as error:
            new, written = True, False
            self._report(f"the abort request of run {run} cannot be written: {error}")
        if new:
            self.ladder.take(run, request, written=written)
        return new

    def heard(self, run: str, writer: str, body: Mapping[str, Any], at: int | None = None) -> None:
        """Take a record of kind 35 of a script's writer; `at` is its moment (ns on the boot clock), by default now."""
        moment = time.clock_gettime_ns(time.CLOCK_BOOTTIME) if at is None else at
        self.ladder.hear(run, Word(writer, moment, body))

    def flagged(self, server: str, run: str, flag: Mapping[str, Any]) -> bool:
        """Take a server's abort flag of a run, as often as the server shows it: it is one request. Returns whether it is new.

        A run that has no live writer here is left alone; so is one of which the flag names writers that have all ended since, and
        which somebody opened again.
        """
        try:
            live, meant = set(openings(self._spool.run(run))), flag.get("writers")
        except (ValueError, OSError):  # no run of this spool, or not to be read just now: the flag stays up
            return False
        if not live or (isinstance(meant, list) and live.isdisjoint(w for w in meant if isinstance(w, str))):
            return False
        reason = str(flag.get("reason") or "")
        which = "\0".join(("server", server, run, str(flag.get("at") or reason)))
        identity = hashlib.sha256(which.encode(errors="surrogatepass")).hexdigest()[:32]
        return self.request(run, identity, reason or "aborted on the server", by="server")

    def look(self, run: str) -> None:
        """Look for requests of a run now: somebody has made one."""
        self.ladder.look(run)


def _file(folder: RunFolder, identity: str) -> str:
    return os.path.join(folder.control, f"abort-{identity}.json")
