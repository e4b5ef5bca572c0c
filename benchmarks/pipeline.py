"""What the agent and the server do: ingest, drain, an idle agent, many runs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from harness import AGENT, Figure, Plan, agent, environment, median, python, scratch, server

_POINTS = """
import json, sys, time
from simspool.sdk import Run
runs, calls = int(sys.argv[1]), int(sys.argv[2])
a = time.perf_counter()
for number in range(runs):
    with Run(mode="offline") as run:
        run.init(f"run-{number:05d}", tags=["benchmark"], folder="/benchmark")
        log = run.log_metrics
        for step in range(calls):
            log({"loss": 1.0 / (step + 1), "accuracy": step * 1e-6}, step=step)
        if len(sys.argv) > 3:
            open("out.txt", "w").write(f"result of run {number}\\n" * 200)
            run.save_file("out.txt", category="output")
print(json.dumps(time.perf_counter() - a))
"""

_INGEST = """
import json, os, resource, sys, time
from simspool.agent.catalog import Catalog
from simspool.agent.catalog.store import catalog_path
from simspool.agent.ingest import Ingest
from simspool.spool import open_spool
spool = open_spool(os.environ["SIMSPOOL_DIR"])
catalog = Catalog(catalog_path(spool))
ingest = Ingest(spool, catalog)
a, cpu = time.perf_counter(), time.process_time()
ingest.scan()
records = 0
more = True
while more:
    progress = ingest.read()
    records, more = records + progress.records, progress.more
