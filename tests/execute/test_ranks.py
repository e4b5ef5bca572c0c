"""Ranks of a job step record into one run, with the real mpirun and the real srun; each command of a step has a run of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import slurm as support
from executing import EXEC, Place

from simspool.agent.execute.steps import Meeting, Step, find_step, is_of_each_rank, with_rank
from simspool.spool import open_spool

MPIRUN = ("mpirun", "--allow-run-as-root", "--oversubscribe")
COUNTER = """
import signal, sys
seen = []
signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
signal.signal(signal.SIGALRM, lambda *_: (print("seen", len(seen)), sys.exit()))
open("ready", "w").close()
while True:
    signal.pause()
"""
SOLVER = 'echo "x=$RANK_NOW"; echo $RANK_NOW > out.$RANK_NOW; exit $(( RANK_NOW == FAILS ))'


def runs(place: Place) -> list[dict[str, Any]]:
    return sorted((place.show(path.name) for path in (place.spool / "runs").iterdir()), key=lambda run: run["name"])


def seen(place: Place, run: dict[str, Any]) -> list[float]:
    return sorted(values["x"] for _, values in place.metrics(run["id"]))


def script(place: Place, variable: str, names: tuple[str, ...], fails: int = -1) -> Path:
    path = place.cwd / "ranks.sh"
    shell = SOLVER.replace("RANK_NOW", variable).replace("FAILS", str(fails))
    path.write_text(
        "".join(
            f"{' '.join(EXEC)} --name {name} --metric 'x=(?P<x>\\d+)' --output 'out.{{rank}}' -- sh -c '{shell}'\n" for name in names
        )
    )
    return path


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="SKIPPED: no mpirun here (Debian's openmpi-bin)")
def test_ranks_of_mpirun_are_one_run_for_each_command(place: Place) -> None:
    path = script(place, "OMPI_COMM_WORLD_RANK", ("one", "two"))
    done = subprocess.run([*MPIRUN, "-np", "3", "sh", str(path)], cwd=place.cwd, capture_output=True, text=True, timeout=100, check=True)
    assert sorted(line for line in done.stdout.split() if line.startswith("x=")) == [f"x={r}" for r in range(3) for _ in "12"]
    found = runs(place)
    assert [(run["name"], run["status"]) for run in found] == [("one", "completed"), ("two", "completed")]
    for run in found:
        assert seen(place, run) == [0, 1, 2]
        saved = sorted(body["name"] for body in place.bodies("artifact", run["id"]))
        assert saved == [f"{name}.{rank}" for name in ("out", "stdout") for rank in range(3)]


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="SKIPPED: no mpirun here (Debian's openmpi-bin)")
def test_mpirun_sees_the_rank_that_fails_and_so_does_the_run(place: Place) -> None:
    command = [*MPIRUN, "-np", "2", *EXEC, "--name", "f", "--", "sh", "-c", "test $OMPI_COMM_WORLD_RANK != 1 || exit 7"]
    done = subprocess.run(command, cwd=place.cwd, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 7
    (run,) = runs(place)
    assert run["status"] == "failed"


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="SKIPPED: no mpirun here (Debian's openmpi-bin)")
def test_exec_around_mpirun_is_one_run(place: Place) -> None:
    done = place.run("--metric", r"x=(?P<x>\d+)", "--", *MPIRUN, "-np", "2", "sh", "-c", "echo x=$OMPI_COMM_WORLD_RANK")
    assert sorted(done.stdout.split()) == [b"x=0", b"x=1"]
    assert sorted(values["x"] for _, values in place.metrics()) == [0, 1]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[support.Slurm]:
    with support.real_slurm(tmp_path_factory.mktemp("slurm")) as found:
        yield found


def submit(cluster: support.Slurm, place: Place, *options: str) -> None:
    """Run job.sh as a job, to its end."""
    places = ("-o", str(place.cwd / "job.out"), "-D", str(place.cwd))
    cluster.run("sbatch", "--wait", *options, *places, str(place.cwd / "job.sh"), check=False)


def test_tasks_of_srun_are_one_run(place: Place, cluster: support.Slurm) -> None:
    path = script(place, "SLURM_PROCID", ("one",), fails=2)
    batch = place.cwd / "job.sh"
    inner = f"{' '.join(EXEC)} --name alone -- true"
    batch.write_text(f"#!/bin/sh\nsrun -n 3 sh {path}\n{inner}\n")
    submit(cluster, place, "-n", "3")
    found = runs(place)
    assert [(run["name"], run["status"]) for run in found] == [("alone", "completed"), ("one", "failed")]
    assert seen(place, found[1]) == [0, 1, 2]
    for artifact in ("out.0", "out.1", "out.2"):
        assert place.artifact(artifact, found[1]["id"]) == f"{artifact[-1]}\n".encode()


def test_a_signal_to_a_step_reaches_each_command_once(place: Place, cluster: support.Slurm) -> None:
    (place.cwd / "wait.py").write_text(COUNTER)
    batch = place.cwd / "job.sh"
    send = "scancel -s {0} $SLURM_JOB_ID.0"
    signals = f"until test -e ready; do sleep 0.1; done; {send.format('USR1')}; sleep 1; {send.format('ALRM')}; wait"
    batch.write_text(f"#!/bin/sh\nsrun -n 1 {' '.join(EXEC)} -- {sys.executable} -u wait.py &\n{signals}\n")
    submit(cluster, place)
    assert "seen 1\n" in (place.cwd / "job.out").read_text()


def test_what_a_step_is() -> None:
    mpi = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4", "PMIX_NAMESPACE": "123"}
    mpi["OMPI_MCA_orte_precondition_transports"] = "a-b"
    srun = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8"}
    one, two = find_step(mpi), find_step(srun)
    assert one is not None
    assert two is not None
    assert (one.rank, one.size, two.rank, two.size) == (1, 4, 3, 8)
    assert find_step(srun | mpi) == one
    assert find_step(mpi | {"OMPI_MCA_orte_precondition_transports": "c-d"}) != one
    for change in ({"SLURM_STEP_ID": "1"}, {"SLURM_JOB_ID": "8"}, {"SLURM_RESTART_COUNT": "1"}):
        other = find_step(srun | change)
        assert other is not None
        assert other.key != two.key
    batch = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0"}
    for lone in (srun | {"SLURM_STEP_NUM_TASKS": "1"}, batch, srun | {"HYDI_CONTROL_FD": "5"}, {}):
        assert find_step(lone) is None
    assert with_rank("out.{rank}.{rank:03}.h5", 7) == "out.7.007.h5"
    assert (is_of_each_rank("a.{rank:03}"), is_of_each_rank("a.{b}")) == (True, False)


def test_ranks_that_come_after_a_maker_that_could_not_record_know_at_once(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "spool", create=True)
    first, second = (Meeting(spool, Step("k" * 32, rank, 2)) for rank in (0, 1))
    assert first.claim()
    first.tell("")
    assert not second.claim()
    assert second.await_run() is None
