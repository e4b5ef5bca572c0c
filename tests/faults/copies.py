"""Trees of the source, each with an interpreter that has it as `simspool`, also in isolated child processes."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("spool", "sdk", "agent", "systemd")


def interpreter_of(tree: Path) -> str:
    """Make an environment beside a tree's packages and return its interpreter; what else it imports is this interpreter's."""
    (tree / "path" / "simspool").mkdir(parents=True)
    for name in PACKAGES:
        (tree / "path" / "simspool" / name).symlink_to(tree / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tree / "venv")], check=True)
    [site] = (tree / "venv" / "lib").glob("python*/site-packages")
    # the tree before this interpreter's packages; those may have a simspool too, which comes second
    packages = [path for path in sys.path if Path(path).name in {"site-packages", "dist-packages"}]
    (site / "tree.pth").write_text("\n".join([str(tree / "path"), *packages]) + "\n")
    return str(tree / "venv" / "bin" / "python")


def earlier_tree(revision: str, folder: Path) -> Path:
    """Put the packages as they were at a revision into a folder. Raises LookupError where the history does not have it."""
    if shutil.which("git") is None:
        raise LookupError("git is not installed: the tree's history cannot be read")
    found = subprocess.run(["git", "-C", str(ROOT), "archive", revision, *PACKAGES], capture_output=True, check=False)
    if found.returncode:
        raise LookupError(f"{revision} is not in this tree's history: {found.stderr.decode(errors='replace').strip()[-200:]}")
    with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder
