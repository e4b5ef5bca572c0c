"""A real server in a process of its own, and small clients for it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from simspool.agent.server import issue_token
from simspool.spool import frames, ids
from simspool.spool.records import Kind
from simspool.spool.segment_header import SegmentHeader

_PROGRAM = """
import sys
from pathlib import Path
from simspool.agent.server import serve
serve(Path(sys.argv[1]), "127.0.0.1", int(sys.argv[2]), lambda line: print(line, flush=True))
"""


class Live:
    """A server process. `call` speaks JSON with it."""

    def __init__(self, data: Path, port: int = 0) -> None:
        self.data = data
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", _PROGRAM, str(data), str(port)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.lines: list[str] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith("serving "):
                break
        else:
            self.process.stdout.close()
            raise AssertionError(f"exit {self.process.wait(30)}: " + "".join(self.lines))
        self.url = (data / "url").read_text().strip()
        self.port = int(self.url.rsplit(":", 1)[1])
        self.token = (data / "token").read_text().strip()

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None, token: str | None = ""
    ) -> tuple[int, bytes]:
        """Make a request; `token` None sends no Authorization at all."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        sent = dict(headers or {})
        if token is not None:
            sent["Authorization"] = f"Bearer {token or self.token}"
        with contextlib.closing(connection):
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def call(self, method: str, path: str, body: Any = None, *, token: str | None = "") -> tuple[int, Any]:
        raw = None if body is None else json.dumps(body).encode()
        status, answer = self.request(method, path, raw, {"Content-Type": "application/json"}, token)
        return status, json.loads(answer)

    def ok(self, method: str, path: str, body: Any = None, *, token: str | None = "") -> Any:
        status, answer = self.call(method, path, body, token=token)
        assert status in {200, 201}, (status, answer)
        return answer

    def drain(self, *ranges: bytes, coding: str | None = None, token: str | None = "") -> list[dict[str, Any]]:
        """Send ranges; return the verdicts."""
        headers = {"Content-Type": "application/x-simspool-ranges"} | ({"Content-Encoding": coding} if coding else {})
        status, answer = self.request("POST", "/api/simspool/v1/drain", b"".join(ranges), headers, token)
        assert status == 200, (status, answer)
        return json.loads(answer)["ranges"]

    def values(self, run: str, metric: str, axis: str = "step") -> list[tuple[Any, Any]]:
        """Return (x, value) of a metric as the dialect gives them."""
        found = self.ok(
            "GET", f"/api/metrics?runs={json.dumps([run])}&metrics={quote(json.dumps([metric]))}&xaxis={axis}".replace(" ", "%20")
        )
        return [(p[axis], p["value"]) for p in found.get(run, {}).get(metric, [])]

    def user(self, name: str, tenant: str = "default") -> str:
        """Return a token for another user."""
        return issue_token(self.data, name, tenant)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        assert self.process.stdout is not None
        self.lines += self.process.stdout.readlines()
        self.process.stdout.close()
        return self.process.wait(30)


class Made:
    """A writer's segment, made by hand from the format's own parts: frames with known checksums, and ranges of them."""

    def __init__(self, run: bytes | None = None, writer: bytes | None = None, number: int = 1) -> None:
        self.header = SegmentHeader(
            writer=writer or ids.new_id(), run=run or ids.new_id(), number=number, first=1, durability=1, pid=7, start_ticks=1,
            anchor_boot=1_000, anchor_wall=1_700_000_000_000_000_000, origin_boot=1_000, pid_namespace=1, boot_id=bytes(16), uid=0,
            rank=None, host="host",
        )  # fmt: skip
        self.definitions = b""
        self.frames: list[bytes] = []
        self._shapes: dict[tuple[tuple[str, ...], str], frames.Shape] = {}

    @property
    def writer(self) -> str:
        return self.header.writer_text

    @property
    def run(self) -> str:
        return self.header.run_text

    def record(self, kind: int, body: dict[str, Any]) -> Made:
        seq = len(self.frames) + 1
        self.frames.append(frames.encode_json(kind, seq, 1_000 + seq * 1_000_000, body, self.header.seed))
        return self

    def start(self, **fields: Any) -> Made:
        return self.record(Kind.RUN, {"name": "made", "folder": "/made", "status": "running", **fields})

    def metrics(self, values: dict[str, Any], step: int = 0, time: float | None = None, timestamp: int | None = None) -> Made:
        types = "".join({bool: "?", int: "q", float: "d"}[type(v)] for v in values.values())
        shape = self._shapes.get((tuple(values), types))
        if shape is None:
            shape = self._shapes[tuple(values), types] = frames.Shape(len(self._shapes), tuple(values), types)
            self.definitions += frames.encode_definition(shape, 1, self.header.seed)
        seq = len(self.frames) + 1
        flags = (time is not None) | (timestamp is not None) << 1
        layout = shape.layout(flags)
        prefix = frames.HEAD.pack(frames.MARKER, 16, flags, layout.size, seq, 0)[:8]
        extra = [v for v in (time, timestamp) if v is not None]
        raw = layout.pack(prefix, seq, 1_000 + seq * 1_000_000, shape.id, step, *extra, *values.values(), 0)[:-4]
        self.frames.append(raw + zlib.crc32(raw, self.header.seed).to_bytes(4, "little"))
        return self

    def chain(self, upto: int, gaps: list[list[Any]] | None = None) -> int:
        """Return the chain after a sequence."""
        out = 0
        for seq, frame in enumerate(self.frames[:upto], 1):
            if any(a <= seq <= b for a, b, _ in gaps or []):
                out = frames.extend_chain_gap(out, 1)
            else:
                out = frames.extend_chain(out, [int.from_bytes(frame[-4:], "little")])
        return out

    def cut(self, first: int = 1, last: int | None = None, gaps: list[list[Any]] | None = None, said: Any = None) -> bytes:
        """Return a range's bytes; `said` overrides what the head says."""
        last = len(self.frames) if last is None else last
        lost = {n for a, b, _ in gaps or [] for n in range(a, b + 1)}
        body = self.definitions + b"".join(f for n, f in enumerate(self.frames, 1) if first <= n <= last and n not in lost)
        head = {
            "run": self.run, "writer": self.writer, "segment": self.header.number, "first": first, "last": last,
            "chain": self.chain(first - 1), "bytes": len(body), "gaps": gaps or [],
        } | (said or {})  # fmt: skip
        raw = json.dumps(head).encode()
        return len(raw).to_bytes(4, "little") + raw + self.header.pack() + body


@pytest.fixture
def make() -> type[Made]:
    """The class that makes segments."""
    return Made


@pytest.fixture
def start() -> type[Live]:
    """The class that starts servers of a test's own."""
    return Live


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    server = Live(tmp_path_factory.mktemp("server") / "data")
    yield server
    code = server.stop()
    assert code == 0, "".join(server.lines)
    assert not [line for line in server.lines if "Traceback" in line], "".join(server.lines)


@pytest.fixture
def published(live: Live, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Live:
    """The environment in which the published simvue package talks to the server."""
    monkeypatch.setenv("SIMVUE_URL", live.url)
    monkeypatch.setenv("SIMVUE_TOKEN", live.token)
    monkeypatch.setenv("SIMVUE_OFFLINE_DIRECTORY", str(tmp_path / "simvue"))
    for name in ("ENVIRONMENT", "GIT", "SYSTEM"):
        monkeypatch.setenv(f"SIMVUE_DISABLE_{name}_METRICS", "1")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    os.environ.pop("SIMVUE_SERVER_PROFILE", None)
    return live


__all__ = ["Live"]
