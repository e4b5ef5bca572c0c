"""The drain protocol's rules, each against a real server process."""

from __future__ import annotations

import hashlib
import http.client
import json
import math
import signal
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import zstandard

from simspool.spool.records import Kind


def ok(verdict: dict[str, Any], made: Any, mark: int) -> None:
    assert verdict["verdict"] == "accepted", verdict
    assert (verdict["writer"], verdict["mark"]) == (made.writer, mark)


def points(made: Any, count: int) -> Any:
    for i in range(count):
        made.metrics({"loss": 1.0 / (i + 1), "n": i}, step=i)
    return made


def test_a_whole_run_reads_back_through_the_dialect(live: Any, make: Any) -> None:
    made = make().start(name="drained", metadata={"a": 1}, tags=["t"], description="d")
    made.metrics({"x": 1.5, "n": 7, "up": True}, step=3, time=2.5, timestamp=1_700_000_001_000_002)
    made.metrics({"x": math.nan, "n": -(1 << 62), "up": False}, step=4)
    made.record(Kind.METRICS_JSON, {"values": {"x": math.inf, "n": 1 << 80}, "step": 5})
    made.record(Kind.EVENT, {"message": "hello", "level": "info"})
    made.record(Kind.METADATA, {"set": {"b": {"c": 2}}})
    made.record(Kind.TAGS, {"op": "add", "tags": ["u"]})
    made.record(Kind.CLOSE, {"status": "completed", "drops": {}})
    (verdict,) = live.drain(zstandard.compress(made.cut()), coding="zstd")
    ok(verdict, made, 8)
    assert verdict["refused"] == []
    assert verdict["chain"] == made.chain(8)
    run = live.ok("GET", f"/api/runs/{made.run}")
    assert (run["name"], run["status"], run["folder"], run["tags"]) == ("drained", "completed", "/made", ["t", "u"])
    assert run["metadata"] == {"a": 1, "b": {"c": 2}}
    assert run["metrics"]["x"]["count"] == 3
    assert run["metrics"]["x"]["nan"] == 1
    assert run["endtime"] is not None
    found = live.values(made.run, "x")
    assert [s for s, _ in found] == [3, 4, 5]
    assert found[0][1] == 1.5
    assert math.isnan(found[1][1])
    assert found[2][1] == math.inf
    assert live.values(made.run, "n") == [(3, 7), (4, -(1 << 62)), (5, 1 << 80)]
    assert [v for _, v in live.values(made.run, "up")] == [True, False]
    assert live.values(made.run, "up", "timestamp")[-1][0] == "2023-11-14T22:13:21.000002"
    assert live.values(made.run, "x", "time")[0][0] in {0.003, 2.5}
    assert live.ok("GET", f"/api/events?run={made.run}")["data"][0]["message"] == "hello"
    server = live.ok("GET", "/api/simspool/v1/server")
    assert server["protocol"] == 1
    marks = live.ok("POST", "/api/simspool/v1/marks", {"writers": [made.writer, "0" * 22]})
    assert marks == {"server": server["server"], "marks": {made.writer: [8, made.chain(8)]}}


def test_values_and_times_that_no_float_holds_are_kept_or_refused_by_themselves(live: Any, make: Any) -> None:
    """A text that is no timestamp is none; integers of any size read back as they are, and average as infinite ones do: not at all."""
    made = make().start()
    made.record(Kind.METRICS_JSON, {"values": {"x": 1}, "step": 1, "timestamp": "\ud800"})
    made.record(Kind.METRICS_JSON, {"values": {"x": 10**400}, "step": 2})
    made.record(Kind.METRICS_JSON, {"values": {"x": 3}, "step": 3, "time": 10**400})
    made.record(Kind.METRICS_JSON, {"values": {"x": 4}, "step": 4})
    (verdict,) = live.drain(made.cut())
    ok(verdict, made, 5)
    assert verdict["refused"] == [[4, "a metric record's time is out of range"]]
    assert live.values(made.run, "x") == [(1, 1), (2, 10**400), (4, 4)]
    query = urlencode({"runs": json.dumps([made.run]), "metrics": '["x"]', "aggregate": "true", "xaxis": "step"})
    assert [(p["step"], p["average"]) for p in live.ok("GET", f"/api/metrics?{query}")["x"]] == [(1, 1.0), (4, 4.0)]


