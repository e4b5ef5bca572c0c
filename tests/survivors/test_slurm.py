"""Runs in jobs of a real Slurm: what it does to them is what their runs say."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import slurm as support
from victims import Site

from simspool.agent.survivors import slurm
from simspool.agent.survivors.slurm import Job, JobState

SCRIPT = """
import os, signal, sys, time
from simspool.sdk import Run
run = Run(mode="online", agent="off")
run.init("in a job")
run.log_metrics({"x": 1.0})
with open(sys.argv[1] + "." + os.environ.get("SLURM_ARRAY_TASK_ID", "0"), "w") as f:
    f.write(f"{run.id} {os.getpid()} {os.environ['SLURM_JOB_ID']}\\n")
time.sleep(600)
"""


class Lab:
    """A Slurm, and a site whose agent asks it."""

    def __init__(self, cluster: support.Slurm, site: Site) -> None:
        self.cluster, self.site = cluster, site
        self.script = site.folder / "job.py"
        self.script.write_text(SCRIPT)
        self._count = 0

    def submit(self, *options: str, index: int = 0, before: str = "") -> tuple[str, str, int]:
        """Begin a run in a job, its script started by `before`; returns (job, run, pid)."""
        self._count += 1
        place = self.site.folder / f"job{self._count}"
        batch = self.site.folder / f"job{self._count}.sh"
        batch.write_text(f"#!/bin/sh\nexec {before} {sys.executable} {self.script} {place}\n")
        job = self.cluster.run("sbatch", "--parsable", "-o", "/dev/null", *options, str(batch), environment=self.site.environment)
        line = self.site.until(lambda: _line(Path(f"{place}.{index}")))
        run, pid, _ = line.split()
        self.watched(int(pid))
        return job, run, int(pid)

    def watched(self, pid: int) -> None:
        if self.site.agent is not None:
            self.site.watched_pid(pid)

    def end_of(self, run: str) -> tuple[str, str, dict[str, Any]]:
        """Wait for the end; returns (status, reason, evidence) as everybody shows them."""
        found = self.site.ended(run)
        (said,) = self.site.survivors(run)
        shown = [self.site.show(run), self.site.client("spool").get_run(run), found]
        assert len({(s["status"], s["reason"]) for s in shown}) == 1
        return found["status"], found["reason"], said["evidence"]


def _line(path: Path) -> str | None:
    try:
        text = path.read_text()
    except OSError:
        return None
    return text if text.endswith("\n") else None


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("slurm")
    with (
        support.real_slurm(folder) as cluster,
        Site(tmp_path_factory.mktemp("site"), **cluster.environment) as site,
    ):
        yield Lab(cluster, site)


@pytest.fixture(scope="module")
def limited(lab: Lab) -> tuple[str, str, int]:
    """A job whose time is over soon: Slurm looks every 30 s."""
    found = lab.submit("--partition=urgent")
    lab.cluster.run("scontrol", "update", f"jobid={found[0]}", "EndTime=now+1")
    return found


@pytest.mark.usefixtures("limited")
def test_cancelled(lab: Lab) -> None:
    job, run, _ = lab.submit()
    lab.cluster.run("scancel", job)
    status, reason, evidence = lab.end_of(run)
    assert (status, reason) == ("terminated", f"Slurm job {job} was cancelled")
    assert evidence["reason"] == "cancelled"
    assert (evidence["slurm"]["job"], evidence["slurm"]["state"], evidence["slurm"]["source"]) == (job, "CANCELLED", "scontrol")
    assert "signal" in evidence["exit"]
    assert lab.site.client("server").get_run(run)["system"]["slurm"] == {"job": job, "node": evidence["host"]}


def test_an_element_of_an_array_is_asked_for_by_its_place(lab: Lab) -> None:
    job, run, _ = lab.submit("--array=0-1", index=0)
    lab.cluster.run("scancel", f"{job}_0")
    status, reason, evidence = lab.end_of(run)
    assert (status, reason) == ("terminated", f"Slurm job {job}_0 was cancelled")
    assert evidence["slurm"]["job"] == f"{job}_0"
    assert lab.cluster.run("squeue", "-h", "-r", "-o", "%i %T").count(f"{job}_1 RUNNING") == 1
    lab.cluster.run("scancel", job)


def test_killed_by_somebody_in_a_job_that_goes_on(lab: Lab) -> None:
    job, run, pid = lab.submit("--wait-all-nodes=0")
    os.kill(pid, 9)
    status, reason, evidence = lab.end_of(run)
    assert (status, reason) == ("terminated", "ended by SIGKILL")
    assert evidence["slurm"]["job"] == job
    assert evidence["slurm"]["state"] not in slurm.ENDS


def test_preempted(lab: Lab) -> None:
    job, run, _ = lab.submit("--cpus-per-task=10", "--no-requeue")
    urgent = lab.cluster.run("sbatch", "--parsable", "-o", "/dev/null", "-p", "urgent", "--cpus-per-task=12", "--wrap", "sleep 1")
    status, reason, evidence = lab.end_of(run)
    assert (status, reason) == ("terminated", f"Slurm job {job} was preempted")
    assert evidence["reason"] == "preempted"
    lab.cluster.run("scancel", urgent)


def test_put_back_into_the_queue(lab: Lab) -> None:
    job, run, _ = lab.submit("--requeue")
    lab.cluster.run("scontrol", "requeue", job)
    status, reason, evidence = lab.end_of(run)
    assert (status, reason) == ("terminated", f"Slurm job {job} was put back into the queue")
    assert evidence["slurm"]["state"] == "REQUEUED"
    lab.cluster.run("scancel", job)


def test_without_an_agent_a_command_asks_afterwards(lab: Lab) -> None:
    lab.site.stop_agent()
    try:
        job, run, _ = lab.submit()
        lab.cluster.run("scancel", job)
        lab.site.until(lambda: None if lab.cluster.run("squeue", "-h", "-j", job, check=False) else True)
        shown = lab.site.show(run)
        assert (shown["status"], shown["reason"]) == ("terminated", f"Slurm job {job} was cancelled")
    finally:
        lab.site.start_agent()


@pytest.mark.skipif(os.geteuid() != 0, reason="PID namespaces need root")
def test_what_is_left_of_a_job_on_another_host_is_closed_by_a_sync(lab: Lab) -> None:
    """For this host's commands, a process of another PID namespace is one of another host: nobody here can look for it, but Slurm knows."""
    lab.site.stop_agent()
    try:
        job, run, _ = lab.submit(before="unshare -p -f --mount-proc")
        sync = [sys.executable, "-m", "simspool.agent", "sync"]
        before = subprocess.run(sync, env=lab.site.environment, capture_output=True, check=False)
        assert lab.site.show(run)["status"] == "running", before
        lab.cluster.run("scancel", job)
        lab.site.until(lambda: None if lab.cluster.run("squeue", "-h", "-j", job, check=False) else True)
        done = subprocess.run(sync, env=lab.site.environment, capture_output=True, check=False)
        assert done.returncode == 0, done
        shown = lab.site.show(run)
        assert (shown["status"], shown["reason"]) == ("terminated", f"Slurm job {job} was cancelled")
        assert lab.site.client("server").get_run(run)["status"] == "terminated"
    finally:
        lab.site.start_agent()


