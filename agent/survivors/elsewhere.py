"""Processes of other hosts: their own agents close what they leave. Where those are gone as well, Slurm may know that the job is over.

Only the agent that has the spool's lease asks, only of writers that have been silent for a while, and ever more seldom.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from .slurm import Job, JobState

_SILENT = 120.0  # s without anything new, as a running agent sees it
_LONGEST = 3600.0  # s between two questions about one job
_AT_ONCE = 15.0  # s that a command takes for its questions
_SOON = 1.0


@dataclass(slots=True)
class _Silence:
    """A writer as it was when it was last seen to grow. `job`: what it was in; None where that says nothing. Times are monotonic s."""

    at: tuple[int, int]
    job: Job | None
    next: float
    wait: float = _SILENT


class Elsewhere:
    """Says of writers of other hosts whether their jobs are over. Confined to the agent's worker thread.

    `may` says whether this agent is the one that asks; `ask` asks about a job because of a writer, and returns None where there is no
    answer yet.
    """

    def __init__(self, ask: Callable[[Job, str], JobState | None], may: Callable[[], bool]) -> None:
        self._ask, self._may = ask, may
        self._silent: dict[str, _Silence] = {}
        self._spent = 0.0

    def is_over(self, writer: str, at: tuple[int, int], job: Callable[[], Job | None], *, once: bool) -> JobState | None:
        """Return what Slurm says of the job of a writer where that is over. `at` is how far the writer was read.

        `once`: a command looks, now or never, and waits for the answers.
        """
        if not self._may():
            return None
        now = time.monotonic()
        known = self._silent.get(writer)
        if known is None or known.at != at:
            wait = 0.0 if once else _SILENT
            known = self._silent[writer] = _Silence(at, known.job if known is not None else job(), now + wait)
        if known.job is None or not known.job.is_run or now < known.next:
            return None
        answer = None if once and self._spent > _AT_ONCE else self._ask(known.job, writer)
        self._spent += time.monotonic() - now
        if answer is None:
            known.next = now + _SOON
            return None
        if answer.is_over:
            del self._silent[writer]
            return answer
        known.wait = min(2 * known.wait, _LONGEST)
        known.next = now + known.wait
        return None
