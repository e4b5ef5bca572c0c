"""A long, lossy link between two network namespaces: two TUN devices, and a loop between them that delays and loses packets.

The kernel's netem is not everywhere. Both directions get the delay and the loss; order within a direction is kept.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import os
import random
import select
import shutil
import struct
import subprocess
import threading
import time
from typing import Self

_TUNSETIFF, _TUN, _NO_INFO = 0x400454CA, 0x0001, 0x1000


def usable() -> str:
    """Return why there can be no such link here; empty when there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "ip is not installed: apt-get install iproute2"
    if not os.path.exists("/dev/net/tun"):
        return "there is no /dev/net/tun"
    return ""


class SlowLink:
    """`near` is the prefix of commands that run at the near end; the far end is this machine itself, at `address`.

    `delay` is one direction's, in seconds; `loss` a share of packets, in both; `rate` bytes a second of each direction.
    """

    def __init__(self, delay: float, loss: float, seed: int, rate: float = 12.5e6) -> None:
        self._delay, self._loss, self._rate = delay, loss, rate
        self._choice = random.Random(seed)
        self._stop = threading.Event()
        self._name = f"slow{os.getpid() % 100000}"
        self._net = f"10.213.{os.getpid() % 250}"  # several at a time do not meet
        self.address = f"{self._net}.2"
        self.bytes = [0, 0]  # that the near and the far end have sent
        self.lost = 0
        self.near = ("ip", "netns", "exec", self._name)

    def __enter__(self) -> Self:
        self._devices = []
        near, far = f"{self._name}n", f"{self._name}f"
        for device in (near, far):
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH", device.encode(), _TUN | _NO_INFO))
            self._devices.append(fd)
        inside = ("-n", self._name)
        for command in (
            ("netns", "add", self._name), ("link", "set", near, "netns", self._name),
            (*inside, "addr", "add", f"{self._net}.1/24", "dev", near),
            (*inside, "link", "set", near, "mtu", "1400", "up"), (*inside, "link", "set", "lo", "up"),
            ("addr", "add", f"{self.address}/24", "dev", far), ("link", "set", far, "mtu", "1400", "up"),
        ):  # fmt: skip
            subprocess.run(["ip", *command], check=True, capture_output=True)
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)
        for fd in self._devices:
            os.close(fd)
        subprocess.run(["ip", "netns", "del", self._name], check=False, capture_output=True)

    def _carry(self) -> None:
        waiting: list[tuple[float, int, int, bytes]] = []
        free = [0.0, 0.0]  # when each direction has sent what it was given, at its rate
        number = 0
        poll = select.poll()  # select() has no eyes for descriptors beyond 1023
        for fd in self._devices:
            poll.register(fd, select.POLLIN)
        while not self._stop.is_set():
            pause = min(0.05, max(0.0, waiting[0][0] - time.monotonic())) if waiting else 0.05
            ready = poll.poll(pause * 1000)
            now = time.monotonic()
            for fd, _ in ready:
                end = self._devices.index(fd)
                with contextlib.suppress(BlockingIOError):
                    for _ in range(64):
                        packet = os.read(fd, 2048)
                        self.bytes[end] += len(packet)
                        if self._choice.random() < self._loss:
                            self.lost += 1
                            continue
                        free[end] = max(free[end], now) + len(packet) / self._rate
                        number += 1
                        heapq.heappush(waiting, (free[end] + self._delay, number, 1 - end, packet))
            now = time.monotonic()
            while waiting and waiting[0][0] <= now:
                _, _, end, packet = heapq.heappop(waiting)
                with contextlib.suppress(BlockingIOError):
                    os.write(self._devices[end], packet)
