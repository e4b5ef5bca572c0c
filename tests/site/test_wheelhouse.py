"""`agent wheelhouse`: the wheel made from an installation is the one that was installed, and it installs where there is no network.

The whole of it, with all dependencies, is `python tests/site/offline_install.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from command import Command
from offline_install import environment_with, wheel_of_tree

from simspool.agent import wheelhouse
from simspool.agent.exit_codes import CommandError

RECORD = """
from simspool.sdk import Client, Run
with Run(mode="offline") as run:
    run.init("behind the gap")
    for step in range(50):
        assert run.log_metrics({"x": float(step)}, step=step)
print(len(Client().get_runs(filters=None)))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """simspool's wheel, as it is built from the tree."""
    return wheel_of_tree(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment where that wheel is installed."""
    return environment_with(tmp_path_factory.mktemp("env"), "--no-deps", "--no-index", str(wheel))


def made(python: Path, folder: Path, *, code: int = 0) -> str:
    """Make the wheel by that installation; returns what it printed."""
    program = (
        "import sys; from simspool.agent.wheelhouse import For, finish, own_wheel; from simspool.agent.exit_codes import CommandError\n"
        "try: wheel = own_wheel(sys.argv[1])\n"
        "except CommandError as error: sys.exit(f'{error}')\n"
        "print(finish(sys.argv[1], wheel, For(), sdk_only=True)[0])"
    )
    folder.mkdir(exist_ok=True)
    done = subprocess.run([python, "-P", "-c", program, folder], capture_output=True, text=True, timeout=60, cwd=folder.parent)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_made_from_an_installation_is_the_one_that_was_installed(wheel: Path, installed: Path, tmp_path: Path) -> None:
    made(installed, tmp_path / "house")
    again = tmp_path / "house" / wheel.name
    before, after = contents(wheel), contents(again)
    listing = next(name for name in before if name.endswith("/RECORD"))
    assert {k: v for k, v in after.items() if k != listing} == {k: v for k, v in before.items() if k != listing}
    assert sorted(after[listing].decode().splitlines()) == sorted(before[listing].decode().splitlines())
    made(installed, tmp_path / "other")
    assert (tmp_path / "other" / wheel.name).read_bytes() == again.read_bytes(), "the same files make the same wheel"


def test_a_file_that_was_changed_since_is_not_carried_on(wheel: Path, tmp_path: Path) -> None:
    python = environment_with(tmp_path / "env", "--no-deps", "--no-index", str(wheel))
    (changed,) = (tmp_path / "env").glob("lib/python3*/site-packages/simspool/sdk/run.py")
    changed.write_text(changed.read_text() + "# edited\n")
    said = made(python, tmp_path / "house", code=1)
    assert "run.py is not as it was installed" in said
    assert os.listdir(tmp_path / "house") == []


def test_it_installs_and_records_without_a_network(installed: Path, tmp_path: Path) -> None:
    house = tmp_path / "house"
    command = made(installed, house).strip()
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=house, check=True)
    assert command in (house / "README.txt").read_text()
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "far"], check=True)
    far = tmp_path / "far" / "bin" / "python"
    isolated(["sh", "-c", command.replace("python", str(far), 1)], house)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "SIMSPOOL_DIR": str(tmp_path / "spool")}
    assert isolated([far, "-W", "error", "-c", RECORD], tmp_path, environment) == "1\n"


def isolated(command: Sequence[Any], folder: Path, environment: dict[str, str] | None = None) -> str:
    """Run a command in a network namespace of its own, where nothing can be reached; returns what it prints."""
    if shutil.which("unshare") is None:
        pytest.skip("SKIPPED: no unshare here")
    options = ["--net"] if os.geteuid() == 0 else ["--net", "--map-root-user"]
    if subprocess.run(["unshare", *options, "true"], capture_output=True).returncode != 0:
        pytest.skip("SKIPPED: no namespaces here")
    done = subprocess.run(["unshare", *options, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_installed_from_a_source_folder_one_is_told_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Editable:
        version = "0.1.0"
        files = ()

    monkeypatch.setattr(wheelhouse, "_installed", Editable)
    with pytest.raises(CommandError, match=r"pip wheel --no-deps --wheel-dir .* SOURCE"):
        wheelhouse.own_wheel(str(tmp_path))
    (tmp_path / "simspool-0.1.0-py3-none-any.whl").write_bytes(b"made before")
    assert wheelhouse.own_wheel(str(tmp_path)) == str(tmp_path / "simspool-0.1.0-py3-none-any.whl")


def test_mistakes_are_told_in_one_line(tmp_path: Path, wheel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = Command(capsys)
    assert command("wheelhouse", tmp_path / "house", "--python", "three") == 2
    assert "say 3.12" in command.err
    with pytest.raises(CommandError, match="pip could not find everything"):
        wheelhouse._pip(["download", "--no-index", "--dest", str(tmp_path), "--no-input", "no-such-project-of-ours"])


def test_the_command_with_the_sdk_alone(wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    house = tmp_path / "house"
    house.mkdir()
    shutil.copy(wheel, house)
    command = Command(capsys)
    code = command("wheelhouse", house, "--sdk-only", "--json")
    assert code == 0, command.err
    said = json.loads(command.out)
    assert said["wheels"] == [wheel.name]
    assert said["install"] == f"python -m pip install --no-index --no-deps {wheel.name}"
    assert sorted(os.listdir(house)) == ["README.txt", "SHA256SUMS", wheel.name]
