"""Try the offline installation as a whole, and print what it took: `python tests/site/offline_install.py`.

`agent wheelhouse` on this machine, as pip is set up here; then, in a network namespace where nothing can be reached: a fresh virtual
environment, `pip install --no-index`, a recorded run, `agent serve` on the loopback, `agent sync`, and the points counted on the server.
Needs root (or user namespaces), `ip`, about a gigabyte, and some minutes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FAR = """
set -e
ip link set lo up
! timeout 5 "$1" -c 'import socket; socket.create_connection(("192.0.2.1", 80), 3)' 2>/dev/null
"$1" -m pip install --quiet --disable-pip-version-check --no-index --find-links "$2" simspool
"$1" -m simspool.agent --version
"$1" -m simspool.agent serve --data data --port 8765 >serve.log 2>&1 &
server=$!
trap 'kill $server' EXIT
for _ in $(seq 200); do [ -s data/url ] && break; sleep 0.1; done
export SIMSPOOL_URL=$(cat data/url) SIMSPOOL_TOKEN_FILE=$PWD/data/token SIMSPOOL_AGENT=off SIMSPOOL_DIR=$PWD/spool SIMSPOOL_STATE=$PWD/state
"$1" -c '
from simspool.sdk import Run
run = Run(mode="offline")
run.init("offline")
for step in range(1000):
    assert run.log_metrics({"x": float(step)}, step=step)
run.close()'
"$1" -m simspool.agent sync
"$1" -m simspool.agent verify --all
"$1" -m simspool.agent doctor --quick --json | tail -n 1
"$1" -c '
import os
from simspool.sdk import Client
client = Client(open(os.environ["SIMSPOOL_TOKEN_FILE"]).read().strip(), os.environ["SIMSPOOL_URL"])
(run,) = client.get_runs(filters=None)
found = client.get_metric_values(metric_names=["x"], xaxis="step", run_ids=[run["id"]], output_format="dict")
print("POINTS", len(found["x"]))'
"""


def wheel_of_tree(folder: Path) -> Path:
    """Build simspool's wheel from a copy of the tree; returns its path."""
    source = folder / "source"
    source.mkdir(parents=True)
    for name in ("spool", "sdk", "agent", "systemd", "pyproject.toml", "README.md", "LICENSE"):
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / name)
    pip(Path(sys.executable), "wheel", "--no-deps", "--wheel-dir", str(folder), str(source))
    (built,) = folder.glob("*.whl")
    return built


def environment_with(folder: Path, *arguments: str) -> Path:
    """Make a virtual environment without pip and install into it from outside; returns its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    pip(Path(sys.executable), f"--python={python}", "install", *arguments)
    return python


def pip(python: Path, *arguments: str) -> None:
    done = subprocess.run(
        [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


@contextmanager
def timed(what: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - began:.0f} s", flush=True)


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with timed("an installation from the tree's wheel, with what the command itself needs"):
            near = environment_with(folder / "near", "--no-deps", str(wheel_of_tree(folder / "built")), "click", "pip")
        house = folder / "house"
        with timed("agent wheelhouse"):
            command = [str(near), "-P", "-m", "simspool.agent", "wheelhouse", str(house), "--json"]
            done = subprocess.run(command, capture_output=True, text=True, cwd=scratch)
        if done.returncode != 0:
            print(done.stderr)
            return 1
        said = json.loads(done.stdout)
        print(f"{len(said['wheels'])} wheels, {said['bytes'] / 1e6:.0f} MB")
        subprocess.run([sys.executable, "-m", "venv", str(folder / "far")], check=True)
        own = {"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8"}
        (folder / "work").mkdir()
        options = ["--net"] if os.geteuid() == 0 else ["--net", "--map-root-user"]
        with timed("installed, recorded, synced and counted without a network"):
            done = subprocess.run(
                ["unshare", *options, "bash", "-c", FAR, "bash", str(folder / "far" / "bin" / "python"), str(house)],
                env=own, cwd=folder / "work", capture_output=True, text=True, timeout=900,
            )  # fmt: skip
        print(done.stdout, done.stderr[-2000:], sep="")
        fine = done.returncode == 0 and "POINTS 1000" in done.stdout
        print("passed" if fine else "FAILED")
        return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
