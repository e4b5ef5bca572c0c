"""A spool that agents of several hosts share; campaigns are modules beside the tests."""

from __future__ import annotations

import sys
from pathlib import Path

from own_state import own_state  # noqa: F401 - autouse
from shared_fixtures import server, spool  # noqa: F401

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "faults"))  # for its network disk
