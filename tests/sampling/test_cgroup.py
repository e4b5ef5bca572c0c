"""The limits of control groups: version 1 on the real ones of this machine, version 2 on a copy of its files."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from simspool.sdk.sampling.cgroup import Cgroups

MIB = 1 << 20


@pytest.fixture
def real_group() -> Iterator[Callable[[str], Path]]:
    """Make a real group of a version 1 controller, below the one that this process is in."""
    made: list[Path] = []

    def make(controller: str) -> Path:
        if os.geteuid() != 0:
            pytest.skip("not root: no control group can be made")
        cgroups = Cgroups()
        if controller not in cgroups._controllers:
            pytest.skip(f"the {controller} controller is not version 1 here")
        base = next(cgroups._folders(controller, dict(_paths(os.getpid()))))
        group = Path(base) / f"simspool-test-{os.getpid()}"
        group.mkdir()
        made.append(group)
        return group

    yield make
    for group in made:
        with contextlib.suppress(OSError):
            group.rmdir()


def _paths(pid: int) -> Iterator[tuple[str, str]]:
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            yield name, path


@pytest.mark.root
def test_a_real_memory_limit(real_group: Callable[[str], Path], program: Callable[..., Any]) -> None:
    group = real_group("memory")
    (group / "memory.limit_in_bytes").write_text(str(256 * MIB))
    one = program("""
        import sys
        print("in", flush=True); sys.stdin.readline()
        kept = bytearray(64 << 20)
        print("took", flush=True); sys.stdin.readline()
    """)
    one.hear()
    (group / "cgroup.procs").write_text(str(one.pid))
    cgroups = Cgroups()
    before = cgroups.measure(cgroups.membership(one.pid))
    assert before["resources/cgroup.memory.limit"] == 256
    one.tell()
    one.hear()
    cgroups.refresh()
    after = cgroups.measure(cgroups.membership(one.pid))
    assert after["resources/cgroup.memory.used"] - before["resources/cgroup.memory.used"] == pytest.approx(64, abs=8)
    assert after["resources/cgroup.memory.left"] == pytest.approx(256 - after["resources/cgroup.memory.used"])
    one.end()


@pytest.mark.root
def test_real_limits_of_processes_and_processor_time(real_group: Callable[[str], Path], program: Callable[..., Any]) -> None:
    pids, cpu = real_group("pids"), real_group("cpu")
    (pids / "pids.max").write_text("40")
    if not (cpu / "cpu.cfs_quota_us").exists():
        pytest.skip("SKIPPED: this kernel has no processor quotas")
    (cpu / "cpu.cfs_quota_us").write_text("150000")
    one = program("import sys; print(1, flush=True); sys.stdin.readline()")
    one.hear()
    for group in (pids, cpu):
        (group / "cgroup.procs").write_text(str(one.pid))
    cgroups = Cgroups()
    values = cgroups.measure(cgroups.membership(one.pid))
    assert values["resources/cgroup.pids.limit"] == 40
    assert values["resources/cgroup.pids.left"] == 39
    assert values["resources/cgroup.cpu.limit"] == 150.0
    one.end()


@pytest.mark.root
def test_the_tightest_limit_on_the_way_up_counts(real_group: Callable[[str], Path], program: Callable[..., Any]) -> None:
    outer = real_group("memory")
    (outer / "memory.limit_in_bytes").write_text(str(100 * MIB))
    inner = outer / "inner"
    inner.mkdir()
    (inner / "memory.limit_in_bytes").write_text(str(300 * MIB))
    one = program("import sys; print(1, flush=True); sys.stdin.readline()")
    one.hear()
    (inner / "cgroup.procs").write_text(str(one.pid))
    cgroups = Cgroups()
    assert cgroups.measure(cgroups.membership(one.pid))["resources/cgroup.memory.limit"] == 100
    one.end()
    subprocess.run(["rmdir", str(inner)], check=True)


class Version2:
    """A folder with the files of a version 2 hierarchy, and the /proc that leads to it."""

    def __init__(self, place: Path, root: str = "/") -> None:
        self.proc, self.mount = place / "proc", place / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        self.mount.mkdir()
        (self.proc / "self" / "mountinfo").write_text(f"30 23 0:26 {root} {self.mount} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n")

    def put(self, group: str, **files: str) -> None:
        folder = self.mount / group.strip("/")
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name.replace("_", ".", 1)).write_text(text + "\n")

    def measure(self, path: str) -> dict[str, float | int]:
        return Cgroups(str(self.proc)).measure(f"0::{path}\n")


def test_version_2(tmp_path: Path) -> None:
    two = Version2(tmp_path)
    two.put("/job", memory_max=str(1000 * MIB), memory_current=str(600 * MIB), memory_stat=f"anon 1\ninactive_file {100 * MIB}")
    two.put("/job/step", memory_max="max", memory_current=str(600 * MIB), cpu_max="250000 100000", pids_max="64", pids_current="4")
    assert two.measure("/job/step") == {
        "resources/cgroup.memory.limit": 1000.0, "resources/cgroup.memory.used": 500.0, "resources/cgroup.memory.left": 500.0,
        "resources/cgroup.cpu.limit": 250.0, "resources/cgroup.pids.limit": 64, "resources/cgroup.pids.left": 60,
    }  # fmt: skip


def test_no_limits_are_no_values(tmp_path: Path) -> None:
    two = Version2(tmp_path)
    two.put("/job", memory_max="max", memory_current="5", cpu_max="max 100000", pids_max="max", pids_current="3")
    assert two.measure("/job") == {}
    assert two.measure("/nowhere") == {}
    assert Cgroups(str(tmp_path / "nothing")).measure("0::/job\n") == {}
    assert Cgroups(str(tmp_path / "nothing")).membership(os.getpid()) == ""


def test_inside_a_container_whose_groups_are_seen_from_its_root(tmp_path: Path) -> None:
    """The mount shows only the container's own subtree: paths are cut, or end at the mount's root."""
    two = Version2(tmp_path, root="/box/a1")
    two.put("/", memory_max=str(512 * MIB), memory_current="0")
    two.put("/inner", memory_max=str(128 * MIB), memory_current="0")
    for path, limit in (("/box/a1", 512), ("/box/a1/inner", 128), ("/", 512), ("/../other", 512)):
        assert two.measure(path)["resources/cgroup.memory.limit"] == limit, path


def test_usage_over_the_limit_leaves_nothing(tmp_path: Path) -> None:
    two = Version2(tmp_path)
    two.put("/job", memory_max="0", memory_current="4096", pids_max="1", pids_current="9")
    values = two.measure("/job")
    assert values["resources/cgroup.memory.left"] == values["resources/cgroup.pids.left"] == 0
