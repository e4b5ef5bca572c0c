"""An import that is killed at any write, fsync, rename or link leaves a prefix, which the next one makes whole: see import_kills.py."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the campaign's module

from import_kills import campaign


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed: no kill points were tried (apt-get install strace)")
def test_an_import_killed_at_any_call_is_made_good_by_the_next() -> None:
    tried, killed, violations = campaign(seed=7, everything=False, seconds=5)
    assert violations == []
    assert killed > 3
    assert tried >= killed
