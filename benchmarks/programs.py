"""Programs that are not ours: what `agent exec` costs them, and how fast text and inbox lines become records."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from harness import AGENT, Figure, Plan, environment, median, python, scratch

_SCAN = """
import json, re, sys, time
from simspool.agent.lines.patterns import Patterns
lines = int(sys.argv[1])
text = "".join(
    f"step {i} residual = {1 / (i + 1):.6e} dt = 1.0e-3\\n" if i % 1000 == 0 else f"{i:>10} " + "lorem ipsum of a solver " * 4 + "\\n"
    for i in range(lines)
).encode()
expression = r"step (?P<step>\\d+) residual = (?P<residual>\\S+)"
one = re.compile(expression.encode())
began = time.perf_counter()
plain = sum(one.search(line) is not None for line in text.splitlines())
by_line = time.perf_counter() - began
patterns = Patterns([expression], [])
began = time.perf_counter()
found = sum(1 for at in range(0, len(text), 1 << 18) for _ in patterns.scan(text[at : at + (1 << 18)]))
ours = time.perf_counter() - began
print(json.dumps({"size": len(text), "plain": by_line, "ours": ours, "found": [plain, found]}))
"""
_INBOX = """
import json, os, sys, time
from simspool.agent.inbox.inboxes import Inboxes
from simspool.sdk import Run
from simspool.spool import open_spool
count = int(sys.argv[1])
run = Run(mode="offline")
run.init("inbox")
spool = open_spool(os.environ["SIMSPOOL_DIR"])
folder = spool.run(run.id).inbox
os.makedirs(folder, exist_ok=True)
lines = [json.dumps({"metrics": {"peak": 1.0 / (i + 1), "centre": i * 0.5}, "step": i}) for i in range(count)]
with open(os.path.join(folder, "program.jsonl"), "w") as f:
    f.write("".join(line + "\\n" for line in lines))
began = time.process_time()
for line in lines:
    json.loads(line)
parsed = time.process_time() - began
inboxes = Inboxes(spool, lambda: {run.id}, lambda _: None, print)
began = time.process_time()
copied = inboxes.copy_all()
took = time.process_time() - began
inboxes.stop()
run.close()
print(json.dumps({"copied": copied, "parsed": parsed, "took": took}))
"""


def programs(plan: Plan) -> list[Figure]:
    """See the module."""
    with scratch(plan, "programs") as folder:
        return [*_started(plan, folder), _passed_on(plan, folder), _scanned(plan, folder), _copied(plan, folder)]


def _seconds(command: list[str], folder: Path, out: int = subprocess.DEVNULL) -> float:
    began = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment(folder), stdout=out, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def _started(plan: Plan, folder: Path) -> list[Figure]:
    bare, ours = [], []
    for _ in range(plan.scale(15, 3)):
        bare.append(_seconds([sys.executable, "-c", ""], folder))
        ours.append(_seconds([*AGENT, "exec", "--", "true"], folder))
    name, reference = "`agent exec -- true`, start to end", f"bare Python: {median(bare) * 1e3:.0f} ms"
    return [Figure(name, median(ours) * 1e3, "ms", 400, reference=reference, n=f"{len(ours)} processes in turns")]


def _passed_on(plan: Plan, folder: Path) -> Figure:
    size = plan.scale(1 << 30, 64 << 20)
    produce = ["head", "-c", str(size), "/dev/zero"]
    bare = min(_seconds(["sh", "-c", f"{' '.join(produce)} | cat"], folder) for _ in range(3))
    ours = min(_seconds([*AGENT, "exec", "--", *produce], folder) for _ in range(3))
    return Figure(
        "stdout through `agent exec`, speed", size / ours / 1e6, "MB/s", reference=f"through cat: {size / bare / 1e6:,.0f} MB/s",
        detail=f"{ours:.2f} s with start and end; the first and last 8 MiB are kept", n=f"best of 3 of {size >> 20} MiB",
    )  # fmt: skip


def _scanned(plan: Plan, folder: Path) -> Figure:
    told = python(_SCAN, folder, plan.scale(1_000_000, 50_000))
    assert told["found"][0] == told["found"][1], told
    speed, plain = told["size"] / told["ours"], told["size"] / told["plain"]
    return Figure(
        "metrics in text, 1 line in 1,000 matches", speed / 1e6, "MB/s", 200, lower=False,
        reference=f"Python's re, line by line: {plain / 1e6:,.0f} MB/s", n=f"{told['size'] >> 20} MiB",
    )  # fmt: skip


def _copied(plan: Plan, folder: Path) -> Figure:
    told = python(_INBOX, folder, plan.scale(200_000, 20_000))
    assert told["copied"] >= plan.scale(200_000, 20_000), json.dumps(told)
    return Figure(
        "inbox lines to records, processor", told["took"] / told["copied"] * 1e6, "us a line", 25,
        reference=f"json.loads alone: {told['parsed'] / told['copied'] * 1e6:.1f} us", n=f"{told['copied']:,} lines of two metrics",
    )  # fmt: skip
