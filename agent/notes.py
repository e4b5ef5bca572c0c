"""What the agent itself has to say in a run: a writer of its own in the run's folder, opened when it is first needed.

Decisions, alert states, resource samples, abort steps and survivors go through it. Safe to use from several threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

from simspool.sdk.provenance import scheduler
from simspool.spool import Durability, InvalidRecord, Kind, Origin, Spool, Writer, ids
from simspool.spool.writer import Gate


class RunNotes:
    """The agent's writers, one a run. `origin` is the run's own start, so that times agree."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._lock = threading.Lock()
        self._writers: dict[str, Writer] = {}
        self.gate: Gate | None = None  # of resource samples
        self.last_error = ""

    def record(self, run: str, kind: Kind, body: dict[str, Any]) -> bool:
        """Record a body in a run; False when the disk refuses (`last_error` says why) or the run is gone."""
        writer = self._writer(run)
        if writer is None:
            return False
        kept = writer.record(kind, body)
        if not kept:
            self.last_error = writer.last_error
        return kept

    def sample(self, run: str, values: Mapping[str, float | int], step: int) -> bool:
        """Record a resource sample in a run; True also where the gate refuses it, which is counted."""
        writer = self._writer(run)
        if writer is not None and self.gate is not None and self.gate.refuses(writer, values, step, None, None, Kind.RESOURCES):
            return True
        return writer is not None and writer.metrics(values, step, kind=Kind.RESOURCES)

    def position(self, run: str) -> tuple[str, int] | None:
        """Return the writer's id and its last sequence, None when nothing was noted in the run."""
        with self._lock:
            writer = self._writers.get(run)
        return None if writer is None else (writer.id_text, writer.sequence)

    def _writer(self, run: str) -> Writer | None:
        with self._lock:
            writer = self._writers.get(run)
            if writer is not None:
                return writer
            folder = self._spool.run(run)
            if not os.path.isdir(folder.writers):
                self.last_error = "the run was deleted"
                return None
            try:
                writer = Writer(folder.writers, ids.from_text(run), durability=Durability.INTERVAL, origin=Origin.of_run(folder.info()))
            except (OSError, InvalidRecord) as error:
                self.last_error = str(error)
                return None
            if not writer.record(Kind.ATTACH, {"reason": "agent", **scheduler()}):
                self.last_error = writer.last_error
                writer.close()
                return None
            self._writers[run] = writer
            return writer

    def maintain(self) -> None:
        """Look after the writers; about once a second."""
        with self._lock:
            writers = list(self._writers.values())
        for writer in writers:
            writer.maintain()

    def release(self, run: str) -> None:
        """Close the agent's part of a run, if it has one. A later note opens another."""
        with self._lock:
            writer = self._writers.pop(run, None)
        if writer is not None:
            writer.close({"status": None})

    @property
    def is_open(self) -> bool:
        """Whether the agent has a part in a run that is not closed."""
        return bool(self._writers)

    def close(self) -> None:
        """Close everything. A later note opens another part."""
        for run in list(self._writers):
            self.release(run)
