"""The host's own figures: psutil and /proc say the same."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from simspool.sdk.sampling.host import HostReading, disk_left, disk_values, host_values, read_host


def test_both_sources_agree() -> None:
    ours, theirs = read_host(1.0), read_host(1.0, psutil)
    assert ours.busy == pytest.approx(theirs.busy, abs=1)
    assert ours.total == pytest.approx(theirs.total, abs=1)
    assert 0 <= theirs.received - ours.received < 10 << 20
    assert 0 <= theirs.sent - ours.sent < 10 << 20
    memory = psutil.virtual_memory()
    assert ours.memory == memory.total
    assert ours.available == pytest.approx(memory.available, rel=0.1)


def reading(at: float, **given: float | None) -> HostReading:
    names = ("busy", "total", "load", "memory", "available", "swap_used", "received", "sent")
    return HostReading(at, *(given.get(name) for name in names))


def test_figures_over_time() -> None:
    before = reading(10.0, busy=100.0, total=200.0, received=0, sent=10 << 20)
    now = reading(20.0, busy=105.0, total=220.0, received=20 << 20, sent=10 << 20)
    values = host_values(now, before)
    assert values["resources/host.cpu.percentage"] == 25.0
    assert values["resources/host.network.received.rate"] == 2.0
    assert values["resources/host.network.sent.rate"] == 0.0


BACKWARDS = reading(20.0, busy=50.0, total=100.0, received=5, sent=5)


@pytest.mark.parametrize("later", [reading(20.0), reading(10.0, busy=1.0, total=1.0), BACKWARDS])
def test_what_is_hidden_or_went_backwards_is_left_out(later: HostReading) -> None:
    before = reading(10.0, busy=100.0, total=200.0, received=10, sent=10)
    values = host_values(later, before)
    assert not {"resources/host.cpu.percentage", "resources/host.network.received.rate"} & values.keys()


def test_disks(tmp_path: Path) -> None:
    space, files = disk_left(str(tmp_path))
    assert space == pytest.approx(psutil.disk_usage(str(tmp_path)).free / (1 << 20), rel=0.05)
    assert files is None or files <= os.statvfs(tmp_path).f_files
    assert disk_values([(5.0, 100), (3.0, None)]) == {"resources/disk.left": 3.0, "resources/disk.inodes.left": 100}
    assert disk_values([(5.0, None)]) == {"resources/disk.left": 5.0}
    assert disk_values([]) == {}
    with pytest.raises(OSError):
        disk_left(str(tmp_path / "nothing"))
