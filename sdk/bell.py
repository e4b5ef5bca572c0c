"""The doorbell: tells a running agent of this host that there is something to read.

One datagram with the writer's id, never waited for. No agent, a dead one, or an address that the system cannot hold: no
bell, and no error; the agent's own scan finds the records as well, later.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from simspool.spool import Writer, atomic, process

if TYPE_CHECKING:
    import socket

_SILENT = 1 << 62
_LONGEST = 107  # bytes of a unix socket's path


class Bell:
    """Rings for one writer. `look` finds the agent; between two looks, ringing is one system call."""

    def __init__(self, spool_path: str, writer: Writer) -> None:
        host = process.this_host()
        self._address_file = os.path.join(spool_path, "agent", "hosts", f"{host.name}-{host.pid_namespace}.json")
        self._writer = writer
        self._socket: socket.socket | None = None
        self._path = ""
        self._rung = 0
        self._id, self._text = b"", b""

    @property
    def is_heard(self) -> bool:
        """Whether an agent listened at the last look."""
        return self._socket is not None

    def look(self) -> None:
        """Find the agent's address, or that it is gone; ring for what was recorded since the last ring."""
        path = self._address()
        if path != self._path or self._socket is None:
            self.hang_up()
            if path and self._connect(path):
                self._writer.on_record = self.ring
                self._writer.ring_after = 0
        if self._socket is not None and self._writer.sequence != self._rung:
            self.ring()

    def _address(self) -> str:
        try:
            known = atomic.read_json(self._address_file)
            path, pid, ticks = known["bell"], known["pid"], known["start_ticks"]
        except (OSError, ValueError, KeyError, TypeError):
            return ""
        if not isinstance(path, str) or not isinstance(pid, int) or len(os.fsencode(path)) > _LONGEST:
            return ""
        found = process.start_ticks(pid)
        return path if found is not None and found[0] == ticks else ""

    def _connect(self, path: str) -> bool:
        import socket

        bell = None
        try:
            bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
            bell.connect(path)
        except (OSError, ValueError):
            if bell is not None:
                bell.close()
            return False
        self._socket, self._path, self._rung = bell, path, -1
        return True

    def ring(self) -> None:
        """Send the datagram; an agent that is too busy to take it will scan, one that is gone is forgotten until the next look."""
        bell, writer = self._socket, self._writer
        if bell is None:
            return
        self._rung = writer.sequence
        if writer.id is not self._id:
            self._id, self._text = writer.id, writer.id_text.encode()
        try:
            bell.send(self._text)
        except BlockingIOError:
            pass
        except OSError:
            self.hang_up()

    def hang_up(self) -> None:
        """Ring no more."""
        bell, self._socket = self._socket, None
        self._writer.on_record, self._writer.ring_after = None, _SILENT
        self._path = ""
        if bell is not None:
            bell.close()
