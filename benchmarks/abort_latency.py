"""How long from a bad value to the callback: the real chain, a script and `agent run`, each in an empty network namespace.

    python benchmarks/abort_latency.py [--n 250] [--mode quiet busy load after]

quiet  the script waits after the bad value
busy   the script computes in Python without a pause
load   as busy, while the agent follows 20 other runs with 20,000 calls a second in all
after  the bad value comes 1 ms after a good one, and then nothing more

A run can be ended once, so the script lets itself be aborted again and again: `abort_on_alert="ignore"` with a callback, and an alert for
each time. Prints a line of JSON a mode: p50, p99 and max in ms, and how many were missed within 10 s. `judged` is the part until the
agent has decided, `heard` the one until the script's listener has recorded the request: [p50, p99] in ms.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from harness import Figure, Plan

from simspool.agent.abort.words import tell
from simspool.spool import RunFolder, open_spool
from simspool.spool.control import requests

MODES = ("quiet", "busy", "load", "after")
_RUNS, _CALLS, _PROCESSES = 20, 20_000, 2

SCRIPT = """
import json, sys, threading, time
from simspool.sdk import Run

mode, n, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
now = lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME)
entered, called = [0], threading.Event()

def callback(run):
    entered[0] = now()
    called.set()

run = Run(abort_callback=callback)
run.init("latency-" + mode)
run.config(abort_on_alert="ignore", disable_resources_metrics=True)
for i in range(n):
    run.create_alert(f"bad {i}", rule="is above", metric=f"bad.{i}", threshold=0, aggregation="at least one", trigger_abort=True)
give_up = time.monotonic() + 20
while not run._recording.is_heard and time.monotonic() < give_up:
    time.sleep(0.05)
time.sleep(3)
found, x = [], 1.0
for i in range(n):
    called.clear()
    run.log_metrics({"good": i})
    pause = time.monotonic() + (0.001 if mode == "after" else 0.05)
    while time.monotonic() < pause:
        if mode not in {"quiet", "after"}:
            x = x * 1.0000001 % 7
        elif mode == "quiet":
            time.sleep(0.01)
    began = now()
    run.log_metrics({f"bad.{i}": 1.0})
    if mode in {"quiet", "after"}:
        called.wait(10)
    else:
        give_up = began + 10_000_000_000
        while not called.is_set() and (x := x * 1.0000001 % 7) >= 0 and now() < give_up:
            pass
    found.append([began, entered[0]] if called.is_set() else None)
    time.sleep(0.02)
json.dump({"run": run.id, "times": found}, open(out, "w"))
run.close()
"""

LOAD = """
import sys, time
from simspool.sdk import Run

runs, rate = int(sys.argv[1]), int(sys.argv[2])
made = []
for i in range(runs):
    run = Run()
    run.init(f"load-{i}")
    run.create_alert("never", rule="is above", metric="loss", threshold=1e9)
    made.append(run)
print("ready", flush=True)
began, calls, step = time.monotonic(), 0, 0
while True:
    for run in made:
        run.log_metrics({"loss": 0.5, "accuracy": 0.25})
    calls += runs
    behind = calls / rate - (time.monotonic() - began)
    if behind > 0:
        time.sleep(behind)
"""


def _alone(*command: str) -> list[str]:
    return ["unshare", "-n", *command] if os.geteuid() == 0 else ["unshare", "-rn", *command]


@contextlib.contextmanager
def agent(folder: str) -> Iterator[dict[str, str]]:
    """Give the environment of scripts whose spool a real agent serves, without a network."""
    runtime = os.path.join(folder, "rt")
    os.makedirs(runtime, mode=0o700)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SIMSPOOL_", "SIMVUE_"))} | {
        "SIMSPOOL_DIR": os.path.join(folder, "spool"), "SIMSPOOL_STATE": os.path.join(folder, "state"), "XDG_RUNTIME_DIR": runtime,
        "HOME": folder, "SIMSPOOL_AGENT": "off",
    }  # fmt: skip
    command = _alone(sys.executable, "-m", "simspool.agent", "run", "--json")
    process = subprocess.Popen(command, env=env, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        while "serving" not in (line := process.stdout.readline()):
            if not line:
                raise RuntimeError("the agent did not start")
        yield env
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


def measure(mode: str, n: int) -> dict[str, object]:
    """Measure one mode."""
    folder = tempfile.mkdtemp(prefix="simspool-latency-")
    loads = []
    try:
        with agent(folder) as env:
            if mode == "load":
                for _ in range(_PROCESSES):
                    load = [sys.executable, "-c", LOAD, str(_RUNS // _PROCESSES), str(_CALLS // _PROCESSES)]
                    loads.append(subprocess.Popen(load, env=env, cwd=folder, stdout=subprocess.PIPE, text=True))
                    assert loads[-1].stdout is not None
                    loads[-1].stdout.readline()
            out = os.path.join(folder, "out.json")
            subprocess.run(_alone(sys.executable, "-c", SCRIPT, mode, str(n), out), env=env, cwd=folder, check=True, timeout=540)
            for process in loads:
                process.kill()
                process.communicate()
            with open(out, encoding="utf-8") as f:
                found = json.load(f)
            judged, heard = _parts(open_spool(env["SIMSPOOL_DIR"]).run(found["run"]), found["times"])
    finally:
        for process in loads:
            process.kill()
        shutil.rmtree(folder)
    times = sorted((pair[1] - pair[0]) / 1e6 for pair in found["times"] if pair is not None)
    missed = len(found["times"]) - len(times)
    return {
        "mode": mode, "n": n, "p50_ms": round(_part(times, 0.5), 2), "p99_ms": round(_part(times, 0.99), 2),
        "max_ms": round(times[-1], 2) if times else None, "missed": missed,
        "judged": [round(_part(judged, p), 2) for p in (0.5, 0.99)], "heard": [round(_part(heard, p), 2) for p in (0.5, 0.99)],
        "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def _parts(run: RunFolder, times: list[list[int] | None]) -> tuple[list[float], list[float]]:
    """Return how long (ms) it took from each bad value to the request, and from there to the script's word, as the records tell."""
    made = {request.alert: request for request in requests(run)}
    words = {w.id: w.boot for writer in run.writer_ids() for w in tell(run, writer).words if w.state == "received"}
    judged, heard = [], []
    for i, pair in enumerate(times):
        request = made.get(f"bad {i}")
        if request is not None and pair is not None and request.id in words:
            judged.append((request.boot - pair[0]) / 1e6)
            heard.append((words[request.id] - request.boot) / 1e6)
    return sorted(judged), sorted(heard)


def _part(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def abort_latency(plan: Plan) -> list[Figure]:
    """Each mode: the median and the 99th percentile."""
    figures, n = [], plan.scale(250, 40)
    for mode in MODES:
        plan.say(f"abort, {mode}")
        found = measure(mode, int(n))
        detail = f"max {found['max_ms']} ms, {found['missed']} missed"
        for key, bar in (("p50", 10.0), ("p99", 100.0)):
            value = float(str(found[f"{key}_ms"]))
            figures.append(Figure(f"bad value to callback, {mode}, {key}", value, "ms", bar, detail=detail, n=str(int(n))))
    return figures


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=250)
    parser.add_argument("--mode", nargs="+", choices=MODES, default=MODES)
    given = parser.parse_args()
    for mode in given.mode:
        print(json.dumps(measure(mode, given.n)), flush=True)


if __name__ == "__main__":
    main()
