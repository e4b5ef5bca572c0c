"""Who records at this moment: what the sampler, the abort ladder and the process watch share about writers that have not ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from simspool.spool.segment_header import SegmentHeader


@dataclass(frozen=True, slots=True)
class LiveWriter:
    """A writer that has not ended, as far as its records tell; its process may have died a moment ago.

    `role`: creator, attach, reconnect, fork, re-entrant. `options`: the run's options, as the SDK's `config` recorded them.
    `foreign`: the processes that `set_pid` named, as their records have them.
    """

    run: str
    writer: str
    role: str
    header: SegmentHeader
    options: Mapping[str, Any]
    foreign: tuple[Mapping[str, Any], ...] = ()


LiveWriters = Callable[[], list[LiveWriter]]
"""Returns the writers that are live now. Safe to call from any thread; cheap enough for once a second."""
