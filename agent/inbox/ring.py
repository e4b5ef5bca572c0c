"""Telling a running agent that a run's inbox has news, or is new. Nothing depends on it: an agent looks by itself."""

from __future__ import annotations

import contextlib
import socket

from simspool.spool.agent_address import living_agent

RING = b"inbox "


def ring(spool_path: str, run: str) -> bool:
    """Ring the agent of this host that serves a spool; False where none does. Never blocks."""
    known = living_agent(spool_path)
    bell = None if known is None else known.get("bell")
    if isinstance(bell, str):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as s:
            s.sendto(RING + run.encode(), bell)
    return known is not None
