"""The published simvue package, online, against our server: both its Run and its Client, unchanged."""

from __future__ import annotations

import json
import math
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("simvue")
pytestmark = pytest.mark.filterwarnings("default")  # the published package is not ours to mend


def until(condition: Any, what: str) -> Any:
    """Wait for a condition; the deadline is only for a test that hangs."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"never saw {what}")


@pytest.fixture
def finished(published: Any, tmp_path: Path) -> dict[str, Any]:
    """A run that the published Run recorded online; the same one for every test of the module."""
    if hasattr(published, "finished"):
        return published.finished
    import numpy as np
    import simvue

    source = tmp_path / "input.txt"
    source.write_text("viscosity = 1e-3\n")
    name = f"lid driven {time.time_ns()}"
    with simvue.Run(mode="online") as run:
        assert run.init(
            name, metadata={"re": 100, "solver": "simple", "tol": 1e-6}, tags=["cfd", "test"], description="a cavity",
            folder="/cavity/a", no_color=True, timeout=60, retention_period="1 hour",
        )  # fmt: skip
        run.config(disable_resources_metrics=True, suppress_errors=False)
        for step in range(250):
            assert run.log_metrics({"residual": 1.0 / (step + 1), "steps": step, "ok": step % 2 == 0}, step=step, time=step * 0.5)
        run.log_metrics({"late": math.inf}, step=1)
        assert run.log_event("started to iterate")
        assert run.log_event("nearly done", timestamp="2026-01-02T03:04:05.000006")
        assert run.save_file(source, category="input", name="case/input.txt")
        assert run.save_object(np.arange(12.0).reshape(3, 4), category="output", name="field")
        assert run.update_metadata({"tol": 1e-8, "extra": "yes"})
        assert run.update_tags(["more"])
        assert run.set_folder_details(metadata={"who": "me"}, tags=["f"], description="cavities")
        alert = run.create_user_alert("converged")
        assert run.create_metric_threshold_alert(
            "diverged", metric="residual", threshold=5.0, rule="is above", aggregation="at least one", window=1
        )
        assert run.create_event_alert("done", pattern="done")
        assert run.log_alert(identifier=alert, state="critical")
        run_id = run.id
        assert run.status == "running"
    published.finished = {"id": run_id, "name": name, "source": source, "alert": alert}
    return published.finished


def test_run_and_client_agree(published: Any, finished: dict[str, Any], tmp_path: Path) -> None:
    import numpy as np
    import simvue

    client = simvue.Client()
    run_id = finished["id"]
    assert client.get_run_id_from_name(finished["name"]) == run_id
    assert client.get_run_name_from_id(run_id) == finished["name"]
    run = client.get_run(run_id)
    assert run.status == "completed"
    assert run.folder == "/cavity/a"
    assert run.description == "a cavity"
    assert set(run.tags) == {"cfd", "test", "more"}
    assert {k: run.metadata[k] for k in ("re", "solver", "tol", "extra")} == {"re": 100, "solver": "simple", "tol": 1e-8, "extra": "yes"}
    assert run.ttl == 3600
    assert run.heartbeat_timeout == 60
    assert run.created is not None
    assert run.started <= run.endtime
    assert run.runtime is not None
    names = {name for name in client.get_metrics_names(run_id) if not name.startswith("resources/")}
    assert names == {"residual", "steps", "ok", "late"}
    assert dict(run.metrics)["residual"]["count"] == 250

    values = client.get_metric_values(["residual", "steps"], "step", run_ids=[run_id])
    assert values["residual"][0, run_id] == 1.0
    assert values["residual"][249, run_id] == 1.0 / 250
    assert all(type(v) is int for v in values["steps"].values())
    by_time = client.get_metric_values(["steps"], "time", run_ids=[run_id], max_points=10)
    assert len(by_time["steps"]) == 10
    frame = client.get_metric_values(["residual"], "step", run_ids=[run_id], output_format="dataframe")
    assert len(frame) == 250
    both = client.get_metric_values(["residual"], "step", run_ids=[run_id], aggregate=True)
    assert both["residual"][3, "average"] == 0.25
    assert client.get_metric_values(["late"], "step", run_ids=[run_id])["late"][1, run_id] == math.inf

    events = client.get_events(run_id)
    assert [e["message"] for e in events] == ["nearly done", "started to iterate"]
    assert len(client.get_events(run_id, message_contains="nearly")) == 1
    assert len(client.get_events(run_id, count_limit=1, start_index=1)) == 1

    assert np.array_equal(client.get_artifact(run_id, "field"), np.arange(12.0).reshape(3, 4))
    out = tmp_path / "out"
    out.mkdir()
    client.get_artifacts_as_files(run_id, output_dir=out)
    assert (out / "case/input.txt").read_text() == finished["source"].read_text()
    assert {a.name for _, a in client.list_artifacts(run_id)} == {"case/input.txt", "field"}

    assert set(client.get_alerts(run_id=run_id, critical_only=False)) == {"converged", "diverged", "done"}
    assert client.get_alerts(run_id=run_id) == ["converged"]
    folder = client.get_folder("/cavity/a")
    assert folder.metadata == {"who": "me"}
    assert folder.description == "cavities"
    assert "/cavity/a" in {f.path for _, f in client.get_folders()}


def test_filters_find_the_run(published: Any, finished: dict[str, Any]) -> None:
    from simvue.api.objects import Run

    run_id = finished["id"]
    other = Run.new(folder="/elsewhere", name="other", status="created")
    other.commit()

    def found(*filters: str) -> set[str]:
        return {identity for identity, _ in Run.get(filters=json.dumps(list(filters)))}

    for text in (
        f"name == {finished['name']}", "name contains lid driven", "status == completed", "has tag.cfd", "has not tag.zzz",
        "folder.path == /cavity/a", "folder.path contains cavity", "metadata.re exists", "metadata.re >= 100", "metadata.re < 101",
        "metadata.solver == simple", "metadata.tol < 1e-7", "metadata.nothing not exists", "created < 3h", "alert.name == converged",
        "user == self", "description contains cavi", "started < 1d", "endtime < 1d", "modified < 1h",
    ):  # fmt: skip
        assert run_id in found(text), text
    for text in (
        "name == nobody", "status == failed", "has tag.zzz", "has not tag.cfd", "metadata.re > 100", "metadata.re != 100",
        "metadata.solver == complex", "folder.path != /cavity/a", "user != self", "starred", "created > 3h",
    ):  # fmt: skip
        assert run_id not in found(text), text
    assert run_id in found("alert.name == converged", "alert.status == critical")
    assert run_id not in found("alert.name == diverged", "alert.status == critical")
    starred = Run(run_id)
    starred.read_only(False)
    starred.star = True
    starred.commit()
    assert run_id in found("starred")
    assert Run.filter().has_name(finished["name"]).has_completed().count() == 1
    artifacts = [a["id"] for a in Run(run_id).artifacts]
    assert found(f"artifact.id == {artifacts[0]}") == {run_id}


def test_same_content_is_sent_once(published: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from simvue.api.objects import Artifact, FileArtifact, Run
    from simvue.api.objects.artifact import base

    sent = []
    put = base.sv_put
    monkeypatch.setattr(base, "sv_put", lambda url, **kw: sent.append(f"{url}") or put(url, **kw))
    source = tmp_path / "mesh.dat"
    source.write_bytes(b"x" * 100_000 + str(time.time_ns()).encode())
    for name in ("first", "second"):
        run = Run.new(folder="/dedupe", name=name)
        run.commit()
        file = FileArtifact.new(name="mesh", storage=None, file_path=source, mime_type=None, metadata={"k": name})
        file.attach_to_run(run.id, "input")
        assert [a["uploaded"] for a in Run(run.id).artifacts] == [True]
        assert b"".join(Artifact.from_name(run.id, "mesh").download_content()) == source.read_bytes()
    assert len([url for url in sent if "/objects/put/" in url]) == 1
    assert len([url for url in sent if "/runs/" in url]) == 2


def test_abort_reaches_the_run(published: Any) -> None:
    import simvue
    from simvue.api.objects import Run

    created = Run.new(folder="/abort", name="to abort", status="running", heartbeat_timeout=100)
    created.commit()
    assert created.abort_trigger is False
    simvue.Client().abort_run(created.id, reason="enough")
    assert created.abort_trigger is True


def test_missed_heartbeats_make_a_run_lost_and_a_late_one_brings_it_back(published: Any) -> None:
    from simvue.api.objects import Run

    created = Run.new(folder="/lost", name="silent", status="running", heartbeat_timeout=1)
    created.commit()
    until(lambda: Run(created.id).status == "lost", "the status lost")
    created.send_heartbeat()
    assert Run(created.id).status == "running"
    unbounded = Run.new(folder="/lost", name="patient", status="running", heartbeat_timeout=None)
    unbounded.commit()
    assert Run(unbounded.id).status == "running"


def test_an_exception_makes_the_run_failed(published: Any) -> None:
    import simvue

    with pytest.raises(ZeroDivisionError), simvue.Run(mode="online") as run:  # noqa: PT012 - the whole block is the run
        run.init("breaks", folder="/f", no_color=True)
        run.config(disable_resources_metrics=True)
        identity = run.id
        raise ZeroDivisionError
    assert simvue.Client().get_run(identity).status == "failed"


def test_reconnect(published: Any) -> None:
    import simvue

    run = simvue.Run(mode="online")
    run.init("later", folder="/f", running=False, no_color=True)
    identity = run.id
    assert simvue.Client().get_run(identity).status == "created"
    again = simvue.Run(mode="online")
    assert again.reconnect(identity)
    again.config(disable_resources_metrics=True)
    again.log_metrics({"x": 1})
    again.close()
    found = simvue.Client().get_run(identity)
    assert found.status == "completed"
    assert "x" in dict(found.metrics)


def test_grids_and_arrays(published: Any) -> None:
    import numpy as np
    import simvue
    from simvue.api.objects import Grid

    with simvue.Run(mode="online") as run:
        run.init("array", folder="/g", no_color=True)
        run.config(disable_resources_metrics=True)
        assert run.assign_metric_to_grid(
            metric_name="field/u", grid_name=f"g{time.time_ns()}", axes_ticks=[[0, 1, 2], [0.0, 0.5]], axes_labels=["x", "y"]
        )
        assert run.log_metrics({"field/u": np.arange(6.0).reshape(3, 2)}, step=4)
        identity = run.id
    from simvue.api.objects import Run

    grids = Run(identity).grids
    assert grids[0]["metric"] == "field/u"
    grid = Grid(grids[0]["id"])
    found = grid.get_run_metric_values(run_id=identity, metric_name="field/u", step=4)
    assert found["array"] == np.arange(6.0).reshape(3, 2).tolist()
    assert grid.get_run_metric_span(run_id=identity, metric_name="field/u")["max_step"] == 4


def test_objects_of_the_low_level_api(published: Any) -> None:
    import simvue
    from simvue.api.objects import Alert, Events, Folder, MetricsRangeAlert, Run, Stats, Storage, Tag, UserAlert
    from simvue.exception import ObjectNotFoundError

    client = simvue.Client()
    tag = Tag.new(name=f"t{time.time_ns()}")
    tag.colour, tag.description = "red", "hot"
    tag.commit()
    assert client.get_tag(tag.id).description == "hot"
    assert tag.id in {identity for identity, _ in client.get_tags()}
    client.delete_tag(tag.id)
    with pytest.raises(ObjectNotFoundError):
        client.get_tag(tag.id)

    made = [
        MetricsRangeAlert.new(
            name="in range", description="d", metric="x", rule="is inside range", range_low=1, range_high=2, window=1, frequency=1,
            aggregation="average", notification="none",
        )
        for _ in range(2)
    ]  # fmt: skip
    for alert in made:
        alert.commit()
    assert made[0].id == made[1].id, "an equal definition is one alert"
    user = UserAlert.new(name="mine", description=None, notification="none")
    user.commit()
    run = Run.new(folder="/low", name="low", status="running")
    run.alerts = [made[0].id, user.id]
    run.commit()
    user.read_only(False)
    user.set_status(run.id, "critical")
    assert Alert(user.id).get_status(run.id) == "critical"
    assert Alert(made[0].id).get_status(run.id) is None
    assert "mine" in client.get_alerts(critical_only=False)
    client.delete_alert(user.id)
    assert client.get_alerts(run_id=run.id, critical_only=False) == ["in range"]

    ids = list(Run.batch_create([_batch(i) for i in range(3)], folder="/low/batch", metadata={"b": 1}))
    assert len(set(ids)) == 3
    listed = client.get_runs(["folder.path == /low/batch"], output_format="dict", metadata=True)
    assert {entry["name"] for entry in listed} == {"b0", "b1", "b2"}
    assert client.get_runs(None, output_format="dataframe", count_limit=3).shape[0] == 3
    first = [identity for identity, _ in client.get_runs(["folder.path == /low/batch"], sort_by_columns=[("name", False)])]
    assert first == ids

    start = datetime.now(UTC) - timedelta(minutes=1)
    Events.new(run=run.id, events=[{"message": f"m{i}", "timestamp": None} for i in range(5)]).commit()
    bins = Events(run=run.id, _local=True).histogram(start, start + timedelta(minutes=2), 30, None)
    assert sum(b["count"] for b in bins) == 5
    assert Stats().whoami()["user"] == "simspool"
    assert Stats().runs.running >= 1
    assert list(Storage.get()) == []
    with pytest.raises(RuntimeError):
        client.get_run_id_from_name("nobody has this name")
    assert client.delete_run(run.id)
    with pytest.raises(ObjectNotFoundError):
        client.get_run(run.id)
    gone = client.delete_runs("/low/batch")
    assert set(gone) == set(ids)
    client.delete_folder("/low", recursive=True, remove_runs=True)
    assert client.get_folder("/low/batch") is None
    with pytest.raises(ObjectNotFoundError):
        client.delete_folder("/never")
    assert Folder.get


def _batch(i: int) -> Any:
    from simvue.api.objects.run import RunBatchArgs

    return RunBatchArgs(name=f"b{i}")


def test_wrong_token_is_refused(published: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import jwt
    import simvue

    monkeypatch.setenv("SIMVUE_TOKEN", jwt.encode({"sub": "x", "exp": 4e9}, "another secret that is long enough", algorithm="HS256"))
    with pytest.raises(Exception, match="Unauthorised token"):
        simvue.Client()
