"""Noticing a fork at the price of one memory read, also where Python's fork hooks were skipped."""

from __future__ import annotations

import mmap
import os
from typing import Any

_MADV_WIPEONFORK = 18


class _PidPage:
    """Stands in for the wiped page on kernels without MADV_WIPEONFORK: a system call per look."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    def __getitem__(self, _: int) -> int:
        return int(os.getpid() == self._pid)


def own_page() -> Any:
    """Return something whose item 0 is 1 in this process and 0 in every child: a page that the kernel wipes on fork."""
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_MADV_WIPEONFORK)
    except (OSError, ValueError):
        return _PidPage()
    page[0] = 1
    return page
