"""A19 to A22 and A24: the embedded server against pages of a browser, other users and those who hold connections; the local API."""

from __future__ import annotations

import http.client
import json
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import held_connections
import pytest
from real_server import RealServer, agent
from recorded import whole

from simspool.spool import Spool, agent_address

FOREIGN = ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1", "[2001:db8::1]", "",
"0.0.0.0", "a b"]
OWN = ["localhost", "LOCALHOST:80", "127.0.0.1", "127.0.0.1:9", "127.1.2.3:1", "[::1]", "[::1]:8765"]


def ask(server: RealServer, method: str = "GET", path: str = "/api/runs", body: bytes = b"", token: bool = True,
**headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if token:
            given["Authorization"] = f"Bearer {server.token}"
        for name, value in given.items():
            connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        data = answer.read()
    finally:
        connection.close()
    return answer.status, json.loads(data) if data else None


@pytest.mark.parametrize("host", FOREIGN)
def test_a19_a_foreign_name_is_not_answered(server: RealServer, host: str) -> None:
    for path in ("/api/runs", "/api/version", "/api/simspool/v1/server", "/api/objects/get/x/y/1/z"):
        for token in (True, False):
            status, body = ask(server, path=path, token=token, Host=host)
            assert status in {400, 403}, (path, body)
            assert "data" not in body
            assert "version" not in body


@pytest.mark.parametrize("host", OWN)
def test_a19_this_machines_names_are_also_those_of_a_tunnel(server: RealServer, host: str) -> None:
    assert ask(server, Host=host)[0] == 200


def test_a19_a_proxy_in_front_is_named_by_public_url(tmp_path: Path) -> None:
    data = tmp_path / "data"
    command = [sys.executable, "-m", "simspool.agent", "serve", "--data", str(data), "--port", "0", "--public-url", "https://runs.example"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        found = RealServer(data)
        deadline = time.monotonic() + 30
        while not (data / "url").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        found.port = int((data / "url").read_text().strip().rpartition(":")[2])
        found.token = (data / "token").read_text().strip()
        try:
            assert ask(found, Host="runs.example")[0] == 200
            assert ask(found, Host="runs.example", Origin="https://runs.example")[0] == 200
            assert ask(found, Host="evil.example")[0] == 403
            body = json.dumps({"name": "n", "size": 1, "checksum": "b" * 64}).encode()
            status, made = ask(found, "POST", "/api/artifacts", body, Host="127.0.0.1", Content_Type="application/json")
            assert status == 200
            assert made["url"].startswith("https://runs.example/api/objects/put/")
        finally:
            process.terminate()
            process.wait(30)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/json"])
def test_a20_a_page_of_another_origin_changes_and_learns_nothing(server: RealServer, kind: str) -> None:
    """What a browser adds by itself is never a proof: only the token in a header that pages cannot set is."""
    body = json.dumps({"folder": "/csrf"}).encode()
    before = ask(server)[1]["count"]
    for origin in ("https://evil.example", "null", "http://127.0.0.1.evil.example", "file://"):
        for token in (True, False):
            status, answer = ask(server, "POST", "/api/runs", body, token=token, Origin=origin, Content_Type=kind,
            Cookie=f"token={server.token}")
            assert status == 403, answer
    assert ask(server, "POST", "/api/runs", body, token=False, Content_Type=kind, Cookie=f"token={server.token}")[0] == 401
    assert ask(server, "OPTIONS", "/api/runs", token=False, Origin="https://evil.example", Access_Control_Request_Method="POST")[0] == 403
    for path in ("/api/runs", "/api/whoami", "/api/stats", "/api/users", "/api/simspool/v1/server", "/api/events", "/api/metrics/names"):
        assert ask(server, path=path, token=False)[0] == 401, "also what only reads"
    assert ask(server)[1]["count"] == before


def test_a21_the_agents_sockets_are_this_users_alone(spool: Spool, server: RealServer, as_other: Callable[..., int],
monkeypatch: pytest.MonkeyPatch) -> None:
    whole(spool)
    runtime = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))  # a short path: sockets' are
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    process = subprocess.Popen(
        [sys.executable, "-m", "simspool.agent", "run"], env={**os.environ, **server.environment}, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while not ((known := agent_address.living_agent(spool.path)) or {}).get("bell") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert known is not None
        place = Path(known["bell"]).parent
        assert stat.S_IMODE(place.stat().st_mode) & 0o077 == 0
        api = place / "api"
        for path in (api, Path(known["bell"])):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for folder in (place, *place.parents):  # even where somebody opened the way to it
            if str(folder).startswith("/tmp/"):
                folder.chmod(0o755)
        api.chmod(0o777)

        def call() -> int:
            with socket.socket(socket.AF_UNIX) as mouth:
                mouth.connect(str(api))
                mouth.sendall(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
                return 7 if b" 403 " in mouth.recv(200) else 0

        assert as_other(call) == 7
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(runtime)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[RealServer]:
    """A server with few descriptors."""
    found = RealServer(tmp_path / "data")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    found.before = ("sh", "-c", 'ulimit -Hn 400; ulimit -n 400; exec "$@"', "sh")
    with found:
        yield found
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


def flood(port: int, count: int, first: bytes) -> list[socket.socket]:
    held = []
    for _ in range(count):
        one = socket.socket()
        one.settimeout(5)
        try:
            one.connect(("127.0.0.1", port))
            one.sendall(first)
        except OSError:
            one.close()
            break
        held.append(one)
    return held


@pytest.mark.parametrize("first", [b"", b"GET /api/runs HTTP/1.1\r\nHost: localhost\r\nX-Slow: "], ids=["silent", "slow header"])
def test_a22_who_only_holds_connections_loses_them(small: RealServer, first: bytes) -> None:
    """Three times as many as the server has descriptors: whoever asks is answered all the while, and can still store."""
    held = flood(small.port, 300, first)
    try:
        served = 0
        deadline = time.monotonic() + 40
        while served < 20 and time.monotonic() < deadline:
            try:
                served += ask(small)[0] == 200
            except OSError:
                time.sleep(0.1)
            held += flood(small.port, 60, first)
        assert served == 20
        status, answer = ask(small, "POST", "/api/runs", b'{"folder": "/x"}', Content_Type="application/json")
        assert status == 200, answer
        assert len(held) > 900
    finally:
        for one in held:
            one.close()


def test_a22_a_spool_is_sent_beside_connections_that_are_only_held(tmp_path: Path) -> None:
    """A short run of the command; the long one is docs/security.md's."""
    found = held_connections.play(600, 3, tmp_path)
    assert not found.wrong
    assert found.opened >= 600


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n" + b"X: " + b"a" * 100_000 + b"\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 50_000 + b"\r\n",
        b"A" * 100_000,
        b"GET / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        b"POST /api/runs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" + b"ffffffffffffffffff\r\n", b"\0" * 5000,
        b"\r\n" * 5000,
        b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n", b"CONNECT evil.example:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)  # fmt: skip
def test_a22_giant_and_odd_requests_are_refused(server: RealServer, head: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as mouth:
        try:
            mouth.sendall(head)
            mouth.shutdown(socket.SHUT_WR)
            answer = mouth.recv(4096)
        except OSError:  # cut off while we still wrote
            answer = b""
    assert b" 200 " not in answer.split(b"\r\n")[0]
    assert ask(server)[0] == 200


def test_a22_a_body_without_an_end_is_cut_off(server: RealServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as mouth:
        head = f"POST /api/runs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {server.token}\r\nTransfer-Encoding: chunked\r\n\r\n"
        mouth.sendall(head.encode())
        chunk = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
        sent = 0
        try:
            for _ in range(200):
                mouth.sendall(chunk)
                sent += 1
            answer = mouth.recv(100)
        except OSError:
            answer = b" 413 "
    assert b" 413 " in answer or not answer
    assert sent
    assert ask(server)[0] == 200


def test_a24_nobody_else_aborts_a_run(spool: Spool, server: RealServer) -> None:
    from simspool.agent.server import issue_token

    run = whole(spool)
    assert agent("sync", env=server.environment).returncode == 0
    other = issue_token(server.data, "other")
    own, server.token = server.token, other
    try:
        for method, path in (("PUT", f"/api/runs/{run}/abort"), ("PUT", f"/api/runs/{run}"), ("DELETE", f"/api/runs/{run}")):
            status, _ = ask(server, method, path, b'{"reason": "x", "status": "failed"}', Content_Type="application/json")
            assert status in {403, 404}
        status, answer = ask(
            server, "POST", "/api/simspool/v1/state", json.dumps({"runs": {run: {"heartbeat": 1.0}}}).encode(),
            Content_Type="application/json"
        )
        assert (status, answer["abort"]) == (200, {})
    finally:
        server.token = own
    assert ask(server, path=f"/api/runs/{run}/abort")[1]["status"] is False
