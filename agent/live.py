"""Who records at this moment: what the sampler, the abort ladder and the process watch share about writers that have not ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from simspool.spool import Kind, SpoolError, layout, runstate
from simspool.spool.process import this_host
from simspool.spool.segment_header import STATIC_SIZE, SegmentHeader, host_field


@dataclass(frozen=True, slots=True)
class LiveWriter:
    """A writer that has not ended, as far as its records tell; its process may have died a moment ago.

    `role`: creator, attach, reconnect, fork, re-entrant. `options`: the run's options, as the SDK's `config` recorded them.
    `processes`: those that `set_pid` named and `add_process` started and that have not ended, as their records have them.
    `answers`: whether the process can hear an abort request; one for which another process opened the run (`agent log run`) cannot.
    """

    run: str
    writer: str
    role: str
    header: SegmentHeader
    options: Mapping[str, Any]
    processes: tuple[Mapping[str, Any], ...] = ()
    answers: bool = True


LiveWriters = Callable[[], list[LiveWriter]]
"""Returns the writers that are live now. Safe to call from any thread; cheap enough for once a second."""


@dataclass(slots=True)
class Standing:
    """What a writer's records say of its process: fold them in with `take`, in their order."""

    role: str = ""
    answers: bool = True
    processes: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def take(self, kind: int, body: Mapping[str, Any] | None) -> None:
        """Take a record."""
        if not self.role:
            self.role = runstate.role_of(kind, body)
            self.answers = not (body or {}).get("proxy")
        if body is None:
            return
        if kind == Kind.PROCESS_START:
            self.processes[_key(body)] = body
        elif kind == Kind.PROCESS_EXIT:
            self.processes.pop(_key(body), None)

    def live(self, run: str, writer: str, header: SegmentHeader, options: Mapping[str, Any]) -> LiveWriter:
        """Return it as a live writer."""
        return LiveWriter(run, writer, self.role, header, options, tuple(self.processes.values()), self.answers)


def is_of_another_host(folder: str) -> bool:
    """Say whether a writer's first segment names another host or PID namespace; False also where that is not known yet."""
    here = this_host()
    for file in layout.segments(folder)[:1]:
        try:
            with open(file.path, "rb") as f:
                header = SegmentHeader.unpack(f.read(STATIC_SIZE))
        except (OSError, SpoolError):
            return False
        same = header.machine == here.machine and host_field(header.host) == host_field(here.name)
        return not same or header.pid_namespace != here.pid_namespace
    return False


def _key(body: Mapping[str, Any]) -> str:
    return f"{body.get('pid')}:{body.get('start_ticks')}"  # text: an odd body may hold anything
