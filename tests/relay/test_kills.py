"""Both sides are killed at random while a run goes on: every point is on the server once in the end."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from command import Command
from hop import Process
from real_server import RealServer
from recorded import begin, fill
from sides import Side

from simspool.spool import Spool


@pytest.mark.timeout(180)
def test_kills_of_both_sides(origin: Spool, far: Spool, place: Path, server: RealServer, agent: Command, tmp_path: Path) -> None:
    """Whatever is half done is done again, or swept; nothing is lost, nothing is there twice."""
    chance = random.Random(11)
    run, writer = begin(origin)
    sides = [
        Process(tmp_path / "send.log", "relay", "send", place, "--spool", origin.path, "--every", "0.2"),
        Process(tmp_path / "receive.log", "relay", "receive", place, "--spool", far.path, "--every", "0.2", "--url", server.url),
        Process(tmp_path / "far.log", "run", "--spool", far.path, env=server.environment),
    ]
    for one in sides:
        one.start()
    try:
        for n in range(10):
            fill(writer, 200, start=200 * n)
            time.sleep(chance.uniform(0.3, 1.5))  # it may be at anything
            victim = chance.choice(sides)
            victim.kill()
            victim.start()
        assert writer.close({"status": "completed"})
        sides[0].kill()
        [done] = agent.lines("relay", "send", place, "--spool", origin.path, "--once", "--every", "0.3", "--timeout", "90")
    finally:
        for one in sides:
            if one.process is not None:
                one.kill(15)
    assert done["state"] == "done"
    assert server.points(run, "loss") == [(n, n / 2) for n in range(2000)]
    assert [p.name for p in (place / "refused").iterdir()] == []
    with Side(Path(origin.path)) as side:
        assert side.prune("bundle:bundle") == [run]
