"""A small version of the campaign: two PID namespaces, one spool, agents stopped and killed; nothing lost, twice, or deleted too early."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import shared_campaign

WHY = shared_campaign.why_not()


@pytest.mark.skipif(bool(WHY), reason=f"SKIPPED, NOT TRIED: two agents on one spool: {WHY}")
@pytest.mark.timeout(240)
def test_two_hosts_agents_on_one_spool_are_stopped_and_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMSPOOL_DIR", os.environ.get("SIMSPOOL_DIR", ""))
    tally = shared_campaign.campaign(tmp_path, rounds=1, ranks=8, points=500, seed=11)
    assert tally.wrong == []
    assert tally.points == 8 * 500
    assert tally.deleted > 0
