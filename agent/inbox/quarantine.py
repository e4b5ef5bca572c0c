"""Lines that were not understood: kept beside the spool's other damaged things, with the reason and where they were."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator

from simspool.spool import Spool, atomic

from .files import Line

_MOST = 1 << 20  # bytes of one file's; what comes after is counted only
_SHOWN = 2000  # characters of a line
_PREFIX = "inbox-"


def keep(spool: Spool, run: str, name: str, epoch: int, line: Line, reason: str) -> None:
    """Append a line to its file's quarantine. A courtesy: the count is in the run's position records; a disk that refuses is passed over.

    A line may be there twice, when the agent was killed in that moment: `epoch` and `bytes` tell.
    """
    text = None if line.data is None else line.data.decode(errors="backslashreplace")[:_SHOWN]
    entry = {"run": run, "file": name, "epoch": epoch, "bytes": [line.start, line.end], "reason": reason, "line": text}
    with contextlib.suppress(OSError):
        atomic.make_folder(spool.quarantine)
        path = path_of(spool, run, name)
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if os.fstat(fd).st_size < _MOST:
                os.write(fd, json.dumps(entry, sort_keys=True).encode() + b"\n")
        finally:
            os.close(fd)


def path_of(spool: Spool, run: str, name: str) -> str:
    """Return where the lines of a run's inbox file are kept that were not understood."""
    return os.path.join(spool.quarantine, f"{_PREFIX}{run}-{name}"[-255:])


def found_in(spool: Spool) -> Iterator[str]:
    """Yield the files of lines that were not understood."""
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(spool.quarantine)):
            if name.startswith(_PREFIX):
                yield os.path.join(spool.quarantine, name)
