"""Agents killed at random while they drain to a target, and the target's server with them; then everything is counted there.

    python tests/targets/target_kills.py --target directory --kills 100 --seed 1

Prints a line of JSON: kills, where they fell, points, and violations. Exit status 1 with any.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "support")]

from conformance import Bench, Driven, Recording, check, remarked, sync  # noqa: E402 - behind the path
from directory_bench import DirectoryBench  # noqa: E402

from simspool.spool import open_spool  # noqa: E402

TARGETS = ("directory", "csv", "embedded")


def make_bench(name: str, folder: Path, stack: ExitStack) -> Bench:
    """Return a bench with its server running."""
    if name != "embedded":
        return DirectoryBench(folder / "results", "csv" if name == "csv" else "jsonl")
    from real_server import RealServer
    from test_embedded import EmbeddedBench, Hurting

    server = stack.enter_context(RealServer(folder / "data"))
    return EmbeddedBench(server, stack.enter_context(Hurting(server.url)))


def campaign(bench: Bench, folder: Path, kills: int, rng: random.Random) -> dict[str, Any]:
    """Kill so many agents, eight to a spool; count each spool's runs on the target."""
    places: Counter[str] = Counter()
    done, points, violations, doubles, servers = 0, 0, [], 0, 0
    while done < kills:
        spool = open_spool(folder / f"spool-{done}", create=True)
        runs = [Recording.begin(spool, f"killed {n}", writers=2).points(500).say(20) for n in range(3)]
        for n, run in enumerate(runs):
            for i in range(5):
                run.save(f"{i}.bin", rng.randbytes(50_000))
            run.close("failed" if n else "completed")
        for _ in range(8):
            driven, last, delay = Driven(spool, bench.settings()), rng.randint(0, 12), rng.uniform(0, 0.02)
            for number, line in enumerate(driven.lines()):
                if line.startswith("done"):
                    break
                if number == last:
                    time.sleep(delay)  # somewhere in what it does next
                    if "kill" in bench.supports and rng.random() < 0.3:
                        bench.kill()
                        servers += 1
                    driven.kill()
                    places[line.split()[0]] += 1
                    done += 1
                    break
            driven.end()
            bench.heal()
        try:
            report = sync(spool, bench.settings())
            assert report.state == "done", report.state
            doubles += remarked(spool, "possibly double")
            check(bench, *runs, doubles=remarked(spool, "possibly double"))
        except AssertionError as error:
            violations.append(f"{spool.path}: {error}")
        points += sum(len(p) for run in runs for p in run.metrics.values())
        print(f"{done} kills, {len(violations)} violations", file=sys.stderr, flush=True)
    return {
        "kills": done, "after": dict(places), "servers": servers, "points": points, "possibly_double": doubles, "violations": violations
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill agents at random while they drain to a target.")
    parser.add_argument("--target", choices=TARGETS, default="directory")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="simspool-kills-") as name, ExitStack() as stack:
        folder = Path(name)
        os.environ.update(SIMSPOOL_STATE=str(folder / "state"), HOME=name, SIMSPOOL_AGENT="off")
        bench = make_bench(options.target, folder, stack)
        found = campaign(bench, folder, options.kills, random.Random(options.seed))
    print(json.dumps({"target": options.target, "seed": options.seed, **found}))
    return 1 if found["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
