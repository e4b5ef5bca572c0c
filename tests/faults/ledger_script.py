"""A user's script that keeps a ledger: what each SDK call said, in a file outside the spool (argv: ledger, options as JSON).

Every line is one write(2): a kill loses none, and a fault of the spool's disk touches none. `try metrics 7` is written before the call
and `yes metrics 7` or `no metrics 7` after it; the first line is `run <id>`, the last of a script that came to its end `end`.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

from simspool.sdk import Run


class Ledger:
    """Lines in a file, appended whole."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def say(self, text: str) -> None:
        """Append a line."""
        os.write(self._fd, text.encode() + b"\n")


def record(run: Run, ledger: Ledger, options: dict[str, Any], start: int) -> None:
    """Make the calls that the options ask for, numbered from `start`."""
    rate, pad = float(options.get("rate", 0)), "x" * int(options.get("pad", 0))
    for n in range(start, start + int(options.get("calls", 100))):
        kind = "event" if n % 10 == 9 else "metrics"
        ledger.say(f"try {kind} {n}")
        kept = run.log_event(f"{n} {pad}") if kind == "event" else run.log_metrics({"n": n, "x": n * 0.5}, step=n)
        ledger.say(f"{'yes' if kept else 'no'} {kind} {n}")
        if rate:
            time.sleep(1 / rate)


def save(run: Run, ledger: Ledger, count: int, size: int) -> None:
    """Save some files of this size, with different contents."""
    for n in range(count):
        ledger.say(f"try file {n}")
        path = f"{sys.argv[1]}.{os.getpid()}.{n}.bin"
        with open(path, "wb") as f:
            f.write(os.urandom(size))
        kept = run.save_file(path, "output", name=f"{os.getpid()}-{n}.bin")
        ledger.say(f"{'yes' if kept else 'no'} file {os.getpid()}-{n}.bin")


def main() -> None:
    """Record."""
    options = json.loads(sys.argv[2])
    ledger = Ledger(sys.argv[1])
    with Run(mode="offline") as run:
        kept = run.init(options.get("name", "faults"))
        ledger.say(f"run {run.id if kept else '-'}")
        if options.get("rule"):
            run.create_metric_threshold_alert(
                name="never", metric="x", threshold=1e12, rule="is above", window=1, frequency=1, trigger_abort=True
            )
        save(run, ledger, int(options.get("files", 0)), int(options.get("size", 5000)))
        calls, threads = int(options.get("calls", 100)), int(options.get("threads", 1))
        others = [threading.Thread(target=record, args=(run, ledger, options, (k + 1) * calls)) for k in range(threads - 1)]
        for thread in others:
            thread.start()
        children = []
        for k in range(int(options.get("forks", 0))):
            pid = os.fork()
            if pid == 0:
                record(run, ledger, options, (threads + k) * calls)
                os._exit(0)
            children.append(pid)
        record(run, ledger, options, 0)
        for thread in others:
            thread.join()
        for pid in children:
            os.waitpid(pid, 0)
        time.sleep(float(options.get("linger", 0)))
    ledger.say("end")


if __name__ == "__main__":
    main()
