"""A real MLflow server as a target."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conformance import Conformance, Recording, remarked, simple, sync
from in_process import serve_agent, until
from mlflow_bench import MLflowBench, python_with_mlflow
from real_server import agent
from recorded import begin

from simspool.agent.app import Agent, AgentConfig
from simspool.agent.catalog.store import catalog_path
from simspool.agent.drain.backoff import Backoff
from simspool.agent.targets import mlflow_sending
from simspool.agent.targets.build import make_target
from simspool.agent.targets.port import Recount
from simspool.agent.targets.settings import TargetSettings, save_own
from simspool.spool import Kind, Spool, ids, open_spool


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowBench]:
    """One server for all tests: a start takes long."""
    made = MLflowBench(tmp_path_factory.mktemp("mlflow") / "server")
    yield made
    made.close()


class TestMLflow(Conformance):
    """What every target does."""


def recount(settings: TargetSettings, run: str) -> Recount:
    async def once() -> Recount | None:
        target = make_target(settings)
        await target.connect()
        try:
            return await target.recount(run)
        finally:
            await target.close()

    found = asyncio.run(once())
    assert found is not None
    return found


def remarks(spool: Spool) -> dict[str, int]:
    """Return what was remarked, in full: how many times."""
    db = sqlite3.connect(f"file:{catalog_path(spool)}?mode=ro", uri=True)
    try:
        rows = db.execute("SELECT what, detail, sum(count) FROM remarks GROUP BY 1, 2").fetchall()
        return {f"{what}: {detail}": count for what, detail, count in rows}
    finally:
        db.close()


def tags(there: Any) -> dict[str, str]:
    return {t["key"]: t.get("value", "") for t in there["data"]["tags"]}


def params(there: Any) -> dict[str, str]:
    return {p["key"]: p.get("value", "") for p in there["data"].get("params", [])}


def test_odd_names_values_and_times_arrive_or_are_named(bench: MLflowBench, spool: Spool) -> None:
    odd = ["a#b", "a%b", "../up", "a//b", "/root", ".", "x" * 300, "x" * 301, "tail\n"]
    plain = ["é/ü ß", "a b:c-d.e_f", "deep/er/still"]
    run, writer = begin(spool)
    at = 1_600_000_000_123_456
    for name in odd + plain:
        assert writer.metrics({name: 1.5}, step=3, timestamp=at)
    for step, value in enumerate([math.inf, -math.inf, math.nan, 2**60 + 1, True, 7]):
        assert writer.metrics({"value": value}, step=step, timestamp=at + step * 1000)
    for n in range(4):  # the same millisecond, step and value: one point there
        assert writer.metrics({"equal": 1.0}, step=0, timestamp=at + n)
    assert writer.metrics({"equal": 1.0}, step=0, timestamp=at + 1000)
    assert writer.metrics({"old": 1.0}, step=0, timestamp=-5_000_000)
    assert writer.close({"status": "completed"})
    report = sync(spool, bench.settings())
    assert (report.state, report.refused) == ("done", 0), report.problems
    there = bench.server.run(run)
    keys = [m["key"] for m in there["data"]["metrics"]]
    assert len(keys) == len(odd) + len(plain) + 3
    renamed = {value: key.removeprefix("simspool.name.") for key, value in tags(there).items() if key.startswith("simspool.name.")}
    assert set(renamed) == set(odd)
    assert set(plain) < set(keys)
    for name in odd + plain:
        assert bench.server.points(there, renamed.get(name, name)) == [(3, 1.5, at // 1000)]
    values = {step: (value, ms) for step, value, ms in bench.server.points(there, "value")}
    assert [values[n][1] for n in range(6)] == [at // 1000 + n for n in range(6)]
    assert (values[0][0], values[1][0]) == (1.7976931348623157e308, -1.7976931348623157e308)
    assert math.isnan(values[2][0])
    assert [values[n][0] for n in (3, 4, 5)] == [float(2**60), 1.0, 7.0]
    assert len(bench.server.points(there, "equal")) == 2
    assert (remarked(spool, "renamed"), remarked(spool, "clamped"), remarked(spool, "rounded"), remarked(spool, "merged")) == (9, 3, 1, 3)
    settings = bench.settings()
    save_own(spool, {"ml": {"kind": "mlflow", "url": settings.url, **settings.options}})
    verified = agent("verify", run, "--json")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "as the target said" in verified.stdout  # the merged ones
    found = recount(settings, run)
    assert found.names == renamed
    assert (found.metrics["equal"], found.first["value"][0], found.last["value"]) == (2, 0, (5, 7.0))


def test_metadata_tags_and_status_are_where_mlflow_shows_them(bench: MLflowBench, spool: Spool) -> None:
    first = {"rate": 0.1, "nested": {"b": [1, 2]}, "flag": True, "text": "words", "odd#key": 1, "none": ""}
    first |= {"long": "l" * 7000, "longer": "m" * 9000}
    run, writer = begin(spool, "shown", metadata=first, tags=["one", "two"], description="a *note*", folder="/deep/er")
    assert writer.metrics({"resources/cpu.usage.percentage": 1.0, "resources/gpu.power.0": 2.0, "resources/host.cpu.percentage": 3.0},
                          step=0, kind=Kind.RESOURCES)  # fmt: skip
    alert = {"id": ids.to_text(ids.new_id()), "name": "hot", "source": "user", "notification": "none", "abort": False, "alert": {}}
    assert writer.record(Kind.ALERT, alert)
    assert sync(spool, bench.settings()).state == "done"
    there = bench.server.run(run)
    assert (there["info"]["run_name"], there["info"]["status"]) == ("shown", "RUNNING")
    has, shown = params(there), tags(there)
    assert {key: has[key] for key in ("rate", "nested", "flag", "text", "none")} == {
        "rate": "0.1", "nested": '{"b": [1, 2]}', "flag": "true", "text": "words", "none": ""
    }  # fmt: skip
    assert (len(has["long"]), len(shown["simspool.metadata.long"]), len(shown["simspool.metadata.longer"])) == (6000, 7000, 8000)
    assert (shown["simspool.tag.one"], shown["simspool.tag.two"], json.loads(shown["simspool.tags"])) == ("true", "true", ["one", "two"])
    assert (shown["mlflow.note.content"], shown["simspool.folder"]) == ("a *note*", "/deep/er")
    assert {m["key"] for m in there["data"]["metrics"]} == {
        "system/cpu.usage.percentage", "system/gpu_0_power_usage_watts", "system/cpu_utilization_percentage"
    }  # fmt: skip
    assert "hot" in json.loads((bench.server.artifacts(there) / "simspool/alerts.json").read_text())

    assert writer.record(Kind.METADATA, {"set": {"rate": 0.2, "new": 3}})
    assert writer.record(Kind.TAGS, {"op": "set", "tags": ["two", "three"]})
    assert writer.record(Kind.ALERT_STATE, {"id": "x", "alert": "hot", "state": "critical"})
    assert writer.close({"status": "terminated", "reason": "somebody asked"})
    assert sync(spool, bench.settings()).state == "done"
    there = bench.server.run(run)
    shown, has = tags(there), params(there)
    assert (has["rate"], shown["simspool.metadata.rate"], has["new"]) == ("0.1", "0.2", "3")
    assert {key for key in shown if key.startswith("simspool.tag.")} == {"simspool.tag.two", "simspool.tag.three"}
    assert (there["info"]["status"], shown["simspool.status"], shown["simspool.reason"]) == ("KILLED", "terminated", "somebody asked")
    assert there["info"]["start_time"] < there["info"]["end_time"]
    assert json.loads(shown["simspool.alerts"]) == {"critical": ["hot"], "of": 1}
    said = remarks(spool)
    assert sum(count for what, count in said.items() if what.startswith("changed: metadata rate")) == 1
    assert sum(count for what, count in said.items() if what.startswith("truncated: metadata longer")) == 1
    kinds = [line["kind"] for line in bench.server.lines(there) if line["writer"] == writer.id_text]
    assert kinds == ["run", "alert", "metadata", "tags", "alert-state", "close"]


def test_no_file_takes_the_place_of_another(bench: MLflowBench, spool: Spool) -> None:
    run = Recording.begin(spool, "files", writers=2)
    contents = {}
    names = ["same.txt", "same.txt", "a", "a/b", "../../up.txt", "/etc/passwd", "what?#.txt", "n" * 300, "ü/ß.txt", "simspool/x"]
    for n, name in enumerate(names):
        contents[n] = f"content {n} of {name}".encode()
        run.save(name, contents[n], writer=n % 2)
    run.close()
    settings = bench.settings()
    for turn in range(2):
        assert sync(spool, settings).state == "done"
        there = bench.server.run(run.id)
        root = bench.server.artifacts(there)
        files = [p for p in root.rglob("*") if p.is_file() and p.parent != root / "simspool/records"]
        assert sorted(p.read_bytes() for p in files) == sorted(contents.values()), f"turn {turn}"
        assert (root / "output/same.txt").exists()
        assert (root / "output/ü/ß.txt").exists()
        shutil.rmtree(Path(spool.agent) / "w")
        for path in Path(catalog_path(spool)).parent.glob(Path(catalog_path(spool)).name + "*"):
            path.unlink()


def test_small_files_of_records_are_put_together(bench: MLflowBench, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_sending, "_MOST_SMALL", 4)
    settings = bench.settings()
    run = Recording.begin(spool, "talks")

    async def story(agent: Agent) -> None:
        for _ in range(10):
            run.say(1)
            assert agent.ingest_loop is not None
            agent.ingest_loop.rung(b"")
            wanted = run.writers[0].sequence
            await until(lambda: (agent.catalog.one("SELECT max(mark) FROM cursors") or (0,))[0] == wanted)  # noqa: B023

    config = AgentConfig(spool, settings.address)
    serve_agent(lambda: Agent(config, target=make_target(settings), backoff=Backoff(lambda: 0.002)), story, seconds=60)
    there = bench.server.run(run.id)
    assert [line["record"]["message"] for line in bench.server.lines(there) if line["kind"] == "event"] == run.events
    files = list((bench.server.artifacts(there) / "simspool/records").iterdir())
    assert 1 <= len(files) <= 4
    assert sum(len(p.read_text().splitlines()) for p in files) == 11
    assert recount(settings, run.id).events == 10


def test_a_run_that_is_gone_from_the_server_is_made_again_and_refilled(bench: MLflowBench, spool: Spool) -> None:
    """Its receipts are there, but the audit at the connect is not asked for it: the run's own marks tell."""
    settings = bench.settings()
    run = Recording.begin(spool, "purged", writers=2).points(20)

    async def story(agent: Agent) -> None:
        wanted = [w.sequence for w in run.writers]
        await until(lambda: [r for (r,) in agent.catalog.rows("SELECT mark FROM cursors ORDER BY mark")] == sorted(wanted))
        bench.server.call("POST", "/runs/delete", {"run_id": bench.server.run(run.id)["info"]["run_id"]})
        await asyncio.to_thread(purge)
        run.points(20, start=20).say(1)
        assert agent.ingest_loop is not None
        agent.ingest_loop.rung(b"")
        wanted = [w.sequence for w in run.writers]
        await until(lambda: [r for (r,) in agent.catalog.rows("SELECT mark FROM cursors ORDER BY mark")] == sorted(wanted))

    def purge() -> None:
        uri, place = f"sqlite:///{bench.server.folder}/mlflow.db", f"{bench.server.folder}/artifacts"
        command = [python_with_mlflow(), "-m", "mlflow", "gc", "--backend-store-uri", uri, "--artifacts-destination", place]
        done = subprocess.run([*command, "--tracking-uri", bench.server.url], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        assert bench.server.run(run.id) is None

    config = AgentConfig(spool, settings.address)
    serve_agent(lambda: Agent(config, target=make_target(settings), backoff=Backoff(lambda: 0.002)), story, seconds=120)
    found = bench.has(run.id)
    assert found is not None
    assert len(found.metrics["loss"]) == 80
    assert found.events == run.events


def test_a_deleted_experiment_is_restored_and_a_new_database_is_filled_anew(bench: MLflowBench, spool: Spool, tmp_path: Path) -> None:
    settings = replace(bench.settings(), options={"experiment": "one of its own"})
    first = simple(spool, "before")
    assert sync(spool, settings).state == "done"
    there = bench.server.run(first.id)
    bench.server.call("POST", "/experiments/delete", {"experiment_id": there["info"]["experiment_id"]})
    second = simple(spool, "after")
    assert sync(spool, settings).state == "done"
    assert bench.server.run(second.id)["info"]["experiment_id"] == there["info"]["experiment_id"]
    assert bench.server.run(first.id)["info"]["lifecycle_stage"] == "active"
    bench.server.call("POST", "/experiments/delete", {"experiment_id": there["info"]["experiment_id"]})
    body = {"experiment_id": there["info"]["experiment_id"], "new_name": "another name"}
    bench.server.call("POST", "/experiments/restore", {"experiment_id": there["info"]["experiment_id"]})
    bench.server.call("POST", "/experiments/update", body)  # from now on, the experiment that we name is one that does not exist
    report = sync(spool, settings)
    assert (report.state, report.sent_records) == ("done", report.records)
    assert len(bench.server.runs(first.id)) == 2  # the old one, under the other name, is as it was


def test_small_bodies_cost_only_what_no_request_can_hold(bench: MLflowBench, spool: Spool) -> None:
    run, writer = begin(spool, "n" * 300, metadata={f"key{n}": "v" * 100 for n in range(40)})
    for n in range(60):
        assert writer.metrics({f"metric {m}": n for m in range(10)}, step=n)
        assert writer.record(Kind.EVENT, {"message": f"event {n} " + "x" * 100})
    assert writer.record(Kind.EVENT, {"message": "y" * 8000})
    assert writer.close({"status": "completed"})
    bench.limit_bodies(6000)
    report = sync(spool, bench.settings())
    assert (report.state, report.refused) == ("done", 0), report.problems
    there = bench.server.run(run)
    assert len(params(there)) == 40
    assert sum(len(bench.server.points(there, f"metric {m}")) for m in range(10)) == 600
    assert len([line for line in bench.server.lines(there) if line["kind"] == "event"]) == 60
    assert (there["info"]["status"], there["info"]["run_name"], tags(there)["simspool.run_name"]) == ("FINISHED", "n" * 250, "n" * 300)
    assert (remarked(spool, "not kept"), remarked(spool, "truncated")) == (1, 1)


def test_without_artifacts_served_points_arrive_and_the_rest_is_named(bench: MLflowBench, spool: Spool, tmp_path: Path) -> None:
    bench.server.call("POST", "/experiments/create", {"name": "no artifacts", "artifact_location": f"file://{tmp_path}/elsewhere"})
    settings = replace(bench.settings(), options={"experiment": "no artifacts"})
    run = simple(spool, "points only")
    report = sync(spool, settings)
    assert report.state == "done"
    assert int(report.exit_code) == 4  # the file
    assert any("serves no artifacts" in problem for problem in report.problems.values())
    there = bench.server.run(run.id)
    assert len(bench.server.points(there, "loss")) == 50
    assert remarked(spool, "not kept") >= 3
    assert not (tmp_path / "elsewhere").exists()


def test_something_else_than_mlflow_is_refused_by_name(bench: MLflowBench, spool: Spool) -> None:
    simple(spool, "nowhere")
    report = sync(spool, replace(bench.settings(), url=bench.server.url + "/nothing"), timeout=5)
    assert (report.state, report.sent_records) == ("refused", 0)
    assert "not an MLflow server" in report.problem


def test_a_token_and_a_password_are_shown_as_servers_ask_for_them(bench: MLflowBench, spool: Spool) -> None:
    simple(spool, "by token", points=2)
    for token, wanted in (("abc", "Bearer abc"), ("me:secret", "Basic bWU6c2VjcmV0")):
        settings = replace(bench.settings(), token=token, options={"experiment": f"with {wanted[:5]}"})
        bench.proxy.wanted = "something else"
        report = sync(spool, settings, timeout=5)
        assert (report.state, report.sent_records) == ("refused", 0)
        assert "token_file" in report.problem
        assert token not in report.problem
        bench.proxy.wanted = wanted
        assert sync(spool, settings).state == "done"
    bench.heal()


_CLIENT = """
import json, sys, mlflow, hashlib
client = mlflow.MlflowClient(sys.argv[1])
experiment = client.get_experiment_by_name("counted")
out = {}
for run in client.search_runs([experiment.experiment_id]):
    path = client.download_artifacts(run.info.run_id, "output/result.txt")
    out[run.data.tags["simspool.run"]] = [
        {key: len(client.get_metric_history(run.info.run_id, key)) for key in run.data.metrics},
        run.data.params, run.info.status, hashlib.sha256(open(path, "rb").read()).hexdigest(),
    ]
print(json.dumps(out))
"""


def test_the_mlflow_client_counts_the_same(bench: MLflowBench, tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "own", create=True)
    runs = [simple(spool, f"counted {n}", points=30 * (n + 1), writers=n + 1) for n in range(3)]
    settings = replace(bench.settings(), options={"experiment": "counted"})
    assert sync(spool, settings).state == "done"
    command = [python_with_mlflow(), "-c", _CLIENT, bench.server.url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == {run.id for run in runs}
    for run in runs:
        metrics, has, status, digest = found[run.id]
        assert metrics == {name: len(points) for name, points in run.metrics.items()} == dict(recount(settings, run.id).metrics)
        assert (has, status, digest) == ({"alpha": "0.5"}, "FINISHED", run.files["result.txt"][0])
