"""What an agent does to be found by scripts, and to tell them of a request: nothing more of an agent."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from simspool.spool import RunFolder, Spool, control, layout, process


class Mouth:
    """Announces a bell in a folder of its own, and speaks to the writers beside it."""

    def __init__(self, spool: Spool, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.bell = str(folder / "b")
        self._ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ear.bind(self.bell)
        host = process.this_host()
        file = Path(spool.agent, "hosts", f"{host.name}-{host.pid_namespace}.json")
        file.parent.mkdir(parents=True, exist_ok=True)
        ticks = process.start_ticks(os.getpid())
        assert ticks is not None
        file.write_text(json.dumps({"bell": self.bell, "pid": os.getpid(), "start_ticks": ticks[0]}))

    def path_of(self, writer: str) -> Path:
        """Return the socket of a writer once it is there."""
        path = Path(control.notice_path(self.bell, writer))
        until(path.exists)
        return path

    def say(self, writer: str, data: bytes) -> None:
        """Send a datagram to a writer."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mouth:
            mouth.sendto(data, str(self.path_of(writer)))

    def close(self) -> None:
        """Go silent."""
        self._ear.close()


def until(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Return a condition's value once it is true; fails after a while."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)
    return value


def open_writer(folder: RunFolder) -> str:
    """Return the id of the one writer of a run that has an open segment, once it is there."""

    def look() -> list[str]:
        return [w for w in folder.writer_ids() if any(not s.sealed for s in layout.segments(folder.writer(w)))]

    (writer,) = until(look)
    return str(writer)
