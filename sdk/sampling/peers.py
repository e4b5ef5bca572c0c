"""Who else is there on this host: an agent that samples, and the other writers of the run whose processes live.

Of these, the one with the oldest writer samples for all where no agent does. Their trees are measured together, as the agent does it.
"""

from __future__ import annotations

from dataclasses import dataclass

from simspool.spool import RunFolder, SpoolError, layout
from simspool.spool.agent_address import living_agent
from simspool.spool.process import is_alive
from simspool.spool.segment_header import STATIC_SIZE, SegmentHeader


@dataclass(frozen=True, slots=True)
class SamplingAgent:
    """A living agent that takes the samples of all slots that start at or after `samples_from` (ns on the boot clock)."""

    pid: int
    start_ticks: int
    samples_from: int


def sampling_agent(spool_path: str) -> SamplingAgent | None:
    """Return the agent that serves a spool on this host and PID namespace and takes samples; None when none lives."""
    known = living_agent(spool_path) or {}
    samples_from = known.get("samples_from")
    return SamplingAgent(known["pid"], known["start_ticks"], samples_from) if isinstance(samples_from, int) else None


class Peers:
    """Looks into a run's folder; each writer's header is read once."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._known: dict[str, SegmentHeader] = {}
        self._past: set[str] = set()  # ended, or another host's: an ended writer is not opened again

    def living(self) -> list[tuple[str, SegmentHeader]]:
        """Return (writer id, header) of the writers that are open and whose processes live here, the oldest first."""
        found = []
        for writer in self._folder.writer_ids():
            if writer in self._past:
                continue
            segments = layout.segments(self._folder.writer(writer))
            if not segments:
                continue  # it is being made
            header = self._known.get(writer) or self._read(segments[-1].path)
            if header is None:
                continue
            self._known[writer] = header
            if segments[-1].sealed or not is_alive(header):
                self._past.add(writer)
            else:
                found.append((writer, header))
        return found

    @staticmethod
    def _read(path: str) -> SegmentHeader | None:
        try:
            with open(path, "rb") as f:
                return SegmentHeader.unpack(f.read(STATIC_SIZE))
        except (OSError, SpoolError):  # sealed in this moment, or damaged
            return None
