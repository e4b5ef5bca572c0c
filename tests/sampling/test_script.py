"""Samples of the script's own process, where no agent serves."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from samples import Sample, samples

from simspool.spool import Kind, Spool, Tail
from simspool.spool.frames import STEP, MetricBatch

SCRIPT = """
    import os, sys, time
    from simspool.sdk import Run
    run = Run("offline")
    run.config(resources_metrics_interval=1)
    run.init("script")
    print(run.id, flush=True)
    for line in sys.stdin:
        exec(line)
        print("done", flush=True)
"""
RANK = """
    import sys, time
    from simspool.sdk import Run
    run = Run.attach(sys.argv[1], mode="offline")
    run.config(resources_metrics_interval=1)
    print("attached", flush=True)
    sys.stdin.readline()
    run.close()
    print("closed", flush=True)
    sys.stdin.readline()
"""


def until(spool: Spool, run: str, enough: Callable[[list[Sample]], object]) -> list[Sample]:
    """Wait for samples; the test's own timeout ends a wait in vain."""
    while not enough(found := samples(spool, run)):
        time.sleep(0.1)
    return found


def test_a_script_alone_samples_itself(spool: Spool, program: Callable[..., Any]) -> None:
    script = program(SCRIPT)
    run = script.hear()
    found = until(spool, run, lambda s: len(s) >= 3)
    assert len({s.slot for s in found}) == len(found)
    for sample in found:
        assert sample.slot == int(sample.at), "the step is the slot"
        assert sample.values["resources/processes.count"] == 1
        assert {
            "resources/cpu.usage.percentage", "resources/cpu.usage.memory", "resources/processes.threads", "resources/processes.files.open",
            "resources/processes.io.written.rate", "resources/host.cpu.percentage", "resources/host.memory.left", "resources/memory.left",
            "resources/disk.left",
        } <= sample.values.keys()  # fmt: skip
    assert len({tuple(s.values) for s in found}) == 1, "one shape: the segment holds its definition once"


def test_samples_do_not_count_as_steps_of_the_scripts_metrics(spool: Spool, program: Callable[..., Any]) -> None:
    script = program(SCRIPT)
    run = script.hear()
    for n in range(3):
        script.tell("run.log_metrics({'a': 1.0})")
        script.hear()
        until(spool, run, lambda s, n=n: len(s) > n)
    steps = []
    folder = spool.run(run)
    for writer in folder.writer_ids():
        with Tail(folder.writer(writer), run) as tail:
            for chunk in tail.read():
                steps += [r[STEP] for i in chunk.items if isinstance(i, MetricBatch) and i.kind == Kind.METRICS for r in i.rows]
    assert steps == [0, 1, 2]


def test_sampling_can_be_switched_off_and_on_while_it_runs(spool: Spool, program: Callable[..., Any]) -> None:
    script = program(SCRIPT)
    run = script.hear()
    until(spool, run, len)
    script.tell("run.config(disable_resources_metrics=True)")
    script.hear()
    script.tell("time.sleep(2.5); print(time.clock_gettime(time.CLOCK_BOOTTIME), run.duration, flush=True)")
    _, off_until = script.hear().split()
    script.hear()
    off_from = float(off_until) - 2.5
    assert [s for s in samples(spool, run) if off_from + 1 < s.at] == []
    script.tell("run.config(disable_resources_metrics=False)")
    script.hear()
    until(spool, run, lambda s: s[-1].at > float(off_until))


def test_slurm_says_how_long_is_left(spool: Spool, program: Callable[..., Any]) -> None:
    end = int(time.time()) + 5000
    script = program(SCRIPT, env={**os.environ, "SLURM_JOB_END_TIME": str(end)})
    found = until(spool, script.hear(), len)
    assert 4000 < found[0].values["resources/walltime.left"] <= 5000


def test_of_several_processes_on_a_host_one_samples_for_all(spool: Spool, program: Callable[..., Any]) -> None:
    """The oldest, and when it is gone, the next; a slot is never sampled twice, and each tree is in it."""
    script = program(SCRIPT)
    run = script.hear()
    ranks = []
    for _ in range(2):
        ranks.append(program(RANK, run))
        assert ranks[-1].hear() == "attached"
    found = until(spool, run, lambda s: sum(x.values["resources/processes.count"] == 3 for x in s) >= 2)
    assert {s.by for s in found} == {spool.run(run).writer_ids()[0]}
    script.process.kill()
    script.process.wait()
    found = until(spool, run, lambda s: len({x.by for x in s}) > 1)
    assert found[-1].values["resources/processes.count"] == 2
    ranks[0].tell()
    assert ranks[0].hear() == "closed"
    found = until(spool, run, lambda s: len({x.by for x in s}) == 3)
    assert found[-1].values["resources/processes.count"] == 1, "a process that has closed the run is not the run's any more"
    assert len({s.slot for s in found}) == len(found)


def test_a_forked_child_is_part_of_its_parents_tree(spool: Spool, program: Callable[..., Any]) -> None:
    script = program(SCRIPT)
    run = script.hear()
    script.tell("pid = os.fork() or (run.log_metrics({'a': 1.0}), time.sleep(600))")
    script.hear()
    found = until(spool, run, lambda s: any(x.values["resources/processes.count"] == 2 for x in s))
    assert len(spool.run(run).writer_ids()) == 2
    assert {s.by for s in found} == {spool.run(run).writer_ids()[0]}
    script.tell("os.kill(pid, 9)")
    script.hear()


def test_a_process_that_the_script_names_counts(spool: Spool, program: Callable[..., Any]) -> None:
    script, other = program(SCRIPT), program("import sys; sys.stdin.readline()")
    run = script.hear()
    script.tell(f"run.set_pid({other.pid})")
    script.hear()
    until(spool, run, lambda s: s and s[-1].values["resources/processes.count"] == 2)
    other.end()
    until(spool, run, lambda s: s[-1].values["resources/processes.count"] == 1)


def test_a_short_script_pays_nothing(spool: Spool, program: Callable[..., Any]) -> None:
    script = program("""
        import sys
        from simspool.sdk import Run
        with Run("offline") as run:
            run.init("short")
            run.log_metrics({"a": 1.0})
        print([m for m in sys.modules if "sampling" in m], flush=True)
    """)
    assert script.hear() == "[]"
    (run,) = spool.run_ids()
    assert samples(spool, run) == []
