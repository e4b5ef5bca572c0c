"""Power cuts lose nothing within the durability that was chosen. The long campaign: `python tests/faults/powercut_campaign.py`."""

from __future__ import annotations

import random
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = [pytest.mark.root, pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")]


@pytest.fixture(autouse=True)
def _usable(powercut_campaign: ModuleType) -> None:
    reason = powercut_campaign.usable()
    if reason:
        pytest.skip(reason)


def test_three_cuts_lose_nothing(powercut_campaign: ModuleType, tmp_path: Path) -> None:
    """W9, W10: `each` at once, `interval` after a pause."""
    figures = powercut_campaign.campaign(3, 11, 2.2, str(tmp_path))
    assert figures["each"]["cuts"] == 2
    assert figures["interval"]["cuts"] == 1
    for level in ("each", "interval"):
        assert figures[level]["promised"] > 0
        assert (figures[level]["lost"], figures[level]["damaged"], figures[level]["bad_blobs"]) == (0, 0, 0)


def test_a_cut_beside_an_agent_loses_nothing_of_a_script_that_cannot_sync_itself(powercut_campaign: ModuleType, tmp_path: Path) -> None:
    """W10, kept by the agent."""
    figures = powercut_campaign.campaign(1, 5, 5.0, str(tmp_path), beside=True)["interval"]
    assert (figures["cuts"], figures["lost"], figures["damaged"]) == (1, 0, 0)
    assert figures["promised"] > 0


def test_the_campaign_notices_a_missing_fsync(powercut_campaign: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F23."""
    monkeypatch.setattr("simspool.spool.stream.sync_segment", lambda *_, **__: None)
    counts = powercut_campaign.one_cut(random.Random(1), str(tmp_path), powercut_campaign.Durability.EACH, 0)
    assert counts["lost"] > 0