def test_a_lost_reply_a_recut_and_an_overlap_change_nothing_twice(live: Any, make: Any) -> None:
    made = points(make().start(), 20)
    for first, last, mark in ((1, 9, 9), (1, 9, 9), (4, 12, 12), (2, 5, 12), (12, 12, 12), (1, 21, 21), (13, 21, 21)):
        (verdict,) = live.drain(made.cut(first, last))
        ok(verdict, made, mark)
        assert verdict["chain"] == made.chain(mark)
    assert live.values(made.run, "n") == [(i, i) for i in range(20)]
    assert live.ok("GET", f"/api/runs/{made.run}")["metrics"]["n"]["count"] == 20


def test_a_gap_is_not_accepted_until_it_is_filled_or_declared(live: Any, make: Any) -> None:
    made = points(make().start(), 9)
    ok(live.drain(made.cut(1, 3))[0], made, 3)
    (verdict,) = live.drain(made.cut(6, 10))
    assert verdict == {"verdict": "retry", "writer": made.writer, "mark": 3, "chain": made.chain(3), "reason": "gap"}
    gaps = [[5, 6, "corrupt"], [10, 10, "lost"]]
    (verdict,) = live.drain(made.cut(4, 10, gaps))
    ok(verdict, made, 10)
    assert verdict["chain"] == made.chain(10, gaps)
    assert [n for _, n in live.values(made.run, "n")] == [0, 1, 2, 5, 6, 7]


def test_a_range_that_is_nothing_but_a_gap_moves_the_mark(live: Any, make: Any) -> None:
    made = points(make(), 3)
    (verdict,) = live.drain(made.cut(1, 3, [[1, 3, "shed"]]))
    ok(verdict, made, 3)


def test_a_cloned_writer_is_a_conflict_wherever_it_differs(live: Any, make: Any) -> None:
    made = points(make().start(), 6)
    clone = make(made.header.run, made.header.writer).start()
    points(clone, 3)
    clone.metrics({"loss": 99.0, "n": 99}, step=3)
    points(clone, 4)
    ok(live.drain(made.cut())[0], made, 7)
    for first, last in ((5, 9), (1, 9), (8, 9), (1, 7)):
        (verdict,) = live.drain(clone.cut(first, last))
        assert (verdict["verdict"], verdict["reason"], verdict["mark"]) == ("permanent", "conflict", 7), (first, last)
    assert len(live.values(made.run, "n")) == 6


def test_each_range_has_its_own_verdict_and_order_holds_within_a_request(live: Any, make: Any) -> None:
    good, bad, other = points(make().start(), 5), points(make().start(), 5), points(make().start(), 5)
    broken = bytearray(bad.cut())
    broken[-5] ^= 1
    verdicts = live.drain(good.cut(1, 3), bytes(broken), other.cut(3, 6), good.cut(4, 6))
    assert [v["verdict"] for v in verdicts] == ["accepted", "permanent", "retry", "accepted"]
    assert verdicts[1]["reason"] == "malformed"
    assert verdicts[3]["mark"] == 6
    assert live.call("GET", f"/api/runs/{bad.run}")[0] == 404, "nothing of a refused range stays"


@pytest.mark.parametrize(
    "head",
    [
        {"segment": 2}, {"run": "0" * 22}, {"writer": "0" * 22}, {"first": 2}, {"last": 3}, {"last": 5}, {"first": 0}, {"chain": -1},
        {"chain": 1 << 61}, {"first": 1 << 70, "last": 1 << 70}, {"gaps": [[1, 9, "x"]]}, {"gaps": [[2, 1, "x"]]}, {"gaps": "no"},
        {"gaps": [[True, True, "x"]]}, {"first": "1"}, {"last": None},
    ],
)  # fmt: skip
def test_a_head_that_does_not_fit_is_malformed(live: Any, make: Any, head: dict[str, Any]) -> None:
    made = points(make().start(), 3)
    (verdict,) = live.drain(made.cut(said=head))
    assert (verdict["verdict"], verdict["reason"]) == ("permanent", "malformed")


