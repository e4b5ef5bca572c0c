"""A28 and A29: a server that lies, never ends, names paths, and asks for aborts that are none of its business."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from real_server import agent
from recorded import begin, fill, whole

from simspool.sdk import Client
from simspool.sdk.errors import SdkError
from simspool.spool import Spool, SpoolError, control

Answer = tuple[int, bytes]
STEERING = "\x1b]0;owned\x07\x1b[2J"


@contextmanager
def hostile(answer: Callable[[str, str], Answer | None]) -> Iterator[str]:
    """A server that gives these answers to (method, path); None is a body without an end. Yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _any(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            found = answer(self.command, self.path)
            self.close_connection = True
            try:
                if found is None:
                    self.send_response(200)
                    self.send_header("Content-Type", "application/json")
                    self.end_headers()
                    while True:
                        self.wfile.write(b"[" * 65536)
                self.send_response(found[0])
                self.send_header("Content-Length", str(len(found[1])))
                self.send_header("Set-Cookie", STEERING.encode("unicode_escape").decode())
                self.end_headers()
                self.wfile.write(found[1])
            except OSError:
                return

        do_GET = do_POST = do_PUT = do_DELETE = _any

        def log_message(self, *_: Any) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


HOSTILE: dict[str, Callable[[str, str], Answer | None]] = {
    "endless": lambda *_: None,
    "a giant error page": lambda *_: (500, b"<html>" + b"x" * (40 << 20)),
    "a giant answer": lambda *_: (200, as_json(["x" * 1000] * 30_000)),
    "deep": lambda *_: (200, b"[" * 200_000),
    "terminal sequences": lambda *_: (422, as_json({"detail": STEERING, "message": STEERING, "error_code": STEERING})),
    "an id that is a path": lambda *_: (
        200, as_json({"server": "../../../../etc/passwd\x1b[2J\0", "protocol": 1, "limits": {}, "version": STEERING, "id": "../../x",
        "data": []}),
    ),
    "numbers": lambda *_: (200, b'{"server": 1e999, "protocol": 1, "limits": {"body": -1}, "data": [1], "version": ' + b"9" * 4000 + b"}"),
    "status": lambda *_: (999, b"\xff\xfe"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "what"),
    [*(("simspool", what) for what in HOSTILE),
     *((kind, what) for kind in ("simvue", "mlflow") for what in ("endless", "terminal sequences", "an id that is a path"))],
)  # fmt: skip
def test_a28_a_hostile_server_harms_no_agent(spool: Spool, kind: str, what: str) -> None:
    """`agent sync` ends with a code that is documented and one clear line; memory is bounded, nothing is written elsewhere."""
    whole(spool, points=5)
    with hostile(HOSTILE[what]) as url:
        assert agent("target", "add", "t", kind, url).returncode == 0
        command = 'ulimit -v 3000000; exec "$@"'
        done = subprocess.run(
            ["sh", "-c", command, "sh", sys.executable, "-m", "simspool.agent", "sync", "--timeout", "2"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode in {3, 4, 7}, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "SIMSPOOL_DEBUG" not in done.stderr
    assert "Traceback" not in done.stderr
    assert "x" * 600 not in done.stdout + done.stderr


@pytest.mark.parametrize("what", HOSTILE)
def test_a28_nor_a_client(what: str, tmp_path: Path) -> None:
    if what == "endless":
        pytest.skip("the limit of an answer, 1 GiB, takes long to reach: see test_a28_an_answer_without_an_end")
    down = tmp_path / "down"
    down.mkdir()
    with hostile(HOSTILE[what]) as url:
        client = Client(server_url=url, server_token="t")
        for call in (
            lambda: client.get_run("a"), client.get_runs, lambda: client.get_events("a"), lambda: client.get_alerts("a"),
            lambda: client.get_metric_values(["x"]), lambda: client.get_artifacts_as_files("a", down), lambda: client.get_gaps("a"),
        ):  # fmt: skip
            with contextlib.suppress(SdkError, SpoolError):
                call()
    assert list(down.iterdir()) == []


def test_a28_an_answer_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from simspool.sdk import server_source

    monkeypatch.setattr(server_source, "_MAX_ANSWER", 1 << 20)
    with hostile(lambda *_: None) as url, pytest.raises(SdkError, match="is over 1 MiB"):
        Client(server_url=url, server_token="t").get_runs()


def test_a28_a_download_that_is_longer_than_it_says(tmp_path: Path) -> None:
    run, digest = "a" * 22, "ab" * 32

    def answer(_: str, path: str) -> Answer | None:
        if "/artifacts" in path:
            return 200, as_json([{"name": "../x", "checksum": digest, "size": 5, "url": "/endless"}])
        return None if "/endless" in path else (200, as_json({"id": run, "data": [{"id": run, "name": "n"}]}))

    with hostile(answer) as url, pytest.raises(SpoolError, match="more than the 5 bytes"):
        Client(server_url=url, server_token="t").get_artifacts_as_files(run, tmp_path / "down")
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a28_a_list_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from simspool.sdk import server_source

    monkeypatch.setattr(server_source, "_MOST_ENTRIES", 1000)
    page = as_json({"data": [{"id": "a", "name": "n"}] * 100})
    with hostile(lambda *_: (200, page)) as url, pytest.raises(SdkError, match="more than 1000 entries"):
        Client(server_url=url, server_token="t").get_runs(count_limit=None)


def test_a29_an_abort_reaches_only_what_was_registered_here(spool: Spool) -> None:
    """A server that asks for the end of any run and of any pid: only the run that we asked about, by its own registered process."""
    bystander = subprocess.Popen(["sleep", "60"])
    run, writer = begin(spool)
    fill(writer, 3)
    other, second = begin(spool, "other")
    asked: list[Any] = []

    def answer(method: str, path: str) -> Answer:
        if path.endswith("/server"):
            return 200, as_json({"server": "s", "protocol": 1, "limits": {"body": 1 << 20, "decoded": 1 << 20, "ranges": 9, "blob": 9}})
        if path.endswith("/state"):
            asked.append(path)
            flag = {"id": "not an id", "reason": STEERING, "pid": bystander.pid, "writers": "all", "signal": 9, "command": ["rm", "-rf",
            "/"]}
            return 200, as_json({"abort": {"0" * 22: flag, "../../x": flag, str(bystander.pid): flag, run: flag}})
        return 503, b"{}"

    with hostile(answer) as url:
        env = {"SIMSPOOL_URL": url, "SIMSPOOL_TOKEN": "t"}
        process = subprocess.Popen(
            [sys.executable, "-m", "simspool.agent", "run"], env={**os.environ, **env}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            deadline = time.monotonic() + 60
            while not (asked and control.requests(spool.run(run))) and time.monotonic() < deadline:
                time.sleep(0.1)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    assert asked
    assert bystander.poll() is None, "no pid of a server's is ever signalled"
    bystander.kill()
    bystander.wait()
    assert control.requests(spool.run(other)) == [], "the flag was for another run"
    for request in control.requests(spool.run(run)):
        assert request.by == "server"
        assert set(request.writers) <= {writer.id_text}
    assert not list(Path(spool.path).rglob("*passwd*"))
    writer.close()
    second.close()
