"""What processes of other hosts left: closed by Slurm's word that their job is over, by the agent that has the lease, by nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from recorded import begin, fill, killed, survivors

from simspool.agent.catalog import Catalog
from simspool.agent.ingest import Ingest
from simspool.agent.notes import RunNotes
from simspool.agent.status import show_run
from simspool.agent.survivors import Survivors, slurm
from simspool.agent.survivors import elsewhere as module
from simspool.agent.survivors.elsewhere import Elsewhere
from simspool.agent.survivors.slurm import Job, JobState, Slurm
from simspool.spool import Kind, Spool

SYSTEM = {"slurm": {"job": "7", "node": "n1"}}
JOB = Job("7", is_run=True)


class Controller:
    """Answers as scontrol does, and counts the questions."""

    def __init__(self, state: str, restarts: int = 0) -> None:
        self.state, self.restarts, self.asked = state, restarts, 0

    def __call__(self, command: list[str]) -> str:
        self.asked += 1
        if not self.state or command[0] != "scontrol":
            raise FileNotFoundError(2, "no such command", command[0])
        return f"JobId=7 JobName=x\n   JobState={self.state} Reason=None Dependency=(null)\n   Restarts={self.restarts} ExitCode=0:0\n"


def looked(spool: Spool, controller: Controller, *, judges: bool = True) -> Catalog:
    """Look once from the host that has the lease."""
    catalog = Catalog(None)
    notes = RunNotes(spool)
    ingest = Ingest(spool, catalog, notes=notes, judges_others=lambda: judges)
    ingest.survivors = Survivors(spool, notes, slurm=Slurm(run=controller), judges_others=lambda: judges)
    ingest.take_all(bury=True)
    ingest.close()
    notes.close()
    return catalog


@pytest.mark.parametrize(
    ("state", "status", "reason"),
    [
        ("CANCELLED", "terminated", "Slurm job 7 was cancelled"), ("TIMEOUT", "terminated", "Slurm job 7 reached its time limit"),
        ("NODE_FAIL", "terminated", "Slurm job 7 lost its node"), ("OUT_OF_MEMORY", "failed", "Slurm job 7 ran out of memory"),
        ("PENDING", "terminated", "Slurm job 7 was put back into the queue"),
        ("COMPLETED", "lost", "Slurm job 7 is over (COMPLETED), and nothing says how this process ended"),
        ("FAILED", "lost", "Slurm job 7 is over (FAILED), and nothing says how this process ended"),
    ],
)  # fmt: skip
def test_a_run_of_a_job_that_is_over_ends(spool: Spool, elsewhere: Callable[..., None], state: str, status: str, reason: str) -> None:
    run = killed(spool, system=SYSTEM)
    elsewhere(name="login", boot_id=bytes(range(16)))
    catalog = looked(spool, Controller(state))
    shown = show_run(catalog, spool, run, "")
    assert (shown["status"], shown["reason"]) == (status, reason)
    assert catalog.rows("SELECT complete FROM runs") == [(1,)]
    catalog.close()
    (said,) = survivors(spool, run)
    assert "rebooted" not in said["evidence"]
    assert said["evidence"]["slurm"]["state"] == ("REQUEUED" if state == "PENDING" else state)


@pytest.mark.parametrize("state", ["RUNNING", "COMPLETING", "SUSPENDED", ""])
def test_one_of_a_job_that_goes_on_or_is_not_known_stays_open(
    spool: Spool, elsewhere: Callable[..., None], state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "_AGAIN", 0.01)
    monkeypatch.setattr(slurm.time, "monotonic", iter(range(1000)).__next__)
    run = killed(spool, system=SYSTEM)
    elsewhere(name="login")
    looked(spool, Controller(state)).close()
    assert survivors(spool, run) == []


def test_who_does_not_have_the_lease_does_not_ask_and_of_what_is_in_no_job_nobody(spool: Spool, elsewhere: Callable[..., None]) -> None:
    run, other = killed(spool, system=SYSTEM), killed(spool, name="no job")
    shell = killed(spool, name="a shell of salloc outlives its job", system={"slurm": {"job": "8"}})
    elsewhere(name="login")
    controller = Controller("CANCELLED")
    looked(spool, controller, judges=False).close()
    assert controller.asked == 0
    looked(spool, controller).close()
    assert controller.asked == 1
    assert survivors(spool, run)
    assert survivors(spool, other) == survivors(spool, shell) == []


def test_what_came_late_is_read_before_it_is_closed(spool: Spool, elsewhere: Callable[..., None], tmp_path: Path) -> None:
    """A close record that a network disk shows only to who opens the file anew counts, and nothing is declared."""
    run, writer = begin(spool, system=SYSTEM)
    fill(writer, 10)
    elsewhere(name="login")

    class Late(Controller):
        def __call__(self, command: list[str]) -> str:
            if self.asked == 0:
                fill(writer, 5, start=10)
                writer.close({"status": "failed"})
            return super().__call__(command)

    catalog = looked(spool, Late("COMPLETED"))
    assert show_run(catalog, spool, run, "")["status"] == "failed"
    assert catalog.rows("SELECT sum(sequence) FROM writers WHERE closed = 1") == [(1 + 17,)]
    catalog.close()
    assert survivors(spool, run) == []


def test_the_part_of_an_agent_that_was_killed_with_the_job_ends_too(
    spool: Spool, elsewhere: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    run = killed(spool, system=SYSTEM)
    pid = os.fork()
    if pid == 0:
        RunNotes(spool).record(run, Kind.EVENT, {"message": "an agent's"})
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    monkeypatch.delenv("SLURM_JOB_ID")
    monkeypatch.delenv("SLURMD_NODENAME")
    elsewhere(name="login")
    catalog = looked(spool, Controller("CANCELLED"))
    assert catalog.rows("SELECT complete FROM runs") == [(1,)]
    catalog.close()
    assert len(survivors(spool, run)) == 1


def test_a_running_agent_asks_after_a_silence_and_ever_more_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    class Asked:
        answers, asked = "RUNNING", list[float]()

        def ask(self, job: Job, writer: str) -> JobState | None:
            self.asked.append(now[0])
            return JobState(job.name, self.answers)

    controller = Asked()
    found = Elsewhere(controller.ask, lambda: True)
    while now[0] < 10_000:
        assert found.is_over("w", (1, 100 if now[0] < 600 else 200), lambda: JOB, once=False) is None
        now[0] += 1
    assert controller.asked[:2] == [120, 360]
    assert controller.asked[2] == 600 + 120  # it had grown meanwhile
    assert len(controller.asked) < 10
    controller.answers = "NODE_FAIL"
    while (said := found.is_over("w", (1, 200), lambda: JOB, once=False)) is None:
        now[0] += 1
    assert said.state == "NODE_FAIL"


def test_a_command_asks_no_longer_than_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    class Slow:
        asked = 0

        def ask(self, job: Job, writer: str) -> JobState:
            self.asked += 1
            now[0] += 4
            return JobState(job.name, "RUNNING")

    controller = Slow()
    found = Elsewhere(controller.ask, lambda: True)
    for number in range(100):
        assert found.is_over(f"w{number}", (1, 100), lambda number=number: Job(str(number), is_run=True), once=True) is None  # type: ignore[misc]
    assert controller.asked == 4