assert records >= int(sys.argv[1]), records
print(json.dumps({"seconds": time.perf_counter() - a, "cpu": time.process_time() - cpu, "records": records}))
"""


def ingest(plan: Plan) -> list[Figure]:
    """Points that the agent takes into its catalog, in one process on one core."""
    calls = plan.scale(1_000_000, 200_000)
    with scratch(plan, "ingest") as folder:
        python(_POINTS, folder, 1, calls)
        r = python(_INGEST, folder, calls)
    rate = 2 * calls / r["seconds"]
    return [
        Figure("ingest", rate / 1e6, "M points/s", 1.0, lower=False, n=f"{2 * calls:,} points, one run",
               reference="", detail=f"{r['seconds']:.2f} s, {r['cpu']:.2f} s of processor time"),
    ]  # fmt: skip


def drain(plan: Plan) -> list[Figure]:
    """`agent sync` of one long run to the embedded server, each in a process of its own, until the last receipt.

    What a sync of nothing takes is subtracted: the start of a Python with aiohttp, whatever there is to drain.
    """
    calls = plan.scale(1_000_000, 200_000)
    points = 2 * calls
    with scratch(plan, "drain") as folder, server(folder) as to:
        nothing = {"SIMSPOOL_DIR": str(_empty_spool(folder))}
        start = min(agent(folder, "sync", "--json", **to | nothing).seconds for _ in range(3))
        fresh = {"SIMSPOOL_DIR": str(folder / "fresh")}
        python(_POINTS, folder, 1, calls, **fresh)
        whole = agent(folder, "sync", "--json", **to | fresh).seconds - start
        python(_POINTS, folder, 1, calls)
        agent(folder, "status", "--json")  # takes everything into the catalog, sends nothing
        process = psutil.Process(int(to["server_pid"]))
        before = sum(process.cpu_times()[:2])
        sent = agent(folder, "sync", "--json", **to)
        used = sum(process.cpu_times()[:2]) - before
        again = agent(folder, "sync", "--json", **to).last
        counted = _server_points(to)
    seconds = sent.seconds - start
    detail = f"{seconds:.2f} s, of which the server computes {used:.2f} s; {sent.last['sent_bytes'] / points:.1f} B of frames a point"
    n, counts = f"{points:,} points, one run", f"the server counts {counted:,} of {2 * points:,} points"
    return [
        Figure("drain to the embedded server", points / seconds / 1e3, "k points/s", 500, lower=False, detail=detail, n=n),
        Figure("ingest and drain, from a spool never seen", points / whole / 1e3, "k points/s", detail=f"{whole:.2f} s", n=n),
        Figure("points missing or doubled on the server", abs(counted - 2 * points), "points", 0, detail=counts),
        Figure("a second sync sends", again["sent_bytes"] + again["sent_file_bytes"], "B", 0),
    ]


def _empty_spool(folder: Path) -> Path:
    python("from simspool.spool import open_spool; open_spool('empty', create=True); print(0)", folder)
    return folder / "empty"


def _get(to: dict[str, str], path: str) -> Any:
    request = urllib.request.Request(to["SIMSPOOL_URL"] + path, headers={"Authorization": f"Bearer {to['SIMSPOOL_TOKEN']}"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def _server_points(to: dict[str, str]) -> int:
    """Count, on the server, the points of all metrics of all runs."""
    total, start = 0, 0
    while True:
        page = _get(to, f"/api/runs?start={start}&count=500&return_metrics=true")["data"]
        for run in page:
            names = _get(to, f"/api/metrics/names?runs=%5B%22{run['id']}%22%5D")
            for name in names:
                values = _get(to, f"/api/metrics?runs=%5B%22{run['id']}%22%5D&metrics=%5B%22{name}%22%5D&xaxis=step")
                total += sum(len(series) for series in values[run["id"]].values())
        start += len(page)
        if len(page) < 500:
            return total


@contextlib.contextmanager
def _daemon(folder: Path, to: dict[str, str]) -> Iterator[psutil.Process]:
    with (folder / "agent.log").open("wb") as log:
        process = subprocess.Popen([*AGENT, "run"], cwd=folder, env=environment(folder, **to), stdout=log, stderr=log)
        try:
            yield psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def idle(plan: Plan) -> list[Figure]:
    """An agent with everything sent and nothing to do."""
    seconds = plan.scale(60, 15)
    with scratch(plan, "idle") as folder:
        python(_POINTS, folder, 20, 1000)
        with server(folder) as to, _daemon(folder, to) as process:
            time.sleep(15)
            family = [process, *process.children(recursive=True)]
            cpu = sum(sum(p.cpu_times()[:2]) for p in family)
            time.sleep(seconds)
            used = sum(sum(p.cpu_times()[:2]) for p in family) - cpu
            memory = sum(p.memory_info().rss for p in family)
    return [
        Figure("idle agent, processor", 100 * used / seconds, "% of a core", 1.0, n=f"{seconds} s, 20 closed runs, server there"),
        Figure("idle agent, memory", memory / 1e6, "MB", 60, detail=f"{len(family)} process(es)"),
    ]


def many_runs(plan: Plan) -> list[Figure]:
    """Many closed runs in one spool: what status and a sync with nothing to do cost."""
    runs, few = plan.scale(10_000, 1_000), 100
    with scratch(plan, "many") as folder, server(folder) as to:
        spool = {"SIMSPOOL_DIR": str(folder / "few")}
        python(_POINTS, folder, few, 3, **spool)
        agent(folder, "sync", "--json", **to | spool)
        small = agent(folder, "sync", "--json", **to | spool)
        plan.say(f"  recording {runs:,} runs")
        recorded = python(_POINTS, folder, runs, 3)
        first = agent(folder, "sync", "--json", **to)
        status = [agent(folder, "status", "--json", **to) for _ in range(5)]
        sync = [agent(folder, "sync", "--json", **to) for _ in range(5)]
        listed = agent(folder, "ls", "--json", **to)
    peak, before = max(s.peak for s in sync), small.peak
    beside, now = f"100 runs: {before / 1e6:.0f} MB", f"{peak / 1e6:.0f} MB"
    pace = f"{runs / first.seconds:,.0f} runs/s, peak {first.peak / 1e6:.0f} MB"
    return [
        Figure(f"`agent status`, {runs:,} closed runs", median([s.seconds for s in status]), "s", 1.0, n="5 times"),
        Figure(f"`agent sync` with nothing to do, {runs:,} closed runs", median([s.seconds for s in sync]), "s", 2.0, n="5 times"),
        Figure("its peak memory, over a spool of 100 runs", peak / before, "x", 1.5, reference=beside, detail=now),
        Figure(f"recording {runs:,} runs, a run", 1000 * recorded / runs, "ms", detail="init, 3 calls, close; every file durable"),
        Figure(f"first sync of {runs:,} runs", first.seconds, "s", detail=pace),
        Figure(f"`agent ls`, {runs:,} runs", listed.seconds, "s", detail=f"{len(listed.out.splitlines()):,} lines"),
    ]


def thousand_runs(plan: Plan) -> list[Figure]:
    """Many runs with points and a file each, sent in one go, counted on the server."""
    runs, calls = plan.scale(1_000, 100), 500
    with scratch(plan, "thousand") as folder:
        plan.say(f"  recording {runs:,} runs")
        python(_POINTS, folder, runs, calls, "files")
        with server(folder) as to:
            whole = agent(folder, "sync", "--json", **to)
            counted = _server_points(to)
    points = 2 * runs * calls
    detail = (
        f"{points / whole.seconds / 1e3:,.0f} k points/s, {runs / whole.seconds:,.0f} files/s, peak {whole.peak / 1e6:.0f} MB; "
        f"the server counts {counted:,} of {points:,} points"
    )
    missing = abs(points - counted)
    return [
        Figure(f"sync of {runs:,} runs of 1,000 points and one file each", whole.seconds, "s", detail=detail),
        Figure("points missing or doubled on the server", missing, "points", 0),
    ]


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))
