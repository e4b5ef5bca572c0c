"""What the host has and uses: processors, load, memory, swap, network, and what is left on disks.

psutil is asked where the caller has it; /proc has the same numbers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .tree import MIB


@dataclass(frozen=True, slots=True)
class HostReading:
    """One look at the host. Processor times are seconds, memory and network bytes; `at` is seconds on the boot clock.

    What the system hides is None.
    """

    at: float
    busy: float | None
    total: float | None
    load: float | None
    memory: int | None
    available: int | None
    swap_used: int | None
    received: int | None
    sent: int | None


def read_host(at: float, psutil: Any = None) -> HostReading:
    """Look at the host. `psutil` is the module, where it is loaded anyway. Raises nothing."""
    busy, total = _cpu(psutil)
    memory, available, swap = _memory()
    received, sent = _network(psutil)
    try:
        load: float | None = os.getloadavg()[0]
    except OSError:
        load = None
    return HostReading(at, busy, total, load, memory, available, swap, received, sent)


def host_values(now: HostReading, before: HostReading | None) -> dict[str, float | int]:
    """Return the host's quantities; those over time need the reading before."""
    values: dict[str, float | int] = {}
    if now.load is not None:
        values["resources/host.load"] = now.load
    if now.memory is not None and now.available is not None:
        values["resources/host.memory.used"] = (now.memory - now.available) / MIB
        values["resources/host.memory.left"] = now.available / MIB
    if now.swap_used is not None:
        values["resources/host.swap.used"] = now.swap_used / MIB
    if now.received is not None and now.sent is not None:
        values["resources/host.network.received"] = now.received / MIB
        values["resources/host.network.sent"] = now.sent / MIB
    if before is None or now.at <= before.at:
        return values
    if now.busy is not None and now.total is not None and before.busy is not None and before.total is not None and now.total > before.total:
        values["resources/host.cpu.percentage"] = min(max(100.0 * (now.busy - before.busy) / (now.total - before.total), 0.0), 100.0)
    seconds = now.at - before.at
    for name, new, old in (("received", now.received, before.received), ("sent", now.sent, before.sent)):
        if new is not None and old is not None and new >= old:  # an interface that went takes its count with it
            values[f"resources/host.network.{name}.rate"] = (new - old) / MIB / seconds
    return values


def disk_left(path: str) -> tuple[float, int | None]:
    """Return what an ordinary user may still write to a path's file system: MiB, and files (None where there is no such limit).

    Raises OSError. On a network mount whose server is gone, it does not return.
    """
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize / MIB, found.f_favail if found.f_files else None


def disk_values(left: Iterable[tuple[float, int | None]]) -> dict[str, float | int]:
    """Return the smallest of what is left on some disks."""
    found = list(left)
    if not found:
        return {}
    values: dict[str, float | int] = {"resources/disk.left": min(space for space, _ in found)}
    files = [n for _, n in found if n is not None]
    if files:
        values["resources/disk.inodes.left"] = min(files)
    return values


def _cpu(psutil: Any) -> tuple[float | None, float | None]:
    try:
        if psutil is not None:
            t = psutil.cpu_times()
            idle = t.idle + t.iowait
            total = t.user + t.nice + t.system + idle + t.irq + t.softirq + t.steal
            return total - idle, total
        with open("/proc/stat", "rb") as f:
            user, nice, system, idle, wait, irq, soft, steal = (int(v) for v in f.readline().split()[1:9])
    except (OSError, ValueError, AttributeError):
        return None, None
    ticks = os.sysconf("SC_CLK_TCK")
    busy = user + nice + system + irq + soft + steal
    return busy / ticks, (busy + idle + wait) / ticks


def _memory() -> tuple[int | None, int | None, int | None]:
    """Return memory, what of it is available, and used swap. (psutil's swap_memory warns where /proc/vmstat is hidden.)"""
    found: dict[bytes, int] = {}
    try:
        with open("/proc/meminfo", "rb") as f:
            for line in f:
                name, _, rest = line.partition(b":")
                found[name] = int(rest.split()[0]) * 1024
                if name == b"SwapFree":
                    break
    except (OSError, ValueError, IndexError):
        return None, None, None
    swap = found[b"SwapTotal"] - found[b"SwapFree"] if b"SwapTotal" in found and b"SwapFree" in found else None
    return found.get(b"MemTotal"), found.get(b"MemAvailable"), swap


def _network(psutil: Any) -> tuple[int | None, int | None]:
    """Return the bytes received and sent by all interfaces but the loopback."""
    received = sent = 0
    try:
        if psutil is not None:
            for name, n in psutil.net_io_counters(pernic=True, nowrap=False).items():
                if name != "lo":
                    received += n.bytes_recv
                    sent += n.bytes_sent
            return received, sent
        with open("/proc/net/dev", "rb") as f:
            for line in f.readlines()[2:]:
                interface, _, rest = line.rpartition(b":")
                fields = rest.split()
                if interface.strip() != b"lo":
                    received += int(fields[0])
                    sent += int(fields[8])
    except (OSError, ValueError, IndexError, AttributeError):
        return None, None
    return received, sent
