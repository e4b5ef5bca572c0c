"""The published package, unchanged, against the stand-in: its Run online, its Client, its Sender."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from standin import StandIn

RECORD = """
import json, os, pathlib, numpy as np, simvue
pathlib.Path("mesh.txt").write_text("12 cells\\n")
def record(name, mode):
    with simvue.Run(mode=mode) as run:
        run.init(name, metadata={"re": 5e5, "solver": "sst"}, tags=["cfd"], folder="/wings/a", description="a wing")
        run.config(enable_emission_metrics=False)
        for step in range(300):
            run.log_metrics({"drag": 1 / (step + 1), "cells": step * 7, "ok": step % 2 == 0}, step=step, time=step * 0.25)
        for n in range(20):
            run.log_event(f"event {n}")
        run.save_file("mesh.txt", category="input", name="case/mesh.txt")
        run.save_object(np.arange(12.0).reshape(3, 4), category="output", name="field")
        run.create_metric_threshold_alert(name="high", metric="drag", threshold=0.5, rule="is above")
        run.create_metric_range_alert(name="out", metric="drag", range_low=0.0, range_high=1.0, rule="is outside range")
        run.create_event_alert(name="said", pattern="event 3")
        run.create_user_alert(name="mine")
        ticks = [[0.0, 1.0, 2.0], [0.0, 1.0]]
        run.assign_metric_to_grid(metric_name="sheet", grid_name="g " + name, axes_ticks=ticks, axes_labels=["x", "y"])
        run.log_metrics({"sheet": np.ones((3, 2))}, step=1)
        run.update_metadata({"late": "yes"})
        run.set_folder_details(metadata={"who": "me"}, tags=["f"], description="wings")
        if mode == "online":
            run.log_alert(name="mine", state="critical")
            run.update_tags(["more"])
        return run.id
"""
READ = """
import pathlib, simvue
online = record("wing", "online")
client = simvue.Client()
found = {"id": client.get_run_id_from_name("wing"), "online": online}
run = client.get_run(online)
found |= {"status": run.status, "folder": run.folder, "description": run.description, "tags": sorted(run.tags), "metadata": run.metadata}
found["names"] = sorted(client.get_metrics_names(online))
for axis in ("step", "time", "timestamp"):
    values = client.get_metric_values(["drag", "cells", "ok"], axis, run_ids=[online])
    found[axis] = {name: [[x, v] for (x, _), v in points.items()] for name, points in values.items()}
found["mean"] = client.get_metric_values(["drag"], "step", run_ids=[online], aggregate=True)["drag"][(0, "average")]
found["events"] = [e["message"] for e in client.get_events(online)]
found["field"] = client.get_artifact(online, "field").tolist()
pathlib.Path("out").mkdir()
client.get_artifacts_as_files(online, output_dir="out")
found["mesh"] = pathlib.Path("out/case/mesh.txt").read_text()
found["critical"] = client.get_alerts(run_id=online, critical_only=True)
found["alerts"] = sorted(client.get_alerts(run_id=online, critical_only=False))
found["by"] = {f: [i for i, _ in client.get_runs(filters=[f])] for f in (
    "name == wing", "name contains in", "has tag.cfd", "has not tag.cfd", "metadata.re > 1e5", "metadata.solver == sst",
    "metadata.no exists", "folder.path == /wings/a", "status == completed", "status == running", "created < 3h",
    "alert.name == mine", "alert.status == critical")}
