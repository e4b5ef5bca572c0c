"""What the agent tells systemd: that it serves, what it does, and that it gets on (sd_notify and the watchdog)."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, MutableMapping
from typing import Self

from simspool.agent.progress import Progress

_STATUS_EVERY = 5.0  # seconds
_LONGEST_STATUS = 300  # characters


class Notifier:
    """The manager's notification socket. Without one nothing is sent; a manager that does not listen stops nobody.

    `watchdog`: seconds without a sign of life after which the manager kills this process, or None.
    """

    def __init__(self, address: str | None, watchdog: float | None = None) -> None:
        self._address = "\0" + address[1:] if address is not None and address.startswith("@") else address
        self.watchdog = watchdog if address is not None else None

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> Self:
        """Take what the manager passed to this process, and take it away, so that no child speaks in our name."""
        address = environ.pop("NOTIFY_SOCKET", None)
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        ours = not pid or pid == str(os.getpid())
        return cls(address or None, int(usec) / 1e6 if ours and usec.isdecimal() and int(usec) else None)

    @property
    def is_there(self) -> bool:
        """Whether a manager wants to hear from us."""
        return self._address is not None

    def send(self, *assignments: str) -> bool:
        """Send `NAME=value` lines; False when nobody takes them."""
        if self._address is None or not assignments:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.settimeout(1.0)  # a manager that reads nothing must not hold up the agent
                channel.connect(self._address)
                channel.sendall("\n".join(assignments).encode())
        except (OSError, ValueError):
            return False
        return True

    def ready(self, status: str) -> bool:
        """The agent serves from now on."""
        return self.send("READY=1", f"MAINPID={os.getpid()}", status_line(status))

    def stopping(self) -> bool:
        """The agent ends, as it was told."""
        return self.send("STOPPING=1", status_line("stopping"))

    async def feed(self, progress: Progress, status: Callable[[], str], report: Callable[[str], None]) -> None:
        """Keep the status line true, and the watchdog fed for as long as every loop gets on. Until cancelled.

        A loop that makes no turn for the watchdog's time starves it; the manager then kills and restarts the agent.
        """
        every = min(_STATUS_EVERY, self.watchdog / 4) if self.watchdog else _STATUS_EVERY
        said, stuck_before = "", False
        while True:
            stuck = progress.stuck(self.watchdog) if self.watchdog else []
            if stuck and not stuck_before:
                report(f"no progress for {self.watchdog:g} s in: {', '.join(stuck)}; if it stays so, systemd restarts this agent")
            stuck_before = bool(stuck)
            line = status_line("stuck: " + ", ".join(stuck) if stuck else status())
            lines = [line] if line != said else []
            if self.watchdog and not stuck:
                lines.append("WATCHDOG=1")
            self.send(*lines)
            said = line
            await asyncio.sleep(every)


def status_line(text: str) -> str:
    """Return a STATUS assignment: one line whatever the text holds, since a line of its own would be another assignment."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    return "STATUS=" + clean[:_LONGEST_STATUS]
