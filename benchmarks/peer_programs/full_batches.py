"""A bare loop that sends full batches, prepared before, to a server; what no drain to that server can beat by much.

    full_batches.py dialect CALLS     to $SIMSPOOL_URL, in Simvue's dialect, 16,000 calls a request as its client sends them
    full_batches.py mlflow CALLS      to $MLFLOW_TRACKING_URI, 1,000 metrics a log_batch, as many as it takes
    full_batches.py mlflow-files FOLDER   the files of a folder, log_artifact after log_artifact
    full_batches.py mlflow-counted 0  how many points and files the server has, in all experiments
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import values


def dialect(count: int) -> dict[str, Any]:
    """One connection, one request after the other."""
    import msgpack

    where = urllib.parse.urlsplit(os.environ["SIMSPOOL_URL"])
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=120)
    signed = {"Authorization": f"Bearer {os.environ['SIMSPOOL_TOKEN']}"}

    def post(path: str, body: bytes, kind: str) -> Any:
        connection.request("POST", f"/api/{path}", body, signed | {"Content-Type": f"application/{kind}"})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"POST /api/{path}: {answer.status} {text[:200]!r}")
        return json.loads(text)

    run = post("runs", json.dumps({"name": "bare loop", "folder": "/", "status": "running"}).encode(), "json")["id"]
    stamp, bodies = "2026-01-01T00:00:00.000000", []
    for first in range(1, count + 1, 16_000):
        steps = range(first, min(first + 16_000, count + 1))
        points = [{"time": step * 1e-4, "timestamp": stamp, "step": step, "values": values(step)} for step in steps]
        bodies.append(msgpack.packb({"run": run, "metrics": points}))
    a = time.perf_counter()
    for body in bodies:
        post("metrics", body, "msgpack")
    return {"points": 2 * count, "seconds": time.perf_counter() - a, "requests": len(bodies)}


def mlflow(count: int) -> dict[str, Any]:
    """`MlflowClient.log_batch` after `log_batch`."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient()
    run = client.create_run("0").info.run_id
    batches = []
    for first in range(1, count + 1, 500):
        steps = range(first, min(first + 500, count + 1))
        batches.append([Metric(name, value, 1_700_000_000_000 + step, step) for step in steps for name, value in values(step).items()])
    a = time.perf_counter()
    for batch in batches:
        client.log_batch(run, metrics=batch)
    return {"points": 2 * count, "seconds": time.perf_counter() - a, "requests": len(batches)}


def mlflow_files(folder: str) -> dict[str, Any]:
    """`MlflowClient.log_artifact` after `log_artifact`."""
    from mlflow import MlflowClient

    client = MlflowClient()
    run, paths = client.create_run("0").info.run_id, sorted(Path(folder).iterdir())
    a = time.perf_counter()
    for path in paths:
        client.log_artifact(run, str(path))
    return {"files": len(paths), "seconds": time.perf_counter() - a}


def mlflow_counted(_: str) -> dict[str, Any]:
    """Count as any other user of the server would: of files, those that the benchmark made."""
    from mlflow import MlflowClient

    client = MlflowClient()
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    points = sum(len(client.get_metric_history(run.info.run_id, name)) for run in runs for name in values(1))

    def files(run: str, path: str | None = None) -> int:
        found = client.list_artifacts(run, path)
        return sum(files(run, entry.path) if entry.is_dir else entry.path.endswith(".bin") for entry in found)

    return {"points": points, "files": sum(files(run.info.run_id) for run in runs)}


if __name__ == "__main__":
    what, argument = sys.argv[1:]
    programs: dict[str, Callable[[str], dict[str, Any]]] = {
        "dialect": lambda text: dialect(int(text)),
        "mlflow": lambda text: mlflow(int(text)),
        "mlflow-files": mlflow_files,
        "mlflow-counted": mlflow_counted,
    }
    print(json.dumps(programs[what](argument)), flush=True)
