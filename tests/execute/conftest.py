"""A place for `agent exec`, and programs that are compiled for it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from executing import Place
from own_state import own_state  # noqa: F401 - autouse


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    made = Place(tmp_path)
    monkeypatch.setenv("SIMSPOOL_DIR", str(made.spool))
    try:
        yield made
    finally:
        made.end()


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Compile a C program; skipped loudly where there is no compiler."""
    folder = tmp_path_factory.mktemp("built")

    def build(name: str, source: str) -> Path:
        target = folder / name
        if not target.exists():
            try:
                subprocess.run(["cc", "-O1", "-x", "c", "-o", str(target), "-", "-lm"], input=source.encode(), check=True, timeout=60)
            except FileNotFoundError:
                pytest.skip("SKIPPED: no C compiler here")
        return target

    return build
