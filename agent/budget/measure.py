"""How much a spool takes: everything below its folder, whoever wrote it, hard links once."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass

_BREATH_EVERY = 2000  # entries


@dataclass(frozen=True, slots=True)
class Usage:
    """What lies on the disk: bytes in whole blocks, and inodes (files and folders)."""

    bytes: int = 0
    inodes: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(max(self.bytes + other.bytes, 0), max(self.inodes + other.inodes, 0))

    def __neg__(self) -> Usage:
        return Usage(-self.bytes, -self.inodes)


def measure(path: str, breathe: Callable[[], None] = lambda: time.sleep(0.002)) -> Usage:
    """Walk a folder and add up what is there. What vanishes meanwhile is left out; `breathe` is called now and then.

    Raises OSError when the folder itself cannot be read.
    """
    linked: set[tuple[int, int]] = set()
    size, count, due = 0, 0, _BREATH_EVERY
    todo = [path]
    while todo:
        folder = todo.pop()
        try:
            entries = os.scandir(folder)
        except OSError:
            if folder == path:
                raise
            continue
        with entries:
            for entry in entries:
                try:
                    info = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                if stat.S_ISDIR(info.st_mode):
                    todo.append(entry.path)
                elif info.st_nlink > 1:
                    key = info.st_dev, info.st_ino
                    if key in linked:
                        continue
                    linked.add(key)
                size += info.st_blocks * 512
                count += 1
        if count >= due:
            due = count + _BREATH_EVERY
            breathe()
    return Usage(size, count)