def test_every_flipped_byte_of_the_frames_is_noticed(live: Any, make: Any) -> None:
    made = points(make().start(), 2)
    whole = made.cut()
    at = len(whole) - sum(map(len, made.frames))
    ranges = []
    for place in range(at, len(whole)):
        broken = bytearray(whole)
        broken[place] ^= 0x10
        ranges.append(bytes(broken))
    assert {v["verdict"] for v in live.drain(*ranges)} == {"permanent"}
    assert live.call("GET", f"/api/runs/{made.run}")[0] == 404


def test_writers_and_runs_belong_to_who_sent_them_first(live: Any, make: Any) -> None:
    made = points(make().start(), 3)
    ok(live.drain(made.cut())[0], made, 4)
    stranger = live.user("stranger")
    points(made, 2)
    (verdict,) = live.drain(made.cut(5, 6), token=stranger)
    assert (verdict["verdict"], verdict["reason"], verdict["mark"]) == ("permanent", "forbidden", 0)
    joiner = points(make(made.header.run), 2)
    assert live.drain(joiner.cut(), token=stranger)[0]["reason"] == "forbidden"
    assert live.ok("POST", "/api/simspool/v1/marks", {"writers": [made.writer]}, token=stranger)["marks"] == {}
    ok(live.drain(joiner.cut())[0], joiner, 2)


def test_a_deleted_run_stays_deleted(live: Any, make: Any) -> None:
    made = points(make().start(), 3)
    live.drain(made.cut(1, 2))
    live.ok("DELETE", f"/api/runs/{made.run}")
    (verdict,) = live.drain(made.cut(3, 4))
    assert (verdict["verdict"], verdict["reason"]) == ("permanent", "forbidden")
    assert live.call("GET", f"/api/runs/{made.run}")[0] == 404


def test_records_that_make_no_sense_are_named_and_consumed(live: Any, make: Any) -> None:
    made = make().start()
    made.record(Kind.EVENT, {"message": 5})
    made.record(Kind.METRICS_JSON, {"values": {"x": "text"}})
    made.record(Kind.ARTIFACT, {"name": "../x", "digest": "../../etc", "size": 1, "category": "input"})
    made.record(Kind.METRICS_JSON, {"values": {"y": 1}, "step": 1.5})
    made.record(99, {"later": "version"})
    made.record(Kind.EVENT, {"message": "fine \udc80 \0", "timestamp": "yesterday"})
    made.metrics({"z": 1}, step=1)
    (verdict,) = live.drain(made.cut())
    ok(verdict, made, 8)
    assert [seq for seq, _ in verdict["refused"]] == [2, 3, 4, 5]
    assert live.values(made.run, "z") == [(1, 1)]
    assert len(live.ok("GET", f"/api/events?run={made.run}")["data"]) == 1


def test_many_writers_of_one_run_concurrently_with_duplicates(live: Any, make: Any) -> None:
    first = points(make().start(), 30)
    writers = [first, *(points(make(first.header.run), 30) for _ in range(7))]
    failures: list[Any] = []

    def send(made: Any) -> None:
        try:
            last = len(made.frames)
            for at in range(1, last + 1, 4):
                while True:
                    (verdict,) = live.drain(made.cut(at, min(at + 3, last)))
                    if verdict["verdict"] == "accepted":
                        break
                    assert verdict["reason"] == "gap"
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=send, args=(w,)) for w in writers for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    found = live.values(first.run, "n")
    assert sorted(found) == sorted((i, i) for i in range(30) for _ in writers)
    assert live.ok("GET", f"/api/runs/{first.run}")["metrics"]["n"]["count"] == 240


