"""Output files, found by pattern and saved when nothing has changed them for a while, and once more at the end.

A file counts that was made or changed after the command began. It is saved again when it changes again; equal contents are kept once.
A scan finds them: what has to be quiet for seconds needs no notification of its birth, and a scan works on every file system.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .globs import Glob, Stamp

_SHARE = 20.0  # a scan that took long is repeated so many times later
_OFTEN, _SELDOM = 0.2, 1.0  # s between two scans


@dataclass(slots=True)
class _Seen:
    stamp: Stamp
    since: float
    saved: Stamp | None = None


class Outputs(threading.Thread):
    """Watches patterns. `save(path, size)` is called in this thread; it must not raise."""

    def __init__(self, globs: Sequence[Glob], settle: float, save: Callable[[str, int], None]) -> None:
        """Take the files that are there already, before the command begins."""
        super().__init__(name="exec-outputs", daemon=True)
        self._globs, self._settle, self._save = list(globs), settle, save
        self._before = {path: stamp for glob in globs for path, stamp in glob.files()}
        self._seen: dict[str, _Seen] = {}
        self._stopped = threading.Event()
        self._hurry = threading.Event()

    def run(self) -> None:
        """The thread's work."""
        pause = 0.0
        while not self._stopped.wait(max(min(_SELDOM, self._settle / 2), _OFTEN, pause)):
            began = time.monotonic()
            self._scan(began, is_last=False)
            pause = (time.monotonic() - began) * _SHARE

    def finish(self) -> None:
        """Save what is there and was not saved in this state. Returns when that is done."""
        self._stopped.set()
        if self.ident is not None:
            self.join()
        self._scan(time.monotonic(), is_last=True)

    def hurry(self) -> None:
        """Have `finish` return after the file that is being saved."""
        self._stopped.set()
        self._hurry.set()

    def _scan(self, now: float, *, is_last: bool) -> None:
        for glob in self._globs:
            for path, stamp in glob.files():
                if self._hurry.is_set() or (self._stopped.is_set() and not is_last):
                    return
                known = self._seen.get(path)
                if known is None:
                    if self._before.get(path) == stamp:
                        continue
                    known = self._seen[path] = _Seen(stamp, now)
                elif known.stamp != stamp:
                    known.stamp, known.since = stamp, now
                if known.saved != stamp and (is_last or now - known.since >= self._settle):
                    known.saved = stamp  # as it was before the copy: what changes meanwhile is another state
                    self._save(path, stamp.size)
