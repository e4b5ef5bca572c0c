"""A fixture for conftest files: nothing of this user's is seen by a test, and nothing of a test's by this user."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of the test's own, and no settings from outside."""
    monkeypatch.setenv("SIMSPOOL_STATE", str(tmp_path / "state"))
    runtime = tmp_path / "rt"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    for name in ("SIMSPOOL_URL", "SIMSPOOL_TOKEN", "SIMSPOOL_DIR", "SIMVUE_URL", "SIMVUE_TOKEN", "SIMSPOOL_RUN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
