"""A server that says yes to Simvue's Sender at once, and keeps what it was sent to count it later: its best case.

    simvue_stub.py        runs until its input ends; the first line of its output is its port
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgpack

KEPT: list[bytes] = []
FILES: list[int] = []
ARTIFACTS: dict[str, dict[str, Any]] = {}
NUMBERS = itertools.count(1)


class Handler(BaseHTTPRequestHandler):
    """The few answers that the Sender reads."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Versions, lists, and the count of what came."""
        if self.path.endswith("/version"):
            self.answer({"version": "1.2.16"})
        elif self.path == "/counted":
            calls = [len(point["values"]) for body in KEPT for point in msgpack.unpackb(body)["metrics"]]
            self.answer({"points": sum(calls), "files": len(FILES), "file_bytes": sum(FILES)})
        else:
            known = ARTIFACTS.get(self.path.rsplit("/", 1)[-1], {})
            self.answer({"data": [], "count": 0, "status": False} | known)

    def do_POST(self) -> None:
        """Create anything; metrics are kept."""
        body, name = self.body(), self.path.rstrip("/").rsplit("/", 1)[-1].split("?")[0]
        new = {"id": f"{next(NUMBERS):022d}", "name": "peers"}
        if name == "metrics":
            KEPT.append(body)
        elif name == "artifacts":
            new["url"] = f"http://127.0.0.1:{self.server.server_port}/upload/{new['id']}"
            ARTIFACTS[new["id"]] = json.loads(body) | {"id": new["id"], "category": "output", "uploaded": True}
        asked = json.loads(body) if self.headers.get("Content-Type", "").startswith("application/json") and body else {}
        self.answer([new for _ in asked] if isinstance(asked, list) else new)

    def do_PUT(self) -> None:
        """Take an upload, or a change."""
        body = self.body()
        if self.path.startswith("/upload/"):
            FILES.append(len(body))
        self.answer({})

    def body(self) -> bytes:
        """Read the request to its end."""
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, value: Any) -> None:
        """Say yes."""
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()
