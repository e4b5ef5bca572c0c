"""How each tool records, closes and is read back: the few calls that its own documentation names for work without a network.

Runs inside the tool's own environment, so nothing but the standard library is imported before the tool.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Log = Callable[[dict[str, float], int], object]


class Tool:
    """One tool in one mode. `data` is the folder that the tool is told to write to; HOME is the benchmark's own too."""

    statement = ""
    most = 1_000_000  # calls, where a close would else take minutes

    def __init__(self, data: Path) -> None:
        self.data = data

    def open(self) -> Log:
        """Start a run; return what logs one step of it. A log that returns False has not acknowledged."""
        raise NotImplementedError

    def close(self) -> None:
        """End the run as a script would."""
        raise NotImplementedError

    def save(self, path: Path, name: str) -> None:
        """Save a file under a name."""
        raise NotImplementedError

    def steps(self) -> Iterator[int]:
        """Give the steps that can be read back, in a process that has not written them."""
        raise NotImplementedError


class Simspool(Tool):
    """Ours."""

    statement = "from simspool.sdk import Run"

    def open(self) -> Log:
        from simspool.sdk import Run

        self.run = Run(mode="offline")
        self.run.config(disable_resources_metrics=True)
        if not self.run.init("peers"):
            raise RuntimeError("the run was not opened")
        log = self.run.log_metrics
        return lambda values, step: log(values, step=step)

    def close(self) -> None:
        self.run.close()

    def save(self, path: Path, name: str) -> None:
        if not self.run.save_file(path, category="output", name=name):
            raise RuntimeError("the file was not saved")

    def steps(self) -> Iterator[int]:
        from simspool.spool import Tail, open_spool
        from simspool.spool.frames import STEP, MetricBatch

        spool = open_spool(self.data)
        for run in map(spool.run, spool.run_ids()):
            for writer in run.writer_ids():
                with Tail(run.writer(writer), run.id) as tail:
                    for chunk in tail.read(dead=True):
                        for item in chunk.items:
                            if isinstance(item, MetricBatch):
                                yield from (row[STEP] for row in item.rows)


class SimspoolEach(Simspool):
    """The same, with every call on the disk before it returns."""

    def open(self) -> Log:
        os.environ["SIMSPOOL_DURABILITY"] = "each"
        return super().open()


class Simvue(Tool):
    """Simvue's offline mode: one JSON file a flush."""

    statement = "from simvue import Run"

    def open(self) -> Log:
        from simvue import Run

        self.run = Run(mode="offline")
        self.run.config(disable_resources_metrics=True, enable_emission_metrics=False, suppress_errors=False)
        if not self.run.init("peers", folder="/peers"):
            raise RuntimeError("the run was not opened")
        log = self.run.log_metrics
        return lambda values, step: log(values, step=step)

    def close(self) -> None:
        self.run.close()

    def save(self, path: Path, name: str) -> None:
        if not self.run.save_file(path, category="output", name=name):
            raise RuntimeError("the file was not saved")

    def steps(self) -> Iterator[int]:
        for path in self.data.glob("metrics/*.json"):
            with contextlib.suppress(json.JSONDecodeError):  # cut off: its Sender cannot read it either
                for point in json.loads(path.read_text())["metrics"]:
                    yield point["step"]


class SimvueSnapshot(Simvue):
    """The same, with the option that copies a file instead of keeping its path."""

    def save(self, path: Path, name: str) -> None:
        if not self.run.save_file(path, category="output", name=name, snapshot=True):
            raise RuntimeError("the file was not saved")


