"""Client: the same results from a spool and from a server, files that stay inside, bytes that are verified."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from simspool.sdk import ArtifactNotFound, Client, DamagedBlob, InvalidRecord, Run, RunNotFound, UnsafeName

IDS: dict[str, str] = {}


def record_campaign() -> None:
    """Record the runs that all contract tests read."""
    with Run(mode="offline") as run:
        run.init("alpha", metadata={"lr": 0.1, "n": 3, "kind": "a b"}, tags=["x", "y"], description="first", folder="/p/q", timeout=60)
        for i in range(50):
            run.log_metrics({"loss": 1 / (i + 1), "count": i, "ok": i % 2 == 0}, step=i, time=i * 0.5)
        run.log_metrics({"loss": math.inf}, step=50, time=25.0)
        run.log_metrics({"stamped": 1}, step=0, timestamp="2026-01-31T12:00:00.000001")
        run.log_metrics({"zoned": 1}, step=0, timestamp="2026-01-31T13:00:00+01:00")
        run.log_metrics({"big": 1 << 70}, step=1)
        run.log_event("Hello one", timestamp="2026-01-31T12:00:00.500000", log_level="info")
        run.log_event("two ü")
        Path("a.txt").write_text("first")
        run.save_file("a.txt", "output", metadata={"k": 1})
        Path("a.txt").write_text("second")
        run.save_file("a.txt", "output")
        run.save_object({"o": 1}, "input", "dir/object")
        run.update_metadata({"lr": 0.2})
        run.update_tags(["z"])
        run.create_event_alert("quiet", pattern="never said", description="an event")
        run.create_user_alert("converged")
        run.create_user_alert("ready")
        run.create_alert("both", source="alerts", when="quiet and not ready")
        run.log_alert(name="converged", state="critical")
        run.log_alert(name="ready", state="ok")
        IDS["alpha"] = str(run.id)
    with pytest.raises(ValueError, match="boom"), Run(mode="offline") as run:  # noqa: PT012 - that is what it tests
        run.init("beta", metadata={"lr": 0.3}, tags=["y"])
        for i in range(0, 20, 2):
            run.log_metrics({"loss": float(i)}, step=i)
        IDS["beta"] = str(run.id)
        raise ValueError("boom")
    with Run(mode="offline") as run:
        run.init("waiting", running=False)
        IDS["waiting"] = str(run.id)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A real `agent serve`: its URL and token."""
    data = tmp_path_factory.mktemp("server")
    process = subprocess.Popen(
        [sys.executable, "-m", "simspool.agent", "serve", "--data", str(data), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while not ((data / "url").exists() and (data / "token").exists()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield (data / "url").read_text().strip(), (data / "token").read_text().strip()
    process.terminate()
    process.communicate(timeout=30)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory, server: tuple[str, str]) -> Path:
    """A spool with the campaign, drained to the server."""
    base = tmp_path_factory.mktemp("campaign")
    here = Path.cwd()
    saved = dict(os.environ)
    os.environ["SIMSPOOL_DIR"] = str(base / "spool")
    os.chdir(base)
    try:
        record_campaign()
        done = subprocess.run(
            [sys.executable, "-m", "simspool.agent", "sync", "--timeout", "60"], capture_output=True, text=True, check=False,
            env={**os.environ, "HOME": str(base), "SIMSPOOL_URL": server[0], "SIMSPOOL_TOKEN": server[1]},
        )  # fmt: skip
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(saved)
    assert done.returncode == 0, done.stdout + done.stderr
    return base / "spool"


@pytest.fixture(params=["spool", "server"])
def client(request: pytest.FixtureRequest, campaign: Path, server: tuple[str, str]) -> Client:
    if request.param == "spool":
        return Client(spool=campaign)
    return Client(server_url=server[0], server_token=server[1])


def test_a_run_as_it_was_recorded(client: Client) -> None:
    run = client.get_run("alpha")
    assert {k: run[k] for k in ("id", "name", "status", "folder", "description", "tags", "ttl", "heartbeat_timeout")} == {
        "id": IDS["alpha"], "name": "alpha", "status": "completed", "folder": "/p/q", "description": "first", "tags": ["x", "y", "z"],
        "ttl": None, "heartbeat_timeout": 60,
    }  # fmt: skip
    assert run["metadata"] == {"lr": 0.2, "n": 3, "kind": "a b"}
    assert run["system"]["hostname"] == os.uname().nodename
    assert run["created"] <= run["started"] < run["endtime"]
    assert client.get_run("beta")["status"] == "failed"
    assert client.get_run("waiting")["status"] == "created"
    assert client.get_run("waiting")["started"] is None
    assert client.get_run_id_from_name("alpha") == IDS["alpha"]
    assert client.get_run_name_from_id(IDS["beta"]) == "beta"
    assert client.get_run(IDS["beta"][:21])["name"] == "beta"
    for nobody in ("nobody", "0" * 22, "../etc", ""):
        with pytest.raises(RunNotFound):
            client.get_run(nobody)


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        (None, ["waiting", "beta", "alpha"]), (["name == alpha"], ["alpha"]), (["name contains A"], ["waiting", "beta", "alpha"]),
        (["has tag.y"], ["beta", "alpha"]), (["has tag.y", "has not tag.z"], ["beta"]), (["metadata.lr >= 0.25"], ["beta"]),
        (["metadata.n exists"], ["alpha"]), (["metadata.kind == a b"], ["alpha"]), (["metadata.lr not exists"], ["waiting"]),
        (["status == failed"], ["beta"]), (["folder.path == /p/q"], ["alpha"]), (["created < 3h"], ["waiting", "beta", "alpha"]),
        (["created > 3h"], []), (["name != alpha", "status == created"], ["waiting"]),
        (["user == self", "description contains IRS"], ["alpha"]),
    ],
    ids=str,
)  # fmt: skip
def test_filters(filters: list[str] | None, names: list[str], client: Client) -> None:
    assert [run["name"] for run in client.get_runs(filters)] == names


