"""The stand-in's dialect where it hurts, its faults, and its state over kills and old backups."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from pathlib import Path
from typing import Any

import pytest
from standin import StandIn

NO_ANSWER = (http.client.HTTPException, OSError)


def point(step: int, **values: Any) -> dict[str, Any]:
    return {"time": step * 0.5, "timestamp": f"2026-01-01T00:00:{step % 60:02d}.000000", "step": step, "values": values or {"drag": 1.5}}


def batch(run: str, *steps: int, **values: Any) -> dict[str, Any]:
    return {"run": run, "metrics": [point(step, **values) for step in steps]}


def stored(at: StandIn, run: str, name: str = "drag") -> list[int]:
    return [p[0] for p in at.dump()["runs"][run]["metrics"].get(name, [])]


# the dialect
def test_a_wrong_token_and_a_wrong_form_are_refused(here: StandIn, call: Any, new_run: Any) -> None:
    run = new_run()
    assert call(here, "GET", "/api/version", Authorization="Bearer other")[:2] == (401, {"detail": "Unauthorised token"})
    assert call(here, "POST", "/api/metrics", batch(run, 0), kind="json")[0] == 415
    assert call(here, "POST", "/api/folders", {"path": "/x"}, kind="msgpack")[0] == 415
    assert call(here, "POST", "/api/folders", {"path": "/x"}, **{"Content-Encoding": "gzip"})[0] == 415
    assert call(here, "POST", "/api/metrics", b"\xc1", kind="msgpack")[0] == 400
    assert call(here, "GET", "/api/runs/nobody")[0] == 404
    assert call(here, "GET", "/api/nothing")[0] == 404
    assert stored(here, run) == []


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        ("/api/runs", {"folder": "/", "surprise": 1}, ["body", "surprise"]),
        ("/api/runs", {"folder": "no slash"}, ["body", "folder"]),
        ("/api/runs", {"folder": "/", "name": "what?"}, ["body", "name"]),
        ("/api/runs", {"folder": "/", "status": "dreaming"}, ["body", "status"]),
        ("/api/runs", {"folder": "/", "tags": ["a/b"]}, ["body", "tags", 0]),
        ("/api/runs", {"folder": "/", "started": "2026-01-01T00:00:00Z"}, ["body", "started"]),
        ("/api/alerts", {"name": "a", "source": "events", "alert": {"pattern": "x", "frequency": 0}}, None),
        ("/api/alerts", {"name": "a", "source": "user", "alert": {"pattern": "x", "frequency": 1}}, ["body"]),
        ("/api/artifacts", {"name": "a", "size": 1, "checksum": "short"}, ["body", "checksum"]),
        ("/api/grids", {"name": "g", "grid": [[1.0]], "labels": []}, ["body"]),
    ],
)
def test_a_body_that_does_not_fit_is_named(here: StandIn, call: Any, path: str, body: dict[str, Any], where: list[Any] | None) -> None:
    status, answer, _ = call(here, "POST", path, body)
    assert status == 422
    assert all(set(each) == {"type", "loc", "msg"} for each in answer["detail"])
    assert where is None or answer["detail"][0]["loc"] == where


def test_batches_are_appended_blindly_and_refused_as_a_whole(here: StandIn, call: Any, new_run: Any) -> None:
    run = new_run()
    for _ in range(2):
        assert call(here, "POST", "/api/metrics", batch(run, 0, 1, drag=1, lift=float("nan")), kind="msgpack")[0] == 200
        assert call(here, "POST", "/api/events", {"run": run, "events": [{"message": "again"}]}, kind="msgpack")[0] == 200
    bad = batch(run, 2)["metrics"] + [point(3, **{"a*b": 1})]
    assert call(here, "POST", "/api/metrics", {"run": run, "metrics": bad}, kind="msgpack")[0] == 422
    assert call(here, "POST", "/api/metrics", batch("z" * 22, 0), kind="msgpack")[0] == 404
    assert call(here, "POST", "/api/metrics", batch("offline_1", 0), kind="msgpack")[0] == 422
    found = here.dump()["runs"][run]
    assert stored(here, run) == [0, 1, 0, 1]
    assert [str(p[3]) for p in found["metrics"]["lift"]] == ["nan"] * 4
    assert [e["message"] for e in found["events"]] == ["again"] * 2


def test_values_are_read_along_each_axis(here: StandIn, call: Any, new_run: Any) -> None:
    first, second = new_run(), new_run()
    for run, factor in ((first, 1), (second, 3)):
        points = {"run": run, "metrics": [point(step, drag=step * factor, on=True) for step in (3, 1, 2, 0)]}
        call(here, "POST", "/api/metrics", points, kind="msgpack")
    query = {"runs": f'["{first}", "{second}"]', "metrics": '["drag"]'}

    def ask(path: str = "", **more: Any) -> Any:
        return call(here, "GET", f"/api/metrics{path}?" + urllib.parse.urlencode(query | more))[1]

    assert ask(xaxis="step")[second]["drag"] == [{"step": n, "value": n * 3} for n in range(4)]
    assert [p["time"] for p in ask(xaxis="time")[first]["drag"]] == [0.0, 0.5, 1.0, 1.5]
    assert [p["timestamp"][-9:] for p in ask(xaxis="timestamp")[first]["drag"]] == [f"{n:02d}.000000" for n in range(4)]
    assert [p["step"] for p in ask(xaxis="step", max_points=2)[first]["drag"]] == [0, 3]
    assert ask(xaxis="step", aggregate="True")["drag"][2] == {"step": 2, "average": 4.0, "min": 2, "max": 6}
    assert ask("/names") == ["drag", "on"]
    assert call(here, "GET", "/api/metrics/span", [first])[1] == {"min_step": 0, "max_step": 3, "min_time": 0.0, "max_time": 1.5}


def test_events_are_paged_filtered_and_counted(here: StandIn, call: Any, new_run: Any) -> None:
    run = new_run()
    events = [{"message": f"m {n}", "timestamp": f"2026-01-01T00:{n // 60:02d}:{n % 60:02d}.000000"} for n in range(130)]
    call(here, "POST", "/api/events", {"run": run, "events": events[::-1]}, kind="msgpack")

    def ask(path: str = "", **query: Any) -> Any:
        return call(here, "GET", f"/api/events{path}?" + urllib.parse.urlencode({"run": run} | query))[1]

    first, last = ask(start=0, count=500), ask(start=100, count=100)
    assert [e["message"] for e in first["data"] + last["data"]] == [f"m {n}" for n in range(130)]
    assert first["count"] == 130
    assert [e["message"] for e in ask(filters='["event.message contains m 12"]')["data"]] == ["m 12", *(f"m {n}" for n in range(120, 130))]
    window = {"window": 60, "timestamp_begin": "2026-01-01T00:00:00.0", "timestamp_end": "2026-01-01T00:03:00.0"}
    assert [w["count"] for w in ask("/histogram", **window)["data"]] == [60, 60, 10]


def test_lists_are_filtered_sorted_and_paged(here: StandIn, call: Any) -> None:
    call(here, "POST", "/api/folders", {"path": "/many/deep"})
    for n in range(120):
        body = {"folder": "/many/deep", "name": f"r {n:03d}", "metadata": {"n": n, "a.b": "x"}, "tags": ["even"] if n % 2 == 0 else []}
        assert call(here, "POST", "/api/runs", body)[0] == 200

    def ask(*filters: str, **query: Any) -> Any:
        both = {"filters": json.dumps(["folder.path == /many/deep", *filters])} | query
        return call(here, "GET", "/api/runs?" + urllib.parse.urlencode(both))[1]

    assert (len(ask()["data"]), ask()["count"], len(ask(start=100, count=100)["data"])) == (100, 120, 20)
    assert ask()["data"][0]["name"] == "r 119"
    by_n = '[{"id": "metadata.n", "desc": false}]'
    assert [r["name"] for r in ask("metadata.n >= 10", "metadata.n < 13", sorting=by_n)["data"]] == ["r 010", "r 011", "r 012"]
    assert ask("has tag.even", "name contains r 00")["count"] == 5
    assert ask("metadata.a.b == x", "metadata.n exists", "metadata.m not exists", "user == self")["count"] == 120
    assert ask("status != created")["count"] == 0
    assert call(here, "GET", "/api/runs?filters=" + urllib.parse.quote('["gibberish"]'))[0] == 422
    assert {f["path"] for f in call(here, "GET", "/api/folders")[1]["data"]} >= {"/", "/many", "/many/deep"}


def test_what_there_is_once_only_answers_409_with_its_id(here: StandIn, call: Any) -> None:
    for path, body in (("/api/folders", {"path": "/once"}), ("/api/tags", {"name": "once"}), ("/api/tenants", {"name": "once"})):
        first, second = call(here, "POST", path, body), call(here, "POST", path, body)
        assert (first[0], second[0], first[1]["id"]) == (200, 409, second[1]["id"])
        assert len(first[1]["id"]) == 22
    rule = {"rule": "is above", "frequency": 1, "window": 1, "metric": "drag", "aggregation": "average", "threshold": 0}
    alert = {"name": "a", "source": "metrics", "alert": rule}
    plain = [call(here, "POST", "/api/alerts", alert)[1]["id"] for _ in range(2)]
    same = call(here, "POST", "/api/alerts?deduplicate=True", alert)[1]["id"]
    other = call(here, "POST", "/api/alerts?deduplicate=True", alert | {"abort": True})[1]["id"]
    assert len({*plain, other}) == 3
    assert same in plain
    assert isinstance(call(here, "GET", "/api/storage")[1], list)


def test_a_runs_life(here: StandIn, call: Any, new_run: Any) -> None:
    run = str(call(here, "POST", "/api/runs", {"folder": "/", "name": "life", "metadata": {"a": 1}})[1]["id"])

    def now(**changes: Any) -> dict[str, Any]:
        assert call(here, "PUT", f"/api/runs/{run}", changes)[0] == 200
        return dict(call(here, "GET", f"/api/runs/{run}")[1])

    assert (now()["status"], now()["started"], now()["endtime"]) == ("created", None, None)
    assert now(status="running", metadata={"b": 2})["metadata"] == {"a": 1, "b": 2}
    ended = now(status="completed")
    assert ended["started"] < ended["endtime"]
    assert call(here, "PUT", f"/api/runs/{run}/heartbeat")[0] == 200
    assert now()["status"] == "completed"
    assert now(status="running")["endtime"] is None
    assert call(here, "PUT", f"/api/runs/{run}", {"status": "created"})[0] == 422
    assert call(here, "PUT", f"/api/runs/{run}", {"nonsense": 1})[0] == 422
    assert call(here, "PUT", f"/api/runs/{run}/starred", {"starred": True})[0] == 200
    assert now()["starred"]
    assert call(here, "GET", f"/api/runs/{run}/abort")[1] == {"status": False}
    assert call(here, "PUT", f"/api/runs/{run}/abort", {"reason": "enough"})[0] == 200
    assert call(here, "GET", f"/api/runs/{run}/abort")[1] == {"status": True}
    assert call(here, "GET", "/api/stats")[1]["runs"]["running"] >= 1
    assert call(here, "POST", "/api/runs", {"folder": "/nowhere"})[0] == 404
    assert call(here, "DELETE", f"/api/runs/{run}")[0] == 200
    assert call(here, "GET", f"/api/runs/{run}")[0] == 404


def test_a_run_without_heartbeats_is_lost_and_revived_by_one(here: StandIn, call: Any, new_run: Any) -> None:
    silent, patient = new_run(heartbeat_timeout=1), new_run(heartbeat_timeout=None)
    deadline = time.monotonic() + 60
    while call(here, "GET", f"/api/runs/{silent}")[1]["status"] == "running":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert call(here, "GET", f"/api/runs/{silent}")[1]["status"] == "lost"
    assert call(here, "GET", f"/api/runs/{patient}")[1]["status"] == "running"
    call(here, "PUT", f"/api/runs/{silent}", {"heartbeat_timeout": 600})
    call(here, "PUT", f"/api/runs/{silent}/heartbeat")
    assert call(here, "GET", f"/api/runs/{silent}")[1]["status"] == "running"


def test_an_alert_with_abort_that_is_critical_aborts(here: StandIn, call: Any, new_run: Any) -> None:
    alert = call(here, "POST", "/api/alerts", {"name": "stop", "source": "user", "abort": True})[1]["id"]
    run = new_run(alerts=[alert])
    assert call(here, "GET", f"/api/alerts/{alert}/status/{run}")[1] == {"status": None}
    assert call(here, "PUT", f"/api/alerts/{alert}/status/{run}", {"status": "critical"})[0] == 200
    assert call(here, "GET", f"/api/alerts/{alert}/status/{run}")[1] == {"status": "critical"}
    assert call(here, "GET", f"/api/runs/{run}/abort")[1] == {"status": True}
    assert call(here, "GET", f"/api/runs/{run}")[1]["alerts"][0]["alert"]["id"] == alert
    assert call(here, "PUT", f"/api/alerts/{alert}/status/{run}", {"status": "fine"})[0] == 422
    said = call(here, "POST", "/api/alerts", {"name": "said", "source": "events", "alert": {"pattern": "x", "frequency": 1}})[1]["id"]
    assert call(here, "PUT", f"/api/alerts/{said}/status/{run}", {"status": "ok"})[0] == 422


def test_content_is_checked_confirmed_and_asked_for_once(here: StandIn, call: Any, new_run: Any) -> None:
    data, run = os.urandom(1000), new_run()
    body = {"name": "case/mesh", "size": len(data), "checksum": hashlib.sha256(data).hexdigest(), "original_path": "/data/mesh"}
    first = call(here, "POST", "/api/artifacts", body)[1]
    identity, url = first["id"], first["url"]
    assert call(here, "PUT", f"/api/artifacts/{identity}", {"uploaded": True})[0] == 400
    status, answer, _ = call(here, "PUT", url, data[:-1] + b"?", kind="octet-stream", Authorization="")
    assert (status, b"The SHA256 you specified did not match the calculated checksum" in answer) == (400, True)
    assert call(here, "PUT", url[:-1] + ("0" if url[-1] != "0" else "1"), data, kind="octet-stream")[0] == 403
    assert call(here, "PUT", url, data, kind="octet-stream", Authorization="")[0] == 200
    assert call(here, "PUT", f"/api/artifacts/{identity}", {"uploaded": True})[0] == 200
    assert call(here, "PUT", f"/api/runs/{run}/artifacts/{identity}", {"category": "souvenir"})[0] == 422
    assert call(here, "PUT", f"/api/runs/{run}/artifacts/{identity}", {"category": "input"})[0] == 200
    listed = call(here, "GET", f"/api/runs/{run}/artifacts?name=case/mesh&category=input")[1]
    assert [a["id"] for a in listed] == [identity]
    assert call(here, "GET", f"/api/runs/{run}/artifacts?category=output")[1] == []
    assert call(here, "GET", listed[0]["url"], Authorization="")[1] == data
    second = call(here, "POST", "/api/artifacts", body | {"name": "again"})[1]
    assert second["url"] is None
    assert call(here, "GET", f"/api/artifacts/{second['id']}")[1]["uploaded"]
    assert call(here, "DELETE", f"/api/artifacts/{identity}")[0] == 200
    assert here.dump()["artifacts"][second["id"]]["stored_bytes"] == 1000


def test_options(tmp_path: Path, call: Any) -> None:
    with StandIn.start(tmp_path, strict=False, unique_run_names=True, require_folder=False, presign_seconds=1, known_content=False) as at:
        first = call(at, "POST", "/api/runs", {"folder": "/new", "name": "one", "surprise": 1})
        assert (first[0], call(at, "POST", "/api/runs", {"folder": "/", "name": "one"})[:2]) == (
            200, (409, {"id": first[1]["id"], "name": "one", "detail": "a run of this name exists already"})
        )  # fmt: skip
        body = {"name": "f", "size": 1, "checksum": hashlib.sha256(b"x").hexdigest()}
        urls = [call(at, "POST", "/api/artifacts", body)[1]["url"]]
        assert call(at, "PUT", urls[0], b"x", kind="octet-stream")[0] == 200
        assert call(at, "POST", "/api/artifacts", body)[1]["url"]
        deadline = time.monotonic() + 60
        while call(at, "PUT", urls[0], b"x", kind="octet-stream")[0] != 403:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    with pytest.raises(AssertionError, match="surprise"):
        StandIn.start(tmp_path / "other", surprise=True)


# faults
@pytest.mark.parametrize(("fault", "kept"), [("drop", 0), ("lose-reply", 1), ("half-reply", 1), ("hang", 0)])
def test_no_whole_answer_comes(here: StandIn, call: Any, new_run: Any, fault: str, kept: int) -> None:
    run = new_run()
    here.faults({"do": fault, "path": "POST /api/events$"})
    events = {"run": run, "events": [{"message": "m"}]}
    with pytest.raises(NO_ANSWER):
        call(here, "POST", "/api/events", events, kind="msgpack", timeout=1 if fault == "hang" else 30)
    assert len(here.dump()["runs"][run]["events"]) == kept
    assert call(here, "POST", "/api/events", events, kind="msgpack")[0] == 200, "it was to happen once"
    assert len(here.dump()["runs"][run]["events"]) == kept + 1
    assert (0, fault) in [(r["status"], r["fault"]) for r in here.requests("/api/events")]


def test_a_half_reply_is_half(here: StandIn, call: Any, new_run: Any) -> None:
    run = new_run()
    here.faults({"do": "half-reply", "path": "GET /api/runs/"})
    with pytest.raises(http.client.IncompleteRead) as caught:
        call(here, "GET", f"/api/runs/{run}")
    assert caught.value.partial.startswith(b'{"id"')
    assert abs(len(caught.value.partial) - (caught.value.expected or 0)) <= 1


@pytest.mark.parametrize(("status", "committed"), [(429, False), (500, False), (502, True), (503, False), (504, True)])
def test_statuses(here: StandIn, call: Any, new_run: Any, status: int, committed: bool) -> None:
    run = new_run()
    here.faults({"do": "status", "status": status, "retry_after": 2, "committed": committed, "path": "POST /api/metrics", "count": 2})
    answers = [call(here, "POST", "/api/metrics", batch(run, n), kind="msgpack") for n in range(3)]
    assert [a[0] for a in answers] == [status, status, 200]
    assert answers[0][2]["retry-after"] == "2"
    assert stored(here, run) == ([0, 1, 2] if committed else [2])
    assert here.faults()[0]["fired"] == 2


def test_pages_and_redirects(here: StandIn, call: Any) -> None:
    here.faults({"do": "html", "path": "/api/version"}, {"do": "redirect", "path": "/api/whoami"})
    status, page, headers = call(here, "GET", "/api/version")
    assert (status, headers["content-type"].split(";")[0], b"log in" in page) == (200, "text/html", True)
    status, _, headers = call(here, "GET", "/api/whoami")
    assert (status, headers["location"]) == (302, "/login")
    assert call(here, "GET", "/login")[0] == 200
    assert call(here, "GET", "/api/version")[1] == {"version": "1.2.16"}


def test_what_is_slow_is_whole(here: StandIn, call: Any, new_run: Any) -> None:
    run = new_run()
    here.faults({"do": "delay", "seconds": 0.3, "path": "POST /api/metrics"}, {"do": "slow-body", "seconds": 0.3, "path": "GET /api/runs/"})
    begun = time.monotonic()
    assert call(here, "POST", "/api/metrics", batch(run, 7), kind="msgpack")[0] == 200
    between = time.monotonic()
    assert call(here, "GET", f"/api/runs/{run}")[1]["id"] == run
    # sleeps are never shorter than asked
    assert between - begun >= 0.3
    assert time.monotonic() - between >= 0.3
    assert stored(here, run) == [7]


@pytest.mark.parametrize("status", [400, 422])
def test_poison_is_refused_for_ever_and_alone(here: StandIn, call: Any, new_run: Any, status: int) -> None:
    run = new_run()
    here.faults(
        {"do": "reject", "kind": "metric", "name": "bad", "status": status},
        {"do": "reject", "kind": "event", "name": "poison", "status": status},
        {"do": "reject", "kind": "run", "name": "cursed", "status": status},
    )
    for _ in range(3):
        assert call(here, "POST", "/api/metrics", batch(run, 0, good=1, bad=1), kind="msgpack")[0] == status
        assert call(here, "POST", "/api/events", {"run": run, "events": [{"message": "some poison"}]}, kind="msgpack")[0] == status
        assert call(here, "POST", "/api/runs", {"folder": "/", "name": "cursed"})[0] == status
    assert call(here, "POST", "/api/metrics", batch(run, 0, good=1), kind="msgpack")[0] == 200
    assert here.dump()["runs"][run]["metrics"].keys() == {"good"}
    assert here.dump()["runs"][run]["events"] == []
    assert [f["fired"] for f in here.faults()] == [3, 3, 3]


def test_limits(here: StandIn, call: Any, new_run: Any) -> None:
    run = new_run()
    here.faults({"do": "body-limit", "bytes": 500, "path": "POST /api/metrics"}, {"do": "artifact-limit", "bytes": 100})
    sizes = {n: call(here, "POST", "/api/metrics", batch(run, *range(n)), kind="msgpack")[0] for n in (1, 50)}
    assert sizes == {1: 200, 50: 413}
    assert stored(here, run) == [0]
    for size, status in ((100, 200), (101, 413)):
        body = {"name": "f", "size": size, "checksum": hashlib.sha256(os.urandom(8)).hexdigest()}
        assert call(here, "POST", "/api/artifacts", body)[0] == status


def test_faults_wait_repeat_and_are_chosen_by_seed(here: StandIn, call: Any) -> None:
    def statuses(n: int) -> list[int]:
        return [call(here, "GET", "/api/version")[0] for _ in range(n)]

    here.faults({"do": "status", "status": 503, "path": "/api/version", "after": 2, "count": 1})
    assert statuses(4) == [200, 200, 503, 200]
    here.heal()
    series = []
    for _ in range(2):
        here.faults({"do": "status", "status": 500, "path": "/api/version", "rate": 0.5, "seed": 4, "count": None})
        series.append(statuses(20))
        here.heal()
    assert series[0] == series[1]
    assert set(series[0]) == {200, 500}
    for wrong in ({"do": "explode"}, {"do": "drop", "surprise": 1}, {"do": "drop", "path": "("}):
        assert call(here, "POST", "/_faults", wrong)[0] == 422
    assert here.faults() == []


# its state
def test_a_kill_takes_nothing_that_was_acknowledged(tmp_path: Path, call: Any) -> None:
    with StandIn.start(tmp_path) as at:
        run = call(at, "POST", "/api/runs", {"folder": "/", "status": "running"})[1]["id"]
        for round_ in range(3):
            answered, enough = [], threading.Event()

            def post(answered: list[int] = answered, enough: threading.Event = enough, base: int = round_ * 10_000) -> None:
                for step in range(base, base + 10_000):
                    try:
                        assert call(at, "POST", "/api/metrics", batch(run, step), kind="msgpack")[0] == 200
                    except NO_ANSWER:
                        return
                    answered.append(step)
                    if len(answered) == 20:
                        enough.set()

            thread = threading.Thread(target=post)
            thread.start()
            assert enough.wait(60)
            at.kill()
            thread.join(60)
            url, token = at.url, at.token
            at.restart()
            assert (at.url, at.token) == (url, token)
            found = [step for step in stored(at, run) if step >= round_ * 10_000]
            assert found[: len(answered)] == answered
            assert len(found) - len(answered) in {0, 1}, "more than the request under way came in"
        assert len([r for r in at.requests("/api/metrics") if r["status"] == 200]) >= 60


def test_an_old_backup_has_less(tmp_path: Path, call: Any) -> None:
    with StandIn.start(tmp_path) as at:
        run = call(at, "POST", "/api/runs", {"folder": "/", "status": "running"})[1]["id"]
        call(at, "POST", "/api/metrics", batch(run, 0, 1), kind="msgpack")
        old = at.backup()
        call(at, "POST", "/api/metrics", batch(run, 2, 3), kind="msgpack")
        call(at, "POST", "/api/runs", {"folder": "/", "name": "later"})
        new = at.backup()
        at.restore(old)
        assert stored(at, run) == [0, 1]
        assert at.counts()["runs"] == 1
        at.restore(new)
        assert stored(at, run) == [0, 1, 2, 3]
        assert at.counts()["runs"] == 2


def test_it_ends_with_its_starter(tmp_path: Path) -> None:
    program = (
        f"import sys, os; sys.path.insert(0, {str(Path(sys.modules[StandIn.__module__].__file__ or '').parent)!r})\n"
        f"from pathlib import Path; from standin import StandIn; at = StandIn.start(Path({str(tmp_path)!r}))\n"
        "print(at.process.pid, at.port, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=90)
    assert done.returncode == -signal.SIGKILL, done.stderr
    _, port = map(int, done.stdout.split())
    deadline = time.monotonic() + 60
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                break
        assert time.monotonic() < deadline, "it outlives its starter"
        time.sleep(0.05)
