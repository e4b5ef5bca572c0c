"""One measurement of one tool, in a process of its own inside the tool's environment; the last line of its output is JSON.

    measure.py TOOL import | calls N SECONDS | victim RATE COUNTER | found ACKNOWLEDGED | save PATH TIMES | record CALLS [FOLDER OF FILES]
"""

from __future__ import annotations

import json
import mmap
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from tools import TOOLS, made, memory


def import_(name: str) -> dict[str, Any]:
    """Time the one import that a user writes, and what memory it takes."""
    before, statement = memory("VmRSS"), TOOLS[name].statement
    a = time.perf_counter()
    exec(statement, {})
    return {"seconds": time.perf_counter() - a, "memory": memory("VmRSS") - before, "rss": memory("VmRSS")}


def values(step: int) -> dict[str, float]:
    """Return the two metrics of a step."""
    return {"loss": 1.0 / step, "accuracy": 0.5 + step * 1e-9}


def calls(name: str, most: str, seconds: str) -> dict[str, Any]:
    """Time each call, and beside it, in turns of 200, `json.dumps` and `os.write` of the same; then a loop flat out and the close."""
    clock, tool = time.perf_counter_ns, made(name)
    log, limit = tool.open(), min(int(most), tool.most)
    fd = os.open("../reference.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def reference(metrics: dict[str, float], step: int) -> None:
        record = {"seq": step, "time": time.monotonic(), "step": step, "values": metrics}
        os.write(fd, (json.dumps(record) + "\n").encode())

    def nothing(metrics: dict[str, float], step: int) -> None:
        pass

    took: dict[str, list[int]] = {"nothing": [], "reference": [], "log": []}
    variants = [("nothing", nothing), ("reference", reference), ("log", log)]
    step, end = 0, time.monotonic() + float(seconds)
    log(values(1), 0)  # what is made once is not a call's cost
    while len(took["log"]) < limit and time.monotonic() < end:
        for variant, call in variants:
            times = took[variant]
            for number in range(step + 1, step + 201):
                metrics = values(number)
                a = clock()
                call(metrics, number)
                times.append(clock() - a)
        step += 200
    os.close(fd)
    timed = len(took["log"])
    a, end, number = time.perf_counter(), time.monotonic() + float(seconds), step
    while number < step + limit and (number % 64 or time.monotonic() < end):
        number += 1
        log(values(number), number)
    b = time.perf_counter()
    tool.close()
    c = time.perf_counter()
    zero = statistics.median(took["nothing"])
    median = {variant: statistics.median(times) - zero for variant, times in took.items()}
    return {
        "median_us": median["log"] / 1e3,
        "p99_us": (sorted(took["log"])[int(len(took["log"]) * 0.99)] - zero) / 1e3,
        "reference_us": median["reference"] / 1e3,
        "ratio": median["log"] / median["reference"],
        "timed": timed,
        "flat_out": number - step,
        "loop_s": b - a,
        "close_s": c - b,
        "per_s": (number - step) / (c - a),
        "total": number + 1,
        "rss": memory("VmHWM"),
    }


def victim(name: str, rate: str, counter: str) -> dict[str, Any]:
    """Log for ever, and raise a counter in a file's mapping whenever a call has come back without saying no."""
    tool, pause = made(name), float(rate) and 1 / float(rate)
    log = tool.open()
    with open(counter, "r+b") as file:
        board = memoryview(mmap.mmap(file.fileno(), 8)).cast("q")
    step, due = 0, time.monotonic()
    while True:
        step += 1
        if log(values(step), step) is False:
            raise RuntimeError(f"call {step} was refused")
        board[0] = step
        if pause:
            due += pause
            time.sleep(max(0.0, due - time.monotonic()))


def found(name: str, acknowledged: str) -> dict[str, Any]:
    """Count which of the acknowledged steps can be read back."""
    last, total, seen = int(acknowledged), 0, set()
    for step in made(name).steps():
        total += 1
        seen.add(step)
    kept = sum(1 for step in seen if 1 <= step <= last)
    return {"found": kept, "repeated": total - len(seen)}


def save(name: str, path: str, times: str) -> dict[str, Any]:
    """Save a file once or more, under as many names."""
    tool, took = made(name), []
    tool.open()({"loss": 1.0, "accuracy": 0.5}, 1)
    for number in range(int(times)):
        a = time.perf_counter()
        tool.save(Path(path), f"copy{number}")
        took.append(time.perf_counter() - a)
    a = time.perf_counter()
    tool.close()
    return {"seconds": took, "close": time.perf_counter() - a}


def record(name: str, count: str, folder: str = "") -> dict[str, Any]:
    """Record a run of so many calls, and the files of a folder."""
    tool = made(name)
    log = tool.open()
    for step in range(1, int(count) + 1):
        if log(values(step), step) is False:
            raise RuntimeError(f"call {step} was refused")
    for path in sorted(Path(folder).iterdir()) if folder else ():
        tool.save(path, path.name)
    tool.close()
    return {"calls": int(count)}


if __name__ == "__main__":
    what = {"import": import_, "calls": calls, "victim": victim, "found": found, "save": save, "record": record}[sys.argv[2]]
    print(json.dumps(what(sys.argv[1], *sys.argv[3:])), flush=True)
