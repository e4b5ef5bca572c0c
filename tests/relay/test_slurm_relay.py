"""The demonstration on a real Slurm, in short: see slurm_relay.py."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from slurm_relay import play


@pytest.mark.root
@pytest.mark.timeout(300)
def test_an_array_on_four_nodes_relayed_by_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every point is on the server once, the shared spool may be pruned, and no token was on its side."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with tempfile.TemporaryDirectory(prefix="relay-", ignore_cleanup_errors=True) as folder:  # Slurm's sockets want a short path
        found = play(Path(folder), elements=4, points=300)
    assert (found["points"], found["wrong"], found["pruned"]) == (1200, 0, 8)