def test_blobs_are_verified_private_and_sent_once(live: Any, make: Any) -> None:
    data = b"bytes of a mesh"
    digest = hashlib.sha256(data).hexdigest()
    path = f"/api/simspool/v1/blobs/{digest}"
    missing = "/api/simspool/v1/blobs/missing"
    made = make().start()
    made.record(
        Kind.ARTIFACT, {"name": "../../mesh", "digest": digest, "size": len(data), "category": "input", "mime": "x/y", "path": "/a"}
    )
    ok(live.drain(made.cut())[0], made, 2)
    (artifact,) = live.ok("GET", f"/api/runs/{made.run}/artifacts")
    assert (artifact["name"], artifact["url"], artifact["uploaded"]) == ("../../mesh", None, False)
    assert live.ok("POST", missing, {"digests": [digest]})["missing"] == [digest]
    assert live.request("PUT", path, b"other bytes!!!!")[0] == 422
    assert live.ok("POST", missing, {"digests": [digest]})["missing"] == [digest]
    assert live.request("PUT", path, data)[0] == 201
    assert live.request("PUT", path, data)[0] == 200
    assert live.ok("POST", missing, {"digests": [digest]})["missing"] == []
    stranger = live.user("blob stranger")
    assert live.ok("POST", missing, {"digests": [digest]}, token=stranger)["missing"] == [digest], "known to others says nothing"
    (artifact,) = live.ok("GET", f"/api/runs/{made.run}/artifacts")
    assert live.request("GET", artifact["url"].removeprefix(live.url), token=None) == (200, data)
    # naming a digest gives no right to its bytes
    thief = make().start()
    thief.record(Kind.ARTIFACT, {"name": "mine", "digest": digest, "size": len(data), "category": "input"})
    live.drain(thief.cut(), token=stranger)
    (stolen,) = live.ok("GET", f"/api/runs/{thief.run}/artifacts", token=stranger)
    assert stolen["url"] is None
    assert live.request("PUT", path, data, token=stranger)[0] == 201
    (owned,) = live.ok("GET", f"/api/runs/{thief.run}/artifacts", token=stranger)
    assert owned["url"]


def test_heartbeats_and_aborts(live: Any, make: Any) -> None:
    made = points(make().start(), 1)
    live.drain(made.cut())
    state = "/api/simspool/v1/state"
    assert live.ok("POST", state, {"runs": {made.run: {"heartbeat": 1.7e9}, "0" * 22: {}}}) == {"abort": {}}
    live.ok("PUT", f"/api/runs/{made.run}/abort", {"reason": "too hot"})
    flag = live.ok("POST", state, {"runs": {made.run: {"heartbeat": 1.7e9}}})["abort"][made.run]
    assert (flag["reason"], flag["writers"]) == ("too hot", [made.writer])
    live.ok("PUT", f"/api/runs/{made.run}/abort", {"reason": "too cold"})
    assert live.ok("POST", state, {"runs": {made.run: {}}})["abort"][made.run] == flag
    assert live.ok("POST", state, {"runs": {made.run: {}}}, token=live.user("nobody")) == {"abort": {}}


def test_both_faces_change_one_run(live: Any, make: Any) -> None:
    made = points(make().start(metadata={"a": 1}), 3)
    live.drain(made.cut())
    live.ok("PUT", f"/api/runs/{made.run}", {"metadata": {"b": 2}, "tags": ["seen"], "description": "by hand"})
    made.record(Kind.METADATA, {"set": {"c": 3}})
    live.drain(made.cut())
    run = live.ok("GET", f"/api/runs/{made.run}")
    assert run["metadata"] == {"a": 1, "b": 2, "c": 3}
    assert (run["tags"], run["description"]) == (["seen"], "by hand")


