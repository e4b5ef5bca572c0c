"""A backlog of many gigabytes drains in little memory, and a killed agent repeats no more than what was under way.

    python tests/targets/backlog_campaign.py --gb 10 [--files 0.3] [--kills 0] [--seed 1]

Two processes record until the spool has so many gigabytes (`--files` of it in large files). Then `agent sync` drains it to an embedded
server through a proxy that counts bytes, while the agent's memory is read from the kernel; with `--kills`, it is killed by SIGKILL so often
at random moments. Printed: the peak of the agent's memory, seconds, the bytes that travelled, and what the server has compared with what
was recorded. With kills, the bytes that travelled more than once are those of a drain with kills less those of one without.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from real_server import RealServer
from recorded import add_file, begin

from simspool.spool import open_spool

_CALLS, _FILES = 1_000_000, 4


class CountingProxy:
    """Passes TCP on to a port, and counts the bytes that go there."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.sent = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._socket.accept()
            try:
                server = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                client.close()
                continue
            for source, sink, counts in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pass_on, args=(source, sink, counts), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, counts: bool) -> None:
        buffer = memoryview(bytearray(1 << 20))
        try:
            while n := source.recv_into(buffer):
                if counts:
                    with self._lock:
                        self.sent += n
                sink.sendall(buffer[:n])
        except OSError:
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def record(path: str, number: int, size: int, file_size: int, seed: int) -> None:
    """Record runs of a million calls until they take `size` bytes, and files of `file_size` bytes in all."""
    spool, random_bytes = open_spool(path), random.Random(seed + number)
    left = size
    while left > 0:
        _, writer = begin(spool, f"backlog-{number}-{left}")
        for step in range(_CALLS):
            writer.metrics({"loss": 1.0 / (step + 1), "count": step}, step=step)
        writer.close({"status": "completed"})
        left -= _CALLS * 56
    for n in range(_FILES if file_size else 0):
        run, writer = begin(spool, f"files-{number}-{n}")
        source = Path(path).parent / f"source-{number}"
        with source.open("wb") as out:
            for _ in range(file_size // _FILES >> 20):
                out.write(random_bytes.randbytes(1 << 20))
        add_file(spool, run, writer, source, f"large-{n}")
        writer.close({"status": "completed"})
        source.unlink()


def peak(pid: int) -> float:
    """Return the most memory (MiB) that a process ever had in RAM, 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("VmHWM")), 0.0)


def drain(environment: dict[str, str], kills: int, seed: int, expected: float) -> dict[str, Any]:
    """Sync until it is done, killed `kills` times within `expected` seconds; returns figures."""
    moments = random.Random(seed)
    began, most, done_kills = time.monotonic(), 0.0, 0
    while True:
        process = subprocess.Popen(
            [sys.executable, "-m", "simspool.agent", "sync", "--json"], env={**os.environ, **environment},
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        until = time.monotonic() + (moments.uniform(0.5, 2 * expected / (kills + 1)) if done_kills < kills else 1e9)
        while process.poll() is None and time.monotonic() < until:
            most = max(most, peak(process.pid))
            time.sleep(0.05)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            done_kills += 1
            continue
        assert process.stdout is not None
        report = json.loads(process.stdout.read())
        if report["state"] != "done":
            print(f"  {report['state']}: {report['problem']}", flush=True)
            continue
        return {
            "seconds": round(time.monotonic() - began, 1), "kills": done_kills, "peak_mib": round(most, 1), "records": report["records"],
            "files": report["files"], "left": report["records_left"] + report["files_left"], "refused": report["refused"],
        }  # fmt: skip


def check(server: RealServer) -> int:
    """Return how many runs' counts on the server are not those that were recorded."""
    wrong = start = 0
    while True:
        page = server.get("/runs", start=start, count=100, return_metrics=True)["data"]
        if not page:
            return wrong
        for run in page:
            counts = {name: m["count"] for name, m in (run.get("metrics") or {}).items()}
            is_files = run["name"].startswith("files-")
            files = server.get(f"/runs/{run['id']}/artifacts") or []
            good = len(files) == 1 if is_files else counts == {"loss": _CALLS, "count": _CALLS}
            wrong += not (good and run["status"] == "completed")
        start += len(page)


def main() -> int:
    """Run it and print its figures as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=10.0, help="size of the backlog (10^9 bytes)")
    parser.add_argument("--files", type=float, default=0.3, help="the share of it that is files")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", help="where (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="backlog-", dir=options.folder) as folder:
        spool = open_spool(Path(folder) / "spool", create=True)
        size, began = options.gb * 1e9, time.monotonic()
        context = get_context("spawn")
        half = (int(size * (1 - options.files) / 2), int(size * options.files / 2), options.seed)
        recorders = [context.Process(target=record, args=(spool.path, n, *half)) for n in range(2)]
        for process in recorders:
            process.start()
        for process in recorders:
            process.join()
        found = sum(f.stat().st_blocks * 512 for f in Path(spool.runs).rglob("*") if f.is_file())
        recorded = {"gb": round(found / 1e9, 2), "seconds": round(time.monotonic() - began, 1)}
        print(json.dumps({"recorded": recorded, "seed": options.seed}), flush=True)
        sent = {}
        expected = size / 60e6
        for kills in (0, options.kills) if options.kills else (0,):
            place = Path(folder) / f"kills-{kills}"
            place.mkdir()
            with RealServer(place / "server") as server:
                proxy = CountingProxy(server.port)
                environment = {
                    "SIMSPOOL_URL": f"http://127.0.0.1:{proxy.port}", "SIMSPOOL_TOKEN": server.token, "SIMSPOOL_DIR": spool.path,
                    "SIMSPOOL_STATE": str(place / "state"), "XDG_RUNTIME_DIR": str(place), "HOME": str(place),
                }  # fmt: skip
                figures = drain(environment, kills, options.seed, expected)
                expected = figures["seconds"]
                sent[kills] = proxy.sent
                figures |= {"wrong_runs": check(server), "travelled_mb": round(proxy.sent / 1e6, 1)}
                if kills and figures["kills"]:
                    figures["repeated_mb_per_kill"] = round((sent[kills] - sent[0]) / 1e6 / figures["kills"], 2)
                print(json.dumps(figures), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
