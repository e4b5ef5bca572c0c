"""The Simvue target in trouble: what the network, the server and its own client are known to do wrong must not show in what is there."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgpack
import pytest
from conformance import Recording, check, remarked, simple, sync
from in_process import serve_agent, until
from simvue_bench import RECORDS, SimvueBench

from simspool.agent.app import Agent, AgentConfig
from simspool.agent.catalog.store import catalog_path
from simspool.agent.drain.backoff import Backoff
from simspool.agent.exit_codes import ExitCode
from simspool.agent.targets.either import EitherTarget
from simspool.agent.targets.embedded import EmbeddedTarget
from simspool.agent.targets.port import Foreign, Refused, Unreachable
from simspool.agent.targets.settings import TargetSettings
from simspool.agent.targets.simvue import SimvueTarget
from simspool.spool import Kind, Spool
from simspool.spool.alert_definition import define


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimvueBench]:
    """One stand-in for all tests here."""
    made = SimvueBench(tmp_path_factory.mktemp("simvue"))
    yield made
    made.kill()


@pytest.fixture(autouse=True)
def _healthy(bench: SimvueBench) -> Iterator[None]:
    bench.heal()
    yield
    bench.heal()


def equal_points(spool: Spool, name: str) -> Recording:
    """Record a run whose points cannot be told from each other: two writers with one time, one step and one value, again and again."""
    run = Recording.begin(spool, name, writers=2)
    for _ in range(400):
        for n, writer in enumerate(run.writers):
            assert writer.metrics({"same": 1.0, f"{n}": 2.0}, step=7, time=1.0, timestamp=1_700_000_000_000_000)
            run.metrics.setdefault("same", []).append((7, 1.0))
            run.metrics.setdefault(f"{n}", []).append((7, 2.0))
    return run.say(20).say(20, writer=1)


def post(bench: SimvueBench, run: str, points: list[dict[str, Any]]) -> None:
    """Post points as somebody else."""
    body = msgpack.packb({"run": run, "metrics": points})
    headers = {"Authorization": f"Bearer {bench.server.token}", "Content-Type": "application/msgpack"}
    with urllib.request.urlopen(urllib.request.Request(f"{bench.server.url}/api/metrics", body, headers), timeout=30) as answer:
        assert answer.status == 200


def give_up(spool: Spool, settings: TargetSettings) -> None:
    """Try for a second, in vain."""

    async def once() -> str:
        async with Agent(AgentConfig(spool, settings.address), target=SimvueTarget(settings), backoff=Backoff(lambda: 0.5)) as agent:
            return (await agent.sync(timeout=1.0)).state

    assert asyncio.run(once()) == "unreachable"


FAULTS = {
    "the reply is lost": {"do": "lose-reply", "path": RECORDS, "count": 3},
    "half of the reply": {"do": "half-reply", "path": RECORDS, "count": 3},
    "the request is cut off": {"do": "drop", "path": RECORDS, "count": 3},
    "done, and then 504": {"do": "status", "status": 504, "committed": True, "path": RECORDS, "count": 3},
    "marks that are not told": {"do": "lose-reply", "path": "PUT /api/runs/", "count": 3},
    "runs that are not told": {"do": "lose-reply", "path": "POST /api/runs$", "count": 1},
    "busy": {"do": "status", "status": 429, "retry_after": 0.05, "path": "/api/", "count": 6},
    "a page that asks for a login": {"do": "html", "path": "/api/", "count": 3},
    "a redirect": {"do": "redirect", "path": "/api/", "count": 3},
    "an answer that trickles": {"do": "slow-body", "path": "/api/runs", "count": 2, "seconds": 0.5},
    "every third reply": {"do": "lose-reply", "path": "(POST|PUT) /api", "count": 12, "rate": 0.33, "seed": 4},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_points_that_cannot_be_told_apart_come_once(bench: SimvueBench, spool: Spool, fault: dict[str, Any]) -> None:
    run = equal_points(spool, "equal").save("a.bin", b"bytes" * 3000).close()
    bench.server.faults(fault)
    assert sync(spool, bench.settings()).state == "done"
    assert bench.server.faults()[0]["fired"] > 0
    check(bench, run)
    assert remarked(spool, "possibly double") == 0


def test_a_server_that_hangs_is_given_up(bench: SimvueBench, spool: Spool) -> None:
    run = equal_points(spool, "hangs").close()
    bench.server.faults({"do": "hang", "path": RECORDS, "count": 1}, {"do": "hang", "path": "PUT /api/runs/", "count": 1})
    assert sync(spool, bench.settings(), make=lambda settings: SimvueTarget(settings, timeout=2.0)).state == "done"
    assert [fault["fired"] for fault in bench.server.faults()] == [1, 1]
    check(bench, run)


def test_what_arrives_after_we_gave_up_is_counted_as_possibly_double(bench: SimvueBench, spool: Spool) -> None:
    run = Recording.begin(spool, "late").points(20).close()
    bench.server.faults({"do": "drop", "path": "POST /api/metrics$"})
    bench.server.faults({"do": "delay", "seconds": 2.0, "path": "POST /api/metrics$"})

    def come_late() -> None:
        """Be the request that was given up, and is under way somewhere while the second one is made."""
        while bench.server.faults()[1]["fired"] == 0:
            time.sleep(0.02)
        [there] = [one for one in bench.server.dump()["runs"].values() if one["name"] == "late"]
        points = [{"loss": step / 2, "count0": step} for step in range(20)]
        post(bench, there["id"], [{"time": 0.0, "step": step, "values": values} for step, values in enumerate(points)])

    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(come_late)
        assert sync(spool, bench.settings()).state == "done"
        late.result()
    check(bench, run, doubles=40)
    assert remarked(spool, "possibly double") == 40


def test_a_backup_from_between_points_and_mark_is_refilled_without_doubles(bench: SimvueBench, spool: Spool) -> None:
    run = equal_points(spool, "backup")
    bench.server.faults({"do": "status", "status": 503, "path": "PUT /api/runs/.{22}$", "count": None})
    give_up(spool, bench.settings())
    copy = bench.backup()
    bench.heal()
    assert sync(spool, bench.settings()).state == "done"
    run.close()
    assert sync(spool, bench.settings()).state == "done"
    check(bench, run)
    bench.restore(copy)
    assert sync(spool, bench.settings()).state == "done"
    check(bench, run)
    assert remarked(spool, "possibly double") == 0


def test_points_of_somebody_else_make_it_doubtful_and_never_fewer(bench: SimvueBench, spool: Spool) -> None:
    run = Recording.begin(spool, "shared").points(50)
    assert sync(spool, bench.settings()).state == "done"
    run.points(50, start=50)
    bench.server.faults({"do": "status", "status": 503, "path": "POST /api/metrics$", "count": None})
    give_up(spool, bench.settings())
    there = bench.run(run.id)
    assert there is not None
    post(bench, there["id"], [{"time": 0.0, "step": 1, "values": {"foreign": 1.0}}])
    run.close()
    assert sync(spool, bench.settings()).state == "done"
    run.metrics["foreign"] = [(1, 1.0)]
    check(bench, run)
    assert remarked(spool, "possibly double") == 1


def test_a_run_that_somebody_deleted_is_sent_again(bench: SimvueBench, spool: Spool) -> None:
    run = Recording.begin(spool, "deleted", writers=2).points(50).say(3).save("a.txt", b"a")
    other = simple(spool, "kept")
    assert sync(spool, bench.settings()).state == "done"
    there = bench.run(run.id)
    assert there is not None
    bench.server.ask("DELETE", f"/api/runs/{there['id']}")
    run.points(50, start=50).close()
    assert sync(spool, bench.settings()).state == "done"
    check(bench, run, other)


def test_a_folder_that_somebody_deleted_is_made_again(bench: SimvueBench, spool: Spool) -> None:
    settings = bench.settings()
    first = Recording.begin(spool, "in a folder", folder="/gone/soon").points(3).close()
    late: list[Recording] = []

    async def story(agent: Agent) -> None:
        def has(run: Recording) -> bool:
            found = bench.has(run.id)
            return found is not None and found.status == "completed"

        while not await asyncio.to_thread(has, first):
            await asyncio.sleep(0.05)
        folder = bench.server.dump()["folders"]["/gone/soon"]["id"]
        bench.server.ask("DELETE", f"/api/folders/{folder}?runs=true")
        late.append(Recording.begin(spool, "in it as well", folder="/gone/soon").points(3).close())
        while not await asyncio.to_thread(has, late[0]):
            await asyncio.sleep(0.05)

    config = AgentConfig(spool, settings.address)
    serve_agent(lambda: Agent(config, target=SimvueTarget(settings), backoff=Backoff(lambda: 0.01)), story, seconds=60)
    there = bench.run(late[0].id)
    assert there is not None
    assert there["folder"] == "/gone/soon"


# ---------------------------------------------------------------------- what its own client does wrong


def test_the_final_status_comes_last_and_once(bench: SimvueBench, spool: Spool) -> None:
    run = Recording.begin(spool, "status").points(10)
    assert sync(spool, bench.settings()).state == "done"
    begun = len(bench.server.requests())
    run.points(10, start=10).close("failed")
    assert sync(spool, bench.settings()).state == "done"
    check(bench, run)
    there = bench.run(run.id)
    assert there is not None
    assert (there["status"], there["heartbeat_timeout"]) == ("failed", None)
    assert there["started"] < there["endtime"]
    made = [f"{r['method']} {r['path'].rpartition('/')[0]}" for r in bench.server.requests()[begun:] if r["method"] in {"POST", "PUT"}]
    assert made[-1] == "PUT /api/runs"
    assert made.count("POST /api") == 1
    check(bench, run)


@pytest.mark.parametrize("status", ["completed", "failed", "terminated", "lost"])
def test_every_end_arrives_with_its_reason(bench: SimvueBench, spool: Spool, status: str) -> None:
    run = Recording.begin(spool, f"ends {status}", timeout=60).points(1)
    assert run.writers[0].close({"status": status, "reason": "because"})
    assert sync(spool, bench.settings()).state == "done"
    there = bench.run(run.id)
    assert there is not None
    assert (there["status"], there["metadata"]["simspool.reason"]) == (status, "because")


def alerts(run: Recording) -> None:
    """Record alerts of all sorts, before anything is drained."""
    [writer] = run.writers
    for body in (
        define("user", "user", trigger_abort=True, description="mine"),
        define("zero", rule="is above", metric="loss#1", threshold=0.0, trigger_abort=True, notification="email"),
        define("range", rule="is outside range", metric="loss", range_low=0.0, range_high=1.0, window=7.0, aggregation="at least one"),
        define("words", "events", pattern="diverged"),
        define("nan", rule="is not finite", metric="loss"),
        define("held", rule="is below", metric="loss", threshold=1.0, hold=5.0),
        define("regular", "events", pattern="re:diver.ed"),
    ):
        assert writer.record(Kind.ALERT, {**body, "by": "script"})
    for name, state in (("user", "critical"), ("nan", "critical"), ("held", "ok"), ("zero", "critical")):
        assert writer.record(Kind.ALERT_STATE, {"alert": name, "id": "x", "state": state})


def test_alerts_keep_their_abort_their_states_and_a_threshold_of_zero(bench: SimvueBench, spool: Spool) -> None:
    runs = [Recording.begin(spool, f"alerts {n}") for n in range(2)]
    for run in runs:
        alerts(run)
        run.close()  # two closed runs share their alerts
    assert sync(spool, bench.settings()).state == "done"
    for run in runs:
        there = bench.run(run.id)
        assert there is not None
        found = {alert["name"]: alert for alert in there["alerts"]}
        assert {name: alert["source"] for name, alert in found.items()} == {
            "user": "user", "zero": "metrics", "range": "metrics", "words": "events", "nan": "user", "held": "user", "regular": "user",
        }  # fmt: skip
        assert {name for name, alert in found.items() if alert["abort"]} == {"user", "zero"}
        states = {name: alert["state"] for name, alert in found.items() if alert["state"]}
        assert states == {"user": "critical", "nan": "critical", "held": "ok"}
        assert found["zero"]["alert"]["threshold"] == 0.0
        assert found["zero"]["notification"] == "email"
        assert (found["range"]["alert"]["range_low"], found["range"]["alert"]["window"]) == (0.0, 7)
        assert "is not finite" in found["nan"]["description"]
        assert "hold 5.0" in found["held"]["description"]
        assert json.loads(there["metadata"]["simspool.alerts"])["zero"]["state"] == "critical"
        assert there["aborted"]
    ids = [sorted(alert["id"] for alert in (bench.run(run.id) or {})["alerts"]) for run in runs]
    assert ids[0] == ids[1]


def test_an_alert_of_a_run_that_is_there_is_added_to_it(bench: SimvueBench, spool: Spool) -> None:
    run = Recording.begin(spool, "alerts later").points(1)
    assert sync(spool, bench.settings()).state == "done"
    alerts(run)
    assert sync(spool, bench.settings()).state == "done"
    assert run.writers[0].record(Kind.ALERT_STATE, {"alert": "user", "id": "x", "state": "ok"})
    run.close()
    assert sync(spool, bench.settings()).state == "done"
    there = bench.run(run.id)
    assert there is not None
    assert len(there["alerts"]) == 7
    assert {alert["state"] for alert in there["alerts"] if alert["name"] == "user"} == {"ok"}


def test_heartbeats_are_for_the_living_and_bring_the_abort_flag(bench: SimvueBench, spool: Spool) -> None:
    run, dead = Recording.begin(spool, "lives").points(3), simple(spool, "dead")
    settings = bench.settings()
    assert sync(spool, settings).state == "done"
    there = {name: bench.run(one.id) or {} for name, one in (("lives", run), ("dead", dead))}
    target = SimvueTarget(settings)

    async def story(agent: Agent) -> None:
        await until(lambda: any(lane.drain.state == "draining" for lane in agent.drains.lanes.values()) if agent.drains else False)
        wall = {run.id: 0.0, dead.id: 0.0, "0" * 22: 0.0}
        assert await target.heartbeat(wall) == {}
        await asyncio.to_thread(bench.server.ask, "PUT", f"/api/runs/{there['lives']['id']}/abort", {"reason": "enough"})
        first = await target.heartbeat(wall)
        assert set(first) == {run.id}
        assert first[run.id]["writers"] == [run.writers[0].id_text]
        assert await target.heartbeat(wall) == first

    config = AgentConfig(spool, settings.address)
    serve_agent(lambda: Agent(config, target=target, backoff=Backoff(lambda: 0.01)), story, seconds=60)
    beats = {r["path"].split("/")[3] for r in bench.server.requests() if r["path"].endswith("/heartbeat")}
    assert there["lives"]["id"] in beats
    assert there["dead"]["id"] not in beats
    run.close()


# ---------------------------------------------------------------------- what Simvue has no form for


def test_what_must_be_changed_is_changed_and_said(bench: SimvueBench, spool: Spool) -> None:
    run = Recording.begin(
        spool, "name & more", metadata={"a/b": 1, "simspool.run": "mine", "odd": float("nan"), "deep": {"x": [float("inf")]}},
        tags=["plain", "a#b"], folder="/a b#c", description="d\0e", retention=3600, visibility=["ann"], notification="lost",
        system={"hostname": "here"}, timeout=120,
    )  # fmt: skip
    [writer] = run.writers
    run.log({"loss#1": 1.0, "loss_1": 2.0, "größe": 3.0}, 0)
    run.log({"big": 2**70, "large": 2**64 - 1}, 1)
    run.metrics["big"] = [(1, float(2**70))]
    assert writer.record(Kind.EVENT, {"message": "said", "level": "warning", "timestamp": 1_700_000_000_123_456})
    assert writer.record(Kind.EVENT, {"message": "shouted", "level": "LOUD"})
    run.events += ["said", "shouted"]
    run.save("a#b.txt", b"1")
    assert writer.record(Kind.PROCESS_START, {"pid": 1})
    run.close()
    report = sync(spool, bench.settings())
    assert (report.state, report.refused) == ("done", 0)
    there = bench.run(run.id)
    assert there is not None
    found = bench.has(run.id)
    assert found is not None
    assert found.metrics == run.metrics
    assert set(json.loads(there["metadata"]["simspool.names"])) == {"loss#1", "größe"}
    assert there["name"].startswith("name _ more_")
    assert (there["folder"], there["description"], there["ttl"]) == ("/a b#c", "d\ufffde", 3600)
    assert there["visibility"] == {"public": False, "tenant": False, "users": ["ann"]}
    assert (there["notifications"], there["system"]) == ({"state": "lost"}, {"hostname": "here"})
    assert there["metadata"]["simspool.run"] == run.id
    assert there["metadata"]["odd"] == "nan"
    assert there["metadata"]["deep"] == {"x": ["inf"]}
    assert [t for t in there["tags"] if t.startswith("a_b_")]
    assert there["events"][0] == {"message": "said", "log_level": "warning", "timestamp": "2023-11-14T22:13:20.123456"}
    [file] = there["artifacts"]
    assert file["metadata"]["simspool.name"] == "a#b.txt"
    assert (file["stored_sha256"], file["category"]) == (hashlib.sha256(b"1").hexdigest(), "output")
    assert remarked(spool, "renamed") == 7
    assert remarked(spool, "rounded") == 1
    assert remarked(spool, "not kept") == 2


def test_a_field_that_the_server_refuses_costs_the_run_nothing_else(bench: SimvueBench, spool: Spool) -> None:
    run = Recording.begin(spool, "unwanted").points(5)
    assert run.writers[0].record(Kind.METADATA, {"set": {"kept": 1}})
    bench.server.faults({"do": "reject", "kind": "run", "name": "unwanted"})
    run.close()
    assert sync(spool, bench.settings()).state == "done"
    there = bench.run(run.id)
    assert there is not None
    assert there["name"] != "unwanted"
    assert (there["status"], there["folder"], there["metadata"]["kept"]) == ("completed", "/conformance", 1)
    check(bench, run)
    assert remarked(spool, "not kept") == 1


@pytest.mark.parametrize("options", [{"upload": "post"}, {"unique_run_names": True}, {"version": "1.2.3", "known_content": False}], ids=str)
def test_other_servers_of_the_kind(tmp_path: Path, spool: Spool, options: dict[str, Any]) -> None:
    other = SimvueBench(tmp_path, **options)
    try:
        runs = [simple(spool, "same name", writers=2).id for _ in range(2)]
        third = Recording.begin(spool, "files").save("a.bin", b"x" * 300_000).save("b.bin", b"x" * 300_000).save("empty", b"")
        assert third.writers[0].record(Kind.EVENT, {"message": "m", "level": "error"})
        third.events.append("m")
        third.close()
        assert sync(spool, other.settings()).state == "done"
        assert {(other.run(run) or {})["status"] for run in runs} == {"completed"}
        check(other, third)
        assert (remarked(spool, "not kept") > 0) == ("version" in options)
    finally:
        other.kill()


def test_a_large_upload_is_refused_by_its_size_and_the_rest_goes_on(bench: SimvueBench, spool: Spool) -> None:
    run = Recording.begin(spool, "too large").points(5).save("small", b"s")
    run.save("large", b"l" * 10_000)
    run.close()
    bench.server.faults({"do": "artifact-limit", "bytes": 5000})
    report = sync(spool, bench.settings())
    assert (report.state, report.refused) == ("done", 1)
    del run.files["large"]
    check(bench, run)


def test_what_is_refused_is_named_also_when_only_the_server_knows(bench: SimvueBench, spool: Spool) -> None:
    """The mark is there, and nobody heard of it: the journal has no receipt, or is gone."""
    run = Recording.begin(spool, "refused unheard").points(20)
    assert bench.poison(run.writers[0]) == 3
    bench.server.faults({"do": "lose-reply", "path": "PUT /api/runs/.{22}$", "after": 1, "count": 1})
    run.close()
    for _ in range(2):
        report = sync(spool, bench.settings())
        assert (report.state, report.refused) == ("done", 3)
        check(bench, run)
        shutil.rmtree(Path(spool.agent) / "w")
        for name in Path(catalog_path(spool)).parent.glob(Path(catalog_path(spool)).name + "*"):
            name.unlink()


def test_that_batches_were_cut_is_noted_before_their_halves_go(bench: SimvueBench, spool: Spool) -> None:
    run = Recording.begin(spool, "cut")
    assert bench.poison(run.writers[0]) == 3
    run.points(20).close()
    begun = len(bench.server.requests())
    assert sync(spool, bench.settings()).state == "done"
    made = [(f"{r['method']} {r['path']}", r["status"]) for r in bench.server.requests()[begun:]]
    metrics = [i for i, (line, _) in enumerate(made) if line == "POST /api/metrics"]
    assert made[metrics[0]][1] == 422
    assert any(line.startswith("PUT /api/runs/") and status == 200 for line, status in made[metrics[0] : metrics[1]])


@pytest.mark.parametrize("at", [1, 3, 6])
def test_killed_while_it_looks_for_what_is_refused_it_is_counted(bench: SimvueBench, spool: Spool, at: int) -> None:
    """Points that came in halves of a batch come again, counted; what is refused is named all the same."""
    run = Recording.begin(spool, "poison in the dark").points(20)
    assert bench.poison(run.writers[0]) == 3
    run.points(20, start=20).close()
    bench.server.faults({"do": "lose-reply", "path": "POST /api/metrics$", "after": at})
    report = sync(spool, bench.settings())
    assert (report.state, report.refused) == ("done", 3)
    check(bench, run, doubles=remarked(spool, "possibly double"))


# ---------------------------------------------------------------------- whose server it is


def test_it_is_found_and_others_are_not_taken_for_it(bench: SimvueBench, tmp_path: Path) -> None:
    async def ask(target: Any) -> Any:
        try:
            return (await target.connect())[0]
        finally:
            await target.close()

    settings = bench.settings()
    server = asyncio.run(ask(SimvueTarget(settings)))
    assert server.startswith("simvue:127.0.0.1:")
    auto = TargetSettings("server", "auto", settings.url, settings.token)
    assert asyncio.run(ask(EitherTarget(auto))) == server
    with pytest.raises(Foreign):
        asyncio.run(ask(EmbeddedTarget.of(settings)))
    with pytest.raises(Refused, match="token"):
        asyncio.run(ask(SimvueTarget(TargetSettings("s", "simvue", settings.url, "wrong"))))
    bench.server.faults({"do": "html", "path": "/api/version"})
    with pytest.raises(Unreachable, match="login"):
        asyncio.run(ask(SimvueTarget(settings)))
    bench.server.faults({"do": "status", "status": 404, "path": "/api/version"})
    with pytest.raises(Foreign):
        asyncio.run(ask(SimvueTarget(settings)))


def test_the_published_client_reads_back_the_same(bench: SimvueBench, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    simvue = pytest.importorskip("simvue")
    for name, value in bench.server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(spool.path)
    run = Recording.begin(spool, "read by the client").points(100).say(5).save("a.txt", b"some text").close()
    assert sync(spool, bench.settings()).state == "done"
    client = simvue.Client()
    identity = client.get_run_id_from_name("read by the client")
    found = client.get_metric_values(
        run_ids=[identity], metric_names=["loss", "count0"], xaxis="step", aggregate=False, output_format="dict"
    )
    plain = {name: [(key[0] if isinstance(key, tuple) else key, v) for key, v in points.items()] for name, points in found.items()}
    assert {name: sorted(points) for name, points in plain.items()} == {name: sorted(points) for name, points in run.metrics.items()}
    assert [event["message"] for event in client.get_events(identity)] == run.events
    client.get_artifact_as_file(run_id=identity, name="a.txt", output_dir=spool.path)
    assert (Path(spool.path) / "a.txt").read_bytes() == b"some text"
    assert client.get_run(identity).status == "completed"


def test_what_was_refused_is_sent_again_on_demand(bench: SimvueBench, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command, to a server whose kind nobody said."""
    monkeypatch.setenv("SIMSPOOL_URL", bench.server.url)
    monkeypatch.setenv("SIMSPOOL_TOKEN", bench.server.token)
    run = Recording.begin(spool, "again").points(5)
    bench.server.faults({"do": "reject", "kind": "metric", "name": "poison"})
    run.log({"poison": 1.0}, 5)
    run.points(5, start=6).close()

    def agent(*words: str) -> int:
        return subprocess.run([sys.executable, "-m", "simspool.agent", *words], capture_output=True, timeout=60).returncode

    assert agent("sync") == ExitCode.REFUSED
    assert agent("verify", "--all") == 0
    bench.heal()
    assert agent("retry", "--all") == 0
    assert agent("sync") == 0
    check(bench, run)
    assert agent("verify", "--all") == 0
