"""Full and read-only disks: the run goes on, True equals found, drops are counted (fault F8)."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from simspool.spool import blobs, ids, open_spool
from simspool.spool.reader import Tail, read_drop_counts

RUN = bytes(range(16))
SCRIPT = """
import json, os, resource, sys, time
from simspool.spool import Durability, Kind, Writer
mapped, calls = sys.argv[2] == "mapped", int(sys.argv[3])
if len(sys.argv) > 4:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), int(sys.argv[4])))
w = Writer(sys.argv[1], bytes(range(16)), mapped=mapped, durability=Durability.INTERVAL)
kept = 0
for n in range(calls):
    kept += w.metrics({"n": n, "x": n * 0.5}) if n % 5 else w.record(Kind.EVENT, {"n": n, "pad": "x" * 300})
    if n % 500 == 0:
        w.maintain()
closed = w.close({"status": "completed"})
print(json.dumps({"kept": kept, "drops": w.drops, "closed": closed, "folder": w.folder, "error": w.last_error}))
"""


def record(folder: Path, mapped: bool, calls: int, *options: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), "mapped" if mapped else "file", str(calls), *options], check=False, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()[-800:]
    out: dict[str, Any] = json.loads(done.stdout)
    return out


def found(folder: str) -> int:
    n = 0
    with Tail(folder, ids.to_text(RUN)) as tail:
        for chunk in tail.read(dead=True):
            assert not chunk.gaps
            assert all(d.kind == "torn" for d in chunk.damage), chunk.damage
            n += chunk.last - chunk.first + 1
    return n


@pytest.fixture(params=["mapped", "file"])
def mapped(request: pytest.FixtureRequest) -> bool:
    return request.param == "mapped"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("a small tmpfs needs root to mount")
    at = tmp_path / "small"
    at.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(at)], check=False, capture_output=True)
    if mount.returncode:
        pytest.skip(f"mounts do not work here: {mount.stderr.decode().strip()}")
    yield at
    subprocess.run(["umount", "-l", str(at)], check=True)


@pytest.mark.root
def test_a_full_disk(small_disk: Path, mapped: bool) -> None:
    got = record(small_disk / "w", mapped, 20_000)
    assert 0 < got["kept"] < 20_000
    assert got["kept"] + got["drops"]["disk-full"] in {20_000, 20_001}  # the close record may not fit either
    assert got["drops"].keys() == {"disk-full"}
    assert found(got["folder"]) in {got["kept"], got["kept"] + 1}
    assert read_drop_counts(got["folder"]) == got["drops"]
    assert os.statvfs(small_disk).f_bavail < 70  # nearly all of it was used


@pytest.mark.root
def test_a_disk_with_no_space_at_all(small_disk: Path, mapped: bool) -> None:
    filler = os.open(small_disk / "filler", os.O_WRONLY | os.O_CREAT)
    while os.statvfs(small_disk).f_bavail:
        os.write(filler, bytes(4096))
    os.close(filler)
    got = record(small_disk / "w", mapped, 1000)
    assert got["kept"] == 0
    assert got["drops"] == {"disk-full": 1001}
    assert "space" in got["error"]


@pytest.mark.root
def test_a_read_only_disk(small_disk: Path, mapped: bool) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    got = record(small_disk / "w", mapped, 100)
    assert (got["kept"], got["drops"]) == (0, {"disk-full": 101})


def test_a_file_size_limit(tmp_path: Path, mapped: bool) -> None:
    """RLIMIT_FSIZE: EFBIG, no SIGXFSZ death."""
    got = record(tmp_path / "w", mapped, 5000, str(150_000))
    assert 0 < got["kept"] < 5000
    assert found(got["folder"]) in {got["kept"], got["kept"] + 1}
    assert got["drops"].keys() == {"disk-full"}


@pytest.mark.root
def test_a_blob_that_does_not_fit_leaves_nothing(small_disk: Path, tmp_path: Path) -> None:
    spool = open_spool(small_disk / "s", create=True)
    run = spool.run(ids.to_text(RUN))
    big = tmp_path / "big"
    big.write_bytes(os.urandom(1 << 21))
    with pytest.raises(OSError) as caught:
        blobs.put_file(spool, run, str(big))
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError):
        blobs.put_bytes(spool, run, big.read_bytes())
    assert os.listdir(run.blobs) == []
    assert blobs.put_bytes(spool, run, b"small").size == 5
