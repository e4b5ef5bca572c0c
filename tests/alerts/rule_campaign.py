"""Many histories against the brute-force reference: how many decisions differ?

    python tests/alerts/rule_campaign.py --seed 1 --n 10000

Each history is fed five ways: record by record, in pieces with ticks between, with another agent from a random moment on, as an agent
follows it while it is recorded, and read after the fact. A history that differs is printed with its example's number; the same seed
gives the same histories. The figures say how many decisions of each sort there were, as the reference has them, so that it can be seen
what was compared.
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

from feeding import followed, live, ordered, replayed
from histories import arrivals, histories
from reference import Decided, History, alerts, decisions, lives

PIECE = 200  # histories of one search by Hypothesis: in a longer one they become alike
WAYS = ("record by record", "in pieces", "another agent", "followed", "replayed")


def by_way(history: History, way: str, number: int) -> list[Decided]:
    """Return what the engine decides when a history comes in one of WAYS."""
    if way == "replayed":
        return replayed(history)
    choice = random.Random(number)
    if way == "followed":
        return followed(history, arrivals(history, choice, most=1, ticks=20))
    steps = arrivals(history, choice, most=1 if way == WAYS[0] else 6)
    restart = choice.randrange(len(steps)) if way == "another agent" else None
    return live(history, steps, whole=way != WAYS[0], restart=restart)


def sorts(history: History, decided: list[Decided]) -> Counter[str]:
    """Return how many decisions there are of the sorts that are worth counting."""
    out: Counter[str] = Counter()
    definitions = {r.body["name"]: r.body for _, r in alerts(history)}
    records = {(w.id, r.seq): (w, r) for w in history.writers for r in w.records}
    spans = [(begun, ended) for begun, ended, _ in lives(history)]
    for d in decided:
        source, rule = definitions[d.alert]["source"], definitions[d.alert]["alert"]
        if source == "metrics":
            out[rule["rule"]] += 1
        else:
            out["composed, across runs" if "runs" in rule else "composed" if source == "alerts" else source] += 1
        writer, record = records[d.trigger]
        if source == "alerts":
            out[f"composed, by {record.kind}"] += 1
            out["composed, with all"] += "all " in rule["when"]
        if "inbox" in dict(d.stream):
            out[f"inbox, {source}"] += 1
            out["inbox, behind the run's end"] += not any(begun <= d.at <= ended for begun, ended in spans)
        elif writer.role == "inbox":
            out["by an inbox, of the whole run"] += 1
    return out


def campaign(count: int, seed: int, *, show: int = 3) -> dict[str, Any]:
    """Compare `count` histories, and return the figures. The first `show` that differ are printed on stderr."""
    figures: Counter[str] = Counter()
    of_sort: Counter[str] = Counter()
    began = time.monotonic()

    @settings(max_examples=PIECE, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(histories(), st.integers(0, 1 << 32))
    def compare(history: History, number: int) -> None:
        if figures["histories"] == count:
            return
        figures["histories"] += 1
        expected = ordered(decisions(history))
        figures["decisions"] += len(expected)
        of_sort.update(sorts(history, expected))
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

    for piece in range(-(-count // PIECE)):
        try:
            seeded(seed * 1_000_003 + piece)(compare)()
        except KeyboardInterrupt:
            break  # the figures are of what was compared until now
        if sys.stderr.isatty():
            print(f"\r{figures['histories']} histories, {figures['differences']} differences", end="", file=sys.stderr)
    seconds = round(time.monotonic() - began, 1)
    return {"seed": seed, "differences": 0, **figures, "seconds": seconds, "decisions of": dict(sorted(of_sort.items()))}


def _explain(history: History, way: str, number: int, found: Any, expected: list[Decided]) -> None:
    print(f"--- {way}, {number}", *history.writers, history.slept, history.curves, sep="\n  ", file=sys.stderr)
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
