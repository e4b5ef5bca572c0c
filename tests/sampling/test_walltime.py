"""The time that Slurm leaves: from a job's environment, and from a real Slurm's queue."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import slurm as support

from simspool.agent.sampling.walltime import Deadlines, SlurmJob, ask_squeue, parse_left, slurm_job


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0:30", 30), ("59:59", 3599), ("1:00:00", 3600), ("2-03:04:05", 2 * 86400 + 3 * 3600 + 4 * 60 + 5), ("10-00:00:00\n", 864000),
        ("UNLIMITED", None), ("NOT_SET", None), ("INVALID", None), ("", None), ("5", None), ("-1:00", None),
    ],
)  # fmt: skip
def test_what_squeue_prints(text: str, seconds: float | None) -> None:
    assert parse_left(text) == seconds


@pytest.mark.parametrize(
    ("environment", "job"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "17", "SLURM_JOB_END_TIME": "2000000000"}, SlurmJob("17", 2e9)),
        ({"SLURM_JOB_ID": "17"}, SlurmJob("17", None)),
        ({"SLURM_JOB_ID": "17", "SLURM_JOB_END_TIME": "soon"}, SlurmJob("17", None)),
        ({"SLURM_JOB_ID": "17; rm"}, None),
    ],
)
def test_a_processes_environment(program: Callable[..., Any], environment: dict[str, str], job: SlurmJob | None) -> None:
    one = program("import sys; print(1, flush=True); sys.stdin.readline()", env={**os.environ, **environment})
    one.hear()
    assert slurm_job(one.pid) == job


def test_a_process_that_is_gone_has_no_job(program: Callable[..., Any]) -> None:
    one = program("print(1)")
    one.process.wait()
    assert slurm_job(one.pid) is None


def test_an_answer_is_kept_and_outlives_silence() -> None:
    deadlines = Deadlines()
    assert deadlines.due("1")
    assert deadlines.end("1") is None
    deadlines.put("1", 500.0)
    assert not deadlines.due("1")
    deadlines.put("1", None)
    assert deadlines.end("1") == 500.0


def test_without_squeue_nothing_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask_squeue("1") is None


@pytest.mark.root
def test_a_real_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What squeue says of a job and what the job's own environment says are the same end."""
    with support.real_slurm(tmp_path) as slurm:
        for name, value in slurm.environment.items():
            monkeypatch.setenv(name, value)
        assert shutil.which("squeue")
        place = tmp_path / "pid"
        batch = tmp_path / "job.sh"
        batch.write_text(f"#!/bin/sh\necho $$ > {place}.new; mv {place}.new {place}; exec sleep 100\n")
        job = slurm.run("sbatch", "--parsable", "--time=20", "-o", "/dev/null", str(batch))
        while not place.exists():
            time.sleep(0.05)
        found = slurm_job(int(place.read_text()))
        assert found is not None
        assert found.id == job
        asked = ask_squeue(job)
        assert asked is not None
        if found.end is not None:  # Slurm 23.02 and later
            assert asked == pytest.approx(found.end, abs=3)
        assert asked == pytest.approx(time.time() + 20 * 60, abs=60)
        assert ask_squeue("999999") is None
        print(found, asked, sys.version_info[:2])
