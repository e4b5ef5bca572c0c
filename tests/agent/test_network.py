"""A drain need not wait out its backoff when the network returns: the kernel tells of links and addresses that change."""

from __future__ import annotations

import subprocess
import sys

import pytest

_SCRIPT = """
import asyncio, fcntl, socket, struct
from simspool.agent.drain.network import NetworkWatch

async def main():
    changed = asyncio.Event()
    watch = NetworkWatch(changed.set)
    watch.start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, 0x8914, struct.pack("16sh14x", b"lo", 1))  # SIOCSIFFLAGS: the loopback comes up
    async with asyncio.timeout(10):
        await changed.wait()
    watch.stop()

asyncio.run(main())
"""


def test_a_link_that_comes_up_is_heard_of() -> None:
    """In a network namespace of its own, where the loopback is down at first."""
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("network namespaces do not work here: that a returning network is heard of was not tried")
    done = subprocess.run(["unshare", "-rn", sys.executable, "-c", _SCRIPT], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
