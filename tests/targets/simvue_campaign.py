"""Kill the agent and the Simvue stand-in at random, lose replies, and count what is there at the end.

Usage: python tests/targets/simvue_campaign.py [--histories N] [--seed S] [--json FILE]

Each history is a spool with a few runs (half of whose points cannot be told from each other), drained by agents that are killed at random
moments, to a stand-in that loses replies, is killed and comes back. At the end one sync finishes it, and everything is compared. Progress
goes to stderr, the figures to stdout as JSON. Exit 1 when something was lost, strange, or there twice without being counted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from conformance import Driven, Recording, check, remarked, sync
from simvue_bench import RECORDS, SimvueBench

from simspool.spool import Spool, open_spool


def record(spool: Spool, rng: random.Random, number: int) -> Recording:
    """Record a run of a few writers."""
    run = Recording.begin(spool, f"campaign {number}", writers=rng.randint(1, 3))
    for step in range(rng.randint(50, 400)):
        for n, writer in enumerate(run.writers):
            equal = rng.random() < 0.5
            values: dict[str, float | int | bool] = {"same": 1.0} if equal else {"loss": rng.random(), f"own{n}": step}
            at = 1_700_000_000_000_000 if equal else None
            assert writer.metrics(values, step=0 if equal else step, time=None, timestamp=at)
            for name, value in values.items():
                run.metrics.setdefault(name, []).append((0 if equal else step, value))
    for n in range(len(run.writers)):
        run.say(rng.randint(0, 10), writer=n)
    for n in range(rng.randint(0, 3)):
        run.save(f"{n}.bin", rng.randbytes(rng.randint(0, 200_000)))
    return run.close(rng.choice(["completed", "failed", "terminated"]))


def surplus(bench: SimvueBench, run: Recording) -> int:
    """Return how many points and events of a run are there too often."""
    found = bench.has(run.id)
    assert found is not None
    recorded = sum(len(points) for points in run.metrics.values()) + len(run.events)
    return sum(len(points) for points in found.metrics.values()) + len(found.events) - recorded


def history(folder: Path, bench: SimvueBench, rng: random.Random, figures: Counter[str]) -> None:
    """Drain one spool in trouble; raises AssertionError for what is wrong there."""
    spool = open_spool(folder / "spool", create=True)
    runs = [record(spool, rng, n) for n in range(rng.randint(1, 3))]
    settings = bench.settings()
    for _ in range(rng.randint(2, 4)):
        bench.server.faults(
            {"do": "lose-reply", "path": "(POST|PUT) /(api|storage)", "rate": 0.1, "count": 5, "seed": rng.randrange(1 << 30)},
            {"do": "delay", "seconds": 0.02, "path": RECORDS, "count": None},
        )
        driven, last, later = Driven(spool, settings), rng.randint(0, 20), rng.random() * 0.06
        restarting: threading.Thread | None = None
        for number, line in enumerate(driven.lines()):
            if line.startswith("done"):
                break
            if number == last:
                time.sleep(later)
                if rng.random() < 0.3:
                    bench.kill()
                    figures["servers killed"] += 1
                    restarting = threading.Thread(target=bench.restart)
                driven.kill()
                figures["agents killed"] += 1
                break
        driven.end()
        if restarting is not None:
            restarting.start()
            restarting.join()
        figures["replies lost"] += sum(f["fired"] for f in bench.server.faults() if f["do"] == "lose-reply")
        bench.heal()
    report = sync(spool, settings)
    assert (report.state, report.records_left, report.files_left, report.refused) == ("done", 0, 0, 0), report.problems
    named = remarked(spool, "possibly double")
    check(bench, *runs, doubles=named)
    figures["histories"] += 1
    figures["points and events"] += sum(len(p) for run in runs for p in run.metrics.values()) + sum(len(run.events) for run in runs)
    figures["files"] += sum(len(run.files) for run in runs)
    figures["counted as possibly double"] += named
    figures["there twice"] += sum(surplus(bench, run) for run in runs)


def main() -> int:
    """Run the campaign."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--histories", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures: Counter[str] = Counter()
    violations: list[dict[str, Any]] = []
    begun = time.monotonic()
    for start in range(0, options.histories, 10):  # a dump tells all that a server has: not more than ten histories
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            os.environ |= {"XDG_STATE_HOME": str(folder / "state"), "HOME": name, "SIMSPOOL_AGENT": "off"}
            bench = SimvueBench(folder / "server")
            try:
                for number in range(start, min(start + 10, options.histories)):
                    try:
                        history(folder / str(number), bench, random.Random(f"{options.seed}/{number}"), figures)
                    except AssertionError as error:
                        violations.append({"history": number, "what": str(error)[:500]})
                    print(f"{number + 1}/{options.histories} {dict(figures)} {len(violations)} violations", file=sys.stderr, flush=True)
            finally:
                bench.kill()
    seconds = round(time.monotonic() - begun, 1)
    made = {"seed": options.seed, **figures, "violations": len(violations), "seconds": seconds, "what": violations}
    text = json.dumps(made, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