found["folder_metadata"] = client.get_folder("/wings/a").metadata
client.abort_run(online, "enough")
found["abort"] = run.abort_trigger
print(json.dumps(found))
"""
SEND = """
import urllib.request
from simvue.sender import Sender
record("first", "offline")
Sender().upload()
record("second", "offline")
fault = json.dumps({"do": "lose-reply", "path": "POST /api/metrics$"}).encode()
urllib.request.urlopen(urllib.request.Request(os.environ["SIMVUE_URL"] + "/_faults", fault, {"Content-Type": "application/json"})).close()
Sender().upload()
left = pathlib.Path(os.environ["SIMVUE_OFFLINE_DIRECTORY"]).glob("*/*.json")
print(json.dumps([str(path) for path in left]))
"""


def test_a_run_online_is_read_back_equal(tmp_path: Path, published: Callable[[StandIn, str], Any]) -> None:
    with StandIn.start(tmp_path, upload="post") as at:
        found = published(at, RECORD + READ)
        dump = at.dump()
        run = at.run("wing")
    assert found["id"] == found["online"] == run["id"]
    assert (found["status"], found["folder"], found["description"]) == ("completed", "/wings/a", "a wing")
    assert found["tags"] == ["cfd", "more"]
    assert found["metadata"] == {"re": 5e5, "solver": "sst", "late": "yes"}
    assert {"drag", "cells", "ok"} <= set(found["names"])
    drag, cells = [[n, 1 / (n + 1)] for n in range(300)], [[n, n * 7] for n in range(300)]
    assert found["step"]["drag"] == drag
    assert found["step"]["cells"] == cells
    assert found["step"]["ok"] == [[n, n % 2 == 0] for n in range(300)]
    assert found["time"]["drag"] == [[n * 0.25, 1 / (n + 1)] for n in range(300)]
    assert found["mean"] == 1.0
    assert found["events"] == [f"event {n}" for n in range(20)]
    assert (found["field"], found["mesh"]) == ([[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0], [8.0, 9.0, 10.0, 11.0]], "12 cells\n")
    assert (found["critical"], found["alerts"]) == (["mine"], ["high", "mine", "out", "said"])
    none = {"has not tag.cfd", "metadata.no exists", "status == running"}
    assert found["by"] == {text: [] if text in none else [run["id"]] for text in found["by"]}
    assert (found["folder_metadata"], found["abort"]) == ({"who": "me"}, True)
    # what the starter's dump says is the same
    assert [[step, value] for step, _, _, value in run["metrics"]["drag"]] == drag
    assert {x for x, _ in found["timestamp"]["drag"]} == {timestamp for _, _, timestamp, _ in run["metrics"]["drag"]}
    assert [e["message"] for e in run["events"]] == found["events"]
    assert {(a["name"], a["category"], a["stored_sha256"] == a["checksum"]) for a in run["artifacts"]} == {
        ("case/mesh.txt", "input", True), ("field", "output", True)
    }  # fmt: skip
    assert {a["name"]: a["state"] for a in run["alerts"]} == {"high": None, "mine": "critical", "out": None, "said": None}
    assert run["grid_metrics"]["sheet"][0][4] == [[1.0, 1.0]] * 3
    assert run["aborted"]
    assert {"/", "/wings", "/wings/a"} == set(dump["folders"])
    assert ("POST", "/storage", 204) in {(r["method"], r["path"], r["status"]) for r in dump["requests"]}


def test_the_sender_drains_offline_runs_and_what_it_repeats_is_there_twice(
    tmp_path: Path, published: Callable[[StandIn, str], Any]
) -> None:
    # without a noSim version, the first drain leaves a version file that the second one cannot read
    with StandIn.start(tmp_path, nosim_version="1.0.0") as at:
        assert published(at, RECORD + SEND) == []
        first, second = at.run("first"), at.run("second")
        log = [(r["status"], r["fault"]) for r in at.requests("/api/metrics")]
    values = [(n, n * 0.25, 1 / (n + 1)) for n in range(300)]
    for run in (first, second):
        assert (run["status"], run["folder"], run["tags"]) == ("completed", "/wings/a", ["cfd"])
        assert {(step, time, value) for step, time, _, value in run["metrics"]["drag"]} == set(values)
        assert sorted(e["message"] for e in run["events"]) == sorted(f"event {n}" for n in range(20))
        assert {a["name"] for a in run["alerts"]} == {"high", "mine", "out", "said"}
        assert all(a["stored_sha256"] == a["checksum"] for a in run["artifacts"])
    assert {a["id"] for a in first["alerts"]} == {a["id"] for a in second["alerts"]}, "equal alerts are one"
    assert {a["id"] for a in first["artifacts"]}.isdisjoint(a["id"] for a in second["artifacts"])
    # the reply to one batch of the second run was lost: nothing in the repeated request tells it from a new one
    points = {
        run["name"]: [(name, *map(str, point)) for name, series in run["metrics"].items() for point in series] for run in (first, second)
    }  # fmt: skip
    assert len(points["first"]) == len(set(points["first"]))
    assert len(points["second"]) > len(set(points["second"]))
    assert log.count((0, "lose-reply")) == 1