def test_the_time_limit(lab: Lab, limited: tuple[str, str, int]) -> None:
    job, run, _ = limited
    status, reason, evidence = lab.end_of(run)
    assert (status, reason) == ("terminated", f"Slurm job {job} reached its time limit")
    assert evidence["reason"] == "timeout"


def test_the_node_fails(lab: Lab) -> None:
    job, run, _ = lab.submit("--no-requeue")
    lab.cluster.run("scontrol", "update", f"nodename={lab.cluster.host}", "state=down", "reason=test")
    try:
        status, reason, evidence = lab.end_of(run)
    finally:
        # where its daemon has registered again, it is back already
        lab.cluster.run("scontrol", "update", f"nodename={lab.cluster.host}", "state=resume", check=False)
        lab.cluster.until_idle()
    assert (status, reason) == ("terminated", f"Slurm job {job} lost its node")
    assert evidence["reason"] == "node-fail"


def test_what_the_controller_has_forgotten_is_in_the_file_of_completed_jobs(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in lab.cluster.environment.items():
        monkeypatch.setenv(name, value)
    job, run, _ = lab.submit("--job-name=JobState=TIMEOUT")
    lab.cluster.run("scancel", job)
    lab.end_of(run)

    def forgetful(command: list[str]) -> str:
        if command[:3] == ["scontrol", "show", "job"]:
            command = ["scontrol", "show", "job", "4000000000"]  # as for a job that ended long ago
        return slurm.run_command(command)

    asked = slurm.Slurm(run=forgetful)
    found = asked.ask_once(Job(job, seen=time.time()))
    assert (found.job, found.state, found.source) == (job, "CANCELLED", "jobcomp")
    assert slurm.Slurm(run=forgetful).ask_once(Job(job, seen=time.time() + 86400)).problem, "another job, of a day before"
    assert asked.ask_once(Job("3999999999")).problem == "scontrol: slurm_load_jobs error: Invalid job id specified"


def test_a_controller_that_does_not_answer_is_left_alone_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = tmp_path / "calls"
    stuck = tmp_path / "scontrol"
    stuck.write_text(f"#!/bin/sh\necho called >> {calls}\nexec sleep 60\n")
    stuck.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(slurm, "_COMMAND", 0.3)
    asked = slurm.Slurm()
    assert "did not answer" in asked.ask_once(Job("1")).problem
    assert "a moment ago" in asked.ask_once(Job("2")).problem
    assert calls.read_text() == "called\n"


def test_a_job_is_asked_about_once_however_many_processes_it_had() -> None:
    looked = []

    def answer(command: list[str]) -> str:
        looked.append(command)
        return SHOWN.format(state="CANCELLED", restarts=0)

    asked, told = slurm.Slurm(run=answer), []
    job = Job("7", "5_2", seen=1795267621.5)
    for n in range(64):
        found = asked.ask(job, lambda n=n: told.append(n))
        assert found is None or found.state == "CANCELLED"
    _until(lambda: asked.ask(job, lambda: None) is not None)
    assert looked == [["scontrol", "show", "job", "5_2"]]
    _until(lambda: len(told) == len(set(told)) and asked.ask(job, lambda: None) == JobState("5_2", "CANCELLED", "scontrol", "", "0:15"))


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


SHOWN = """JobId=7 ArrayJobId=5 ArrayTaskId=2 JobName=a JobState=TIMEOUT
   UserId=root(0) GroupId=root(0) MCS_label=N/A
   JobState={state} Reason=None Dependency=(null)
   Requeue=1 Restarts={restarts} BatchFlag=1 Reboot=0 ExitCode=0:15
   StartTime=1795267621 EndTime=1795267622 Deadline=N/A
"""


@pytest.mark.parametrize(
    ("state", "restarts", "job", "found"),
    [
        ("CANCELLED", 0, Job("7"), "CANCELLED"),
        ("OUT_OF_MEMORY", 0, Job("7"), "OUT_OF_MEMORY"),
        ("RUNNING", 1, Job("7", restarts=0), "REQUEUED"),
        ("RUNNING", 1, Job("7", restarts=1), "RUNNING"),
        ("PENDING", 0, Job("7"), "REQUEUED"),
        ("CANCELLED", 0, Job("7", seen=1795267621.5), "CANCELLED"),
        ("CANCELLED", 0, Job("7", seen=1795367621.5), None),
        ("CANCELLED", 0, Job("7", seen=1795167621.5), None),
    ],
)
def test_what_scontrol_says(state: str, restarts: int, job: Job, found: str | None) -> None:
    answer = slurm.parse_scontrol(SHOWN.format(state=state, restarts=restarts), job)
    assert (answer.state if answer else None) == found


def test_what_sacct_says() -> None:
    text = "9|PREEMPTED|0:15|100000|200000\n9|CANCELLED by 1000|0:15|300000|400000\n"
    assert slurm.parse_sacct(text, Job("9", seen=150000.0)) == JobState("9", "PREEMPTED", "sacct", "", "0:15")
    assert slurm.parse_sacct(text, Job("9", seen=350000.0)) == JobState("9", "CANCELLED", "sacct", "by 1000", "0:15")
    assert slurm.parse_sacct(text, Job("9", seen=900000.0)) is None
    assert slurm.parse_sacct("", Job("9")) is None


@pytest.mark.parametrize(
    "noted",
    [None, {}, {"slurm": 5}, {"slurm": {}}, {"slurm": {"job": 5}}, {"slurm": {"job": "; rm -rf"}}, {"slurm": {"job": "--help"}}],
)
def test_what_is_no_job_is_not_asked_about(noted: Any) -> None:
    assert Job.of_record(noted, 0.0) is None


def test_a_job_as_the_sdk_noted_it() -> None:
    assert Job.of_record({"slurm": {"job": "7", "array": "5_2", "restarts": 3}}, 1.0) == Job("7", "5_2", 3, 1.0)
    assert Job.of_record({"slurm": {"job": "7", "array": "5_x", "restarts": "many"}}, 1.0) == Job("7", None, 0, 1.0)