def test_pages_and_order(client: Client) -> None:
    assert [r["name"] for r in client.get_runs(count_limit=1, start_index=1)] == ["beta"]
    assert [r["name"] for r in client.get_runs(sort_by_columns=[("name", False)])] == ["alpha", "beta", "waiting"]
    assert [r["name"] for r in client.get_runs(["metadata.lr exists"], sort_by_columns=[("metadata.lr", True)])] == ["beta", "alpha"]
    assert [pair[0] for pair in client.get_runs(["name == beta"], output_format="objects")] == [IDS["beta"]]
    assert list(client.get_runs(output_format="dataframe")["name"]) == ["waiting", "beta", "alpha"]
    for bad in (["nonsense"], ["color == red"]):
        with pytest.raises(InvalidRecord):
            client.get_runs(bad)
    with pytest.raises(InvalidRecord):
        client.get_runs(sort_by_columns=[("color", True)])


def test_metric_values(client: Client) -> None:
    assert client.get_metrics_names("alpha") == ["big", "count", "loss", "ok", "stamped", "zoned"]
    values = client.get_metric_values(["loss", "count", "ok"], "step", run_ids=["alpha"])
    run = IDS["alpha"]
    assert values["count"][7, run] == 7
    assert values["loss"][7, run] == 1 / 8
    assert values["loss"][50, run] == math.inf
    assert values["count"][50, run] is None
    assert values["ok"][1, run] is False
    assert len(values["loss"]) == 51
    by_time = client.get_metric_values(["loss"], "time", run_ids=[run], use_run_names=True)
    assert by_time["loss"][3.5, "alpha"] == 1 / 8
    stamped = client.get_metric_values(["stamped", "big"], "timestamp", run_ids=["alpha"])
    assert stamped["stamped"]["2026-01-31T12:00:00.000001", run] == 1
    assert 1 << 70 in stamped["big"].values()
    zoned = client.get_metric_values(["zoned"], "timestamp", run_ids=["alpha"])
    assert zoned["zoned"] == {("2026-01-31T12:00:00.000000", run): 1}
    assert client.get_metric_values(["no such"], "step", run_ids=["alpha"]) is None


def test_metric_values_of_several_runs_and_aggregates(client: Client) -> None:
    values = client.get_metric_values(["loss"], run_filters=["has tag.y"])
    a, b = IDS["alpha"], IDS["beta"]
    assert (values["loss"][4, a], values["loss"][4, b]) == (0.2, 4.0)
    assert (values["loss"][5, a], values["loss"][5, b]) == (1 / 6, None)
    together = client.get_metric_values(["loss"], run_ids=["alpha", "beta"], aggregate=True)["loss"]
    assert together[4, "average"] == pytest.approx(2.1)
    assert (together[4, "min"], together[4, "max"], together[4, "count"]) == (0.2, 4.0, 2)
    assert together[5, "count"] == 1
    thinned = client.get_metric_values(["loss"], run_ids=["alpha"], max_points=5)["loss"]
    assert [step for step, _ in thinned] == [0, 12, 25, 38, 50]
    frame = client.get_metric_values(["loss"], run_ids=["alpha", "beta"], output_format="dataframe")
    assert frame.loc[(4, b), "loss"] == 4.0
    for bad in ({"xaxis": "color"}, {"aggregate": True, "xaxis": "timestamp"}, {"run_ids": ["a"], "run_filters": ["b"]}, {"max_points": 0}):
        with pytest.raises(InvalidRecord):
            client.get_metric_values(["loss"], **bad)
    with pytest.raises(InvalidRecord):
        client.get_metric_values([])


