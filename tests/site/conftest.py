"""One server for all, and state of each test's own."""

from __future__ import annotations

import sys
from pathlib import Path

from own_state import own_state  # noqa: F401 - autouse
from shared_fixtures import server, spool  # noqa: F401

sys.path.insert(0, str(Path(__file__).parent))  # for the command's module
sys.path.append(str(Path(__file__).parents[1] / "faults"))  # for a network disk
