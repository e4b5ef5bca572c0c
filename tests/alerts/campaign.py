"""Many histories against the brute-force reference: how many decisions differ?

    python tests/alerts/campaign.py --seed 1 --n 10000

Each history is fed four ways: record by record, in pieces with ticks between, with another agent from a random moment on, and read
after the fact. A history that differs is printed with its example's number; the same seed gives the same histories.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from feeding import live, ordered, replayed
from histories import arrivals, histories
from reference import Decided, History, decisions

WAYS = ("record by record", "in pieces", "another agent", "replayed")


def by_way(history: History, way: str, number: int) -> list[Decided]:
    """Return what the engine decides when a history comes in one of WAYS."""
    if way == "replayed":
        return replayed(history)
    choice = random.Random(number)
    steps = arrivals(history, choice, most=1 if way == WAYS[0] else 6)
    restart = choice.randrange(len(steps)) if way == "another agent" else None
    return live(steps, whole=way != WAYS[0], restart=restart)


def campaign(count: int, seed: int, *, show: int = 3) -> dict[str, Any]:
    """Compare `count` histories, and return the figures. The first `show` that differ are printed on stderr."""
    figures: Counter[str] = Counter()
    began = time.monotonic()

    @seeded(seed)
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(histories(), st.integers(0, 1 << 32))
    def compare(history: History, number: int) -> None:
        figures["histories"] += 1
        expected = ordered(decisions(history))
        figures["decisions"] += len(expected)
        figures["records"] += sum(len(w.records) for w in history.writers)
        for way in WAYS:
            try:
                found: Any = by_way(history, way, number)
            except Exception as error:  # counted like any other difference
                found = repr(error)
            if found != expected:
                figures[f"differences, {way}"] += 1
                figures["differences"] += 1
                if figures["differences"] <= show:
                    _explain(history, way, number, found, expected)

    compare()
    return {"seed": seed, "differences": 0, **figures, "seconds": round(time.monotonic() - began, 1)}


def _explain(history: History, way: str, number: int, found: Any, expected: list[Decided]) -> None:
    print(f"--- {way}, {number}", *history.writers, history.slept, sep="\n  ", file=sys.stderr)
    if isinstance(found, str):
        print(f"  {found}", file=sys.stderr)
        return
    for label, one, other in (("only the engine:", found, expected), ("only the reference:", expected, found)):
        for d in one:
            if d not in other:
                print(f"  {label} {d}", file=sys.stderr)


def main() -> int:
    """Run the campaign as the command line says; the exit status is 1 when anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=10_000, help="histories")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    figures = campaign(options.n, options.seed)
    print(json.dumps(figures, indent=1))
    return 1 if figures["differences"] else 0


if __name__ == "__main__":
    sys.exit(main())
