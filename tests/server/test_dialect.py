"""The dialect's finer points, over plain HTTP: paging, sorting, views, series, folders, and the life of the server."""

from __future__ import annotations

import json
import math
import signal
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgpack
import pytest


def query(**values: Any) -> str:
    return "&".join(f"{k}={quote(v if isinstance(v, str) else json.dumps(v))}" for k, v in values.items())


def log(live: Any, run: str, rows: list[dict[str, Any]]) -> Any:
    status, answer = live.request(
        "POST", "/api/metrics", msgpack.packb({"run": run, "metrics": rows}), {"Content-Type": "application/msgpack"}
    )
    assert status == 200, answer
    return json.loads(answer)


def new_run(live: Any, **body: Any) -> str:
    return str(live.ok("POST", "/api/runs", {"folder": "/", **body})["id"])


def test_pages_sorting_and_parts(live: Any) -> None:
    runs = [new_run(live, folder="/pages", name=f"p{i}", metadata={"i": i, "deep": {"er": -i}}) for i in range(7)]
    for i, run in enumerate(runs):
        log(live, run, [{"values": {"loss": float(i)}, "step": 0, "time": 0}])
    where = {"filters": ["folder.path == /pages"]}

    def listed(**more: Any) -> list[str]:
        return [r["id"] for r in live.ok("GET", f"/api/runs?{query(**where, **more)}")["data"]]

    assert listed() == runs[::-1], "newest first"
    assert listed(start=2, count=3) == runs[::-1][2:5]
    assert live.ok("GET", f"/api/runs?{query(**where, start=6, count=3)}")["count"] == 7
    assert listed(start=100) == []
    for column in ("name", "metadata.i", "metrics.loss", "metrics.loss.max", "created"):
        assert listed(sorting=[{"id": column, "desc": False}]) == runs, column
        assert listed(sorting=[{"id": column, "desc": True}]) == runs[::-1], column
    assert listed(sorting=[{"id": "metadata.deep.er", "desc": False}]) == runs[::-1]
    basic = live.ok("GET", f"/api/runs?{query(**where, return_basic='True', return_metrics='False')}")["data"][0]
    assert "metrics" not in basic
    assert "metadata" not in basic
    full = live.ok("GET", f"/api/runs?{query(**where)}")["data"][0]
    assert {"metrics", "metadata", "system", "alerts", "started"} <= full.keys()
    slim = live.ok("GET", f"/api/runs?{query(**where, attributes=['name'])}")["data"][0]
    assert slim.keys() == {"id", "name"}


def test_a_batch_of_runs_is_all_or_nothing(live: Any) -> None:
    before = live.ok("GET", "/api/runs")["count"]
    assert live.call("POST", "/api/runs", [{"folder": "/"}, {"folder": "/", "alerts": ["0" * 22]}])[0] == 404
    assert live.ok("GET", "/api/runs")["count"] == before
    made = live.ok("POST", "/api/runs", [{"folder": "/"}, {"folder": "/", "name": "named"}])
    assert made[1]["name"] == "named"
    assert made[0]["name"]


def test_values_keep_types_and_order(live: Any) -> None:
    run = new_run(live)
    log(
        live,
        run,
        [
            {"values": {"x": v}, "step": s, "time": s, "timestamp": None}
            for s, v in [(5, 1), (2, 2.5), (9, True), (2, math.nan), (7, (1 << 64) - 1)]
        ],
    )
    found = live.values(run, "x")
    assert [s for s, _ in found] == [2, 2, 5, 7, 9]
    assert found[0][1] == 2.5
    assert math.isnan(found[1][1])
    assert [type(v) for _, v in found[2:]] == [int, int, bool]
    assert found[3][1] == (1 << 64) - 1
    assert live.ok("GET", f"/api/metrics/names?{query(runs=[run])}") == ["x"]
    status, raw = live.request("GET", "/api/metrics/span", json.dumps([run]).encode(), {"Content-Type": "application/json"})
    assert status == 200
    assert (json.loads(raw)["min_step"], json.loads(raw)["max_step"]) == (2, 9)


def test_max_points_keeps_the_ends_and_aggregates_span_runs(live: Any) -> None:
    runs = [new_run(live), new_run(live)]
    for k, run in enumerate(runs):
        log(live, run, [{"values": {"y": float(s + k)}, "step": s, "time": s / 2} for s in range(100)])
    found = live.ok("GET", f"/api/metrics?{query(runs=runs, metrics=['y', 'none'], xaxis='step', max_points=10)}")
    assert {len(found[r]["y"]) for r in runs} == {10}
    assert [p["step"] for p in found[runs[0]]["y"]][::9] == [0, 99]
    both = live.ok("GET", f"/api/metrics?{query(runs=runs, metrics=['y'], xaxis='time', aggregate='true')}")["y"]
    assert len(both) == 100
    assert both[3] == {"time": 1.5, "average": 3.5, "min": 3.0, "max": 4.0, "std": 0.5, "count": 2}


