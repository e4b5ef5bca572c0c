"""The processes that an abort stops from outside: kept by identity, so that children of a parent that has died are not lost."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping
from typing import Any

from simspool.sdk.process_tree import Process, descendants, is_gone, protected, send
from simspool.spool.process import this_host


class Members:
    """Processes and what descends from them, as far as it was seen while its parents lived."""

    def __init__(self) -> None:
        self._known: dict[Process, None] = {}
        self._excluded: set[Process] = set()

    def grow(self, roots: Iterable[Process]) -> list[Process]:
        """Add processes and their descendants; return those that are new."""
        new, seen = [], set[Process]()
        for root in [*roots, *self._known]:
            if root in seen:
                continue
            for process in (root, *descendants(root)):
                seen.add(process)
                if process not in self._known and process not in self._excluded and not is_gone(process):
                    self._known[process] = None
                    new.append(process)
        return new

    def remember(self, found: Any) -> None:
        """Add processes from a record: pairs of pid and start ticks."""
        for pair in found if isinstance(found, list) else ():
            if isinstance(pair, list) and len(pair) == 2 and all(isinstance(n, int) for n in pair) and pair[0] > 1:
                process = Process(*pair)
                if not is_protected(process) and not is_gone(process):
                    self._known[process] = None

    def left(self) -> list[Process]:
        """Return those that have not ended; the others are forgotten."""
        self._known = {p: None for p in self._known if not is_gone(p)}
        return list(self._known)

    def ask(self, processes: Iterable[Process]) -> list[Process]:
        """Ask processes to end (SIGTERM; one that is stopped is let go on, so that it can); return those that could be asked."""
        asked = [p for p in processes if send(p, signal.SIGTERM)]
        for process in asked:
            send(process, signal.SIGCONT)
        return asked

    def kill(self) -> list[Process]:
        """Kill all that is left, whatever it forks meanwhile; return those that could be signalled."""
        fresh = self.left()
        while fresh:  # what is stopped does not fork
            stopped = [p for p in fresh if send(p, signal.SIGSTOP)]
            fresh = self.grow(stopped)
        return [p for p in self.left() if send(p, signal.SIGKILL)]

    def exclude(self, process: Process) -> None:
        """Leave a process alone from now on: it may not be signalled."""
        self._excluded.add(process)
        self._known.pop(process, None)


def is_protected(process: Process) -> bool:
    """Say whether a process is never signalled: this one, and those above it."""
    return process.pid in protected()


def named_process(body: Mapping[str, Any]) -> Process | None:
    """Return the process that `set_pid` named or `add_process` started, None for one of another host, boot or PID namespace."""
    here = this_host()
    pid, ticks = body.get("pid"), body.get("start_ticks")
    if not isinstance(pid, int) or not isinstance(ticks, int) or pid <= 1 or not any(here.boot_id):
        return None
    same = (
        body.get("boot_id") == here.boot_id.hex()
        and body.get("pid_namespace") == here.pid_namespace
        and body.get("host") == here.name
    )
    return Process(pid, ticks) if same else None
