"""What importing the SDK costs, and what it offers."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import simspool.sdk

ROOT = Path(__file__).parents[2]


def test_a_bare_interpreter_loads_no_third_party_module(script: Any) -> None:
    done = script("""
        import sys
        before = set(sys.modules)
        import simspool.sdk
        from simspool.sdk import Run, Client, Handler
        with Run() as run:
            run.init("bare")
            run.log_metrics({"a": 1.0})
            open("f.txt", "w").write("x")
            run.save_file("f.txt", "output")
            run.save_object({"a": 1}, "output", "o")
        Client().get_runs()
        foreign = {m.partition(".")[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names) - {"simspool"}
        print(sorted(foreign))
    """)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("statement", ["import simspool.sdk", "from simspool.sdk import Run"])
def test_importing_loads_nothing_that_takes_long(statement: str) -> None:
    """How long it takes is in docs/benchmarks.md."""
    text = f"import sys; before = set(sys.modules); {statement}; print(*(set(sys.modules) - before))"
    loaded = set(subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout.split())
    slow = {
        "asyncio", "concurrent", "ctypes", "email", "hashlib", "http", "logging", "multiprocessing", "numpy", "psutil", "random", "socket",
        "sqlite3", "ssl", "subprocess", "tempfile", "tomllib", "traceback", "unittest", "urllib.request", "uuid",
        "simspool.spool.blobs", "simspool.spool.reader",
    }  # fmt: skip
    assert not loaded & slow
    assert len(loaded) < 120


def test_all_names_are_there() -> None:
    assert sorted(simspool.sdk.__all__) == sorted(set(simspool.sdk.__all__))
    for name in simspool.sdk.__all__:
        assert getattr(simspool.sdk, name) is not None
        assert name in dir(simspool.sdk)
    with pytest.raises(AttributeError, match="nothing_here"):
        simspool.sdk.nothing_here  # noqa: B018


def test_every_error_class_is_exported() -> None:
    from simspool.sdk import errors

    own = {n for n, v in vars(errors).items() if isinstance(v, type) and v.__module__ == errors.__name__}
    assert own <= set(simspool.sdk.__all__)
    assert all(name in (errors.__doc__ or "") for name in own)


def test_the_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert simspool.sdk.__version__ == project["version"]
