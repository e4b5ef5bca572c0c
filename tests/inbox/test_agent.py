"""Inboxes with the whole agent: running, killed, and not there at all; what it shows of them, and what it does not delete."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import recorded
from copier_kills import campaign
from inbox_records import copied
from real_server import RealServer, agent
from victims import Site

from simspool.agent.catalog import Catalog
from simspool.agent.inbox.inboxes import Inboxes
from simspool.agent.inbox.newcomers import Newcomers
from simspool.agent.ingest import Ingest
from simspool.agent.journal import Journal
from simspool.agent.retention import Retention
from simspool.spool import Kind, RunFolder, Spool, atomic, open_spool


def inbox_of(spool: Spool, run: str) -> Path:
    """Make a run's inbox."""
    folder = Path(spool.run(run).inbox)
    folder.mkdir(exist_ok=True)
    return folder


def append(folder: Path, *bodies: Any, name: str = "a.jsonl") -> None:
    with (folder / name).open("a") as f:
        f.write("".join(json.dumps(body) + "\n" for body in bodies))


@pytest.mark.parametrize("seed", [1, 2])
def test_each_line_once_whenever_the_copier_is_killed(seed: int) -> None:
    found = campaign(12, seed, each=12)
    assert found["wrong"] == 0, found
    assert found["killed_idle"] == 0
    assert found["examples"] == []


def test_each_line_once_whenever_the_agent_is_killed() -> None:
    found = campaign(3, 5, whole=True, each=3)
    assert found["wrong"] == 0, found
    assert found["examples"] == []


def test_a_sync_after_the_batch_takes_in_what_nobody_copied(spool: Spool, server: RealServer) -> None:
    run, writer = recorded.begin(spool, "batch")
    folder = inbox_of(spool, run)
    append(folder, *({"metrics": {"n": n}} for n in range(500)), {"event": "over"})
    writer.close({"status": "completed"})
    agent("sync", env=server.environment, check=True)
    assert server.points(run, "n") == [(n, float(n)) for n in range(500)]
    assert server.events(run) == ["over"]
    append(folder, {"metrics": {"n": 500}}, {"tags": ["late"]})  # a script's last words
    agent("sync", run, env=server.environment, check=True)
    assert len(server.points(run, "n")) == 501
    assert server.get(f"/runs/{run}")["tags"] == ["late"]
    agent("sync", env=server.environment, check=True)
    assert len(server.points(run, "n")) == 501
    assert len([o for o in copied(spool, run) if o.kind == Kind.METRICS]) == 501


def test_a_sync_beside_a_live_script_takes_in_its_lines(spool: Spool, server: RealServer) -> None:
    run, writer = recorded.begin(spool, "live")
    folder = inbox_of(spool, run)
    for n in range(3):
        append(folder, {"metrics": {"n": n}})
        agent("sync", env=server.environment, check=True)
        assert len(server.points(run, "n")) == n + 1
    writer.close({"status": "completed"})


