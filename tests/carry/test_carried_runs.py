"""A carried run is foreign where it was carried to, also on the machine that recorded it: drained, verified, pruned, and nothing else."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
from carrying import bring, pack, settle, tree
from command import Command
from in_process import serve, sync, total, until
from memory_target import MemoryTarget
from real_server import RealServer
from recorded import add_file, begin, fill, killed, whole
from sides import Side

from simspool.agent.app import Agent
from simspool.agent.budget.duty import BudgetDuty
from simspool.agent.budget.shed import Shedder
from simspool.agent.carry import carried
from simspool.agent.carry.carried import Carried, CarriedRuns
from simspool.agent.carry.parts import Position
from simspool.agent.catalog import Catalog
from simspool.agent.catalog.store import catalog_path
from simspool.agent.exit_codes import ExitCode
from simspool.agent.inbox.ring import RING
from simspool.agent.retention import Retention
from simspool.agent.scrub import scrub
from simspool.sdk import Run
from simspool.spool import Kind, RunNotFound, Spool, control, ids, layout, open_spool

ALERT = {
    "id": ids.to_text(ids.new_id()), "name": "high", "source": "metrics", "notification": "all", "abort": True, "by": "script",
    "alert": {"metric": "loss", "rule": "is above", "threshold": 1.0, "window": 1, "frequency": 1, "aggregation": "at least one"},
}  # fmt: skip


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spool:
    monkeypatch.setenv("SIMSPOOL_DIR", str(tmp_path / "far"))
    return open_spool(tmp_path / "far", create=True)


def statuses(spool: Spool) -> dict[str, tuple[str, int]]:
    catalog = Catalog(catalog_path(spool), shared=True)
    try:
        return {run: (status, complete) for run, status, complete in catalog.rows("SELECT id, status, complete FROM runs")}
    finally:
        catalog.close()


# ---------------------------------------------------------------------- what says that it is foreign


def test_what_is_said_of_a_run_is_read_again(far: Spool) -> None:
    run, writer, digest = ids.to_text(ids.new_id()), ids.to_text(ids.new_id()), "a" * 64
    folder = far.run(run)
    assert carried.read(folder) is None
    os.makedirs(folder.path)
    said = Carried(ids.to_text(ids.new_id()), "bundle", {writer: Position(3, 2048, digest, final=True)}, {digest: 7})
    carried.note(folder, said, 5.0)
    assert carried.read(folder) == said
    assert json.loads(Path(folder.path, layout.CARRIED).read_text())["writers"] == {
        writer: {"segment": 3, "offset": 2048, "after": digest, "final": True}
    }


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "5", '{"from": 5, "writers": [1], "files": {"x": 1}}',
        '{"writers": {"..": {}, "0000000000000000000000": {"segment": 1}}}',
    ],  # fmt: skip
)
def test_what_cannot_be_understood_still_says_foreign(far: Spool, text: str) -> None:
    run = ids.to_text(ids.new_id())
    folder = far.run(run)
    os.makedirs(folder.writers)
    Path(folder.path, layout.CARRIED).write_text(text)
    found = carried.read(folder)
    assert found is not None
    assert (found.writers, found.files) == ({}, {})
    assert CarriedRuns(far).is_carried(run)


def test_the_look_up_sees_what_changes(far: Spool) -> None:
    run, writer = ids.to_text(ids.new_id()), ids.to_text(ids.new_id())
    runs = CarriedRuns(far)
    assert not runs.is_carried(run)  # there is none yet: not remembered
    os.makedirs(far.run(run).path)
    carried.note(far.run(run), Carried("x", "bundle"), 1.0)
    os.makedirs(far.run(run).writers)
    assert runs.is_carried(run)
    assert not runs.is_final(run, writer)
    carried.note(far.run(run), Carried("x", "bundle", {writer: Position(1, 2000, "b" * 64, final=True)}), 2.0)
    assert runs.is_final(run, writer)
    own = whole(far)
    assert not runs.is_carried(own)
    assert not runs.is_final(own, far.run(own).writer_ids()[0])


# ---------------------------------------------------------------------- a running agent


def test_an_agent_does_nothing_for_a_run_whose_process_lives_on_its_own_machine(origin: Side, far: Spool) -> None:
    run, writer = begin(origin.spool, notification="all")
    assert writer.record(Kind.ALERT, ALERT)
    fill(writer, 50)
    settle(origin)
    parcel = pack(origin)
    mine, own = begin(far, "mine")  # recorded beside it, by this very process too
    fill(own, 5)
    target = MemoryTarget()
    reports: list[str] = []

    async def story(agent: Agent) -> None:
        assert agent.watch is not None
        bring(far, parcel)
        await until(lambda: total(target) == writer.sequence + own.sequence)
        await until(lambda: agent.watch is not None and [w.run for w in agent.watch.live()] == [mine])
        ingest = agent.ingest
        assert await agent.work(ingest.live_runs) == [mine]
        assert {w.run for w in ingest.live_writers()} == {mine}
        assert ingest.unended_runs() == {mine}
        assert await agent.work(ingest.busy_runs) == {mine}
        agent.watch.rung(f"{writer.id_text} {run}".encode())
        agent._flagged("memory", {run: {"id": "a" * 32, "reason": "the server wants it"}})
        os.makedirs(far.run(run).inbox)
        Path(far.run(run).inbox, "solver.jsonl").write_text('{"metrics": {"x": 1}}\n')
        agent.inboxes.rung(RING + run.encode())
        await asyncio.to_thread(agent.inboxes.copy_all)
        assert await agent.judge_the_rest(ended=False) == 0
        assert not agent.watch.follows(run)
        assert agent.watch.follows(mine)
        assert control.requests(far.run(run)) == []
        assert far.run(run).writer_ids() == [writer.id_text]
        assert await agent.work(agent.catalog.rows, "SELECT run FROM notices WHERE run = ?", (run,)) == []
        assert all(run not in beat for beat in target.beats)

    serve(far, target, story, reports)
    assert far.run(run).writer_ids() == [writer.id_text]
    assert statuses(far)[run] == ("running", 0)
    own.close({"status": "completed"})
    writer.close({"status": "completed"})


def test_a_dead_process_is_declared_where_it_ran_and_nowhere_else(origin: Side, far: Spool) -> None:
    run = killed(origin.spool)
    origin.take_in()  # its death is not noted yet
    bring(far, pack(origin))
    [writer] = far.run(run).writer_ids()
    target = MemoryTarget()
    assert sync(far, target).state == "done"
    assert sync(far, target).state == "done"
    assert far.run(run).writer_ids() == [writer]
    assert statuses(far) == {run: ("running", 0)}
    settle(origin)
    settle(origin)
    bring(far, pack(origin))
    assert sync(far, target).state == "done"
    assert statuses(far) == {run: ("lost", 1)}
    assert far.run(run).writer_ids() == origin.spool.run(run).writer_ids()
    assert total(target) == sum(origin.recorded(run).values())
    assert target.twice == 0


def test_damage_of_a_final_writer_is_found_by_the_scrub(origin: Side, far: Spool) -> None:
    run = killed(origin.spool)
    folder = origin.spool.run(run)
    path = Path(folder.writer(folder.writer_ids()[0]), "000001.open")
    data = path.read_bytes()
    end = len(data.rstrip(b"\0"))
    with open(path, "r+b") as f:
        f.seek(end - 40)
        f.write(bytes(40))
    origin.take_in()
    bring(far, pack(origin))
    assert [f.kind for f in scrub(far)] == []
    settle(origin)
    bring(far, pack(origin))
    assert [f.kind for f in scrub(far)] == [f.kind for f in scrub(origin.spool)] == ["torn"]


def test_nothing_of_a_carried_run_is_shed_or_told(origin: Side, far: Spool) -> None:
    run = whole(origin.spool, notification="all")
    settle(origin)
    bring(far, pack(origin))
    mine = whole(far, "mine", notification="all")

    async def story(agent: Agent) -> None:
        await until(lambda: len(statuses(far)) == 2 and all(complete for _, complete in statuses(far).values()))
        assert await agent.work(BudgetDuty(agent)._whole) == {run}
        assert await agent.work(agent.catalog.rows, "SELECT DISTINCT run FROM notices") == [(mine,)]

    serve(far, MemoryTarget(), story)


def test_a_file_that_a_carried_run_has_too_is_not_shed(origin: Side, far: Spool, tmp_path: Path) -> None:
    for name in ("both", "mine"):
        (tmp_path / name).write_text(name * 1000)
    foreign, writer = begin(origin.spool)
    shared = add_file(origin.spool, foreign, writer, tmp_path / "both")
    writer.close({"status": "completed"})
    settle(origin)
    bring(far, pack(origin))
    run, own = begin(far, "mine")
    assert add_file(far, run, own, tmp_path / "both") == shared
    only_mine = add_file(far, run, own, tmp_path / "mine")
    own.close({"status": "completed"})
    with Side(Path(far.path)) as there:
        settle(there)
        shedder = Shedder(there.spool, there.catalog, there.journal, kept=lambda: {foreign})
        done = shedder.next(runs=False)
        assert done is not None
        assert done[:2] == (run, "1 file")
        assert os.listdir(far.run(run).blobs) == [shared]
        assert os.path.exists(os.path.join(far.run(foreign).blobs, shared))
        assert not os.path.exists(far.pool_path(only_mine))
        assert shedder.next(runs=False) is None


def test_a_delivered_run_is_pruned_like_any_other_and_does_not_come_back(origin: Side, far: Spool) -> None:
    run = whole(origin.spool)
    settle(origin)
    parcel = pack(origin)
    bring(far, parcel)
    target = MemoryTarget()
    assert sync(far, target).state == "done"
    with Side(Path(far.path)) as there:
        retention = Retention(there.spool, there.catalog, there.journal, 0.0)
        assert retention.eligible("memory") == [run]
        assert retention.prune(run, "memory")
        [(last,)] = there.catalog.rows("SELECT last FROM pruned WHERE run = ?", (run,))
    assert bring(far, parcel, pruned=lambda r: json.loads(last) if r == run else None) == (0, [])
    assert far.run_ids() == []
    assert sync(far, target).state == "done"
    assert total(target) == sum(origin.recorded(run).values())


# ---------------------------------------------------------------------- to a real server


def test_what_is_carried_and_sent_directly_too_is_there_once(
    origin: Side, far: Spool, tmp_path: Path, agent: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "field.npy").write_bytes(b"n" * 3000)
    with RealServer(tmp_path / "data") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        run, writer = begin(origin.spool, "carried")
        for step in range(0, 200, 50):
            fill(writer, 50, events=1, start=step)
            if step == 50:
                add_file(origin.spool, run, writer, tmp_path / "field.npy")
            settle(origin)
            assert bring(far, pack(origin))[1] == []
            if step != 100:
                assert agent("sync", "--json") == 0, agent.out + agent.err
        writer.close({"status": "completed"})
        dead = killed(origin.spool, points=30)
        settle(origin)
        settle(origin)
        origin.close()
        monkeypatch.setenv("SIMSPOOL_DIR", origin.spool.path)
        assert agent("sync", "--json") == 0, agent.out + agent.err  # the gap was bridged meanwhile
        origin.again()
        assert bring(far, pack(origin, full=True))[1] == []
        monkeypatch.setenv("SIMSPOOL_DIR", far.path)
        assert agent("sync", "--json") == 0, agent.out + agent.err
        assert server.points(run, "loss") == [(step, step / 2) for step in range(200)]
        assert server.points(dead, "loss") == [(step, step / 2) for step in range(30)]
        assert server.events(run) == ["event 0"] * 4
        assert [f["size"] for f in server.get(f"/runs/{run}/artifacts")] == [3000]
        assert [(server.get(f"/runs/{one}") or {}).get("status") for one in (run, dead)] == ["completed", "lost"]
        assert agent("verify", "--all") == 0, agent.out + agent.err


def test_nobody_records_into_a_carried_run_or_aborts_it(
    origin: Side, far: Spool, agent: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, writer = begin(origin.spool)
    settle(origin)
    bring(far, pack(origin))
    before = tree(far.path)
    monkeypatch.setenv("SIMSPOOL_RUN", run)
    for command in (
        ("abort", run, "--wait"), ("log", "metric", "x=1"), ("log", "event", "hello"),
        ("alerts", "add", run, "--name", "a", "--metric", "loss", "--rule", "is above", "--threshold", "1"),
    ):  # fmt: skip
        assert agent(*command) == ExitCode.RUN_NOT_FOUND, (command, agent.err)
        assert "carried here from another spool" in agent.err
    for join in (Run().reconnect, Run.attach):
        with pytest.raises(RunNotFound, match="carried here from another spool"):
            join(run)
    assert tree(far.path) == before
    writer.close({"status": "completed"})
