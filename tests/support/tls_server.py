"""Small HTTP and HTTPS servers in threads of a test: what they answer, and all that they were sent."""

from __future__ import annotations

import http.server
import json
import socket
import ssl
import threading
from typing import Any, Self


class Seen:
    """A request as it came."""

    def __init__(self, method: str, path: str, headers: dict[str, str]) -> None:
        self.method, self.path, self.headers = method, path, headers

    def __repr__(self) -> str:
        return f"{self.method} {self.path}"


class SmallServer:
    """Answers everything with `status`, `headers` and `body` (JSON). A CONNECT is tunnelled, as a proxy does. `seen` are the requests."""

    def __init__(
        self, status: int = 200, headers: dict[str, str] | None = None, body: Any = None, context: ssl.SSLContext | None = None,
        auth: str | None = None,
    ) -> None:  # fmt: skip
        self.status, self.headers, self.body, self.auth = status, headers or {}, body if body is not None else {}, auth
        self.seen: list[Seen] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            timeout = 20

            def answer(self) -> None:
                outer.seen.append(Seen(self.command, self.path, dict(self.headers)))
                length = int(self.headers.get("Content-Length") or 0)
                self.rfile.read(length)
                if self.command == "CONNECT":
                    self.tunnel()
                    return
                data = json.dumps(outer.body).encode()
                self.send_response(outer.status)
                for key, value in {**outer.headers, "Content-Length": str(len(data)), "Connection": "close"}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_CONNECT = answer

            def tunnel(self) -> None:
                if outer.auth is not None and self.headers.get("Proxy-Authorization") != outer.auth:
                    self.send_response(407)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                host, _, port = self.path.rpartition(":")
                with socket.create_connection((host, int(port)), timeout=20) as far:
                    self.send_response(200)
                    self.end_headers()
                    one = threading.Thread(target=_pump, args=(self.connection, far), daemon=True)
                    one.start()
                    _pump(far, self.connection)
                    one.join(20)
                self.close_connection = True

            def log_message(self, *_: object) -> None:
                return

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                return  # clients that do not like our certificate

            def get_request(self) -> tuple[Any, Any]:
                connection, address = super().get_request()
                if context is None:
                    return connection, address
                connection.settimeout(20)
                return context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.url = f"{'http' if context is None else 'https'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(20)


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return