def test_saving_a_name_again_shows_the_newer_file(live: Any) -> None:
    import hashlib

    run = new_run(live)
    for data in (b"old", b"newer"):
        made = live.ok("POST", "/api/artifacts", {"name": "result", "size": len(data), "checksum": hashlib.sha256(data).hexdigest()})
        assert live.request("PUT", made["url"].removeprefix(live.url), data, token=None)[0] == 200
        live.ok("PUT", f"/api/runs/{run}/artifacts/{made['id']}", {"category": "output"})
    (only,) = live.ok("GET", f"/api/runs/{run}/artifacts?name=result")
    assert only["size"] == 5
    assert live.ok("GET", f"/api/runs/{run}/artifacts/{only['id']}")["category"] == "output"
    assert live.ok("GET", f"/api/runs/{run}/artifacts?category=input") == []


def test_folders_are_unique_and_deleting_asks_first(live: Any) -> None:
    status, answer = live.call("POST", "/api/folders", {"path": "/tree"})
    assert status == 200
    again, other = live.call("POST", "/api/folders", {"path": "/tree"})
    assert (again, other["id"]) == (409, answer["id"])
    run = new_run(live, folder="/tree/leaf")
    leaf = live.ok("GET", f"/api/folders?{query(filters=['path == /tree/leaf'])}")["data"][0]["id"]
    for path in (f"/api/folders/{answer['id']}", f"/api/folders/{leaf}"):
        assert live.call("DELETE", path)[0] == 409
    assert live.ok("DELETE", f"/api/folders/{answer['id']}?runs_only=true&runs=true") == {"folders": [], "runs": []}
    gone = live.ok("DELETE", f"/api/folders/{answer['id']}?recursive=true&runs=true")
    assert set(gone["folders"]) == {answer["id"], leaf}
    assert gone["runs"] == [run]
    assert live.call("GET", f"/api/runs/{run}")[0] == 404


def test_users_and_tenants_cannot_be_made_over_http(live: Any) -> None:
    assert live.ok("GET", "/api/whoami")["user"] == "simspool"
    assert live.ok("GET", "/api/users")["count"] == 1
    assert live.ok("GET", "/api/tenants")["data"][0]["name"] == "default"
    for path in ("/api/users", "/api/tenants"):
        assert live.call("POST", path, {"name": "x"})[0] == 403
    assert live.ok("GET", "/api/nosim/version", token=None)["version"] == "1.2.16"


# ---------------------------------------------------------------- the process


def test_a_restart_keeps_everything_and_terminates_clean(tmp_path: Path, start: Any) -> None:
    data = tmp_path / "new" / "data"
    server = start(data)
    run = new_run(server, name="kept")
    log(server, run, [{"values": {"x": 1}, "step": 1, "time": 1}])
    identity = server.ok("GET", "/api/simspool/v1/server")["server"]
    assert sum("token" in line for line in server.lines) == 1
    assert server.stop(signal.SIGTERM) == 0
    again = start(data)
    assert again.token == server.token
    assert not any("token" in line.split("serving")[0] for line in again.lines)
    assert again.ok("GET", "/api/simspool/v1/server")["server"] == identity
    assert again.values(run, "x") == [(1, 1)]
    with pytest.raises(AssertionError, match="another server"):
        start(data)
    assert again.stop(signal.SIGINT) == 0


def test_a_taken_port_is_an_error_that_says_so(live: Any, tmp_path: Path, start: Any) -> None:
    with pytest.raises(AssertionError, match="address already in use"):
        start(tmp_path / "other", live.port)
    assert live.ok("GET", "/api/version")


def test_killed_while_uploading_leaves_nothing_visible(tmp_path: Path, start: Any) -> None:
    import hashlib
    import socket

    server = start(tmp_path / "data")
    body = b"x" * 5_000_000
    digest = hashlib.sha256(body).hexdigest()
    with socket.create_connection(("127.0.0.1", server.port)) as half:
        head = f"PUT /api/simspool/v1/blobs/{digest} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {server.token}\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        half.sendall(head.encode() + body[:3_000_000])
        while not any((server.data / "blobs" / "incoming").iterdir()):
            assert server.process.poll() is None
        server.process.kill()
    server.process.wait()
    server.process.stdout.close()
    again = start(tmp_path / "data")
    assert list((again.data / "blobs" / "incoming").iterdir()) == []
    assert again.ok("POST", "/api/simspool/v1/blobs/missing", {"digests": [digest]})["missing"] == [digest]
    assert again.request("PUT", f"/api/simspool/v1/blobs/{digest}", body)[0] == 201
    assert again.stop() == 0
    assert subprocess.run(
        ["sha256sum", again.data / "blobs" / digest[:2] / digest], capture_output=True, text=True, check=True
    ).stdout.startswith(digest)


@pytest.mark.parametrize(
    "definition",
    [
        {"rule": "no progress", "window": 600}, {"rule": "no progress", "metric": "loss", "hold": 1},
        {"rule": "is not finite", "metric": "*"},
        {"rule": "rate is below", "metric": "loss", "threshold": 0, "window": 60},
        {"rule": "is above", "metric": "loss", "threshold": 0, "hold": 5, "hysteresis": 0.5, "clear_after": 10},
        {"rule": "deviates from reference", "metric": "loss", "reference": "0" * 64, "tolerance": 0.1},
    ],
    ids=str,
)  # fmt: skip
def test_rules_that_our_agents_judge_are_taken(live: Any, definition: dict[str, Any]) -> None:
    identity = live.ok("POST", "/api/alerts", {"name": "guard", "source": "metrics", "alert": definition})["id"]
    assert live.ok("GET", f"/api/alerts/{identity}")["alert"] == definition
