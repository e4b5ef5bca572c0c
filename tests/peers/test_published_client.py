"""What our SDK recorded offline and `agent sync` drained, read back with the published simvue package's Client."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from real_server import RealServer, agent

pytest.importorskip("simvue")
pytestmark = pytest.mark.filterwarnings("default")  # the published package is not ours to mend

STEPS = 1500


@pytest.fixture
def recorded(tmp_path: Path, server: RealServer) -> dict[str, Any]:
    """Two runs, recorded offline, drained."""
    from simspool.sdk import Run

    name = f"wing {time.time_ns()}"
    (tmp_path / "mesh.txt").write_text("12 cells\n")
    with Run(mode="offline") as run:
        assert run.init(name, metadata={"re": 5e5, "solver": "sst", "n": 3}, tags=["cfd"], description="a wing", folder="/wings/a")
        for step in range(STEPS):
            assert run.log_metrics({"drag": 1.0 / (step + 1), "cells": step * 7, "ok": step % 2 == 0}, step=step, time=step * 0.25)
        assert run.log_metrics({"odd": math.nan}, step=0)
        assert run.log_metrics({"odd": math.inf}, step=1)
        for n in range(20):
            assert run.log_event(f"event {n}")
        assert run.update_metadata({"n": 4, "late": "yes"})
        assert run.update_tags(["more"])
        assert run.set_folder_details(metadata={"who": "me"}, tags=["f"], description="wings")
        assert run.save_file(tmp_path / "mesh.txt", category="input", name="case/mesh.txt")
        assert run.save_object(np.arange(12.0).reshape(3, 4), category="output", name="field")
        first = run.id
    with Run(mode="offline") as run:
        assert run.init(f"{name} again", tags=["other"], folder="/wings/b")
        assert run.log_metrics({"drag": 2.5})
        assert run.save_file(tmp_path / "mesh.txt", category="input", name="case/mesh.txt")
        second = run.id
    report = json.loads(agent("sync", "--json", check=True).stdout)
    assert (report["state"], report["runs"], report["sent_files"] + report["known_files"]) == ("done", 2, 2)
    return {"first": first, "second": second, "name": name}


def test_everything_that_was_recorded_is_read_back_exactly(recorded: dict[str, Any], tmp_path: Path) -> None:
    import simvue

    client = simvue.Client()
    first = recorded["first"]
    assert client.get_run_id_from_name(recorded["name"]) == first
    run = client.get_run(first)
    assert (run.status, run.folder, run.description, set(run.tags)) == ("completed", "/wings/a", "a wing", {"cfd", "more"})
    assert {k: run.metadata[k] for k in ("re", "solver", "n", "late")} == {"re": 5e5, "solver": "sst", "n": 4, "late": "yes"}
    folder = client.get_folder("/wings/a")
    assert (folder.metadata, folder.description) == ({"who": "me"}, "wings")

    names = {name for name in client.get_metrics_names(first) if not name.startswith("resources/")}
    assert names == {"drag", "cells", "ok", "odd"}
    values = client.get_metric_values(["drag", "cells", "ok"], "step", run_ids=[first], max_points=STEPS)
    assert values["drag"] == {(step, first): 1.0 / (step + 1) for step in range(STEPS)}
    assert values["cells"] == {(step, first): step * 7 for step in range(STEPS)}
    assert {key: bool(value) for key, value in values["ok"].items()} == {(step, first): step % 2 == 0 for step in range(STEPS)}
    by_time = client.get_metric_values(["drag"], "time", run_ids=[first], max_points=STEPS)
    assert by_time["drag"] == {(step * 0.25, first): 1.0 / (step + 1) for step in range(STEPS)}
    odd = client.get_metric_values(["odd"], "step", run_ids=[first])["odd"]
    assert math.isnan(odd[0, first])
    assert odd[1, first] == math.inf

    messages = [e["message"] for e in client.get_events(first, count_limit=100)]
    assert sorted(messages) == sorted(f"event {n}" for n in range(20))
    assert np.array_equal(client.get_artifact(first, "field"), np.arange(12.0).reshape(3, 4))
    (tmp_path / "out").mkdir()
    client.get_artifacts_as_files(first, output_dir=tmp_path / "out")
    assert (tmp_path / "out/case/mesh.txt").read_text() == "12 cells\n"


def test_filters_find_the_drained_runs(recorded: dict[str, Any]) -> None:
    import simvue

    client = simvue.Client()

    def found(*filters: str) -> set[str]:
        return {identity for identity, _ in client.get_runs(filters=list(filters))}

    first, second = recorded["first"], recorded["second"]
    assert found(f"name contains {recorded['name']}") == {first, second}
    mine = f"name contains {recorded['name']}"
    assert found(mine, "has tag.cfd") == {first}
    assert found(mine, "metadata.re > 1e5") == {first}
    assert found(mine, "folder.path == /wings/b") == {second}
    assert found(mine, "status == completed") == {first, second}
    assert found(mine, "status == failed") == set()


def test_our_client_and_run_do_the_seeds_example_against_the_server(recorded: dict[str, Any], server: RealServer, tmp_path: Path) -> None:
    from simspool.sdk import Client, Run

    client = Client(server_url=server.url, server_token=server.token)
    client.get_artifacts_as_files(recorded["name"], category="input", path="data")
    assert (tmp_path / "data/case/mesh.txt").read_text() == "12 cells\n"
    with Run(mode="offline") as run:
        run.init("run2")
        run.save_directory("data", category="input")
        third = str(run.id)
    report = json.loads(agent("sync", "--json", check=True).stdout)
    assert (report["state"], report["sent_files"], report["sent_file_bytes"]) == ("done", 0, 0)
    assert [a["name"] for a in server.get(f"/runs/{third}/artifacts")] == ["case/mesh.txt"]
