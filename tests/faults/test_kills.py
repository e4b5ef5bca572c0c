"""SIGKILL loses nothing that returned True (W1). The long campaign is a command: `python tests/faults/kill_campaign.py --kills 200`."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


def test_a_dozen_kills_lose_nothing(kill_campaign: ModuleType, tmp_path: Path) -> None:
    figures = kill_campaign.campaign(12, 7, str(tmp_path))
    assert figures["kills"] == 12
    assert figures["promised"] > 1000
    assert figures["found"] >= figures["promised"]
    assert (figures["lost"], figures["repeated"], figures["damaged"], figures["unpromised"]) == (0, 0, 0, 0)


def test_the_campaign_notices_records_that_wait_in_the_process(
    kill_campaign: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F23: a writer that says True for what it only holds in memory is found out."""
    from simspool.spool import Writer

    monkeypatch.setattr(Writer, "metrics", lambda *_, **__: True)
    assert kill_campaign.campaign(6, 7, str(tmp_path))["lost"] > 0  # some are killed before they record
