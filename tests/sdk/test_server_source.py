"""A server that is away, refuses, redirects or talks nonsense: a clear error that names it, and the token goes nowhere else."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from simspool.sdk import ArtifactNotFound, Client, ConfigError, DamagedBlob, InvalidRecord, RunNotFound, ServerError, Unreachable

RUN = "0000000000000000000001"


class Fake(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, answer: Callable[[str], tuple[int, dict[str, str], bytes]]) -> None:
        self.seen: list[tuple[str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.seen.append((self.path, self.headers.get("Authorization")))
                status, headers, body = answer(self.path)
                self.send_response(status)
                for key, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def fake() -> Iterator[Callable[..., Fake]]:
    made = []

    def make(answer: Callable[[str], tuple[int, dict[str, str], bytes]]) -> Fake:
        made.append(Fake(answer))
        return made[-1]

    yield make
    for server in made:
        server.shutdown()
        server.server_close()


def client(server: Fake) -> Client:
    return Client(server_url=server.url, server_token="canary")


@pytest.mark.parametrize(
    ("status", "body", "error", "says"),
    [
        (200, b"<html>hello</html>", ServerError, "SIMSPOOL_URL"), (200, b"", ServerError, "SIMSPOOL_URL"),
        (200, b"[1]", ServerError, "SIMSPOOL_URL"),
        (200, b'{"data": [1]}', ServerError, "SIMSPOOL_URL"), (200, b"[" * 100_000, ServerError, "SIMSPOOL_URL"),
        (401, b'{"detail": "no"}', ServerError, "SIMSPOOL_TOKEN"), (403, b"", ServerError, "SIMSPOOL_TOKEN"),
        (500, b'{"detail": "oops"}', ServerError, "500: oops"), (503, b"<html>", ServerError, "503"),
        (422, b'{"detail": "bad filter"}', InvalidRecord, "bad filter"),
    ],
)  # fmt: skip
def test_odd_answers_are_named(status: int, body: bytes, error: type[Exception], says: str, fake: Any) -> None:
    server = fake(lambda _: (status, {}, body))
    with pytest.raises(error, match=says) as caught:
        client(server).get_runs()
    assert "canary" not in str(caught.value)


def test_a_server_that_is_away_is_unreachable() -> None:
    with pytest.raises(Unreachable, match="SIMSPOOL_URL"):
        Client(server_url="http://127.0.0.1:9", server_token="canary").get_runs()
    with pytest.raises(ConfigError, match="nonsense"):
        Client(server_url="nonsense", server_token="canary")


def test_an_answer_that_breaks_off_is_unreachable(fake: Any) -> None:
    server = fake(lambda _: (200, {"Content-Length": "1000"}, b"{"))
    server.RequestHandlerClass.timeout = 0.2
    with pytest.raises(ServerError):
        client(server).get_runs()


def test_redirects_are_not_followed(fake: Any) -> None:
    thief = fake(lambda _: (200, {}, b"{}"))
    server = fake(lambda _: (302, {"Location": thief.url}, b""))
    with pytest.raises(ServerError, match="redirect"):
        client(server).get_runs()
    assert not thief.seen


def test_the_token_goes_to_the_server_and_not_to_presigned_urls_or_proxies(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    storage = fake(lambda _: (200, {}, b"not what was promised"))
    artifact = {"name": "f", "category": "output", "checksum": "0" * 64, "size": 5, "url": f"{storage.url}/f?sig=1"}
    pending = {**artifact, "name": "g", "url": None}
    odd = {**artifact, "name": "h", "url": "file:///etc/passwd"}

    def answer(path: str) -> tuple[int, dict[str, str], bytes]:
        return 200, {}, json.dumps([artifact, pending, odd] if "artifacts" in path else {"id": RUN}).encode()

    server = fake(answer)
    with pytest.raises(DamagedBlob):
        client(server).get_artifact(RUN, "f")
    with pytest.raises(ArtifactNotFound, match="agent sync"):
        client(server).get_artifact(RUN, "g")
    with pytest.raises(ServerError, match="odd address"):
        client(server).get_artifact(RUN, "h")
    assert {token for _, token in server.seen} == {"Bearer canary"}
    assert storage.seen == [("/f?sig=1", None)]


def test_a_run_that_is_not_there(fake: Any) -> None:
    server = fake(lambda path: (200, {}, b'{"data": []}') if "?" in path else (404, {}, b'{"detail": "no"}'))
    with pytest.raises(RunNotFound):
        client(server).get_run(RUN)


def test_a_server_without_a_token_is_a_configuration_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMSPOOL_TOKEN_FILE", "/nowhere/token")
    with pytest.raises(ConfigError, match=r"SIMSPOOL_TOKEN.*/nowhere/token"):
        Client(server_url="http://127.0.0.1:9")
