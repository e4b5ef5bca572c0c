"""Ranks of one job step find each other: all that `srun agent exec` or `mpirun agent exec` started record into one run.

The place is `agent/steps/` in the spool, which they share. A rank that begins its n-th `agent exec` of a step leaves a mark,
`<key>.<n>.r<rank>`, made exclusively; so a step that runs several commands one after the other has a run for each. The first to claim the
n-th run (`<key>.<n>.claim`, exclusively) makes it and says which it is (`<key>.<n>.json`); the others wait for that. Marks of steps that
are over for a week go when a new run is claimed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from simspool.spool import Spool, atomic, ids

_OLD = 7 * 86400.0  # s
_PATIENCE = 60.0  # s for the first rank to make the run
_MOST = 1_000_000  # runs of one step
_RANK = re.compile(r"\{rank(?::(0?\d{1,2}))?\}")


@dataclass(frozen=True, slots=True)
class Step:
    """A job step of several tasks: `key` is the same in all of them, and in no other step; `rank` is this task's."""

    key: str
    rank: int
    size: int


def find_step(environ: Mapping[str, str]) -> Step | None:
    """Return the job step that we are a task of; None where we were started alone, or by a launcher that gives a step no name.

    Known: Open MPI's and PRRTE's mpirun (its name space, with the key that it draws for each job), and Slurm's srun (job, step, restart).
    The innermost counts: mpirun's own daemons are tasks of Slurm.
    """
    mpi = _step(
        environ, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
        ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"), ("OMPI_MCA_orte_precondition_transports", "OMPI_MCA_orte_hnp_uri"),
    )  # fmt: skip
    if mpi is not None or "OMPI_COMM_WORLD_SIZE" in environ:
        return mpi
    if "HYDRA_CONTROL_FD" in environ or "HYDI_CONTROL_FD" in environ:
        return None  # inside a step of Slurm, but not one rank for each of its tasks
    return _step(
        environ, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", ("SLURM_STEP_ID",), ("SLURM_JOB_ID", "SLURM_CLUSTER_NAME", "SLURM_RESTART_COUNT")
    )


def _step(environ: Mapping[str, str], rank: str, size: str, *names: tuple[str, ...]) -> Step | None:
    numbers = [environ.get(rank, ""), environ.get(size, "")]
    if not all(n.isascii() and n.isdecimal() for n in numbers) or int(numbers[1]) < 2:
        return None
    if not any(environ.get(name) for name in names[0]):
        return None
    parts = [f"{name}={environ.get(name, '')}" for group in names for name in group]
    digest = hashlib.sha256("\n".join([*parts, numbers[1]]).encode(errors="surrogateescape")).hexdigest()
    return Step(digest[:32], int(numbers[0]), int(numbers[1]))


def with_rank(pattern: str, rank: int | None) -> str:
    """Return a pattern with `{rank}` (or `{rank:04}`) filled in."""
    return _RANK.sub(lambda m: format(rank or 0, m[1] or ""), pattern)


def is_of_each_rank(pattern: str) -> bool:
    """Say whether a pattern names the rank, so that each has files of its own."""
    return _RANK.search(pattern) is not None


class Meeting:
    """Where the ranks of a step meet for one command. Raises OSError from its methods where the disk refuses."""

    def __init__(self, spool: Spool, step: Step) -> None:
        self._folder = os.path.join(spool.agent, "steps")
        self._step = step
        self._stem = ""

    def claim(self) -> bool:
        """Take part; True for the one that is to make the run, and then to call `tell` (or `give_up`)."""
        atomic.make_folder(self._folder)
        mark = next(
            n for n in range(_MOST) if _make(os.path.join(self._folder, f"{self._step.key}.{n}.r{self._step.rank}"))
        )  # fmt: skip
        self._stem = os.path.join(self._folder, f"{self._step.key}.{mark}")
        is_first = _make(f"{self._stem}.claim")
        if is_first:
            self._tidy()
        return is_first

    def tell(self, run: str) -> None:
        """Say which run it is; an empty one says that there will be none."""
        atomic.write_json(f"{self._stem}.json", {"run": run, "size": self._step.size})

    def await_run(self, is_over: Callable[[], bool] = lambda: False) -> str | None:
        """Return the run that the first has made; None when it made none in a minute, or said that it cannot."""
        deadline, pause = time.monotonic() + _PATIENCE, 0.01
        while time.monotonic() < deadline and not is_over():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                run = atomic.read_json(f"{self._stem}.json")["run"]
                return run if isinstance(run, str) and ids.is_id(run) else None
            time.sleep(pause)
            pause = min(2 * pause, 0.5)
        return None

    def _tidy(self) -> None:
        """Remove the marks of steps that are long over, by the disk's own clock."""
        now = os.stat(f"{self._stem}.claim").st_mtime
        with os.scandir(self._folder) as entries:
            old = [entry.path for entry in entries if now - entry.stat().st_mtime > _OLD]
        for path in old:
            atomic.remove(path)


def _make(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return False
    return True
