"""A seeded piece of the abort campaign: no process is signalled that is not meant, and every one that is has ended."""

from __future__ import annotations

import os
from types import ModuleType

import pytest


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="chosen pids and PID namespaces need root")
def test_no_wrong_process_is_signalled(abort_campaign: ModuleType) -> None:
    figures = abort_campaign.campaign(20261121, 3 * len(abort_campaign.KINDS))
    print(figures.as_dict())
    assert figures.wrong == []
    assert figures.missed == []
    assert set(figures.kinds.values()) == {3}
    assert figures.signals > figures.kinds["siblings"] * 3  # the right ones were


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="chosen pids and PID namespaces need root")
def test_the_campaign_sees_a_ladder_that_does_not_look(abort_campaign: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ladder that stops what the run wants to be left alone is found out."""
    from simspool.agent.abort import climb

    monkeypatch.setattr(climb, "mode_of", lambda _options: "terminate")
    monkeypatch.setattr(abort_campaign, "KINDS", ("children-in-mode-run", "mode-ignore"))
    assert abort_campaign.campaign(1, 2).wrong
