"""Metrics and events in what a command prints: a stream's blocks, and files that it writes, to the run."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Iterable, Sequence

from simspool.agent.lines.follow import FollowedFiles
from simspool.agent.lines.patterns import Event, Patterns
from simspool.agent.lines.splitter import Lines

from .globs import Stamp, stamp_of
from .recorder import CommandRun


class Scanner:
    """Reads one text along and records what its patterns find."""

    def __init__(self, run: CommandRun, patterns: Patterns, what: str) -> None:
        self._run, self._patterns, self._what = run, patterns.fresh(), what
        self._lines = Lines()

    def read(self, data: bytes) -> None:
        """Take a block as it came."""
        block = self._lines.push(data)
        if block:
            self.lines(block)

    def pause(self) -> None:
        """Nothing is to be done."""

    def end(self) -> None:
        """Take what is left as a line."""
        rest = self._lines.flush()
        if rest:
            self.lines(rest)
        self.tell()

    def lines(self, block: bytes) -> None:
        """Take a block of whole lines."""
        run = self._run
        for found in self._patterns.scan(block):
            with run.guard(f"a line of {self._what}"):
                if isinstance(found, Event):
                    run.log_event(found.message, log_level=found.level)  # type: ignore[arg-type]
                else:
                    run.log_metrics(found.values, step=found.step, time=found.time)

    def tell(self) -> None:
        """Record what was found and could not be taken as a number."""
        if self._patterns.refused:
            said = f"{self._what}: {self._patterns.refused} values are no numbers, the first: {self._patterns.first_refused}"
            self._run.log_event(said, log_level="warning")


class FollowedLogs(threading.Thread):
    """Follows files that the command writes. Make it before the command starts: what is in them by then is not the command's."""

    def __init__(self, run: CommandRun, paths: Sequence[str], patterns: Patterns) -> None:
        """Raises ValueError for a folder."""
        super().__init__(name="exec-logs", daemon=True)
        self._run, self._patterns = run, patterns
        self._before = {path: stamp for path in paths if (stamp := stamp_of(path)) is not None}
        self._files = FollowedFiles(paths, from_start=False)
        self._scanners: dict[str, Scanner] = {}
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stopped = False

    def run(self) -> None:
        """The thread's work."""
        with self._run.guard("what is followed"):
            while not self._stopped:
                self._take(self._files.read())
                select.select([self._files.fileno(), self._wake], [], [], self._files.pause)

    def finish(self) -> None:
        """Read to the end of all, and stop."""
        self._stopped = True
        with contextlib.suppress(OSError):
            os.eventfd_write(self._wake, 1)
        if self.ident is not None:
            self.join()
        self._take(self._files.read())
        anew = self._written_anew()
        self._take((path, block) for path, block in self._files.finish() if path not in anew)
        for path in anew:
            self._take(FollowedFiles([path]).finish())
        for scanner in self._scanners.values():
            scanner.tell()
        counts = self._files.counts()
        if counts["lost_parts"] or counts["cut"]:
            self._run.log_event(
                f"of the followed logs, {counts['lost_parts']} lines were truncated away unfinished and {counts['cut']} were cut at 1 MiB",
                log_level="warning",
            )  # fmt: skip
        for path, problem in self._files.problems.items():
            self._run.log_event(f"{path} was not followed: {problem}", log_level="warning")

    def _written_anew(self) -> set[str]:
        """Return files that were written once more with just what was in them: to one who looks now and then, nothing came."""
        return {p for p, before in self._before.items() if p not in self._scanners and _is_anew(before, stamp_of(p))}

    def _take(self, blocks: Iterable[tuple[str, bytes]]) -> None:
        for path, block in blocks:
            scanner = self._scanners.get(path)
            if scanner is None:
                scanner = self._scanners[path] = Scanner(self._run, self._patterns, os.path.basename(path))
            scanner.lines(block)


def _is_anew(before: Stamp, now: Stamp | None) -> bool:
    return now is not None and now != before and now.size == before.size
