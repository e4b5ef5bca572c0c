"""How long a batch system still lets a process run: Slurm, by the job's end time in the environment, else by asking `squeue`, rarely."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from dataclasses import dataclass

_ASK_EVERY = 600.0  # seconds: one controller serves thousands of jobs
_TIMEOUT = 20.0
_LEFT = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)\Z")


@dataclass(frozen=True, slots=True)
class SlurmJob:
    """A process's job. `end` is seconds since 1970 UTC, None where the environment does not tell."""

    id: str
    end: float | None


def slurm_job(pid: int) -> SlurmJob | None:
    """Return the job that a process was started in, by its environment; None for none, or when that cannot be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as f:
            pairs = dict(entry.partition(b"=")[::2] for entry in f.read().split(b"\0") if entry.startswith(b"SLURM_JOB"))
    except OSError:
        return None
    job, end = pairs.get(b"SLURM_JOB_ID", b""), pairs.get(b"SLURM_JOB_END_TIME", b"")
    if not job.isdigit():
        return None
    return SlurmJob(job.decode(), float(end) if end.isdigit() else None)


def parse_left(text: str) -> float | None:
    """Return the seconds in what `squeue -o %L` prints (days-hours:minutes:seconds); None for no limit, or no such text."""
    found = _LEFT.match(text.strip())
    if found is None:
        return None
    days, hours, minutes, seconds = (int(v or 0) for v in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


def ask_squeue(job: str) -> float | None:
    """Return when a job's time is over, by the wall clock; None when the queue does not tell. Takes up to 20 s."""
    program = shutil.which("squeue")
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "-h", "-j", job, "-o", "%L"], capture_output=True, text=True, timeout=_TIMEOUT, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    left = parse_left(done.stdout.partition("\n")[0]) if done.returncode == 0 else None
    return None if left is None else time.time() + left


class Deadlines:
    """When jobs end; each is due to be asked for every ten minutes."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, float | None]] = {}

    def due(self, job: str) -> bool:
        """Say whether a job's end should be asked for now."""
        known = self._known.get(job)
        return known is None or time.monotonic() >= known[0] + _ASK_EVERY

    def put(self, job: str, end: float | None) -> None:
        """Remember an answer; without one, the last answer stays."""
        before = self._known.get(job)
        self._known[job] = (time.monotonic(), end if end is not None or before is None else before[1])

    def end(self, job: str) -> float | None:
        """Return when a job ends, as far as it is known."""
        known = self._known.get(job)
        return None if known is None else known[1]
