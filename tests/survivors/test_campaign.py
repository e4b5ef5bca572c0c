"""A short run of the campaign."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from death_campaign import campaign


def test_every_death_is_closed_truthfully() -> None:
    found = campaign(16, 7)
    assert (found["deaths"], found["wrong"]) == (16, 0), found["examples"]
