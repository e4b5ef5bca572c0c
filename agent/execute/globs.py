"""Which files a pattern means: as in a shell, with `**` for any depth. Links to folders are not followed, so there are no loops."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

_MAGIC = re.compile(r"[*?\[]")


class Stamp(NamedTuple):
    """What tells one state of a file from another."""

    mtime_ns: int
    size: int
    inode: int


class Glob:
    """A pattern, relative to a folder (the working folder of the command). A folder's name means all files below it."""

    def __init__(self, pattern: str, base: str, avoid: str | None = None) -> None:
        """`avoid`: a folder (resolved) that is never entered: the spool."""
        self.pattern = pattern
        self._avoid = avoid
        parts = [part for part in os.path.normpath(os.path.join(base, pattern)).split("/") if part]
        fixed = 0
        while fixed < len(parts) and not _MAGIC.search(parts[fixed]):
            fixed += 1
        self._fixed = "/" + "/".join(parts[:fixed])
        tail = parts[fixed:]
        self._parts: list[re.Pattern[str] | None] = []
        for part in tail:
            if part != "**":
                self._parts.append(_component(part))
            elif not self._parts or self._parts[-1] is not None:
                self._parts.append(None)
        if self._parts and self._parts[-1] is None:
            self._parts.append(_component("*"))

    def files(self) -> Iterator[tuple[str, Stamp]]:
        """Yield the regular files that match now, each with its state. What vanishes meanwhile is left out."""
        parts = self._parts
        if not parts:
            if not os.path.isdir(self._fixed):
                found = stamp_of(self._fixed)
                if found is not None:
                    yield self._fixed, found
                return
            parts = [None, _component("*")]
        seen: set[str] | None = set() if parts.count(None) > 1 else None  # two ways may lead to one file
        todo = [(self._fixed, 0)]
        while todo:
            folder, at = todo.pop()
            if self._avoid is not None and os.path.realpath(folder) == self._avoid:
                continue
            for path, stamp in self._look(folder, at, parts, todo):
                if seen is not None:
                    if path in seen:
                        continue
                    seen.add(path)
                yield path, stamp

    @staticmethod
    def _look(
        folder: str, at: int, parts: list[re.Pattern[str] | None], todo: list[tuple[str, int]]
    ) -> Iterator[tuple[str, Stamp]]:  # fmt: skip
        deep = parts[at] is None
        part = parts[at + 1] if deep else parts[at]
        after = at + 2 if deep else at + 1
        assert part is not None
        try:
            entries = os.scandir(folder)
        except OSError:
            return
        with entries:
            while True:
                try:
                    entry = next(entries)
                except (StopIteration, OSError):
                    return
                try:
                    is_folder = entry.is_dir(follow_symlinks=False)
                    if is_folder and deep and not entry.name.startswith("."):
                        todo.append((entry.path, at))
                    if not part.fullmatch(entry.name):
                        continue
                    if after < len(parts):
                        if is_folder:
                            todo.append((entry.path, after))
                    elif not is_folder and entry.is_file():
                        info = entry.stat()
                        yield entry.path, Stamp(info.st_mtime_ns, info.st_size, info.st_ino)
                except OSError:  # it vanished, or a link leads nowhere
                    continue


def _component(part: str) -> re.Pattern[str]:
    hidden = "" if part.startswith(".") else r"(?!\.)"
    return re.compile(hidden + fnmatch.translate(part))


def stamp_of(path: str) -> Stamp | None:
    """Return a regular file's state now; None where there is none."""
    try:
        info = os.stat(path)
    except OSError:
        return None
    return Stamp(info.st_mtime_ns, info.st_size, info.st_ino) if os.path.isfile(path) else None
