"""Who a process is (DESIGN I9), and what the header says of it (FORMAT.md section 3)."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simspool.spool import DamagedSegment, NewerFormat, process, segment_header
from simspool.spool.segment_header import SegmentHeader


def header_of(pid: int) -> SegmentHeader:
    here = process.this_host()
    found = process.start_ticks(pid)
    assert found is not None
    return SegmentHeader(
        writer=bytes(16), run=bytes(16), number=1, first=1, durability=1, pid=pid, start_ticks=found[0], anchor_boot=0, anchor_wall=0,
        origin_boot=0, pid_namespace=here.pid_namespace, boot_id=here.boot_id, uid=0, rank=None, host=here.name, machine=here.machine,
    )  # fmt: skip


def test_a_process_is_alive_only_as_the_same_start_on_the_same_boot() -> None:
    me = header_of(os.getpid())
    assert process.is_alive(me) is True
    assert process.is_alive(replace(me, start_ticks=me.start_ticks + 1)) is False
    assert process.is_alive(replace(me, boot_id=bytes(range(16)), start_ticks=me.start_ticks + 1)) is False
    assert process.is_alive(replace(me, boot_id=bytes(range(16)))) is None  # a container may be shown another boot id


def test_what_this_host_cannot_know_is_none() -> None:
    """Another host, another machine of the same name (cluster nodes called localhost), another PID namespace."""
    me = header_of(os.getpid())
    elsewhere = replace(me, machine=bytes(range(16)), boot_id=bytes(range(16)))
    for other in (replace(me, host="elsewhere"), elsewhere, replace(me, pid_namespace=1)):
        assert process.is_alive(other) is None


def test_a_zombie_and_a_free_pid_are_dead() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    header = header_of(child.pid)
    assert process.is_alive(header) is True
    assert child.stdin is not None
    child.stdin.close()
    while (state := process.start_ticks(child.pid)) is not None and state[1] != "Z":
        pass
    assert process.is_alive(header) is False
    child.wait()
    assert process.is_alive(header) is False
    assert process.start_ticks(child.pid) is None


def test_long_host_names_are_compared_as_they_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    here = replace(process.this_host(), name="ü" * 60)
    monkeypatch.setattr(process, "this_host", lambda: here)
    kept = SegmentHeader.unpack(replace(header_of(os.getpid()), host="ü" * 60).pack())
    assert kept.host == "ü" * 32
    assert process.is_alive(kept) is True


u32, u64 = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)
i64, raw = st.integers(-(1 << 63), (1 << 63) - 1), st.binary(min_size=16, max_size=16)
headers = st.builds(
    SegmentHeader, writer=raw, run=raw, number=u32, first=u64, durability=st.integers(0, 2), pid=u32, start_ticks=u64, anchor_boot=i64,
    anchor_wall=i64, origin_boot=i64, pid_namespace=u64, boot_id=raw, uid=u32, rank=st.none() | st.integers(0, (1 << 32) - 2),
    host=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=16), minor=st.integers(0, 65535), machine=raw,
)  # fmt: skip


@given(headers)
def test_a_header_comes_back_as_it_was(header: SegmentHeader) -> None:
    static = header.pack()
    assert len(static) == 256
    assert SegmentHeader.unpack(static) == header


@given(st.binary(max_size=300))
def test_any_bytes_are_a_header_or_an_error(data: bytes) -> None:
    with pytest.raises((DamagedSegment, NewerFormat)):
        SegmentHeader.unpack(data)


def test_the_larger_valid_slot_of_a_drop_counter_counts() -> None:
    whole = bytearray(segment_header.SIZE)
    for count in (1, 2, 3):
        at, slot = segment_header.drop_slot(0, count, 9)
        whole[at : at + 16] = slot
    assert segment_header.read_drops(bytes(whole), 9) == ({"disk-full": 3}, [])
    whole[at] ^= 1
    assert segment_header.read_drops(bytes(whole), 9) == ({"disk-full": 2}, [at])
    assert segment_header.read_drops(bytes(whole), 8)[0] == {}
