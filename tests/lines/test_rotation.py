"""A short run of the campaign, through the real command."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from rotation_campaign import campaign, slope


@pytest.mark.timeout(180)
def test_a_rotated_log_is_recorded_exactly_once_and_in_order() -> None:
    found = campaign(100_000_000, 7)
    assert (found["wrong"], found["exit"]) == (0, 0), found
    assert found["recorded"] == found["metrics"] > 8000
    assert min(found["rotations"].values()) > 10
    least, _, most = found["MiB"]
    assert most - least < 50, "the follower's memory grew with the log"


def test_the_slope_is_one() -> None:
    assert slope([(0.0, 99.0), (1.0, 98.0), (2.0, 4.0), (3.0, 7.0)]) == pytest.approx(3.0)
    assert slope([]) == 0.0