class Wandb(Tool):
    """Weights & Biases, mode="offline"."""

    statement = "import wandb"

    def open(self) -> Log:
        import wandb

        settings = wandb.Settings(mode="offline", console="off", x_disable_stats=True, x_disable_meta=True)
        self.run = wandb.init(project="peers", dir=self.data, settings=settings)
        log = self.run.log
        return lambda values, step: log(values, step=step)

    def close(self) -> None:
        self.run.finish()

    def save(self, path: Path, name: str) -> None:
        import wandb

        artifact = wandb.Artifact(name, type="output")
        artifact.add_file(str(path))
        self.run.log_artifact(artifact)

    def steps(self) -> Iterator[int]:
        from wandb.proto.wandb_internal_pb2 import Record

        for path in glob.glob(str(self.data / "wandb" / "offline-run-*" / "*.wandb")):
            for raw in _log_blocks(Path(path).read_bytes()):
                record = Record.FromString(raw)
                if record.WhichOneof("record_type") == "history":
                    yield record.history.step.num


def _log_blocks(data: bytes) -> Iterator[bytes]:
    """Read LevelDB's log format, with a head of 7 bytes, up to where it ends or is cut off."""
    size, head, at, parts = 32768, 7, 7, []
    while at + head <= len(data):
        if size - at % size < head:
            at += size - at % size
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        at += head
        if kind == 0 or at + length > len(data):
            return
        parts.append(data[at : at + length])
        at += length
        if kind in {1, 4}:
            yield b"".join(parts)
            parts = []


class Trackio(Tool):
    """Trackio's local mode."""

    statement = "import trackio"

    def open(self) -> Log:
        import trackio

        trackio.init(project="peers", embed=False, auto_log_gpu=False, auto_log_cpu=False)
        log = trackio.log
        return lambda values, step: log(values, step=step)

    def close(self) -> None:
        import trackio

        trackio.finish()

    def save(self, path: Path, name: str) -> None:
        import trackio

        trackio.log_artifact(path, name=name)

    def steps(self) -> Iterator[int]:
        from trackio.sqlite_storage import SQLiteStorage

        for run in SQLiteStorage.get_runs("peers"):
            for entry in SQLiteStorage.get_logs("peers", run):
                yield entry["step"]


class MlflowFile(Tool):
    """MLflow, its folder of files."""

    statement = "import mlflow"
    synchronous = True

    def store(self) -> str:
        """Return the tracking URI."""
        return str(self.data / "mlruns")

    def open(self) -> Log:
        import mlflow

        mlflow.set_tracking_uri(self.store())
        mlflow.start_run(log_system_metrics=False)
        log, synchronous = mlflow.log_metrics, self.synchronous
        return lambda values, step: log(values, step=step, synchronous=synchronous)

    def close(self) -> None:
        import mlflow

        if not self.synchronous:
            mlflow.flush_async_logging()
        mlflow.end_run()

    def save(self, path: Path, name: str) -> None:
        import mlflow

        mlflow.log_artifact(str(path), artifact_path=name)

    def steps(self) -> Iterator[int]:
        import mlflow

        client = mlflow.MlflowClient(self.store())
        for run in client.search_runs(["0"]):
            for metric in client.get_metric_history(run.info.run_id, "loss"):
                yield metric.step


class MlflowSqlite(MlflowFile):
    """MLflow, an SQLite file."""

    def store(self) -> str:
        return f"sqlite:///{self.data}/mlflow.db"


class MlflowAsync(MlflowSqlite):
    """MLflow, an SQLite file, `synchronous=False`."""

    synchronous = False
    most = 1_000


TOOLS: dict[str, type[Tool]] = {
    "simspool": Simspool,
    "simspool-each": SimspoolEach,
    "simvue": Simvue,
    "simvue-snapshot": SimvueSnapshot,
    "wandb": Wandb,
    "trackio": Trackio,
    "mlflow-file": MlflowFile,
    "mlflow-sqlite": MlflowSqlite,
    "mlflow-async": MlflowAsync,
}


def memory(field: str) -> int:
    """Return a line of this process's own status (`VmRSS`, `VmHWM`) in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def made(name: str) -> Any:
    """Make a tool, on the folder that its environment names."""
    return TOOLS[name](Path(os.environ["PEERS_DATA"]))
