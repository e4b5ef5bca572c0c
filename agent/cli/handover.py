"""Talking to a running agent over its local API: http.client on a unix socket, so that a status costs no big import."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Collection, Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

from simspool.agent.config import host_file
from simspool.spool import Spool, atomic
from simspool.spool.process import start_ticks

_SILENCE = 60.0  # seconds without a line after which an agent is taken for gone
_PATIENCE = 600.0  # seconds for a receipt of many runs: it is read again what it covers


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def api_path(spool: Spool) -> str | None:
    """Return the socket of the agent that serves this spool on this host, None when there is none that lives."""
    try:
        body = atomic.read_json(host_file(spool))
        path, pid, ticks = body["api"], body["pid"], body["start_ticks"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    found = start_ticks(pid) if isinstance(pid, int) else None
    return path if isinstance(path, str) and found is not None and found[0] == ticks else None


def _ask(path: str, method: str, url: str, body: bytes | str | None = None, *, patience: float) -> tuple[int, Any] | None:
    """Ask a running agent; return the status and the JSON that it answers, None when it went away. `patience` is in seconds."""
    connection = _Connection(path, patience)
    try:
        connection.request(method, url, body, {} if body is None else {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def _told(answer: tuple[int, Any] | None) -> dict[str, Any] | None:
    """Return the object of a good answer."""
    return answer[1] if answer is not None and answer[0] == 200 and isinstance(answer[1], dict) else None


def agent_status(spool: Spool) -> dict[str, Any] | None:
    """Return a running agent's status, or None when none answers."""
    path = api_path(spool)
    return None if path is None else _told(_ask(path, "GET", "/status", patience=30.0))


def agent_sync(path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Have a running agent sync; yield its progress, the result last (`final`). Raises ConnectionError when it goes away."""
    connection = _Connection(path, _SILENCE)
    try:
        connection.request("POST", "/sync", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise ConnectionError(f"the running agent says {answer.status}: {answer.read(2000).decode(errors='replace')}")
        for line in answer:
            yield json.loads(line)
    except (http.client.HTTPException, ValueError) as error:
        raise ConnectionError(f"the running agent went away: {error}") from None
    finally:
        with contextlib.suppress(OSError):
            connection.close()


def agent_decides(path: str, decision: str, letters: Mapping[str, Collection[str]]) -> int | None:
    """Have a running agent retry or drop dead letters, by server; returns how many, None when it went away."""
    body = {"decision": decision, "letters": {server: sorted(ids) for server, ids in letters.items()}}
    count = (_told(_ask(path, "POST", "/dead", json.dumps(body), patience=_SILENCE)) or {}).get("count")
    return count if isinstance(count, int) else None


def agent_applies(path: str, target: str, receipt: bytes) -> dict[str, Any] | None:
    """Have a running agent apply a receipt; returns what it changed, None when it went away. Raises NotTaken with its reason."""
    from simspool.agent.carry.parts import NotTaken

    answer = _ask(path, "POST", f"/receipt?{urlencode({'target': target})}", receipt, patience=_PATIENCE)
    if answer is not None and answer[0] == 409 and isinstance(answer[1], dict):
        raise NotTaken(str(answer[1].get("detail")))
    return _told(answer)


def agent_abort(path: str, run: str) -> bool:
    """Have a running agent look for abort requests of a run now; False when it went away, or cannot."""
    connection = _Connection(path, 10.0)
    try:
        connection.request("POST", "/abort", json.dumps({"run": run}), {"Content-Type": "application/json"})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def agent_settle(path: str, body: dict[str, Any], patience: float) -> dict[str, Any] | None:
    """Have a running agent take in everything recorded so far; what it answers, None when it went away. `patience` is in seconds."""
    return _told(_ask(path, "POST", "/settle", json.dumps(body), patience=patience))
