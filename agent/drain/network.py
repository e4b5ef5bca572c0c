"""Hears from the kernel that a link or an address changed, so that a drain need not wait out its backoff."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

_LINK, _IPV4, _IPV6 = 0x1, 0x10, 0x100  # rtnetlink multicast groups


class NetworkWatch:
    """Calls `changed` after each change of links or addresses. Where netlink is not to be had, it stays silent."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._socket: socket.socket | None = None

    def start(self) -> None:
        """Listen on the running loop."""
        try:
            found = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        except (OSError, AttributeError):
            return
        try:
            found.bind((0, _LINK | _IPV4 | _IPV6))
        except OSError:
            found.close()
            return
        self._socket = found
        asyncio.get_running_loop().add_reader(found, self._read)

    def _read(self) -> None:
        assert self._socket is not None
        with contextlib.suppress(OSError):  # an overflow also means that something changed
            self._socket.recv(65536)
        self._changed()

    def stop(self) -> None:
        """Stop listening."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