def test_a_running_agent_copies_at_once_and_a_sync_asks_it_to(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    with Site(tmp_path / "site") as site:
        spool = open_spool(site.spool)
        run, writer = recorded.begin(spool, "live")
        folder = inbox_of(spool, run)
        append(folder, {"metrics": {"n": 0}})
        site.until(lambda: copied(spool, run) or None)
        append(folder, "odd", {"metrics": {"n": 1}})
        site.until(lambda: True if len(copied(spool, run)) == 3 else None)
        status = json.loads(agent("status", "--json", env=site.environment, check=True).stdout)
        assert status["not_understood"] == 1
        assert "not understood" in agent("status", env=site.environment, check=True).stdout
        check = agent("check", "--json", env=site.environment, check=True).stdout
        assert [f["detail"][:7] for f in map(json.loads, check.splitlines()) if f["kind"] == "not-understood"] == ["1 lines"]
        writer.close({"status": "completed"})
        site.until(lambda: True if (folder / ".copied.json").exists() else None)
        append(folder, {"metrics": {"n": 2}})  # of a run that has ended: the next search finds it, and a sync at once
        agent("sync", env=site.environment, check=True)
        assert [value for _, value in site.server.points(run, "n")] == [0, 1, 2]
        (finished,) = (r for r in [json.loads(line) for line in agent("ls", "--json", env=site.environment).stdout.splitlines()])
        assert finished["status"] == "completed"


def test_a_named_process_is_sampled_and_stopped_with_the_run(tmp_path: Path) -> None:
    """A line of `process` makes a program part of the run, though nobody of the run started it."""
    (tmp_path / "site").mkdir()
    with Site(tmp_path / "site") as site:
        shell = subprocess.Popen(["sleep", "600"])
        program = subprocess.Popen(["sleep", "600"])
        run = agent("log", "run", "--pid", str(shell.pid), env=site.environment, check=True).stdout.strip()
        spool = open_spool(site.spool)
        append(inbox_of(spool, run), {"process": {"pid": program.pid}}, {"event": "here"})
        site.until(lambda: copied(spool, run) or None)
        done = agent("abort", run, "--reason", "test", "--wait", env=site.environment)
        assert done.returncode == 0, done.stderr
        assert shell.wait(30) == -15
        assert program.wait(30) == -15


def newcomer(spool: Spool, *bodies: Any, name: str = "job-17.jsonl") -> None:
    """What a program does that has only the spool's folder."""
    folder = Path(spool.path, "inbox")
    folder.mkdir(exist_ok=True)
    append(folder, *bodies, name=name)


def test_a_program_begins_a_run_with_nothing_but_a_file(spool: Spool, server: RealServer) -> None:
    newcomer(spool, {"run": {"name": "far away", "folder": "/far", "tags": ["node"], "metadata": {"n": 1}}}, {"metrics": {"x": 0}})
    newcomer(spool, {"metrics": {"x": 0}}, name="no-run.jsonl")
    for n in range(2):  # also by another agent: it is one run
        agent("sync", env=server.environment, check=True)
        newcomer(spool, {"metrics": {"x": n + 1}})
    (run,) = spool.run_ids()
    found = server.get(f"/runs/{run}")
    assert (found["name"], found["folder"], found["tags"], found["status"]) == ("far away", "/far", ["node"], "running")
    newcomer(spool, {"status": "failed", "reason": "the node is gone"})
    agent("sync", env=server.environment, check=True)
    assert server.get(f"/runs/{run}")["status"] == "failed"
    assert [value for _, value in server.points(run, "x")] == [0, 1, 2]
    assert json.loads(agent("status", "--json", check=True).stdout)["not_understood"] == 1
    assert spool.run_ids() == [run]


def test_a_program_that_says_its_pid_ends_its_run_with_itself(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    with Site(tmp_path / "site") as site:
        spool = open_spool(site.spool)
        program = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read(); sys.exit(4)"], stdin=subprocess.PIPE)
        newcomer(spool, {"run": {"name": "near"}, "pid": program.pid}, {"metrics": {"x": 1}})
        run = site.until(lambda: next(iter(spool.run_ids()), None))
        site.until(lambda: copied(spool, run) or None)
        newcomer(spool, {"metrics": {"x": 2}})
        assert program.stdin is not None
        program.stdin.close()
        assert program.wait(30) == 4
        found = site.until(lambda: f if (f := site.server.get(f"/runs/{run}")) and f["status"] not in {"created", "running"} else None)
        assert found["status"] == "failed"
        site.until(lambda: True if [v for _, v in site.server.points(run, "x")] == [1, 2] else None)


def test_a_kill_while_a_run_is_begun_makes_no_second_one(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    newcomer(spool, {"run": {"name": "one"}}, {"metrics": {"x": 1}})
    for step in ("write_json", "make_folder", "link"):
        for at in range(3):
            with monkeypatch.context() as patch:
                left, real = [at], getattr(atomic, step)

                def stopped(*args: Any, left: list[int] = left, real: Any = real, **options: Any) -> Any:
                    left[0] -= 1
                    if left[0] < 0:
                        raise KeyboardInterrupt
                    return real(*args, **options)

                patch.setattr(atomic, step, stopped)
                killed = Newcomers(spool, lambda _: None)
                with contextlib.suppress(KeyboardInterrupt):
                    killed.look()
    last = Newcomers(spool, lambda _: None)
    last.look()
    (run,) = spool.run_ids()
    assert last.open == {run}
    inboxes = Inboxes(spool, set, lambda _: None)
    inboxes.copy_all()
    inboxes.stop()
    assert [o.body["values"] for o in copied(spool, run) if o.kind == Kind.METRICS] == [{"x": 1}]


def test_retention_leaves_a_run_with_lines_that_nobody_copied(spool: Spool) -> None:
    with contextlib.closing(Catalog(None)) as catalog:
        run = recorded.whole(spool, points=2)
        ingest, journal = Ingest(spool, catalog), Journal(spool, catalog)
        ingest.scan()
        ingest.read()
        retention = Retention(spool, catalog, journal, 0.0)
        (writer,) = spool.run(run).writer_ids()
        catalog.connection.execute(
            'INSERT INTO cursors(server, writer, mark, chain, segment, "offset", at)'
            ' SELECT ?, id, sequence - 1, chain, segment, "offset", 0 FROM writers WHERE id = ?', ("server", writer),
        )  # fmt: skip
        folder = inbox_of(spool, run)
        append(folder, {"event": "x"})
        assert retention.eligible("server") == [run]
        assert retention.prune(run, "server") is None
        (folder / "a.jsonl").unlink()
        assert retention.prune(run, "server") is not None
        assert not os.path.exists(RunFolder(spool.run(run).path, run).path)
        ingest.close()
        journal.close()


def test_finished_runs_cost_no_reading(spool: Spool) -> None:
    """Once a run's inbox is noted as copied, a search opens none of its writers: the note and the files' sizes are enough."""
    runs = []
    for n in range(20):
        run, writer = recorded.begin(spool, f"r{n}")
        append(inbox_of(spool, run), {"metrics": {"n": n}})
        writer.close({"status": "completed"})
        runs.append(run)
    rings: list[bytes] = []
    inboxes = Inboxes(spool, set, rings.append)
    assert inboxes.copy_all() == 20
    before = {run: spool.run(run).writer_ids() for run in runs}
    for run in runs:  # if they were read, this would raise
        for writer in before[run]:
            os.chmod(spool.run(run).writer(writer), 0)
    rings.clear()
    assert inboxes.copy_all() == 0
    assert rings == []
    assert not inboxes.problems
    for run in runs:
        for writer in before[run]:
            os.chmod(spool.run(run).writer(writer), 0o700)
    inboxes.stop()


def test_the_copier_wakes_for_a_ring_and_for_a_change_in_the_folder(spool: Spool) -> None:
    run, writer = recorded.begin(spool)
    folder = inbox_of(spool, run)
    rings: list[bytes] = []
    inboxes = Inboxes(spool, lambda: {run}, rings.append)
    watched: list[list[str]] = []
    inboxes.start(lambda folders, _: watched.append(folders))
    deadline = time.monotonic() + 40
    for n, hint in enumerate([lambda: inboxes.rung(f"inbox {run}".encode()), lambda: inboxes.changed(str(folder)), lambda: None]):
        append(folder, {"metrics": {"n": n}}, name=f"{n}.jsonl")
        hint()
        while len(rings) <= n:
            assert time.monotonic() < deadline
            time.sleep(0.005)
    inboxes.rung(b"inbox nonsense \xff")
    assert inboxes.copy_all() == 0
    while not watched:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert watched[0] == [str(folder)]
    inboxes.stop()
    inboxes.stop()
    writer.close({"status": "completed"})
    assert len(copied(spool, run)) == 3


def test_the_campaign_is_a_command() -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "copier_kills.py"), "--kills", "1"], capture_output=True, text=True, timeout=60
    )
    assert json.loads(done.stdout)["kills"] == 1
