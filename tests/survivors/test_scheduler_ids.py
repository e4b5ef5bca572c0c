"""The SDK notes the scheduler's ids, and nothing else of the environment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simspool.sdk import Run, provenance
from simspool.spool import Kind, Tail, open_spool
from simspool.spool.frames import Record

IDS = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT", "SLURMD_NODENAME")


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, {}),
        ({"SLURM_JOB_ID": "12"}, {"slurm": {"job": "12"}}),
        ({"SLURM_JOB_ID": "14", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}, {"slurm": {"job": "14", "array": "12_3"}}),
        ({"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "2"}, {"slurm": {"job": "12", "restarts": 2}}),
        ({"SLURM_JOB_ID": "12", "SLURMD_NODENAME": "n3"}, {"slurm": {"job": "12", "node": "n3"}}),
        ({"SLURM_JOB_ID": "12; rm", "SLURM_RESTART_COUNT": "2"}, {}),
        ({"SLURM_JOB_ID": "", "SLURM_ARRAY_JOB_ID": "1"}, {}),
        ({"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "many", "SLURM_ARRAY_JOB_ID": "x"}, {"slurm": {"job": "12"}}),
    ],
)
def test_the_ids_of_a_slurm_job(environment: dict[str, str], found: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in IDS:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert provenance.scheduler() == found


def test_every_process_of_a_run_notes_its_own_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMSPOOL_DIR", str(tmp_path / "spool"))
    monkeypatch.setenv("SLURM_JOB_ID", "21")
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    run = Run(mode="offline")
    run.init("n")
    monkeypatch.setenv("SLURM_JOB_ID", "22")
    helper = Run.attach(run.id, mode="offline")
    helper.close()
    run.close()
    folder = open_spool(tmp_path / "spool").run(str(run.id))
    first = {}
    for writer in folder.writer_ids():
        with Tail(folder.writer(writer), folder.id) as tail:
            records = [i for c in tail.read() for i in c.items if isinstance(i, Record)]
            first[records[0].kind] = records[0].body or {}
            assert "hush" not in json.dumps([r.body for r in records])
    assert first[Kind.RUN]["system"]["slurm"] == {"job": "21"}
    assert first[Kind.ATTACH]["slurm"] == {"job": "22"}
