"""The tools beside us: which versions, in which environments of their own, and with what switched off."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = Path(__file__).resolve().parent / "peer_programs"
VERSIONS = {"simvue": "2.6.2", "wandb": "0.31.0", "trackio": "0.43.0", "mlflow": "3.17.2"}


@dataclass(frozen=True)
class Mode:
    """A way in which a tool is used, which is a column of the page, and what is measured of it."""

    name: str
    tool: str
    label: str
    measures: tuple[str, ...] = ("imports", "calls", "kills", "files")


MODES = [
    Mode("simspool", "simspool", "**simspool**"),
    Mode("simspool-each", "simspool", 'simspool, durability "each"', ("calls",)),
    Mode("simvue", "simvue", f"simvue {VERSIONS['simvue']}, offline"),
    Mode("simvue-snapshot", "simvue", "simvue, snapshot=True", ("files",)),
    Mode("wandb", "wandb", f"wandb {VERSIONS['wandb']}, offline"),
    Mode("trackio", "trackio", f"trackio {VERSIONS['trackio']}, local"),
    Mode("mlflow-file", "mlflow", f"mlflow {VERSIONS['mlflow']}, files", ("imports", "calls", "kills")),
    Mode("mlflow-sqlite", "mlflow", "mlflow, SQLite"),
    Mode("mlflow-async", "mlflow", "mlflow, SQLite, asynchronous", ("imports", "calls", "kills")),
]
TOOLS = list(dict.fromkeys(mode.tool for mode in MODES))


class Unavailable(Exception):
    """A tool's environment could not be made; the text says why."""


class Environments:
    """A folder of virtual environments, made when first asked for and kept for the next time.

    With `own=True` there is none: our own package is what the running interpreter has, and no other tool can be measured.
    """

    def __init__(self, folder: Path, say: Callable[[str], None], *, own: bool = False) -> None:
        self.folder, self.say, self.own = folder, say, own
        self._made: dict[str, Path | Unavailable] = {}

    def python(self, tool: str) -> Path:
        """Return the interpreter that has a tool. Raises `Unavailable`."""
        if tool not in self._made:
            try:
                self._made[tool] = self._make(tool)
            except (subprocess.CalledProcessError, OSError) as error:
                lines = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
                self._made[tool] = Unavailable(f"not installed: {lines[-1][:160] if lines else error}")
        found = self._made[tool]
        if isinstance(found, Unavailable):
            raise found
        return found

    def _make(self, tool: str) -> Path:
        if self.own:
            if tool == "simspool":
                return Path(sys.executable)
            raise Unavailable("needs an environment of its own")
        version = "checkout" if tool == "simspool" else VERSIONS[tool]
        venv = self.folder / f"{tool}-{version}-py{sys.version_info[0]}.{sys.version_info[1]}"
        python, complete = venv / "bin" / "python", venv / ".complete"
        if tool != "simspool" and complete.exists():
            return python
        self.say(f"making the environment of {tool} {version} in {venv}")
        if not python.exists():
            _ran([sys.executable, "-m", "venv", str(venv)])
        if tool == "simspool":
            self._install_checkout(python, complete)
        else:
            _ran([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", f"{tool}=={version}"])
            complete.touch()
        return python

    def _install_checkout(self, python: Path, complete: Path) -> None:
        pip = [str(python), "-m", "pip", "-q", "--disable-pip-version-check"]
        with tempfile.TemporaryDirectory() as scratch:
            # From a copy: setuptools leaves a build/ folder in the tree that would carry deleted files into the next wheel.
            ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "tests", "docs")
            shutil.copytree(ROOT, Path(scratch, "tree"), ignore=ignored)
            _ran([*pip, "wheel", "--no-deps", "--wheel-dir", scratch, str(Path(scratch, "tree"))])
            wheel = next(Path(scratch).glob("simspool-*.whl"))
            needed = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
            if not complete.exists() or complete.read_text() != needed:
                _ran([*pip, "install", str(wheel)])
            _ran([*pip, "install", "--no-deps", "--force-reinstall", str(wheel)])
            complete.write_text(needed)


def _ran(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Return the environment of a measurement: a home and a data folder of its own, every documented reporting home switched off.

    `more` changes a variable; an empty text takes it away.
    """
    home, data = folder / "home", folder / "data"
    home.mkdir(parents=True, exist_ok=True)
    data.mkdir(exist_ok=True)
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TMPDIR") if name in os.environ}
    known = {
        "HOME": str(home),
        "PEERS_DATA": str(data),
        "DO_NOT_TRACK": "1",
        "SIMSPOOL_DIR": str(data),
        "SIMSPOOL_AGENT": "off",
        "SIMVUE_OFFLINE_DIRECTORY": str(data),
        "SIMVUE_URL": "http://127.0.0.1:9",  # nothing is there, and nothing is asked of it
        "SIMVUE_TOKEN": _unsigned_token(),
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
        "TRACKIO_DIR": str(data),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "GRADIO_ANALYTICS_ENABLED": "False",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_FILE_STORE": "true",
    }
    return {name: value for name, value in (kept | known | more).items() if value}


def _unsigned_token() -> str:
    """Simvue reads a token's date of expiry also where it speaks to nobody."""
    parts = (json.dumps({"alg": "HS256", "typ": "JWT"}), json.dumps({"sub": "peers", "exp": 4102444800}), "unsigned" * 4)
    return ".".join(base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts)


def default_folder() -> Path:
    """Return where the environments are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "simspool-peers"
