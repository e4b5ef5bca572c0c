"""Asking for an abort: the half of Run that is about stopping. What is then done is the ladder's (ladder.py)."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from simspool.spool import Drop, InvalidRecord, Kind, Writer

from . import validation as check
from .errors import MISTAKES
from .part import Part


class Aborting(Part):
    """Asking for an abort, and being aborted."""

    abort_callback: Callable[[Any], None] | None
    _writer: Writer | None
    _options: dict[str, Any]
    _abort_requested: bool
    _aborted: bool

    @abstractmethod
    def _close_aborted(self, reason: str) -> None:
        """Close the run as terminated."""

    def abort(self, reason: str = "", sticky: bool = False) -> bool:
        """Stop this run, in every process that records it, as `config(abort_on_alert=)` says; returns at once.

        With `sticky`, processes that open the run later are stopped as well. True when the request is kept. Where the disk refuses it,
        this process stops all the same. Raises InvalidRecord, NotInitialised or RunClosed.
        """
        try:
            check.check_text("reason", reason)
            if not isinstance(sticky, bool):
                raise InvalidRecord(f"sticky must be True or False, not {sticky!r}"[:300])
            if self._ready("abort") is None:
                return self._default()
            return self._request_abort(reason, sticky=sticky)
        except MISTAKES as error:
            return self._mistake(error)

    def _request_abort(self, reason: str, *, alert: str | None = None, sticky: bool = False) -> bool:
        recording = self._recording
        ladder = recording.make_ladder() if recording is not None else None
        if recording is None or recording.folder is None or ladder is None:
            return False
        from simspool.spool import control

        folder = recording.folder
        request = control.make_request(folder, os.urandom(16).hex(), reason, by="script", alert=alert, sticky=sticky)
        try:
            kept = control.put_request(folder, request)
        except OSError:
            kept = False
            if recording.writer is not None:
                recording.writer.count_drop(Drop.DISK_FULL)
        ladder.hear(request)
        return kept

    @property
    def abort_requested(self) -> bool:
        """Whether this run was asked to stop: also where `ignore` lets it go on, and before the callback returned."""
        return self._abort_requested

    def set_pid(self, pid: int) -> bool:
        """Count a process as part of the run, though this script did not start it: it is sampled, and an abort stops it and its children.

        Only processes of this host and PID namespace. Those above this script are never signalled. Raises InvalidRecord when there is no
        such process.
        """
        try:
            if check.check_count("pid", pid) == os.getpid():
                return True  # it is recorded as the writer's own
            from simspool.spool.process import this_host

            from . import process_tree

            found = process_tree.identify(pid)
            if found is None:
                raise InvalidRecord(f"there is no process {pid} on this host: give the pid of one that runs")
            writer = self._ready("set_pid")
            if writer is None or self._recording is None:
                return self._default()
            host = this_host()
            kept = self._record(
                Kind.PROCESS_START,
                {
                    "pid": pid, "start_ticks": found.start_ticks, "boot_id": host.boot_id.hex(), "pid_namespace": host.pid_namespace,
                    "host": host.name, "foreign": True,
                },
            )  # fmt: skip
            if found not in self._recording.foreign:
                self._recording.foreign.append(found)
            return kept
        except MISTAKES as error:
            return self._mistake(error)
