"""SIGKILL and errors at every system call of a short script, one after another (faults F1, F9)."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from simspool.spool import InvalidSpool, blobs, ids, open_spool
from simspool.spool.frames import MetricBatch
from simspool.spool.reader import Tail, read_drop_counts

RUN = bytes(range(16))
SCRIPT = Path(__file__).with_name("recording_script.py")
CALLS = ("pwrite64", "write", "fsync", "fdatasync", "rename", "ftruncate", "fallocate", "link", "unlink", "mkdir", "openat")


@pytest.fixture(autouse=True)
def _strace() -> None:
    if shutil.which("strace") is None:
        pytest.skip("no strace here: `apt install strace`, these tests kill at every system call")
    probe = subprocess.run(["strace", "-e", "trace=none", "true"], check=False, capture_output=True)
    if probe.returncode:
        pytest.skip(f"strace does not work here: {probe.stderr.decode(errors='replace').strip()}")


def trace(folder: Path, inject: str | None, only: str = "") -> subprocess.CompletedProcess[bytes]:
    """Run the script on a fresh spool, under strace; only calls on paths below the spool count where `only` names them."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "board").write_bytes(bytes(64))
    command = ["strace", "-qq", "-f", "-o", str(folder / "trace"), "-e", f"trace={only or ','.join(CALLS)}"]
    if inject:
        command += ["-e", f"inject={inject}"]
    command += [sys.executable, "-I", str(SCRIPT), str(folder / "spool"), str(folder / "board")]
    return subprocess.run(command, check=False, capture_output=True)


def check(folder: Path) -> dict[str, Any]:
    """Whatever happened: what was promised is there, in order, once; the spool can be opened and used on."""
    out: dict[str, Any] = {"found": [0, 0], "drops": {}, "torn": 0}
    promised = struct.unpack("<8q", (folder / "board").read_bytes())
    try:
        spool = open_spool(folder / "spool")
    except InvalidSpool:
        assert promised[0] == 0
        spool = open_spool(folder / "spool", create=True)
    run = spool.run(ids.to_text(RUN))
    for writer in run.writer_ids():
        with Tail(run.writer(writer), run.id) as tail:
            place, numbers = 0, []
            for chunk in tail.read(dead=True):
                assert not chunk.gaps
                assert all(d.kind == "torn" for d in chunk.damage), chunk.damage
                out["torn"] += len(chunk.damage)
                for item in chunk.items:
                    bodies = [item.values(row) for row in item.rows] if isinstance(item, MetricBatch) else [item.body or {}]
                    for body in bodies:
                        if "n" in body:
                            place = int(body["place"])
                            numbers.append(body["n"])
            assert numbers == sorted(set(numbers))
            if numbers:
                out["found"][place] = len(numbers)
                out["drops"][place] = read_drop_counts(run.writer(writer))
    for place in (0, 1):
        assert out["found"][place] >= promised[place]
    for pooled in Path(spool.pool).glob("*/*"):
        blobs.verify(str(pooled), pooled.name)
    out["promised"], out["done"] = promised[:2], bool(promised[7])
    return out


def counts(folder: Path) -> dict[str, int]:
    """Return how often the script makes each call, and where its calls on the spool begin."""
    assert trace(folder, None).returncode == 0
    lines = (folder / "trace").read_text().splitlines()
    return {name: sum(f" {name}(" in line for line in lines) for name in CALLS}


def test_sigkill_at_every_write_fsync_rename_truncate_and_allocation(tmp_path: Path) -> None:
    """W1-W7: k = 1, 2, 3 ... until the script completes."""
    folder = tmp_path / "x"
    total = counts(folder)
    points = 0
    for name in ("pwrite64", "fsync", "fdatasync", "rename", "ftruncate", "fallocate", "link", "unlink"):
        k = 0
        while True:
            k += 1
            result = trace(folder, f"{name}:signal=KILL:when={k}", only=name)
            seen = check(folder)
            if seen["done"]:
                break
            assert result.returncode in {-9, 137}
            points += 1
        assert k - 1 == total[name], name
    assert points >= 40


def _error_cases() -> list[tuple[str, str]]:
    return [("fdatasync:error=EIO:when=1", "io-error"), ("fdatasync:error=EIO", "io-error"),
            ("fallocate:error=ENOSPC:when=1", "disk-full"),
            ("fallocate:error=ENOSPC", "disk-full"), ("pwrite64:error=ENOSPC:when=6+", "disk-full"),
            ("pwrite64:error=EIO:when=8", "io-error"),
            ("pwrite64:retval=100:when=9", "disk-full"), ("ftruncate:error=EIO", ""), ("rename:error=EACCES:when=3", "")]  # fmt: skip


@pytest.mark.parametrize(("inject", "reason"), _error_cases())
def test_an_error_of_the_disk_is_a_counted_drop_and_never_an_exception(tmp_path: Path, inject: str, reason: str) -> None:
    """The script's exit code stays 0; True equals found; what was not taken is counted with its reason."""
    folder = tmp_path / "x"
    result = trace(folder, inject, only=inject.split(":")[0])
    assert result.returncode == 0, result.stderr.decode()[-800:]
    seen = check(folder)
    assert seen["done"]
    assert tuple(seen["found"]) == seen["promised"]
    if any(seen["drops"].values()):
        assert {r for d in seen["drops"].values() for r in d} == {reason}
