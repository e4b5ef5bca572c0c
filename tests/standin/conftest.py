"""A stand-in that the tests of a module share, requests as they are on the wire, and scripts of the published package."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from standin import StandIn

Call = Callable[..., tuple[int, Any, dict[str, str]]]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """One stand-in for what needs no options."""
    with StandIn.start(tmp_path_factory.mktemp("standin")) as found:
        yield found


@pytest.fixture
def here(shared: StandIn) -> Iterator[StandIn]:
    """The shared stand-in, without faults before and after."""
    shared.heal()
    yield shared
    shared.heal()


def call(at: StandIn, method: str, path: str, body: Any = None, *, kind: str = "json", timeout: float = 30, **headers: str) -> Any:
    """Send one request, follow nothing; return (status, parsed or raw body, headers)."""
    parts = urllib.parse.urlsplit(path if "://" in path else at.url + path)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port or 0, timeout=timeout)
    sent = body if isinstance(body, bytes) or body is None else msgpack.packb(body) if kind == "msgpack" else json.dumps(body).encode()
    all_headers = {"Content-Type": f"application/{kind}", "Authorization": f"Bearer {at.token}"} | headers
    try:
        connection.request(method, parts.path + (f"?{parts.query}" if parts.query else ""), sent, all_headers)
        answer = connection.getresponse()
        raw, seen = answer.read(), {k.lower(): v for k, v in answer.getheaders()}
        return answer.status, json.loads(raw) if "json" in seen.get("content-type", "") and raw else raw, seen
    finally:
        connection.close()


@pytest.fixture(name="call")
def _call() -> Call:
    return call


@pytest.fixture
def new_run(here: StandIn) -> Callable[..., str]:
    """Make a run in the shared stand-in; return its id."""

    def make(name: str = "wing", **fields: Any) -> str:
        return str(call(here, "POST", "/api/runs", {"folder": "/", "name": name, "status": "running", **fields})[1]["id"])

    return make


@pytest.fixture
def published(tmp_path: Path) -> Callable[[StandIn, str], Any]:
    """Run a script that uses the published package, unchanged; return what its last line has as JSON."""
    pytest.importorskip("simvue")

    def run(at: StandIn, script: str) -> Any:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SIMSPOOL_", "SIMVUE_"))}
        own = {f"SIMVUE_DISABLE_{name}_METRICS": "1" for name in ("ENVIRONMENT", "GIT", "SYSTEM")}
        own |= {"HOME": str(tmp_path), "SIMVUE_OFFLINE_DIRECTORY": str(tmp_path / "offline"), **at.environment}
        done = subprocess.run([sys.executable, "-c", script], env=kept | own, cwd=tmp_path, capture_output=True, text=True, timeout=110)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run
