"""A short one of the campaigns that kill the agent while it tells people: nothing lost, and nothing twice but under one id."""

from __future__ import annotations

from pathlib import Path

import pytest
from notify_campaign import campaign


@pytest.mark.timeout(240)
def test_an_agent_that_is_killed_loses_no_notification(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    result = campaign(7, 8.0, tmp_path / "site")
    assert result.violations == []
    assert result.rounds >= 1
    assert result.firings >= 1
