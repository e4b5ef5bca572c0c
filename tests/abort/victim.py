"""A process that records a run and behaves as it is told: the ladder's counterpart, without the SDK's help.

Says one line of JSON: run, writer, pid, children. Options (JSON, first argument): spool, mode, behaviour, children, foreign, run.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

from simspool.spool import Kind, Origin, Writer, ids, open_spool
from simspool.spool.control import requests
from simspool.spool.process import start_ticks, this_host


def main(options: dict[str, Any]) -> None:
    spool = open_spool(options["spool"], create=True)
    run = options.get("run") or ids.to_text(ids.new_id())
    folder = spool.run(run)
    behaviour = options["behaviour"]
    if behaviour in {"stubborn", "hung-stubborn"}:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ignores = "signal.signal(15, signal.SIG_IGN)" if "stubborn" in behaviour else ""
    child = f"import signal, time\n{ignores}\nprint(1, flush=True)\ntime.sleep(600)"
    children = [subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE) for _ in range(options.get("children", 0))]
    for process in children:
        process.stdout.readline()
    os.makedirs(folder.writers, exist_ok=True)
    writer = Writer(folder.writers, ids.from_text(run), origin=Origin.now())
    if options.get("run"):
        writer.record(Kind.ATTACH, {"reason": "attach"})
    else:
        writer.record(Kind.RUN, {"name": "victim", "status": "running", "folder": "/", "metadata": {}, "tags": []})
    if "mode" in options:
        writer.record(Kind.CONFIG, {"set": {"abort_on_alert": options["mode"]}})
    if "foreign" in options:
        pid, host = options["foreign"], this_host()
        body = {"pid": pid, "start_ticks": start_ticks(pid)[0], "boot_id": host.boot_id.hex(), "host": host.name}
        writer.record(Kind.PROCESS_START, {**body, "pid_namespace": host.pid_namespace, "foreign": True})
    told = {"run": run, "writer": writer.id_text, "pid": os.getpid(), "children": [c.pid for c in children]}
    print(json.dumps(told), flush=True)
    if behaviour.startswith("hung"):
        ctypes.PyDLL("libc.so.6").sleep(600)  # holds the interpreter's lock
    if behaviour in {"silent", "stubborn"}:
        time.sleep(600)
    while not (found := requests(folder)):
        time.sleep(0.02)
    body = {"id": found[0].id, "mode": options.get("mode", "terminate"), "by": found[0].by, "reason": found[0].reason}
    if behaviour == "closes":  # ended before it heard
        writer.close({"status": "completed"})
        time.sleep(600)
    if behaviour == "ignores":
        writer.record(Kind.ABORT, {**body, "state": "ignored"})
        time.sleep(600)
    writer.record(Kind.ABORT, {**body, "state": "received", **({"graces": options["graces"]} if "graces" in options else {})})
    if behaviour == "callback-hangs":
        time.sleep(600)
    if behaviour == "dies-in-callback":
        time.sleep(options.get("callback", 0.5))
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(options.get("callback", 0.1))
    writer.record(Kind.ABORT, {**body, "state": "done"})
    writer.record(Kind.STATUS, {"status": "terminated", "reason": found[0].reason})
    writer.close({"status": "terminated"})
    if behaviour == "answers":
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(600)  # behaviour "stays": SIGTERM did not come, or the run alone has ended


main(json.loads(sys.argv[1]))
