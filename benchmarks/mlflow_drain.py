"""How fast a drain to a real MLflow server is, beside a bare loop of full batches to the same server, in turns.

Usage: MLFLOW_PYTHON=... python benchmarks/mlflow_drain.py [--points 100000] [--rounds 3] [--runs 200] [--json]

Each round makes one run by a loop of `log-batch` requests of 1000 points over one connection, and one by an agent's drain of a spool with
as many points; then so many small runs (20 points, 2 events, closed) by the drain, beside a loop of their four requests one after another.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tests/targets")]
os.environ.setdefault("SIMSPOOL_AGENT", "off")

from mlflow_bench import MLflowServer  # noqa: E402
from recorded import begin  # noqa: E402

from simspool.agent.app import Agent, AgentConfig  # noqa: E402
from simspool.agent.targets.build import make_target  # noqa: E402
from simspool.agent.targets.settings import TargetSettings  # noqa: E402
from simspool.spool import Kind, Spool, open_spool  # noqa: E402

API = "/api/2.0/mlflow"


class Bare:
    """The plainest client: one connection, requests one after another."""

    def __init__(self, server: MLflowServer) -> None:
        self._line = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)

    def call(self, path: str, value: Any) -> Any:
        self._line.request("POST", API + path, json.dumps(value), {"Content-Type": "application/json"})
        answer = self._line.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{path}: {answer.status} {data[:300]!r}")
        return json.loads(data)

    def run(self, name: str) -> str:
        made = self.call("/runs/create", {"experiment_id": "0", "start_time": int(time.time() * 1000), "run_name": name})
        return str(made["run"]["info"]["run_id"])

    def points(self, points: int) -> float:
        self._line.close()  # the server ends a connection that is idle for some seconds
        run = self.run("bare")
        began, at = time.perf_counter(), int(time.time() * 1000)
        for start in range(0, points, 1000):
            rows = [{"key": "loss", "value": s / 2, "timestamp": at + s, "step": s} for s in range(start, min(points, start + 1000))]
            self.call("/runs/log-batch", {"run_id": run, "metrics": rows})
        return time.perf_counter() - began

    def small(self, runs: int) -> float:
        self._line.close()
        began = time.perf_counter()
        for n in range(runs):
            self.call("/runs/search", {"experiment_ids": ["0"], "filter": f"tags.`k` = 'bare {n}'", "max_results": 1})
            run, at = self.run(f"small {n}"), int(time.time() * 1000)
            rows = [{"key": "loss", "value": s / 2, "timestamp": at + s, "step": s} for s in range(20)]
            self.call("/runs/log-batch", {"run_id": run, "metrics": rows, "tags": [{"key": "k", "value": f"bare {n}"}]})
            self.call("/runs/update", {"run_id": run, "status": "FINISHED", "end_time": at})
        return time.perf_counter() - began


def drained(spool: Spool, server: MLflowServer) -> float:
    """Sync a spool; return how long it took from when everything was ingested."""
    settings = TargetSettings("ml", "mlflow", server.url, options={"experiment": "drain"})

    async def once() -> float:
        async with Agent(AgentConfig(spool, settings.address), target=make_target(settings)) as agent:
            began = time.perf_counter()
            report = await agent.sync(timeout=3600)
            took = time.perf_counter() - began
            if report.state != "done" or report.refused:
                raise SystemExit(f"the drain ended as {report.state}: {report.problems}")
            return took

    return asyncio.run(once())


def record(spool: Spool, name: str, points: int, events: int) -> str:
    """Record a run whose points are 1 ms apart, as those of the bare loop are."""
    run, writer = begin(spool, name)
    at = int(time.time() * 1e6)
    for step in range(points):
        if not writer.metrics({"loss": step / 2}, step=step, timestamp=at + 1000 * step):
            raise SystemExit("a point was dropped")
    for n in range(events):
        writer.record(Kind.EVENT, {"message": f"event {n}"})
    writer.close({"status": "completed"})
    return run


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SIMSPOOL_STATE"] = f"{folder}/state"
        server = MLflowServer(Path(folder) / "server")
        bare, figures = Bare(server), {"bare": [], "drain": [], "bare small runs": [], "drain small runs": []}  # type: ignore[var-annotated]
        for number in range(options.rounds):
            spool = open_spool(f"{folder}/spool{number}", create=True)
            run = record(spool, "one", options.points, 0)
            turns = [("bare", lambda: bare.points(options.points)), ("drain", lambda: drained(spool, server))]  # noqa: B023
            for name, measure in turns if number % 2 == 0 else reversed(turns):  # the database grows: nobody always comes second
                figures[name].append(options.points / measure())
            there = len(server.points(server.run(run), "loss"))
            if there != options.points:
                raise SystemExit(f"MLflow has {there} of {options.points} points")
            print(f"round {number + 1}: bare {figures['bare'][-1]:,.0f}, drain {figures['drain'][-1]:,.0f} points/s", file=sys.stderr)
            if options.runs:
                figures["bare small runs"].append(options.runs / bare.small(options.runs))
                spool = open_spool(f"{folder}/small{number}", create=True)
                for n in range(options.runs):
                    record(spool, f"small {n}", 20, 2)
                figures["drain small runs"].append(options.runs / drained(spool, server))
                print(f"  runs/s: bare {figures['bare small runs'][-1]:.1f}, drain {figures['drain small runs'][-1]:.1f}", file=sys.stderr)
        server.close()
    medians = {name: statistics.median(values) for name, values in figures.items() if values}
    medians["ratio"] = statistics.median(d / b for d, b in zip(figures["drain"], figures["bare"], strict=True))
    print(json.dumps(medians) if options.json else "\n".join(f"{name}: {value:,.2f}" for name, value in medians.items()))


if __name__ == "__main__":
    main()
