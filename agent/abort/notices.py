"""The datagram that makes an abort a matter of milliseconds: to the socket of each process that is meant, never waited for."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import replace

from simspool.agent.config import host_file
from simspool.spool import Spool, atomic
from simspool.spool.control import AbortRequest, notice_path


def bell_path(spool: Spool) -> str | None:
    """Return the bell's path that this host's agent, the running or the last one, has announced."""
    try:
        path = atomic.read_json(host_file(spool))["bell"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return path if isinstance(path, str) else None


def send_notices(bell: str | None, request: AbortRequest) -> int:
    """Tell the writers that a request names; returns how many were reached. Who is not finds the file within about a second."""
    if bell is None or not request.writers:
        return 0
    reached = 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as sender:
        for writer in request.writers:
            notice = replace(request, writers=(writer,)).encode()  # a datagram has to stay small, however many ranks there are
            with contextlib.suppress(OSError, ValueError):
                sender.sendto(notice, notice_path(bell, writer))
                reached += 1
    return reached
