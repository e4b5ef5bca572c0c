"""The doorbell: tells a running agent of this host that there is something to read.

One datagram with the writer's and the run's id, never waited for. No agent, a dead one, or an address that the system cannot hold:
no bell, and no error; the agent's own scan finds the records as well, later.
"""

from __future__ import annotations

import os
from threading import Lock, get_ident
from typing import TYPE_CHECKING

from simspool.spool import Writer, ids
from simspool.spool.agent_address import living_agent

from . import keeper

if TYPE_CHECKING:
    import socket

_SILENT = 1 << 62
_UNHEARD = -1
_LONGEST = 107  # bytes of a unix socket's path


class AgentAddress:
    """Where this host's agent listens, as of the last `look`: `path` is empty, and `pid` 0, while there is none."""

    def __init__(self, spool_path: str) -> None:
        self._spool_path = spool_path
        self.path, self.pid = "", 0

    def look(self) -> str:
        """Return the path of the agent's bell, empty when no agent lives."""
        known = living_agent(self._spool_path) or {}
        path = known.get("bell")
        if isinstance(path, str) and 0 < len(os.fsencode(path)) <= _LONGEST:
            self.path, self.pid = path, known["pid"]
        else:
            self.path, self.pid = "", 0
        return self.path


class Bell:
    """Rings for one writer. `look` finds the agent; between two looks, ringing is one system call.

    `quiet` is the thread (its ident) that does not ring for now, 0 for none.
    """

    def __init__(self, address: AgentAddress, writer: Writer) -> None:
        self._address = address
        self._writer = writer
        self._socket: socket.socket | None = None
        self._path = ""
        self._rung = 0
        self._id, self._text = b"", b""
        self.quiet = 0
        self._looking = Lock()

    @property
    def is_heard(self) -> bool:
        """Whether an agent listened at the last look."""
        return self._socket is not None

    def look(self) -> None:
        """Find the agent's address, or that it is gone; ring for what was recorded since the last ring."""
        if not self._looking.acquire(blocking=False):
            return  # the keeper and a close at the same time: one of them looks
        try:
            path = self._address.look()
            if path != self._path or self._socket is None:
                self.hang_up()
                if path and self._connect(path):
                    self._writer.on_record = self.ring
                    self._writer.ring_after = 0
            if self._socket is not None and self._writer.sequence != self._rung:
                self.ring()
        finally:
            self._looking.release()

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
        self._socket, self._path, self._rung = bell, path, _UNHEARD
        return True

    def ring(self) -> None:
        """Send the datagram; an agent that is too busy to take it is rung again soon, one that is gone is forgotten until the next look."""
        bell, writer = self._socket, self._writer
        if bell is None or self.quiet == get_ident():
            return
        self._rung = writer.sequence
        if writer.id is not self._id:
            self._id, self._text = writer.id, f"{writer.id_text} {ids.to_text(writer.run)}".encode()
        try:
            bell.send(self._text)
        except BlockingIOError:  # the kernel keeps ten datagrams: again in a moment
            self._rung = _UNHEARD
            keeper.wake()
        except OSError:
            self.hang_up()

    def ring_again(self) -> None:
        """Ring if the last ring did not get through."""
        if self._rung == _UNHEARD:
            self.ring()

    def hang_up(self) -> None:
        """Ring no more."""
        bell, self._socket = self._socket, None
        self._writer.on_record, self._writer.ring_after = None, _SILENT
        self._path = ""
        if bell is not None:
            bell.close()
