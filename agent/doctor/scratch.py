"""Temporary files in the spool: removed at once or at the end; what a killed look left is cleared away by `agent check --repair`."""

from __future__ import annotations

import contextlib
import os
from types import TracebackType
from typing import Self

from simspool.spool import Spool, atomic, ids


class Scratch:
    """Names of temporary files in a spool, which nothing else reads; all are removed at the end."""

    def __init__(self, spool: Spool) -> None:
        self._stem = os.path.join(spool.path, f"doctor.tmp-{ids.to_text(ids.new_id())}")
        self._made: list[str] = []

    def path(self, name: str) -> str:
        """Return the path of a new temporary file."""
        path = f"{self._stem}-{name}"
        self._made.append(path)
        return path

    def open_nameless(self) -> int:
        """Return a descriptor of a file whose name is gone already, for bytes that no kill may leave behind. Raises OSError."""
        path = self.path("nameless")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            atomic.remove(path)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for path in self._made:
            with contextlib.suppress(OSError):
                atomic.remove(path)
