"""Hostile requests: each gets the dialect's error and never a 500; nothing becomes visible, nothing leaves the data folder."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import socket
import stat
from pathlib import Path
from typing import Any

import jwt
import msgpack
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from simspool.agent.server import bodies, identity, ranges
from simspool.agent.server.errors import Invalid, Refused, TooLarge, Unauthorised

DRAIN = "/api/simspool/v1/drain"
JSON = {"Content-Type": "application/json"}
PACKED = {"Content-Type": "application/msgpack"}


def refused(answer: tuple[int, bytes], *statuses: int) -> str:
    status, body = answer
    assert status in (statuses or (400, 413, 422)), answer
    detail = json.loads(body)["detail"]
    assert detail
    return str(detail)


# ---------------------------------------------------------------- tokens


def test_tokens_that_are_not_ours(live: Any) -> None:
    secret = bytes.fromhex((live.data / "secret").read_text())
    claims = {"sub": "me", "exp": 4e9}
    for token in (
        "x", "a.b.c", "Bearer", "é".encode().decode("latin-1"), jwt.encode(claims, "k" * 32, algorithm="HS256"), jwt.encode(claims, None,
        algorithm="none"),
        jwt.encode({"sub": "me", "exp": 1}, secret, algorithm="HS256"), jwt.encode({"sub": "me"}, secret, algorithm="HS256"),
        jwt.encode({"exp": 4e9}, secret, algorithm="HS256"), jwt.encode(claims, secret + b"0" * 32, algorithm="HS512"),
        live.token[:-2] + "xx", live.token + "A" * 5000,
    ):  # fmt: skip
        refused(live.request("GET", "/api/runs", token=token), 401)
        refused(live.request("GET", "/api/version", token=token), 401)
    refused(live.request("GET", "/api/runs", token=None), 401)
    refused(live.request("POST", DRAIN, b"", token=None), 401)
    refused(live.request("GET", "/api/nothing/here", token=None), 401)
    refused(live.request("GET", "/api/runs", None, {"Authorization": "Basic Zm9v"}, None), 401)
    assert live.request("GET", "/api/version", token=None)[0] == 200
    refused(live.request("GET", "/api/nothing"), 404)
    refused(live.request("PATCH", "/api/runs"), 405)


def test_the_folder_and_its_secrets_are_private(live: Any) -> None:
    assert stat.S_IMODE(live.data.stat().st_mode) == 0o700
    for name in ("token", "secret", "url", "lock"):
        assert stat.S_IMODE((live.data / name).stat().st_mode) == 0o600
    assert not any(live.token in line for line in live.lines)
    assert jwt.decode(live.token, options={"verify_signature": False})["exp"] > 4_000_000_000


def test_a_folder_that_others_may_write_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(PermissionError, match="chmod 700"):
        identity.prepare_folder(folder)


@given(st.text(max_size=60))
@settings(max_examples=100)
def test_no_header_gets_in_or_breaks(text: str) -> None:
    for header in (text, f"Bearer {text}"):
        with pytest.raises(Unauthorised):
            identity.authenticate(header, b"s" * 32)


def test_user_names_are_checked(tmp_path: Path) -> None:
    for name in ("", "x" * 200, "a\nb"):
        with pytest.raises(ValueError, match="name"):
            identity.issue_token(tmp_path, name)


# ---------------------------------------------------------------- bodies


def test_bombs_and_oversized_bodies(live: Any) -> None:
    zeros = bytes(bodies.MAX_DECODED + 1)
    kind = {"Content-Type": "application/x-simspool-ranges"}
    refused(live.request("POST", DRAIN, zstandard.compress(zeros), kind | {"Content-Encoding": "zstd"}), 413)
    refused(live.request("POST", DRAIN, gzip.compress(zeros), kind | {"Content-Encoding": "gzip"}), 413)
    refused(live.request("POST", DRAIN, zstandard.compress(zeros[: 8 << 20]), kind | {"Content-Encoding": "zstd"}), 413)
    refused(live.request("POST", DRAIN, b"x", kind | {"Content-Length": str(bodies.MAX_BODY + 1)}), 413)
    refused(live.request("POST", "/api/runs", b"x", JSON | {"Content-Length": str(1 << 60)}), 413)
    refused(live.request("POST", DRAIN, b"\x28\xb5\x2f\xfd" + os.urandom(50), kind | {"Content-Encoding": "zstd"}), 422)
    refused(live.request("POST", DRAIN, b"\x1f\x8b" + os.urandom(50), kind | {"Content-Encoding": "gzip"}), 422)
    refused(live.request("POST", DRAIN, b"abc", kind | {"Content-Encoding": "br"}), 422, 400)
    assert live.ok("GET", "/api/version")


def test_nested_bombs_are_bounded() -> None:
    with pytest.raises(TooLarge):
        bodies.unzstd(zstandard.compress(bytes(10 << 20)), 1 << 30)
    with pytest.raises(TooLarge):
        bodies.gunzip(gzip.compress(bytes(10 << 20)), 1 << 30)
    with pytest.raises(Invalid):
        bodies.gunzip(gzip.compress(os.urandom(1000))[:-20], 1 << 20)
    wide = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters.from_level(19, window_log=27)).compress(
        os.urandom(100)
    )
    assert len(bodies.unzstd(wide, 1 << 20)) == 100


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"[" * 100_000, b'{"a":' * 5000 + b"1" + b"}" * 5000, b"\xff\xfe", b"1" * 10_000, b'"text"', b"null", b"[1]", b"true",
        b'{"folder":"/x","metadata":' + b'{"a":' * 70 + b"1" + b"}" * 71, b'{"folder": 5}', b'{"folder": "x"}', b'{"folder":"/\\u0000"}',
        b'{"folder":"/a\\ud800"}', b'{"folder":"/","status":"great"}', b'{"folder":"/","tags":"x"}', b'{"folder":"/","tags":[1]}',
        b'{"folder":"/","ttl":1e400}', b'{"folder":"/","heartbeat_timeout":-1}', b'{"folder":"/","visibility":7}',
        b'{"folder":"/","alerts":["nope"]}', b'{"folder":"/","metadata":[1]}', b'{"folder":"/","name":"a\\nb"}',
        b'{"folder":"/","name":"' + b"x" * 2000 + b'"}', b'{"folder":"/","started":"yesterday"}', b'{"folder":"/","notifications":"loud"}',
    ],
)  # fmt: skip
def test_odd_runs(live: Any, body: bytes) -> None:
    refused(live.request("POST", "/api/runs", body, JSON), 404, 422)


def test_odd_numbers_are_kept_as_they_are(live: Any) -> None:
    odd = (
        b'{"folder":"/odd","metadata":{"nan":NaN,"inf":-Infinity,"big":123456789012345678901234567890,"e":1e999,"\\"q\\"":1,"s":"\\ud800"}}'
    )
    status, answer = live.request("POST", "/api/runs", odd, JSON)
    assert status == 200, answer
    run = live.ok("GET", f"/api/runs/{json.loads(answer)['id']}")
    assert run["metadata"]["big"] == 123456789012345678901234567890
    assert run["metadata"]["nan"] != run["metadata"]["nan"]
    for text in ("metadata.big > 5", "metadata.nan exists", 'metadata."q" exists', "metadata.s == x"):
        status, _ = live.request("GET", f"/api/runs?filters={quoted([text])}")
        assert status in {200, 422}


def quoted(value: Any) -> str:
    from urllib.parse import quote

    return quote(json.dumps(value))


@pytest.mark.parametrize(
    "body",
    [
        b"\xc1", b"\x81", b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\x91" * 5000, b"\xc7\xff\x01", msgpack.packb([1]),
        msgpack.packb({1: 2}), msgpack.packb({"run": 5}), msgpack.packb({"run": "x", "metrics": 3}), b"\x81\xa3\xff\xfe\xfd\x01",
        msgpack.packb(msgpack.Timestamp(1)), msgpack.packb({"run": "{run}", "metrics": msgpack.ExtType(5, b"x")}),
        *(
            msgpack.packb({"run": "{run}", "metrics": [row]})
            for row in (
                1, {}, {"values": {}}, {"values": {"x": "t"}}, {"values": {"x": None}}, {"values": {"x": [1]}}, {"values": {"x": 1},
                "step": 1.5},
                {"values": {"x": 1}, "step": True}, {"values": {"x": 1}, "step": (1 << 64) - 1}, {"values": {"x": 1}, "time": "1"},
                {"values": {"x": 1}, "timestamp": "no"}, {"values": {"x": 1}, "timestamp": 1e300}, {"values": {"a\0": 1}},
                {"values": {"x" * 2000: 1}}, {"values": {"x": msgpack.Timestamp(1)}},
            )
        ),
    ],
)  # fmt: skip
def test_odd_metrics(live: Any, body: bytes) -> None:
    run = live.ok("POST", "/api/runs", {"folder": "/odd"})["id"]
    refused(live.request("POST", "/api/metrics", body.replace(b"\xa5{run}", b"\xb6" + run.encode()), PACKED), 404, 422)
    assert live.ok("GET", f"/api/runs/{run}")["metrics"] == {}, "nothing of a refused body stays"


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_parsed_or_refused(body: bytes) -> None:
    for kind in ("application/json", "application/msgpack"):
        try:
            bodies.parse(body, kind)
        except Invalid:
            pass
    for unpack in (bodies.unzstd, bodies.gunzip):
        try:
            unpack(body, 1 << 20)
        except Refused:
            pass
    try:
        ranges.split(body)
    except Refused:
        pass


def test_any_range_framing(live: Any, make: Any) -> None:
    whole = make().start().cut()
    kind = {"Content-Type": "application/x-simspool-ranges"}
    for body in (
        b"\xff\xff\xff\xff",
        b"\1\0\0\0",
        whole[:-1],
        whole + b"\0",
        b"\2\0\0\0{}" + bytes(300),
        b"\2\0\0\0[]" + bytes(300),
        whole[:50],
    ):
        refused(live.request("POST", DRAIN, body, kind), 422)
    assert live.request("POST", DRAIN, b"", kind)[0] == 200
    headless = b'{"bytes":-1}'
    refused(live.request("POST", DRAIN, len(headless).to_bytes(4, "little") + headless + bytes(256), kind), 422)
    zero = b'{"bytes":0}'
    (verdict,) = live.drain(len(zero).to_bytes(4, "little") + zero + bytes(256))
    assert verdict["reason"] == "malformed"


def test_json_of_our_own_face(live: Any) -> None:
    base = "/api/simspool/v1"
    for path, body in (
        ("/marks", {}), ("/marks", {"writers": "x"}), ("/marks", {"writers": [1]}), ("/blobs/missing", {"digests": ["../../etc"]}),
        ("/blobs/missing", {"digests": ["a" * 64] * 1001}), ("/state", {"runs": []}), ("/state", {"runs": {"a": 5}}),
        ("/state", {"runs": {"a": {"heartbeat": "now"}}}), ("/state", {"runs": {"a": {"heartbeat": 1e300}}}),
    ):  # fmt: skip
        refused(live.request("POST", base + path, json.dumps(body).encode(), JSON), 422)
    refused(live.request("POST", base + "/state", b'{"runs":{"a":{"heartbeat":NaN}}}', JSON), 422)
    for digest in ("..%2f..%2fetc%2fpasswd", "A" * 64, "a" * 63, "%00" * 10):
        refused(live.request("PUT", f"{base}/blobs/{digest}", b"x"), 422, 404, 400)
    assert live.ok("POST", base + "/marks", {"writers": []})["marks"] == {}


# ---------------------------------------------------------------- names, URLs, queries


NAMES = [
    "../x",
    "a/../../x",
    "/etc/passwd",
    "C:\\x",
    "\\\\host\\x",
    "-rf",
    "~",
    "x" * 300,
    "e\u0301",
    "\u202etxt.exe",
    "CON",
    "dot. ",
    "..",
    "a b",
    "%2e%2e",
]


def test_names_that_look_like_paths_are_only_names(live: Any) -> None:
    run = live.ok("POST", "/api/runs", {"folder": "/../../escape", "name": "../../run"})["id"]
    digests = set()
    for i, name in enumerate(NAMES):
        data = f"content {i}".encode()
        digest = hashlib.sha256(data).hexdigest()
        digests.add(digest)
        made = live.ok(
            "POST",
            "/api/artifacts",
            {"name": name, "original_path": name, "size": len(data), "checksum": digest, "mime_type": "text/plain"},
        )
        assert live.request("PUT", made["url"].removeprefix(live.url), data, token=None)[0] == 200
        live.ok("PUT", f"/api/artifacts/{made['id']}", {"uploaded": True})
        live.ok("PUT", f"/api/runs/{run}/artifacts/{made['id']}", {"category": "output"})
    found = live.ok("GET", f"/api/runs/{run}/artifacts")
    assert {a["name"] for a in found} == set(NAMES)
    for artifact in found:
        status, data = live.request("GET", artifact["url"].removeprefix(live.url), token=None)
        assert status == 200
        assert hashlib.sha256(data).hexdigest() == artifact["checksum"]
    files = {p.name for p in (live.data / "blobs").rglob("*") if p.is_file()}
    assert digests <= files
    assert all(len(name) == 64 for name in files)
    for name in ("", "a\0b", "a\nb", "\x1b[31m", None, 5):
        refused(live.request("POST", "/api/artifacts", json.dumps({"name": name, "size": 1, "checksum": "a" * 64}).encode(), JSON), 422)


def test_signed_urls_are_bound_to_what_they_were_made_for(live: Any) -> None:
    data = b"the right bytes"
    digest = hashlib.sha256(data).hexdigest()
    made = live.ok("POST", "/api/artifacts", {"name": "n", "size": len(data), "checksum": digest})
    path = made["url"].removeprefix(live.url)
    parts = path.split("/")
    refused(live.request("PUT", path, b"the wrong bytes", token=None), 422)
    refused(live.request("PUT", path, data + b"!", token=None), 413)
    assert live.ok("GET", f"/api/artifacts/{made['id']}")["url"] is None
    refused(live.request("PUT", f"/api/artifacts/{made['id']}", b'{"uploaded": true}', JSON), 422)
    for place, other in ((3, "get"), (4, "0" * 22), (5, "a" * 64), (6, "9999999999"), (6, "-1"), (6, "1" * 30), (7, "0" * 64), (7, "é")):
        changed = parts.copy()
        changed[place] = other
        from urllib.parse import quote

        method = "GET" if other == "get" else "PUT"
        refused(live.request(method, quote("/".join(changed)), data if method == "PUT" else None, token=None), 403)
    assert live.request("PUT", path, data, token=None)[0] == 200
    assert live.request("GET", live.ok("GET", f"/api/artifacts/{made['id']}")["url"].removeprefix(live.url), token=None) == (200, data)
    from simspool.agent.server import signing

    secret = bytes.fromhex((live.data / "secret").read_text())
    old = signing.sign(secret, "GET", made["id"], digest, now=1.0)
    assert "expired" in refused(live.request("GET", old, token=None), 403)


def test_hosts_that_are_none(live: Any) -> None:
    for host in ("evil.example/x?", "a b", "x" * 300, "h:port", "user@host", 'h"><script>'):
        body = json.dumps({"name": "n", "size": 1, "checksum": "b" * 64}).encode()
        refused(live.request("POST", "/api/artifacts", body, JSON | {"Host": host}), 400, 403)
    body = json.dumps({"name": "n", "size": 1, "checksum": "b" * 64}).encode()
    status, answer = live.request("POST", "/api/artifacts", body, JSON | {"Host": "localhost:8443"})
    assert status == 200
    assert json.loads(answer)["url"].startswith("http://localhost:8443/api/objects/put/"), "as through a tunnel"


@pytest.mark.parametrize(
    "query",
    [
        "filters=[", "filters=5", "filters=[1]", 'filters=["nonsense"]', 'filters=["a; DROP TABLE runs == 1"]', 'filters=["created == 3h"]',
        'filters=["created < soon"]', 'filters=["user > x"]', 'filters=["alert.x == 1"]', 'filters=["metadata.%22 exists"]', "start=-1",
        "start=x",
        "count=1e9", "count=99999999999999999999", "sorting=[", "sorting=[1]", 'sorting=[{"id": "name; DROP TABLE runs"}]',
        'sorting=[{"id":5}]',
        "return_basic=maybe&return_metrics=7", "attributes=[", "attributes=[1]", 'filters=["status contains\\u0000"]&sorting=[[]]',
    ],
)  # fmt: skip
def test_odd_queries(live: Any, query: str) -> None:
    refused(live.request("GET", "/api/runs?" + query.replace(" ", "%20")), 422)
    assert live.ok("GET", "/api/runs")["count"] >= 0


def test_odd_series_queries(live: Any) -> None:
    run = live.ok("POST", "/api/runs", {"folder": "/odd"})["id"]
    for path in (
        "/api/metrics", "/api/metrics?runs=[]", f"/api/metrics?runs=[%22{run}%22]&metrics=[%22x%22]&xaxis=colour", "/api/metrics/names",
        "/api/metrics/span",
        f"/api/metrics?runs=[%22{run}%22]&metrics=[%22x%22]&xaxis=timestamp&aggregate=true", f"/api/runs/{run}/metrics/x/values",
        f"/api/events?run={run}&filters=[%22event.colour%20==%20x%22]", f"/api/events/histogram?run={run}&window=x",
        f"/api/events/histogram?run={run}&window=1e-9&timestamp_begin=2026-01-01T00:00:00.0&timestamp_end=2026-01-02T00:00:00.0",
        f"/api/events/histogram?run={run}&window=nan&timestamp_begin=2026-01-01T00:00:00.0&timestamp_end=2026-01-02T00:00:00.0",
        f"/api/metrics?runs=[%22{run}%22]&metrics=[%22x%22]&max_points=-5",
    ):  # fmt: skip
        refused(live.request("GET", path), 422)
    for path in (
        "/api/runs/%2e%2e",
        "/api/runs/%00",
        "/api/events?run=nope",
        "/api/metrics?runs=[%22nope%22]&metrics=[]",
        f"/api/runs/{run}/artifacts/x",
    ):
        refused(live.request("GET", path), 404, 400)
    assert live.ok("GET", f"/api/metrics?runs=[%22{run}%22]&metrics=[%22x%22]") == {}


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("folders", {}), ("folders", {"path": "x"}), ("folders", {"path": "/a", "metadata": 5}), ("tags", {"name": ""}), ("tags", {}),
        ("alerts", {"name": "a"}), ("alerts", {"name": "a", "source": "sky"}), ("alerts", {"name": "a", "source": "metrics", "alert": 5}),
        ("alerts", {"name": "a", "source": "metrics", "alert": {"metric": "x"}}), ("alerts", {"name": "a", "source": "events"}),
        ("alerts", {"name": "a", "source": "metrics", "alert": {"metric": "x", "range_low": 2, "range_high": 1}}),
        ("alerts", {"name": "a", "source": "metrics", "alert": {"rule": ["no progress"]}}),
        ("alerts", {"name": "a", "source": "metrics", "alert": {"rule": "rate is above", "metric": "x"}}),
        ("alerts", {"name": "a", "source": "metrics", "alert": {"rule": "no progress", "window": -1}}),
        ("alerts", {"name": "a", "source": "metrics", "alert": {"rule": "is not finite"}}),
        ("alerts", {"name": "a", "source": "user", "notification": "siren"}), ("grids", {"name": "g", "grid": []}),
        ("grids", {"name": "g", "grid": [[1, 3, 2]]}), ("grids", {"name": "g", "grid": [["a"]]}), ("grids", {"name": "g", "grid": [[1,
        2]], "labels": ["x", "y"]}),
        ("storage", {"name": "s", "backend": "tape"}), ("artifacts", {"name": "a", "size": -1, "checksum": "a" * 64}),
        ("artifacts", {"name": "a", "size": 1, "checksum": "short"}), ("artifacts", {"name": "a", "size": 1 << 70, "checksum": "a" * 64}),
        ("events", {"run": "x", "events": [{"message": 5}]}), ("events", {"run": "x", "events": [{"message": "m", "log_level": "loud"}]}),
    ],
)  # fmt: skip
def test_odd_objects(live: Any, endpoint: str, body: Any) -> None:
    refused(live.request("POST", f"/api/{endpoint}", json.dumps(body).encode(), JSON), 422)


def test_a_body_that_never_ends_is_cut_off_and_others_are_served(live: Any) -> None:
    with socket.create_connection(("127.0.0.1", live.port)) as slow:
        head = f"POST /api/runs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {live.token}\r\nContent-Length: 100\r\n\r\n"
        slow.sendall(head.encode() + b"{")
        assert live.ok("GET", "/api/version")
    with socket.create_connection(("127.0.0.1", live.port)) as garbage:
        garbage.sendall(b"\x16\x03\x01\x02\x00 not http at all\r\n\r\n")
        assert b" 400 " in garbage.recv(4096)
    with socket.create_connection(("127.0.0.1", live.port)) as long:
        long.sendall(b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n")
        assert b" 400 " in long.recv(4096)
    assert live.ok("GET", "/api/version")


def test_a_stalled_body_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    from aiohttp import web
    from aiohttp.test_utils import make_mocked_request

    async def work() -> None:
        monkeypatch.setattr(bodies, "BLOCK_SECONDS", 0.01)

        class Never:
            async def readany(self) -> bytes:
                await asyncio.Event().wait()
                return b""

        request = make_mocked_request("POST", "/", payload=Never())  # type: ignore[arg-type]
        assert isinstance(request, web.Request)
        with pytest.raises(bodies.TooSlow):
            await bodies.raw(request)

    asyncio.run(work())
