"""The example code of the documentation, as written (only the package's name differs)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def test_run1_then_run2(found: Any) -> None:
    from simspool.sdk import Client, Run

    with Run() as run:
        run.init("run1")
        Path("out/sub").mkdir(parents=True)
        Path("out/result.dat").write_bytes(b"result")
        Path("out/sub/more.dat").write_bytes(b"more")
        Path("script.py").write_text("pass")
        run.save_directory("out", category="output")
        run.save_file("script.py", category="code")
    run1 = str(run.id)

    # Download output files from previous run
    client = Client()
    client.get_artifacts_as_files("run1", category="output", path="data")

    # Create a new run
    with Run() as run:
        run.init("run2")
        run.save_directory("data", category="input")

    assert sorted(str(p) for p in Path("data").rglob("*") if p.is_file()) == ["data/result.dat", "data/sub/more.dat"]
    one, two = found(run1), found("run2")
    assert [(a["name"], a["category"]) for a in two.of("artifact")] == [("result.dat", "input"), ("sub/more.dat", "input")]
    assert {a["digest"] for a in two.of("artifact")} < {a["digest"] for a in one.of("artifact")}
    # the same files are not stored again
    assert len([p for p in Path(one.spool.path, "blobs").rglob("*") if p.is_file()]) == 3


def test_obtaining_data(tmp_path: Path) -> None:
    from simspool.sdk import Client, Run

    with Run() as run:
        run.init("source")
        run.save_object(np.arange(4), "output", name="my_array")
        run.save_object({1, 2}, "output", name="my_object", allow_pickle=True)
        Path("system").mkdir()
        Path("system/controlDict").write_text("c")
        run.save_file("system/controlDict", category="input", preserve_path=True)
    run_identifier, target = run.id, tmp_path / "target"
    target.mkdir()

    client = Client()
    my_array = client.get_artifact(run_identifier, "my_array")
    np.testing.assert_array_equal(my_array, np.arange(4))
    my_object = client.get_artifact(run_identifier, "my_object", allow_pickle=True)
    assert my_object == {1, 2}
    client.get_artifact_as_file(run_identifier, "my_array", path=str(target))
    assert (target / "my_array").exists()
    client.get_artifacts_as_files("source", path=str(target))
    assert (target / "system/controlDict").read_text() == "c"
    written = client.get_artifacts_as_files(run_identifier, category="input", startswith="system/")
    assert written == [str(Path("system/controlDict").absolute())]
