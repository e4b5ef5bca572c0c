"""The attack families A1 to A36 (docs/security.md), against the real parts; each test has folders and settings of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from own_state import own_state  # noqa: F401 - autouse
from shared_fixtures import server, spool  # noqa: F401

sys.path.insert(0, str(Path(__file__).parent))  # for `held_connections`

OTHER = 12345  # a user who is not us


@pytest.fixture
def other() -> int:
    """The uid of another user; skips where we cannot be one."""
    if os.geteuid() != 0:
        pytest.skip("needs root: another user's attacks are tried by becoming that user")
    return OTHER


@pytest.fixture
def as_other(other: int) -> Callable[[Callable[[], Any]], int]:
    """Does something as another user, in a child process; returns its exit status (99: it raised)."""

    def do(work: Callable[[], Any]) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                os.setgroups([])
                os.setresgid(other, other, other)
                os.setresuid(other, other, other)
                os._exit(int(work() or 0))
            except BaseException:
                os._exit(99)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    return do
