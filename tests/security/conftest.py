"""Attacks and secrets: each test has folders and settings of its own."""

from __future__ import annotations

from own_state import own_state  # noqa: F401 - autouse
from shared_fixtures import spool  # noqa: F401
