"""The watch under load: R rules on N runs at so many points a second, live, beside the ingest of the same agent.

    python benchmarks/rules.py [--runs 100] [--rules 1000] [--points 100000] [--seconds 20]

Prints the agent's CPU time, and how far behind the moment of a bad value its decision was recorded (ms). The bad values of all runs
come within a few milliseconds. The agent is kept on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time

from harness import Figure, Plan

_PRODUCER = """
import sys, time
from simspool.sdk import Run
runs, rules, metrics, rate, seconds = (int(x) for x in sys.argv[1:])
names = [f"m{i}" for i in range(metrics)]
good = dict.fromkeys(names, 1.0)
opened = []
for number in range(runs):
    run = Run()
    run.init(f"run {number}")
    run.config(disable_resources_metrics=True)
    for rule in range(rules):
        run.create_alert(f"a{rule}", rule="is above", metric=names[rule % metrics], threshold=2.0, window=5)
    opened.append(run)
time.sleep(3)
calls, began = 0, time.monotonic()
while (now := time.monotonic() - began) < seconds:
    due = int(now * rate)
    while calls < due:
        bad = calls // runs % (rate // runs * 2) == rate // runs  # every two seconds, each run in its turn
        opened[calls % runs].log_metrics({**good, "m0": 1e6} if bad else good)
        calls += 1
    time.sleep(0.001)
print(calls)
for run in opened:
    run.close()
"""


def _cpu(pid: int) -> float:
    """Return the CPU seconds that a process has used."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
        fields = f.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(runs: int, rules: int, points: int, seconds: int) -> dict[str, float]:
    """Run it once; returns points a second, decisions, the agent's CPU (% of a core) and the lags (ms)."""
    per_run = rules // runs
    with tempfile.TemporaryDirectory(prefix="simspool-rules-") as folder:
        environment = {**os.environ, "SIMSPOOL_DIR": f"{folder}/spool", "XDG_STATE_HOME": f"{folder}/state", "SIMSPOOL_AGENT": "off"}
        for name in ("SIMSPOOL_URL", "SIMSPOOL_TOKEN"):
            environment.pop(name, None)
        command = ["taskset", "-c", str(max(os.sched_getaffinity(0))), sys.executable, "-m", "simspool.agent", "run"]
        agent = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        try:
            time.sleep(2)
            arguments = [runs, per_run, per_run, points // per_run, seconds]
            producer = subprocess.Popen(
                [sys.executable, "-c", _PRODUCER, *map(str, arguments)], env=environment, stdout=subprocess.PIPE, text=True
            )
            time.sleep(4)
            before, began = _cpu(agent.pid), time.monotonic()
            time.sleep(seconds - 2)
            cpu = (_cpu(agent.pid) - before) / (time.monotonic() - began) * 100
            said = producer.communicate()[0]
            time.sleep(1)
        finally:
            agent.terminate()
            agent.wait()
        lags = sorted(_lags(f"{folder}/spool")) or [math.inf]
    return {
        "points_per_second": int(said) * per_run / seconds, "decisions": len(lags), "cpu_percent": cpu,
        "lag_p50_ms": lags[len(lags) // 2], "lag_max_ms": lags[-1],
    }  # fmt: skip


def rules(plan: Plan) -> list[Figure]:
    """1,000 rules on 100 runs at 100,000 points a second, on one core."""
    plan.say("1,000 rules on 100 runs")
    found = measure(100, 1000, 100_000, int(plan.scale(20, 6)))
    lag = f"decisions recorded {found['lag_p50_ms']:.0f} ms (p50), {found['lag_max_ms']:.0f} ms (max) after"
    detail = f"{found['points_per_second']:,.0f} points/s; {lag}"
    return [Figure("agent with 1,000 rules on 100 runs at 100 k points/s", found["cpu_percent"], "% of a core", 100.0, detail=detail)]


def main() -> None:
    """Run the benchmark, and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--rules", type=int, default=1000)
    parser.add_argument("--points", type=int, default=100_000, help="a second")
    parser.add_argument("--seconds", type=int, default=20)
    options = parser.parse_args()
    print(json.dumps(measure(options.runs, options.rules, options.points, options.seconds), indent=1))


def _lags(folder: str) -> list[float]:
    """Return, of every decision that a record made, how long after that record's moment it was recorded (ms)."""
    from simspool.spool import Kind, Tail, open_spool
    from simspool.spool.frames import Record

    spool, found = open_spool(folder), []
    for run in map(spool.run, spool.run_ids()):
        for writer in run.writer_ids():
            with Tail(run.writer(writer), run.id) as tail:
                for chunk in tail.read():
                    for item in chunk.items:
                        body = item.body if isinstance(item, Record) and item.kind == Kind.DECISION else None
                        if body and "at" in body:
                            found += [(item.boot_ns - chunk.header.origin_boot) / 1e6 - body["at"] * 1e3]
    return found


if __name__ == "__main__":
    main()
