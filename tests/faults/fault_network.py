"""A flaky network between namespaces: very many small runs over a long, lossy link, beside a bulk transfer of as many bytes."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

from fault_places import check_marks
from real_server import RealServer
from recorded import whole
from slow_link import SlowLink, usable
from trials import Context, NotHere, Part, Stage, part, until

from simspool.spool import open_spool

_RECEIVE = """
import socket, sys
server = socket.create_server((sys.argv[1], 0))
print(server.getsockname()[1], flush=True)
connection, _ = server.accept()
left = int(sys.argv[2])
while left > 0:
    left -= len(connection.recv(65536))
connection.sendall(b".")
"""
_SEND = "import socket,sys; c=socket.create_connection((sys.argv[1],int(sys.argv[2]))); c.sendall(bytes(int(sys.argv[3]))); c.recv(1)"


def serve_at(data: Path, address: str) -> RealServer:
    """Start a server that listens at an address."""
    server = RealServer(data)
    with open(f"{data}.log", "a") as log:
        server.process = subprocess.Popen(
            [sys.executable, "-m", "simspool.agent", "serve", "--data", str(data), "--host", address, "--port", "0"],
            stdout=subprocess.DEVNULL, stderr=log, text=True,
        )  # fmt: skip
    until(lambda: (data / "url").exists() and (data / "url").read_text().strip() and (data / "token").exists())
    server.url = (data / "url").read_text().strip()
    server.port = urllib.parse.urlsplit(server.url).port or 0
    server.token = (data / "token").read_text().strip()
    return server


def bulk(link: SlowLink, size: int) -> float:
    """Return the seconds that so many bytes take over the link in one connection, to the last byte's acknowledgement."""
    with subprocess.Popen([sys.executable, "-c", _RECEIVE, link.address, str(size)], stdout=subprocess.PIPE, text=True) as receiver:
        assert receiver.stdout is not None
        port = receiver.stdout.readline().strip()
        began = time.monotonic()
        subprocess.run([*link.near, sys.executable, "-c", _SEND, link.address, port, str(size)], check=True, timeout=600)
        took = time.monotonic() - began
        receiver.wait(60)
    return took


@part("F11", "small runs over a link of 100 ms (there and back) that loses 2 % each way")
def flaky_link(c: Context, out: Part) -> None:
    reason = usable()
    if reason:
        raise NotHere(reason)
    runs, room = c.pick(20, 200, 1000), c.room()
    with SlowLink(0.05, 0.02, c.seed) as link:
        server = serve_at(room / "server", link.address)
        try:
            with Stage(room, server) as stage:
                spool = open_spool(stage.spool, create=True)
                for number in range(runs):
                    whole(spool, f"run {number}", points=20, events=2)
                sent_before, began = link.bytes[0], time.monotonic()
                done = stage.sync(*link.near, timeout=560)
                took, sent = time.monotonic() - began, link.bytes[0] - sent_before
                ideal = bulk(link, sent)
                again_before = link.bytes[0]
                again = stage.sync(*link.near)
                codes = (done.code, again.code)
                wrong = [] if codes == (0, 0) else [f"I8: the syncs ended with {codes}: {done.errors[-300:]}"]
                if again.report.get("sent_records"):
                    wrong.append("I8: a second sync sent something")
                out.tried(wrong + check_marks(server, stage.spool))
                out.n = runs
                out.add(runs=runs, seconds=took, kB_sent=sent / 1000, bulk_transfer_of_as_many_bytes_s=ideal, packets_lost=link.lost,
                        kB_of_a_sync_with_nothing_to_do=(link.bytes[0] - again_before) / 1000)  # fmt: skip
        finally:
            server.kill()
