"""What resource samples cost: the sampler itself, once a second, over a real tree of 50 processes and over 50 runs.

    python benchmarks/sampling.py [SECONDS]
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from harness import Figure, Plan, scratch

from simspool.agent.live import LiveWriter
from simspool.agent.notes import RunNotes
from simspool.agent.sampling.sampler import Sampler
from simspool.sdk.sampling.peers import Peers
from simspool.spool import Spool, open_spool

# A script with a run of its own, and `groups` children with `each` children of theirs; two threads each, all of them idle.
_TREE = """
import subprocess, sys, threading, time
depth, groups, each, spool = *map(int, sys.argv[1:4]), sys.argv[4]
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
run = ""
if depth == 0:
    from simspool.spool import Writer, ids, open_spool
    raw = ids.new_id()
    run = ids.to_text(raw)
    writer = Writer(open_spool(spool).run(run).writers, raw)
    writer.record(8, {"name": "tree", "status": "running"})
wide = (groups, each, 0)[depth]
command = [sys.executable, "-S", "-c", sys.argv[5], str(depth + 1), *sys.argv[2:]]
below = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(wide)]
for child in below:
    child.stdout.readline()
print(run, flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def _trees(folder: Path, count: int, groups: int, each: int) -> Iterator[tuple[Spool, list[str]]]:
    """Start real trees, each with a run; yields the spool and the runs."""
    spool = open_spool(folder / "spool", create=True)
    arguments = [sys.executable, "-c", _TREE, "0", str(groups), str(each), spool.path, _TREE]
    started = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    try:
        yield spool, [p.stdout.readline().strip() for p in started if p.stdout is not None]
    finally:
        for root in started:
            for process in [*psutil.Process(root.pid).children(recursive=True), root]:
                process.kill()
            root.communicate()


def _measure(spool: Spool, runs: list[str], seconds: float) -> tuple[float, int, dict[str, str]]:
    """Return the sampler's processor time in percent of a core, how many samples it took, and its problems."""
    options = {"resources_metrics_interval": 1}
    writers = [LiveWriter(run, w, "creator", h, options) for run in runs for w, h in Peers(spool.run(run)).living()]
    notes, taken = RunNotes(spool), 0

    def note(run: str, values: object, step: int) -> bool:
        nonlocal taken
        taken += 1
        return notes.sample(run, values, step)  # type: ignore[arg-type]

    sampler = Sampler(spool.path, note, lambda: writers, samples_from=0)
    sampler.start()
    time.sleep(3)
    taken, before, began = 0, resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    time.sleep(seconds)
    after, ended = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    samples = taken
    sampler.stop()
    notes.close()
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return 100 * used / (ended - began), samples, sampler.problems


def sampling(plan: Plan, seconds: float | None = None) -> list[Figure]:
    """The sampler at 1 s: one run with 50 processes, then 50 runs with one."""
    seconds = seconds or plan.scale(30, 5)
    figures = []
    for name, count, groups, each, bar in (("one run of 50 processes", 1, 7, 6, 1.0), ("50 runs of one process", 50, 0, 0, None)):
        with scratch(plan, "sampling") as folder, _trees(folder, count, groups, each) as (spool, runs):
            plan.say(f"sampling, {name}")
            share, samples, problems = _measure(spool, runs, seconds)
            detail = "; ".join(problems.values()) or f"{len(os.listdir('/proc'))} entries in /proc"
            figures.append(Figure(f"sampling every second, {name}", share, "% of a core", bar, detail=detail, n=f"{samples} samples"))
    return figures


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        for figure in sampling(Plan(quick=False, folder=Path(place)), float(sys.argv[1]) if len(sys.argv) > 1 else None):
            print(f"{figure.name}: {figure.value:.3f} {figure.unit} ({figure.n}, {figure.detail}) {figure.verdict}")