def test_events(client: Client) -> None:
    first, second = client.get_events("alpha")
    assert first == {"message": "Hello one", "timestamp": "2026-01-31T12:00:00.500000", "log_level": "info"}
    assert (second["message"], second["log_level"]) == ("two ü", None)
    assert [e["message"] for e in client.get_events("alpha", message_contains="hello")] == ["Hello one"]
    assert [e["message"] for e in client.get_events("alpha", start_index=1, count_limit=5)] == ["two ü"]
    assert "ValueError: boom" in client.get_events("beta")[-1]["message"]


def test_alerts(client: Client) -> None:
    assert client.get_alerts("alpha") == ["converged"]
    assert client.get_alerts("alpha", critical_only=False) == ["both", "converged", "quiet", "ready"]
    assert client.get_alerts("beta", critical_only=False) == []
    found = {a["name"]: a for a in client.get_alerts("alpha", critical_only=False, names_only=False)}
    assert (found["quiet"]["source"], found["quiet"]["alert"]["pattern"]) == ("events", "never said")
    assert (found["both"]["source"], found["both"]["alert"]["when"]) == ("alerts", "quiet and not ready")
    assert (found["quiet"]["status"], found["quiet"]["since"], found["quiet"]["description"]) == (None, None, "an event")
    run = client.get_run("alpha")
    assert run["started"] < found["converged"]["since"] < run["endtime"]
    assert [found[n]["status"] for n in ("converged", "ready")] == ["critical", "ok"]
    with pytest.raises(RunNotFound):
        client.get_alerts("nobody")


def test_artifacts(client: Client, tmp_path: Path) -> None:
    a, o = client.list_artifacts("alpha")
    assert (a["name"], a["category"], a["size"], a["mime_type"], a["metadata"]) == ("a.txt", "output", 6, "text/plain", {})
    assert a["checksum"] == hashlib.sha256(b"second").hexdigest()
    assert (o["name"], o["category"]) == ("dir/object", "input")
    assert client.get_artifact("alpha", "a.txt") == b"second"
    assert client.get_artifact("alpha", "dir/object") == {"o": 1}
    with pytest.raises(ArtifactNotFound, match="list_artifacts"):
        client.get_artifact("alpha", "missing")
    written = client.get_artifacts_as_files("alpha", path=tmp_path / "new")
    assert sorted(written) == [str(tmp_path / "new/a.txt"), str(tmp_path / "new/dir/object")]
    assert (tmp_path / "new/a.txt").read_bytes() == b"second"
    assert client.get_artifact_as_file("alpha", "a.txt", output_dir=tmp_path) == str(tmp_path / "a.txt")
    some = client.get_artifacts_as_files("alpha", tmp_path, category="input", contains="obj", endswith="ject")
    assert some == [str(tmp_path / "dir/object")]
    assert client.get_artifacts_as_files("alpha", tmp_path, startswith="zzz") == []
    with pytest.raises(InvalidRecord):
        client.get_artifacts_as_files("alpha", tmp_path, category="other")  # type: ignore[arg-type]


