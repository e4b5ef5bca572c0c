"""Scripts that die in many ways, several at a time, beside one agent: is each closed truthfully, and how soon?

    python tests/survivors/death_campaign.py --deaths 200 --seed 1

Prints one line of JSON: deaths, verdicts that were wrong, and milliseconds from the end of the process to the record of it (p50, p99, max).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import selectors
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from victims import Site, Victim

from simspool.spool import Kind, Tail, open_spool
from simspool.spool.frames import Record

CODES = (0, 1, 3, 143, 255)
CRASHES = ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSYS", "SIGTRAP")
KILLS = ("SIGTERM", "SIGKILL", "SIGHUP", "SIGUSR1", "SIGALRM")


def cause(choice: random.Random) -> tuple[str, str, dict[str, Any]]:
    """Return a line for a script, and the status and evidence that are true of it."""
    kind = choice.randrange(3)
    if kind == 0:
        code = choice.choice(CODES)
        return f"os._exit({code})", "failed" if code else "completed", {"code": code}
    name = choice.choice(CRASHES if kind == 1 else KILLS)
    line = f"signal.signal(signal.{name}, signal.SIG_DFL) if signal.{name} != signal.SIGKILL else 0; os.kill(os.getpid(), signal.{name})"
    return line, "failed" if kind == 1 else "terminated", {"signal": int(signal.Signals[name]), "name": name}


def noted(site: Site, run: str) -> tuple[int, dict[str, Any]] | None:
    """Return the survivor record of a run and its moment (boot clock, ns)."""
    folder = open_spool(site.spool).run(run)
    for writer in folder.writer_ids():
        with Tail(folder.writer(writer), run) as tail:
            for chunk in tail.read():
                for item in chunk.items:
                    if isinstance(item, Record) and item.kind == Kind.SURVIVOR and item.body is not None:
                        return item.boot_ns, dict(item.body)
    return None


def campaign(deaths: int, seed: int, *, together: int = 8) -> dict[str, Any]:
    """Let scripts die; returns the figures."""
    choice = random.Random(seed)
    wrong: list[Any] = []
    delays: list[float] = []
    with tempfile.TemporaryDirectory() as folder, Site(Path(folder)) as site:
        while len(delays) < deaths:
            victims = [Victim(site.environment) for _ in range(min(together, deaths - len(delays)))]
            causes = [cause(choice) for _ in victims]
            for victim in victims:
                site.watched(victim)
            ends: dict[int, int] = {}
            with selectors.DefaultSelector() as waiting:
                for victim, (line, _, _) in zip(victims, causes, strict=True):
                    fd = os.pidfd_open(victim.process.pid)
                    waiting.register(fd, selectors.EVENT_READ, victim.process.pid)
                    victim.tell(line)
                while len(ends) < len(victims):
                    for key, _ in waiting.select():
                        ends[key.data] = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
                        waiting.unregister(key.fd)
                        os.close(key.fd)
            for victim, (_, status, evidence) in zip(victims, causes, strict=True):
                ended = ends[victim.process.pid]
                victim.process.wait(20)
                at, body = site.until(lambda victim=victim: noted(site, victim.run))
                if body["status"] != status or body["evidence"].get("exit", {}) | evidence != body["evidence"].get("exit"):
                    wrong.append((status, evidence, body))
                delays.append((at - ended) / 1e6)
                victim.end()
    delays.sort()
    return {
        "deaths": len(delays), "seed": seed, "wrong": len(wrong), "examples": wrong[:3], "p50_ms": round(delays[len(delays) // 2], 1),
        "p99_ms": round(delays[int(len(delays) * 0.99) - 1], 1), "max_ms": round(delays[-1], 1),
    }  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deaths", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    found = campaign(given.deaths, given.seed)
    print(json.dumps(found))
    sys.exit(bool(found["wrong"]))
