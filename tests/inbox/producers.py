"""Programs in other languages, compiled by the tests."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
_FLAGS = {"gcc": ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"), "gfortran": ("-std=f2018", "-O2", "-Wall", "-Wextra", "-Werror")}


def compiler(name: str, source: Path, program: Path, *more: str) -> str:
    """Compile a program; skips the test where there is no compiler."""
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed: the producers are not compiled here")
    subprocess.run([name, *_FLAGS[name], str(source), "-o", str(program), *more], cwd=program.parent, check=True)
    return str(program)
