"""SIGKILL at random moments: how many calls that returned True are not found again? (FORMAT.md W1; faults F1, F14)

    python tests/faults/kill_campaign.py --kills 200 --seed 1

Each kill starts a script that records flat out or at 200 calls/s, on mapped or write(2) segments, from two threads, from a signal
handler, and from two forked children; whenever a call has returned True, its caller raises its own counter in a shared anonymous
mapping. The whole process group is killed, and everything is read back.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from simspool.spool import Durability, Kind, Writer, ids
from simspool.spool.frames import MetricBatch
from simspool.spool.reader import Tail, read_drop_counts

RUN = bytes(range(16))
SLOTS = 16  # counters of callers: 0-1 threads, 2 the signal handler, 3.. those of the children


@dataclass
class Outcome:
    """What one kill left."""

    promised: int = 0
    found: int = 0
    lost: int = 0
    repeated: int = 0
    unpromised: int = 0  # found, and neither promised nor the one call that each caller was in
    dropped: int = 0
    damaged: int = 0
    torn: int = 0
    writers: int = 0


def work(folder: str, board: mmap.mmap, rate: float, mapped: bool, slot: int, children: int, segment_max: int) -> None:
    """Record for ever. Runs in the victim."""
    from simspool.spool import segment

    segment.SEGMENT_MAX = segment_max
    counters = memoryview(board).cast("q")  # one store a counter: struct.pack_into would clear it first, and be killed in between
    writer = Writer(folder, RUN, mapped=mapped, durability=Durability.INTERVAL)

    def caller(slot: int) -> None:
        n = 0
        while True:
            n += 1
            kept = writer.metrics({"caller": slot, "n": n}) if n % 10 else writer.record(Kind.EVENT, {"caller": slot, "n": n})
            if kept:
                counters[slot] = n
            if rate:
                time.sleep(1 / rate)

    count = 0

    def handler(*_: Any) -> None:
        nonlocal count
        count += 1
        if writer.metrics({"caller": slot + 2, "n": count}):
            counters[slot + 2] = count
        signal.setitimer(signal.ITIMER_REAL, 0.0007)

    def upkeep() -> None:
        while True:
            time.sleep(0.02)
            writer.maintain()

    writer.record(Kind.ATTACH, {"reason": "campaign"})
    for child in range(children):
        if os.fork() == 0:
            child_slot = 5 * (child + 1)
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            threading.Thread(target=caller, args=(child_slot + 1,), daemon=True).start()
            caller(child_slot)
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0007)
    threading.Thread(target=caller, args=(slot + 1,), daemon=True).start()
    threading.Thread(target=upkeep, daemon=True).start()
    caller(slot)


def one_kill(choice: random.Random, base: str) -> tuple[str, Outcome]:
    """Start a victim, kill it at a random moment, count."""
    mapped, rate, children = choice.random() < 0.5, choice.choice([0.0, 200.0]), choice.choice([0, 2])
    segment_max = choice.choice([1 << 16, 1 << 20, 8 << 20])
    label = f"{'mapped' if mapped else 'write(2)'}, {'200 calls/s' if rate else 'flat out'}"
    folder = tempfile.mkdtemp(dir=base)
    board = mmap.mmap(-1, 8 * SLOTS)
    alive, held = os.pipe()  # ends when the last process that holds it is gone
    pid = os.fork()
    if pid == 0:
        try:
            os.setpgid(0, 0)
            work(os.path.join(folder, "w"), board, rate, mapped, 0, children, segment_max)
        finally:
            os._exit(1)
    with contextlib.suppress(PermissionError, ProcessLookupError):
        os.setpgid(pid, pid)
    time.sleep(choice.uniform(0.02, 0.5))
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(held)
    os.read(alive, 1)
    os.close(alive)
    promised = struct.unpack(f"<{SLOTS}q", board[: 8 * SLOTS])
    outcome = count(os.path.join(folder, "w"), promised)
    shutil.rmtree(folder)
    return label, outcome


def count(folder: str, promised: tuple[int, ...]) -> Outcome:
    """Compare what was promised with what is there."""
    out = Outcome(promised=sum(promised))
    seen: Counter[tuple[int, int]] = Counter()
    for writer in os.listdir(folder) if os.path.isdir(folder) else ():
        out.writers += 1
        out.dropped += sum(read_drop_counts(os.path.join(folder, writer)).values())
        with Tail(os.path.join(folder, writer), ids.to_text(RUN)) as tail:
            for chunk in tail.read(dead=True):
                out.lost += sum(last - first + 1 for first, last, _ in chunk.gaps)
                out.torn += sum(d.kind == "torn" for d in chunk.damage)
                out.damaged += sum(d.kind != "torn" for d in chunk.damage)
                for item in chunk.items:
                    if isinstance(item, MetricBatch):
                        seen.update((int(row[-3]), int(row[-2])) for row in item.rows)
                    elif item.body is not None and "n" in item.body:
                        seen[item.body["caller"], item.body["n"]] += 1
    for caller, last in enumerate(promised):
        highest = max((n for c, n in seen if c == caller), default=0)
        if highest > last + 1:
            out.unpromised += highest - last - 1
            print(f"caller {caller}: {last} promised, found up to {highest}; {promised} {out}", file=sys.stderr)
        out.lost += sum((caller, n) not in seen for n in range(1, last + 1))
    out.found, out.repeated = sum(seen.values()), sum(n - 1 for n in seen.values())
    return out


def campaign(kills: int, seed: int, base: str | None = None, *, show: bool = False) -> dict[str, Any]:
    """Kill so many times; return the figures."""
    choice = random.Random(seed)
    folder = tempfile.mkdtemp(prefix="simspool-kills-", dir=base)
    total: dict[str, Counter[str]] = {}
    try:
        for n in range(kills):
            label, outcome = one_kill(choice, folder)
            tally = total.setdefault(label, Counter())
            tally["kills"] += 1
            for name in ("promised", "found", "lost", "repeated", "unpromised", "dropped", "damaged", "torn", "writers"):
                tally[name] += getattr(outcome, name)
            if show and (n + 1) % 20 == 0:
                print(f"{n + 1} kills, {sum(t['lost'] for t in total.values())} lost", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(folder)
    whole: Counter[str] = Counter()
    for tally in total.values():
        whole.update(tally)
    keys = ("kills", "writers", "promised", "found", "lost", "repeated", "unpromised", "dropped", "damaged", "torn")
    return {"seed": seed, **{k: whole[k] for k in keys}, "by": {k: {x: v[x] for x in keys} for k, v in sorted(total.items())}}


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", help="where the spools lie (default: the temporary folder)")
    options = parser.parse_args()
    figures = campaign(options.kills, options.seed, options.folder, show=True)
    print(json.dumps(figures, indent=1))
    return int(figures["lost"] + figures["repeated"] + figures["damaged"] > 0)


if __name__ == "__main__":
    sys.exit(main())