def test_alerts_and_folders_arrive_as_objects(live: Any, make: Any) -> None:
    made = make().start()
    made.record(Kind.FOLDER, {"path": "/made", "metadata": {"k": 1}, "description": "f"})
    made.record(
        Kind.ALERT, {"name": "hot", "source": "metrics", "alert": {"metric": "t", "threshold": 1, "rule": "is above"}, "abort": True}
    )
    made.record(Kind.DECISION, {"alert": "hot", "at": 2.5, "state": "firing", "reason": "t is 7"})
    made.record(Kind.ALERT_STATE, {"alert": "hot", "state": "critical"})
    made.record(Kind.ABORT, {"id": "0" * 32, "state": "done"})
    (verdict,) = live.drain(made.cut())
    assert verdict["refused"] == []
    run = live.ok("GET", f"/api/runs/{made.run}")
    assert [(a["alert"]["name"], a["status"]["current"], a["status"]["reason"]) for a in run["alerts"]] == [("hot", "critical", "t is 7")]
    assert run["alerts"][0]["alert"]["abort"] is True
    listed = live.ok("GET", "/api/alerts")["data"]
    assert [a["alert"]["rule"] for a in listed if a["name"] == "hot"] == ["is above"]
    folders = live.ok("GET", "/api/folders?filters=" + json.dumps(["path == /made"]).replace(" ", "%20"))["data"]
    assert folders[0]["metadata"] == {"k": 1}


def test_a_drained_state_raises_no_abort_flag_and_one_that_is_set_here_does(live: Any, make: Any) -> None:
    """Script and agent have acted on what they drain: a flag would stop whoever opens the run again."""
    made = make().start()
    made.record(Kind.ALERT, {"name": "mine", "source": "user", "abort": True})
    made.record(Kind.ALERT_STATE, {"alert": "mine", "state": "critical"})
    live.drain(made.cut())
    assert live.ok("GET", f"/api/runs/{made.run}/abort")["status"] is False
    (found,) = live.ok("GET", f"/api/runs/{made.run}")["alerts"]
    assert found["status"]["current"] == "critical"
    live.ok("PUT", f"/api/alerts/{found['alert']['id']}/status/{made.run}", {"status": "critical"})
    assert live.ok("GET", f"/api/runs/{made.run}/abort") == {"status": True, "reason": "alert mine"}


def test_large_batches_and_small_ones_are_one_series(live: Any, make: Any) -> None:
    made = make().start()
    for i in range(9000):
        made.metrics({"x": i * 0.1}, step=i)
    at = 1
    for size in (5, 3000, 1, 400, 5595):
        live.drain(made.cut(at, at + size - 1))
        at += size
    made.record(Kind.CLOSE, {"status": "completed"})
    live.drain(made.cut(at))
    assert live.values(made.run, "x") == [(i, i * 0.1) for i in range(9000)]


def test_killed_between_commits_and_sent_again_counts_are_exact(tmp_path: Path, make: Any, start: Any) -> None:
    data = tmp_path / "data"
    made = points(make().start(), 400)
    total, acknowledged, kills = len(made.frames), 0, 0
    while acknowledged < total and kills < 12:
        server = start(data)
        killer = threading.Timer(0.03 + 0.02 * (kills % 5), server.process.kill)
        killer.start()
        try:
            while acknowledged < total:
                last = min(acknowledged + 7, total)
                (verdict,) = server.drain(made.cut(max(acknowledged - 3, 0) + 1, last))
                assert verdict["verdict"] == "accepted", verdict
                assert verdict["mark"] >= last
                acknowledged = verdict["mark"]
        except (OSError, http.client.HTTPException):
            pass  # killed while it was answering: the verdict is lost, the commit perhaps not
        killer.cancel()
        kills += 1
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait()
        server.process.stdout.close()
    server = start(data)
    (verdict,) = server.drain(made.cut())
    assert verdict["mark"] == total
    assert verdict["chain"] == made.chain(total)
    assert server.values(made.run, "n") == [(i, i) for i in range(400)]
    assert server.ok("GET", f"/api/runs/{made.run}")["metrics"]["n"]["count"] == 400
    assert kills >= 1
    assert server.stop(signal.SIGTERM) == 0