def test_equal_files_are_not_fetched_again(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client.get_artifacts_as_files("alpha", tmp_path)
    before = os.stat(tmp_path / "a.txt")

    def refuse(_: object) -> Any:
        raise AssertionError("fetched again")

    monkeypatch.setattr(client._source, "content", refuse)
    assert len(client.get_artifacts_as_files("alpha", tmp_path)) == 2
    monkeypatch.undo()
    assert os.stat(tmp_path / "a.txt").st_mtime_ns == before.st_mtime_ns
    (tmp_path / "a.txt").write_text("SECOND")
    client.get_artifacts_as_files("alpha", tmp_path)
    assert (tmp_path / "a.txt").read_text() == "second"


def test_both_sources_say_the_same_of_everything(campaign: Path, server: tuple[str, str]) -> None:
    spool, remote = Client(spool=campaign), Client(server_url=server[0], server_token=server[1])
    for ours, theirs in zip(spool.get_runs(), remote.get_runs(), strict=True):
        assert ours == theirs
    for name, run in IDS.items():
        assert spool.get_run(run) == remote.get_run(name)
        assert spool.get_events(run) == remote.get_events(run)
        assert spool.list_artifacts(run) == remote.list_artifacts(run)
        everything: dict[str, Any] = {"critical_only": False, "names_only": False}
        assert spool.get_alerts(run, **everything) == remote.get_alerts(run, **everything)
        names = spool.get_metrics_names(run)
        assert names == remote.get_metrics_names(run)
        for axis in ("step", "time", "timestamp") if names else ():
            for most in (None, 7):
                asked: dict[str, Any] = {"xaxis": axis, "run_ids": [run], "max_points": most}
                assert spool.get_metric_values(names, **asked) == remote.get_metric_values(names, **asked)


# ---------------------------------------------------------------------- of a spool only


def test_a_spool_is_read_by_default_when_no_server_is_configured(spool_dir: Path) -> None:
    with Run(mode="offline") as run:
        run.init("here")
    assert Client().get_run("here")["id"] == run.id
    assert Client(spool=spool_dir).get_run("here")["id"] == run.id


def test_a_live_run_is_read_while_it_is_written() -> None:
    with Run(mode="offline") as run:
        run.init("live")
        run.log_metrics({"a": 1.0})
        client = Client()
        assert client.get_run("live")["status"] == "running"
        assert client.get_run("live")["endtime"] is None
        assert client.get_metrics_names("live") == ["a"]
        run.log_metrics({"b": 1.0})
        assert client.get_metrics_names("live") == ["a", "b"]


def test_a_killed_run_is_lost_and_all_of_it_is_read(script: Any) -> None:
    script("""
        import os, signal
        from simspool.sdk import Run
        run = Run(mode="offline")
        run.init("killed")
        for i in range(100):
            run.log_metrics({"a": float(i)}, step=i)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    client = Client()
    assert client.get_run("killed")["status"] == "lost"
    assert len(client.get_metric_values(["a"], run_ids=["killed"])["a"]) == 100


def test_several_runs_of_one_name_are_told_apart_by_id() -> None:
    for _ in range(2):
        with Run(mode="offline") as run:
            run.init("twin")
    with pytest.raises(RunNotFound, match=str(run.id)):
        Client().get_run("twin")


def test_corrupt_bytes_raise_and_leave_no_file(spool_dir: Path, tmp_path: Path) -> None:
    Path("f").write_bytes(b"good bytes")
    with Run(mode="offline") as run:
        run.init("c")
        run.save_file("f", "output")
    for path in spool_dir.rglob(hashlib.sha256(b"good bytes").hexdigest()):
        path.chmod(0o600)
        path.write_bytes(b"evil bytes")
    client = Client()
    with pytest.raises(DamagedBlob, match="corrupt"):
        client.get_artifact("c", "f")
    with pytest.raises(DamagedBlob):
        client.get_artifact_as_file("c", "f", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("../x", "x"), ("a/../../x", "a/x"), ("/etc/passwd", "etc/passwd"), ("..", None), ("a/..", "a"), ("///", None), ("C:\\x", "C:/x"),
        ("..\\..\\x", "x"), ("a\0b", None), ("x" * 300, None), ("~/x", "~/x"), ("a/./b", "a/b"), ("-rf", "-rf"), ("\ud800", "\\ud800"),
    ],
)  # fmt: skip
def test_names_stay_inside_the_folder(name: str, inside: str | None, tmp_path: Path) -> None:
    from simspool.sdk.downloads import place

    if inside is None:
        with pytest.raises(UnsafeName):
            place(str(tmp_path), name)
    else:
        assert place(str(tmp_path), name) == str(tmp_path / inside)


def test_hostile_names_in_a_spool_are_written_inside(tmp_path: Path) -> None:
    with Run(mode="offline") as run:
        run.init("h")
        for n, name in enumerate(["../../evil", "/evil", "evil", "sub/evil"]):
            run.save_object(n, "output", name)
    target = tmp_path / "a" / "b" / "target"
    written = Client().get_artifacts_as_files("h", target)
    assert all(path.startswith(f"{target}/") for path in written)
    assert sorted(Path(p).read_text() for p in written) == ["0", "1", "2", "3"]
    assert [p.name for p in tmp_path.rglob("evil*") if target not in p.parents] == []
    outside = tmp_path / "outside"
    outside.mkdir()
    other = tmp_path / "other"
    other.mkdir()
    (other / "sub").symlink_to(outside)
    with pytest.raises(UnsafeName, match="link"):
        Client().get_artifact_as_file("h", "sub/evil", other)
    assert not list(outside.iterdir())
    (other / "evil").symlink_to(outside / "victim")
    (outside / "victim").write_text("precious")
    Client().get_artifact_as_file("h", "evil", other)
    assert (outside / "victim").read_text() == "precious"
