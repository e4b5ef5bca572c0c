"""A spool for the targets' tests, and the suite that every target passes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import sqlite_utils  # noqa: F401 - loaded here, so that not every catalog of a test needs a child process
from own_state import own_state  # noqa: F401 - autouse
from shared_fixtures import spool  # noqa: F401

sys.path.insert(0, str(Path(__file__).parent))  # for `conformance` and the benches
pytest.register_assert_rewrite("conformance")
