"""The agent's share in durability: what a silent or busy script left in the page cache reaches the disk within about a second.

Scripts do this for themselves (FORMAT.md W10), unless native code holds their interpreter; then it is done from here. It reads
and syncs, and changes nothing (W2). Limits: it can only sync what it has read, and does nothing for `lazy` writers.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from simspool.spool import Chunk, Durability, Spool, blobs, layout
from simspool.spool.stream import sync_segment


class Hardener:
    """Syncs the open segments that have new records. Confined to the agent's worker thread."""

    def __init__(self, spool: Spool, report: Callable[[str], None]) -> None:
        self._spool, self._report = spool, report
        self._waiting: dict[tuple[str, int], None] = {}  # writer's folder, segment
        self._named: set[tuple[str, int]] = set()

    def saw(self, folder: str, chunk: Chunk) -> None:
        """Note a chunk that was read from a writer's folder."""
        if not chunk.sealed and chunk.header.durability == Durability.INTERVAL:
            self._waiting[folder, chunk.segment] = None

    def harden(self) -> int:
        """Sync what is waiting; returns how many segments. A disk that refuses is reported, and not asked again for the same bytes."""
        done = 0
        waiting, self._waiting = self._waiting, {}
        for folder, segment in waiting:
            try:
                fd = os.open(layout.segment_path(folder, segment, "open"), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:
                self._named.discard((folder, segment))
                continue  # sealed by now, which is durable; or gone
            try:
                sync_segment(fd, folder, named=(folder, segment) in self._named)
                self._named.add((folder, segment))
                done += 1
            except OSError as error:
                self._report(f"segment {segment} of {folder} cannot be made durable: {error.strerror}")
            finally:
                os.close(fd)
        return done

    def publish(self, run: str, digests: list[str]) -> None:
        """Make the blobs of a writer that died durable, and known to the whole spool. What does not match its name is reported."""
        try:
            damaged = blobs.publish(self._spool, self._spool.run(run), digests)
        except OSError as error:
            self._report(f"files of run {run} cannot be made durable: {error.strerror}")
            return
        for digest in damaged:
            self._report(f"the bytes of file {digest} of run {run} are damaged: `agent check {run}` says where")
