"""The wheel has exactly the tree's files, and its SDK needs nothing but Python, on every interpreter that is here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOMS = ("spool", "sdk", "agent", "systemd")
DATA = {".service", ".timer", ".md", ".typed"}
MINORS = range(11, 20)


@pytest.fixture(scope="session")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a clean copy of the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in (*ROOMS, "pyproject.toml", "README.md", "LICENSE"):
        path = root / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_has_the_trees_files_and_no_others(root: Path, wheel: Path) -> None:
    in_tree = {
        f"simspool/{path.relative_to(root)}"
        for room in ROOMS
        for path in (root / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix in {".py", *DATA}
    }
    strangers = [
        path
        for room in ROOMS
        for path in (root / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in {".py", *DATA} and path.name != "py.typed"
    ]
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {name for name in archive.namelist() if name.startswith("simspool/")}
    assert in_wheel == in_tree | {f"simspool/{room}/py.typed" for room in ROOMS}
    assert strangers == []


def test_the_wheel_names_its_commands_and_licence(wheel: Path, project: dict[str, Any]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        entry_points = next(n for n in archive.namelist() if n.endswith("entry_points.txt"))
        metadata = next(n for n in archive.namelist() if n.endswith("METADATA"))
        assert "agent = simspool.agent.__main__:main" in archive.read(entry_points).decode()
        assert "simspool = simspool.agent.__main__:main" in archive.read(entry_points).decode()
        assert "License-Expression: Apache-2.0" in archive.read(metadata).decode()
        assert any(n.endswith("LICENSE") for n in archive.namelist())


def test_the_version_is_said_once(project: dict[str, Any], root: Path) -> None:
    import simspool.sdk

    assert simspool.sdk.__version__ == project["project"]["version"]
    assert re.search(rf"^## {re.escape(simspool.sdk.__version__)}\b", (root / "CHANGELOG.md").read_text(), re.MULTILINE)


def interpreters() -> list[Any]:
    """Return a parameter for each interpreter from 3.11 up; one that is not here is a loud skip."""
    found: dict[int, str] = {}
    for minor in MINORS:
        pyenv = sorted(map(str, Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python3")), reverse=True)
        candidates = [shutil.which(f"python3.{minor}"), *pyenv]
        for candidate in candidates:
            if candidate and _works(candidate, minor):
                found[minor] = candidate
                break
    newest = max([13, *found])
    return [
        pytest.param(found.get(m), id=f"3.{m}", marks=() if m in found else pytest.mark.skip(reason=f"SKIPPED: no Python 3.{m} here"))
        for m in range(11, newest + 1)
    ]


def _works(program: str, minor: int) -> bool:
    probe = f"import sys, venv, ensurepip, ssl; sys.exit(sys.version_info[:2] != (3, {minor}))"
    return subprocess.run([program, "-c", probe], capture_output=True, check=False).returncode == 0


BARE = """
import sys
from simspool.sdk import Client, Run
with Run(mode="offline") as run:
    run.init("bare", metadata={"python": sys.version_info[1]}, tags=["a"], folder="/bare")
    for i in range(100):
        assert run.log_metrics({"x": i / 2, "n": i}) is True
    assert run.log_event("an event") is True
    open("out.txt", "w").write("result")
    assert run.save_file("out.txt", category="output") is True
    assert run.save_object({"a": [1, 2]}, category="output", name="object") is True
client = Client()
(found,) = client.get_runs(filters=None)
assert client.get_artifact(run.id, "object") == {"a": [1, 2]}
third = sorted({m.split(".")[0] for m in sys.modules} - set(sys.stdlib_module_names) - {"simspool", "__main__", "__mp_main__"})
third = [m for m in third if not m.startswith(("_", "sitecustomize", "usercustomize"))]
assert third == [], third
print("fine")
"""


@pytest.mark.parametrize("python", interpreters())
def test_the_sdk_works_in_a_bare_environment(python: str, wheel: Path, tmp_path: Path) -> None:
    """`pip install --no-deps` on an air-gapped machine is enough to record and to read back."""
    venv = tmp_path / "venv"
    subprocess.run([python, "-m", "venv", str(venv)], check=True, capture_output=True)
    bare = venv / "bin" / "python"
    install = [str(bare), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "SIMSPOOL_DIR": str(tmp_path / "spool")}
    done = subprocess.run(
        [str(bare), "-W", "error", "-c", BARE], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr
