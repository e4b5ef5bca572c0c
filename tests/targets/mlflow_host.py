"""Runs MLflow's server (mlflow's own app under uvicorn, as `mlflow server` does) in children forked from a process that has imported it.

A start takes a second instead of ten or more, so tests can kill it often. Run by the Python that has mlflow.

Usage: mlflow_host.py FOLDER PORT [ARTIFACTS]; then a line "start" or "kill" on stdin for each, answered on stdout.
At the end of stdin it ends all.
"""

from __future__ import annotations

import os
import signal
import sys


def main(folder: str, port: int, artifacts: str) -> None:
    os.environ.update({
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder}/mlflow.db",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": artifacts,
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    })  # fmt: skip
    os.makedirs(f"{folder}/artifacts", exist_ok=True)
    import mlflow.server.handlers  # noqa: F401
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    import uvicorn
    from mlflow.server.fastapi_app import app

    child = 0
    print("ready", flush=True)
    for line in sys.stdin:
        if child and line.strip() in {"kill", "start"}:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            child = 0
        if line.strip() == "start":
            child = os.fork()
            if child == 0:
                uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
                os._exit(0)
        print("done", flush=True)
    if child:
        os.kill(child, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else f"{sys.argv[1]}/artifacts")
