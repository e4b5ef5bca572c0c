"""What a command finds that looks when all is over, and what is never closed: another host's, another namespace's, the living."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from recorded import begin, fill, killed, survivors

from simspool.agent.catalog import Catalog
from simspool.agent.ingest import Ingest
from simspool.agent.notes import RunNotes
from simspool.agent.status import show_run
from simspool.sdk import Client
from simspool.spool import Kind, Spool, Writer, control, ids


def look_once(spool: Spool) -> Catalog:
    catalog = Catalog(None)
    ingest = Ingest(spool, catalog)
    for _ in range(3):
        ingest.scan()
        ingest.read()
        ingest.read()
        ingest.bury()
    ingest.close()
    return catalog


def test_a_run_from_before_the_boot_is_terminated(spool: Spool, elsewhere: Any) -> None:
    run = killed(spool)
    elsewhere(boot_id=bytes(range(16)))
    catalog = look_once(spool)
    shown = show_run(catalog, spool, run, "")
    catalog.close()
    assert (shown["status"], shown["reason"]) == ("terminated", "the machine was booted while it ran")
    (said,) = survivors(spool, run)
    assert (said["evidence"]["reason"], said["evidence"]["rebooted"]) == ("rebooted", True)
    found = Client(spool=spool.path).get_run(run)
    assert (found["status"], found["reason"]) == (shown["status"], shown["reason"])


@pytest.mark.parametrize("different", [{"pid_namespace": 1}, {"name": "other"}, {"machine": bytes(16)}], ids=lambda d: next(iter(d)))
def test_what_others_run_is_never_closed_and_never_called_alive(spool: Spool, elsewhere: Any, different: dict[str, Any]) -> None:
    run = killed(spool)
    open_run, writer = begin(spool)
    elsewhere(**different)
    catalog = Catalog(None)
    ingest = Ingest(spool, catalog)
    ingest.scan()
    for _ in range(4):
        ingest.read()
        assert ingest.bury() == 0
    assert ingest.live_runs() == []
    assert show_run(catalog, spool, run, "")["status"] == "running"
    assert survivors(spool, run) == survivors(spool, open_run) == []
    ingest.close()
    catalog.close()
    writer.close({"status": "completed"})


def test_the_agents_own_part_of_a_run_is_no_life(spool: Spool) -> None:
    """No heartbeat for a run whose scripts are gone, however much the agent has to say in it."""
    run = killed(spool)
    notes = RunNotes(spool)
    assert notes.record(run, Kind.EVENT, {"message": "an agent's"})
    catalog = Catalog(None)
    ingest = Ingest(spool, catalog, notes=notes)
    ingest.scan()
    ingest.read()
    assert ingest.live_runs() == []
    assert [w.writer for w in ingest.live_writers()] == [w for w in spool.run(run).writer_ids() if w != notes.position(run)[0]]  # type: ignore[index]
    ingest.close()
    notes.close()
    catalog.close()


def test_several_deaths_in_a_run_are_noted_by_one_writer(spool: Spool) -> None:
    run, creator = begin(spool)
    for rank in range(4):
        pid = os.fork()
        if pid == 0:
            writer = Writer(spool.run(run).writers, ids.from_text(run))
            writer.record(Kind.ATTACH, {"reason": "attach", "rank": rank})
            fill(writer, 3)
            os.kill(os.getpid(), 9)
        os.waitpid(pid, 0)
    creator.close({"status": "completed"})
    catalog = look_once(spool)
    shown = show_run(catalog, spool, run, "")
    catalog.close()
    assert len(survivors(spool, run)) == 4
    assert [w["role"] for w in shown["writers"]].count("agent") == 1
    assert shown["status"] == "lost"
    assert all(w["ended"] for w in shown["writers"])


def attached(spool: Spool, run: str) -> int:
    """Begin a process that records in the run and is killed; returns its pid, reaped."""
    pid = os.fork()
    if pid == 0:
        writer = Writer(spool.run(run).writers, ids.from_text(run))
        writer.record(Kind.ATTACH, {"reason": "attach"})
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)
    return pid


@pytest.mark.parametrize("case", ["it", "another process", "an older process of its number"])
def test_an_abort_explains_the_death_of_those_that_were_signalled(spool: Spool, case: str) -> None:
    run, creator = begin(spool)
    notes = RunNotes(spool)
    note = {"id": "0" * 32, "state": "signalled", "by": "user", "reason": "enough", "signal": 15}
    if case == "an older process of its number":
        number = attached(spool, run)
        notes.record(run, Kind.ABORT, {**note, "pid": number})
        time.sleep(0.05)  # more than a tick: processes are told apart by the tick in which they begin
        pid = with_number(spool, run, number)
    else:
        pid = attached(spool, run)
        notes.record(run, Kind.ABORT, {**note, "pid": pid + (case != "it")})
    mine = notes.position(run)
    assert mine is not None
    *_, victim = sorted(w for w in spool.run(run).writer_ids() if w not in {creator.id_text, mine[0]})
    control.put_request(spool.run(run), control.make_request(spool.run(run), "0" * 32, "enough", by="user", writers=(victim,)))
    creator.close({"status": "completed"})
    look_once(spool).close()
    notes.close()
    said = next(s for s in survivors(spool, run) if s["writer"] == victim)
    assert said["evidence"]["pid"] == pid
    if case == "it":
        assert (said["status"], said["reason"], said["evidence"]["abort"]) == ("terminated", "aborted: enough", "0" * 32)
    else:
        assert (said["status"], said["evidence"]["reason"]) == ("lost", "process-gone")


def with_number(spool: Spool, run: str, number: int) -> int:
    """As `attached`, with a pid of our choice; others may be quicker to take it."""
    for _ in range(200):
        try:
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(number - 1))
        except OSError as error:
            pytest.skip(f"SKIPPED: the next pid cannot be chosen here ({error})")
        if (found := attached(spool, run)) == number:
            return found
    pytest.skip("SKIPPED: others took the pid each time")
