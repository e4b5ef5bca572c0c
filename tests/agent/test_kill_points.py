"""An agent that is killed at any write, fsync, rename or send leaves nothing lost and nothing twice: a sample of kill_points.py."""

from __future__ import annotations

import shutil

import pytest
from kill_points import campaign
from real_server import RealServer


@pytest.mark.timeout(150)
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: no kill points were tried (apt-get install strace)")
def test_a_sync_killed_at_any_call_is_made_good_by_the_next(server: RealServer) -> None:
    tried, killed, violations = campaign(server, seed=7, everything=False, seconds=25)
    assert violations == []
    assert killed > 3
    assert tried >= killed
