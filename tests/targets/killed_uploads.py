"""A large file is sent over a slow link while agent and server are killed at random: what is sent twice is counted.

Run it alone for figures: `python tests/targets/killed_uploads.py --megabytes 300 --rate 20 --kills 12 --seed 3`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from counting_relay import CountingRelay
from real_server import RealServer
from recorded import add_file, begin, fill

from simspool.spool import open_spool

_PATIENCE = 300.0


@dataclass(frozen=True)
class Outcome:
    """What came of it. `repeated` are bytes beyond the file's own, requests' heads and records included."""

    agent_kills: int
    server_kills: int
    repeated: int
    right: bool
    left: list[str]

    def each(self) -> float:
        """Bytes repeated for each kill."""
        return self.repeated / max(self.agent_kills + self.server_kills, 1)


def campaign(folder: Path, size: int, rate: float, kills: int, seed: int) -> Outcome:
    """Do it in a folder, with a random file of `size` bytes over a link of `rate` bytes a second, until everything has arrived."""
    rng = random.Random(seed)
    path = folder / "large.bin"
    with path.open("wb") as file:
        for _ in range(-(-size // (1 << 20))):
            file.write(rng.randbytes(1 << 20))
        file.truncate(size)
    spool = open_spool(folder / "spool", create=True)
    run, writer = begin(spool, "large")
    fill(writer, 100)
    digest = add_file(spool, run, writer, path)
    writer.close({"status": "completed"})
    killed = {"agent": 0, "server": 0}
    with RealServer(folder / "server") as server, CountingRelay(server.url, rate) as relay:
        environment = {
            **os.environ, "SIMSPOOL_URL": relay.url, "SIMSPOOL_TOKEN": server.token, "SIMSPOOL_DIR": str(folder / "spool"),
            "XDG_STATE_HOME": str(folder / "state"), "SIMSPOOL_AGENT": "off",
        }  # fmt: skip

        def start() -> subprocess.Popen[str]:
            command = [sys.executable, "-m", "simspool.agent", "sync", "--json", "--timeout", "240"]
            return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

        agent = start()
        # each kill comes when so much of the file is on its way: between them there is always something to lose
        marks = sorted(rng.uniform(0.02, 0.95) * size for _ in range(kills))
        deadline = time.monotonic() + _PATIENCE
        for mark in marks:
            while relay.total < mark and agent.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            if agent.poll() is not None:
                break
            if rng.random() < 0.5:
                killed["agent"] += 1
                agent.kill()
                agent.communicate()
                agent = start()
            else:
                killed["server"] += 1
                server.kill()
                server.start()
        said, _ = agent.communicate(timeout=_PATIENCE)
        if agent.returncode != 0:
            raise AssertionError(f"the sync ends with {agent.returncode}: {said[-2000:]}")
        blob = server.data / "blobs" / digest[:2] / digest
        right = blob.exists() and hashlib.sha256(blob.read_bytes()).hexdigest() == digest
        left = [p.name for p in (server.data / "blobs" / "uploads").iterdir()]
        shown = server.get(f"/runs/{run}/artifacts") or []
        right = right and [a["size"] for a in shown] == [size] and len(server.points(run, "loss")) == 100
        return Outcome(killed["agent"], killed["server"], relay.total - size, right, left)


def main() -> None:
    """Print one campaign's outcome as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=300.0)
    parser.add_argument("--rate", type=float, default=20.0, help="of the link, in MB/s")
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    said = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = campaign(Path(folder), int(said.megabytes * 1e6), said.rate * 1e6, said.kills, said.seed)
    print(json.dumps({**found.__dict__, "repeated_a_kill": round(found.each())}))


if __name__ == "__main__":
    main()
