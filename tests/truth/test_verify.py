"""`agent verify` and `agent status` against a real server: they agree, and name what is not there."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command import Command
from in_process import sync
from memory_target import MemoryTarget
from real_server import RealServer
from recorded import add_file, begin, fill, killed, whole

from simspool.agent.catalog import Catalog
from simspool.agent.catalog.store import catalog_path
from simspool.agent.drain import audit
from simspool.agent.journal import Journal
from simspool.agent.retention import Retention
from simspool.agent.truth.known import KnownTarget
from simspool.spool import Kind, Spool


def change(server: RealServer, sql: str, *values: Any) -> int:
    """Stop the server, change its database as no honest server would, and start it again; returns the rows changed."""
    server.kill(signal.SIGTERM)
    with sqlite3.connect(server.data / "server.db") as db:
        count = db.execute(sql, values).rowcount
    db.close()
    server.start()
    return count


def filled(spool: Spool, tmp_path: Path) -> tuple[str, str]:
    """Record a run of many kinds of things, and one whose process was killed."""
    (tmp_path / "a.txt").write_bytes(b"some bytes\n" * 1000)
    run, writer = begin(spool, "first", metadata={"alpha": 0.5})
    fill(writer, 3000, events=7)
    for value in (float("nan"), float("inf"), True, 2**70):
        assert writer.record(Kind.METRICS_JSON, {"values": {"odd": value}, "step": -3})
    add_file(spool, run, writer, tmp_path / "a.txt")
    (tmp_path / "a.txt").write_bytes(b"other bytes")
    add_file(spool, run, writer, tmp_path / "a.txt")
    assert writer.close({"status": "completed"})
    return run, killed(spool)


def test_what_is_there_is_equal_also_deep_and_the_books_balance(spool: Spool, server: RealServer, agent: Command, tmp_path: Path) -> None:
    run, lost = filled(spool, tmp_path)
    assert agent("verify", "--all") == 0
    assert "nothing acknowledged yet" in agent.out
    [body] = agent.lines("status")
    assert (body["balanced"], body["records"]["waiting"]) == (True, body["records"]["recorded"])
    assert agent("sync") == 0, agent.err
    for deep in ((), ("--deep",)):
        found = {line["run"]: line for line in agent.lines("verify", "--all", *deep)}
        assert {one: found[one]["verdict"] for one in (run, lost)} == {run: "equal", lost: "equal"}
        assert (found[run]["points"], found[run]["events"], found[run]["files"]) == (6004, 7, 1)
    [body] = agent.lines("status", run)
    [target] = body["targets"]
    assert body["balanced"]
    assert target["records"]["acknowledged"] == target["records"]["recorded"] == body["records"]["recorded"] > 3000
    assert body["files"]["acknowledged"] == 2


def test_what_the_server_lost_or_changed_is_named(spool: Spool, server: RealServer, agent: Command, tmp_path: Path) -> None:
    run, _ = filled(spool, tmp_path)
    assert agent("sync") == 0
    assert change(server, "DELETE FROM events WHERE message = 'event 3'")
    assert change(server, "UPDATE chunks SET rows = rows - 1 WHERE run = ? AND rows > 1000", run)
    assert change(server, "UPDATE runs SET status = 'failed' WHERE id = ?", run)
    [blob] = [p for p in (server.data / "blobs").rglob("*") if p.is_file() and p.read_bytes() == b"other bytes"]
    os.chmod(blob, 0o600)
    blob.write_bytes(b"Other bytes")
    [line] = agent.lines("verify", run, code=11)
    assert line["verdict"] == "differs"
    text = "\n".join(line["differences"])
    assert "events: 7 recorded, 6 there (-1)" in text
    assert "metric loss: 3000 points recorded, 2999 there (-1)" in text
    assert "status: completed here, failed there" in text
    assert "file" not in text
    [line] = agent.lines("verify", run, "--deep", code=11)
    assert "file a.txt: acknowledged, and not there" in line["differences"]  # its bytes are others now
    assert agent("verify", run) == 11
    assert "differs" in agent.out


def test_a_first_point_that_is_another_one_is_named(spool: Spool, server: RealServer, agent: Command) -> None:
    run = whole(spool, points=10)
    assert agent("sync") == 0
    change(server, "UPDATE summaries SET first_step = 5 WHERE run = ? AND metric = 'loss'", run)
    [line] = agent.lines("verify", run, code=11)
    assert line["differences"] == ["metric loss: the first point is 0.0 at step 0, there 0.0 at step 5"]


def test_a_run_that_goes_on_is_verified_as_far_as_it_is_acknowledged(spool: Spool, server: RealServer, agent: Command) -> None:
    run, writer = begin(spool, "live")
    fill(writer, 100, events=2)
    assert agent("sync") == 0
    fill(writer, 50, start=100)
    [line] = agent.lines("verify", run)
    assert (line["verdict"], line["points"], line["waiting"]) == ("equal", 200, 50)
    writer.close({"status": "completed"})


def test_a_run_that_the_server_does_not_know_any_more_and_another_server(spool: Spool, server: RealServer, agent: Command) -> None:
    run = whole(spool, points=10)
    assert agent("sync") == 0
    change(server, "DELETE FROM runs WHERE id = ?", run)
    [line] = agent.lines("verify", run, code=11)
    assert line["verdict"] == "unknown"
    server.kill(signal.SIGTERM)
    assert agent("verify", run) == 3
    shutil.rmtree(server.data)
    server.start()
    assert agent("verify", run, "--token-file", server.data / "token") == 4
    assert "another server" in agent.err


def test_a_pruned_run_is_compared_with_what_was_counted(spool: Spool, server: RealServer, agent: Command) -> None:
    run = whole(spool, points=10)
    assert agent("sync") == 0
    prune(spool, run)
    [line] = agent.lines("verify", run)
    assert (line["verdict"], line["points"]) == ("equal", 20)
    assert "pruned here" in line["notes"][0]
    assert change(server, "DELETE FROM events")
    [line] = agent.lines("verify", run, code=11)
    assert line["differences"] == ["events: 3 recorded, 0 there (-3)"]


def prune(spool: Spool, run: str) -> None:
    """Prune a run that the only server has, without any grace."""
    catalog = Catalog(catalog_path(spool))
    journal = Journal(spool, catalog)
    [(server,)] = catalog.rows("SELECT DISTINCT server FROM cursors")
    assert Retention(spool, catalog, journal, 0.0).prune(run, server)
    journal.close()
    catalog.close()


def test_a_server_restored_from_a_backup_is_refilled_and_what_is_gone_for_good_is_named(
    spool: Spool, server: RealServer, agent: Command, tmp_path: Path
) -> None:
    old = whole(spool, "old", points=10)
    assert agent("sync") == 0
    server.kill(signal.SIGTERM)
    shutil.copytree(server.data, tmp_path / "backup")
    server.start()
    pruned, kept = whole(spool, "pruned", points=20), whole(spool, "kept", points=30)
    (tmp_path / "b.txt").write_bytes(b"bytes of b")
    third, writer = begin(spool, "file")
    add_file(spool, third, writer, tmp_path / "b.txt")
    writer.close({"status": "completed"})
    assert agent("sync") == 0
    prune(spool, pruned)
    server.kill()
    shutil.rmtree(server.data)
    shutil.copytree(tmp_path / "backup", server.data)
    server.start()
    assert {line["verdict"] for line in agent.lines("verify", kept, third, code=11)} == {"unknown"}
    assert agent("sync") == 0, agent.err
    assert "has less than it acknowledged" in agent.err
    found = {line["run"]: line for line in agent.lines("verify", "--all", code=11)}
    assert {run: line["verdict"] for run, line in found.items()} == {old: "equal", kept: "equal", third: "equal", pruned: "unknown"}
    [first, _] = found[pruned]["differences"]
    assert first.startswith("records 1 to 25 of writer ")
    assert first.endswith("are gone for good: lost there, and no longer in the spool")
    [body] = agent.lines("status")
    restored = body["targets"][0]["restored"]
    assert (restored["records_again"], restored["files_again"], [g["last"] for g in restored["gone"]]) == (38, 1, [25])
    assert agent("status") == 0
    assert "38 records and 1 files sent again; 25 records of 1 pruned runs are gone for good" in agent.out
    assert agent("sync") == 0
    assert "has less" not in agent.err  # it is said once
    os.unlink(catalog_path(spool))  # and known without the catalog
    assert agent.lines("status")[0]["targets"][0]["restored"] == restored


def test_more_writers_than_one_question_holds_are_all_sent_again(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "_AT_ONCE", 10)
    runs = [whole(spool, f"r{n}", points=1, events=0) for n in range(35)]
    target = MemoryTarget()
    assert sync(spool, target).state == "done"
    target.marks_of.clear()
    assert sync(spool, target).state == "done"
    assert sorted(mark for mark, _ in target.marks_of.values()) == [3] * len(runs)


def test_verify_and_status_beside_an_agent_that_is_killed_and_a_server_that_is_killed(
    spool: Spool, server: RealServer, agent: Command, tmp_path: Path
) -> None:
    env = {**os.environ, **server.environment}
    runs = []
    for n in range(4):
        with open(tmp_path / "agent.log", "a") as log:
            daemon = subprocess.Popen([sys.executable, "-m", "simspool.agent", "run"], env=env, stdout=log, stderr=log)
        run, writer = begin(spool, f"run {n}")
        runs.append(run)
        for part in range(5):
            fill(writer, 200, events=1, start=200 * part)
            found = agent.lines("verify", "--all")
            assert {line["verdict"] for line in found} <= {"equal", "nothing"}, found
            assert all(body["balanced"] for body in agent.lines("status", *runs))
            if part == 2 and n % 2:
                server.kill()
                server.start()
        writer.close({"status": "completed"})
        daemon.send_signal(signal.SIGKILL if n % 2 else signal.SIGTERM)
        daemon.wait(60)
    assert agent("sync") == 0
    assert [line["verdict"] for line in agent.lines("verify", "--all", "--deep")] == ["equal"] * 4


def test_known_targets_are_those_of_the_settings(spool: Spool, server: RealServer, agent: Command) -> None:
    whole(spool, points=5)
    [body] = agent.lines("status")
    assert [(t["name"], t["server"]) for t in body["targets"]] == [("server", "")]
    assert "was never reached" in (agent("status") == 0 and agent.out)
    assert agent("sync") == 0
    [body] = agent.lines("status")
    assert body["targets"][0]["server"] == body["server"] != ""
    assert KnownTarget("x", "", "").server == ""


def test_a_directory_and_a_server_are_verified_side_by_side(spool: Spool, server: RealServer, agent: Command, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    (tmp_path / "simspool.toml").write_text(f'[target.archive]\nkind = "directory"\npath = "{archive}"\nrequired = false\n')
    run = whole(spool, points=30)
    assert agent("sync") == 0, agent.err
    assert [(line["target"], line["verdict"]) for line in agent.lines("verify", run)] == [("server", "equal"), ("archive", "equal")]
    [metrics] = archive.rglob("metrics.jsonl")
    text = metrics.read_text()
    metrics.chmod(0o600)
    metrics.write_text(text.replace("29", "28"))  # of the same length: the last step and value
    [line] = agent.lines("verify", run, "--target", "archive", code=11)
    assert any("the last point is 29 at step 29, there 28.0 at step 28" in one for one in line["differences"]), line
    [body] = agent.lines("status")
    told = [(t["name"], t["required"], t["records"]["acknowledged"]) for t in body["targets"]]
    assert told == [("server", True, 35), ("archive", False, 35)]
