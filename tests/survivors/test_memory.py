"""Runs that the kernel kills for memory, in a real cgroup: told from those that somebody killed."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from memory_cgroup import enter, memory_cgroup
from victims import Site, Victim

from simspool.agent.survivors import memory
from simspool.agent.survivors.memory import MemoryGroup, OutOfMemory

LIMIT = 64 << 20
_PR_CAPBSET_DROP, _CAP_SYSLOG = 24, 34
EAT = "food = []; [food.append(bytearray(1 << 20)) for _ in iter(int, 1)]"


@pytest.fixture
def group() -> Iterator[Path]:
    """A cgroup of 64 MiB."""
    with memory_cgroup(f"simspool-test-{os.getpid()}-{time.monotonic_ns()}", LIMIT) as found:
        yield found


@pytest.fixture
def eater(group: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Start processes of the group that eat up its memory, or wait, when told a line."""
    made: list[subprocess.Popen[str]] = []

    def begin() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", "import sys; print('here', flush=True); exec(sys.stdin.readline())"]
        one = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=enter(group))
        made.append(one)
        assert one.stdout is not None
        assert one.stdout.readline() == "here\n"
        return one

    yield begin
    for one in made:
        one.kill()
        one.communicate(timeout=20)


def starve(one: subprocess.Popen[str]) -> None:
    """Let it eat until the kernel kills it."""
    assert one.stdin is not None
    one.stdin.write(EAT + "\n")
    one.stdin.flush()
    assert one.wait(30) == -signal.SIGKILL


def log_is_readable() -> bool:
    return memory.read_kernel_log().readable


def test_a_run_that_the_kernel_killed_for_memory_has_failed(site: Site, victim: Callable[..., Victim], group: Path) -> None:
    one = victim(before=enter(group))
    one.tell(EAT)
    found = site.ended(one.run)
    assert found["status"] == "failed"
    assert found["reason"].startswith("killed by the kernel: out of memory, the limit of 64 MiB of cgroup /")
    (said,) = site.survivors(one.run)
    assert said["evidence"]["reason"] == "out-of-memory"
    assert said["evidence"]["oom"]["limit"] == LIMIT
    assert said["evidence"]["oom"]["cgroup"].endswith(group.name)
    assert said["evidence"]["exit"]["name"] == "SIGKILL"
    assert site.client("spool").get_run(one.run)["reason"] == site.show(one.run)["reason"] == found["reason"]


def test_killed_by_somebody_while_a_neighbour_ran_out_of_memory(
    site: Site, victim: Callable[..., Victim], group: Path, eater: Callable[[], subprocess.Popen[str]]
) -> None:
    if not log_is_readable():
        pytest.skip("SKIPPED: the kernel's log may not be read here: the counters alone name nobody")
    one = victim(before=enter(group))
    starve(eater())
    one.process.send_signal(signal.SIGKILL)
    found = site.ended(one.run)
    assert (found["status"], found["reason"]) == ("terminated", "ended by SIGKILL")


def without_the_log() -> None:
    """Give up the right to read the kernel's log, for what is executed next."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_CAPBSET_DROP, _CAP_SYSLOG, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site whose agent may not read the kernel's log, as an ordinary user's."""
    restricted = Path("/proc/sys/kernel/dmesg_restrict")
    if os.geteuid() == 0 and restricted.read_text().strip() != "1":
        pytest.skip("SKIPPED: everybody may read the kernel's log here")
    with Site(tmp_path_factory.mktemp("blind"), before=without_the_log if os.geteuid() == 0 else None) as found:
        yield found


def test_where_the_log_may_not_be_read_the_counters_tell(blind: Site, group: Path) -> None:
    hungry, killed = (Victim(blind.environment, before=enter(group)) for _ in range(2))
    blind.watched(hungry)
    blind.watched(killed)
    killed.process.send_signal(signal.SIGKILL)
    assert blind.ended(killed.run)["reason"] == "ended by SIGKILL"
    hungry.tell(EAT)
    found = blind.ended(hungry.run)
    (said,) = blind.survivors(hungry.run)
    for one in (hungry, killed):
        one.end()
    assert found["status"] == "failed"
    assert said["evidence"]["oom"] == {"source": "cgroup", "cgroup": said["evidence"]["oom"]["cgroup"], "limit": LIMIT}
    assert said["evidence"]["oom"]["cgroup"].endswith(group.name)


def test_the_kernels_log_tells_it_afterwards_too(site: Site, group: Path) -> None:
    if not log_is_readable():
        pytest.skip("SKIPPED: the kernel's log may not be read here")
    site.stop_agent()
    try:
        one = Victim(site.environment, before=enter(group))
        one.tell(EAT)
        one.process.wait(30)
        one.end()
        assert site.show(one.run)["status"] == "failed"
        (said,) = site.survivors(one.run)
        assert said["evidence"]["oom"]["source"] == "kernel-log"
        assert "exit" not in said["evidence"]
    finally:
        site.start_agent()


def test_the_counter_of_a_group_rises_by_its_own_kills(group: Path, eater: Callable[[], subprocess.Popen[str]]) -> None:
    neighbour, one = eater(), eater()
    watched = MemoryGroup(one.pid)
    assert watched.limit == LIMIT
    assert watched.count().killed is None
    neighbour.kill()
    neighbour.wait(20)
    assert watched.count().killed is None
    starve(one)
    found = watched.count().killed
    assert found is not None
    assert (found.source, found.limit) == ("cgroup", LIMIT)
    assert str(found.cgroup).endswith(group.name)


def test_a_rise_is_old_after_some_seconds(eater: Callable[[], subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """A neighbour was killed long before: that says nothing of this one."""
    neighbour, one = eater(), eater()
    watched = MemoryGroup(one.pid)
    starve(neighbour)
    now = time.monotonic()
    for later in (5, 12, 16):
        monkeypatch.setattr(memory.time, "monotonic", lambda later=later: now + later)
        watched.look()
    assert watched.count().killed is None


def test_only_a_kill_by_the_kernel_counts(eater: Callable[[], subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the log, a rise counts for a process that is known to have ended by SIGKILL, and for no other."""
    monkeypatch.setattr(memory, "read_kernel_log", lambda: memory.KernelLog(readable=False))
    one = eater()
    watched = MemoryGroup(one.pid)
    starve(one)
    counted = watched.count()
    assert counted.killed is not None
    assert memory.out_of_memory(one.pid, 0.0, counted, by_kill=True) == counted.killed
    assert memory.out_of_memory(one.pid, 0.0, counted, by_kill=None) is None
    assert memory.out_of_memory(one.pid, 0.0, counted, by_kill=False) is None


LOG = [
    b"6,100,5000000,-;Memory cgroup out of memory: Killed process 77 (python3) total-vm:60768kB, UID:0 oom_score_adj:0\n",
    b"6,101,900000000,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),oom_memcg=/a/b,task_memcg=/a/b/c,task=python3,pid=78,uid=0\n",
    b"3,102,900000010,-;Memory cgroup out of memory: Killed process 78 (python3) total-vm:60768kB, UID:0 oom_score_adj:0\n",
    b"3,103,900000020,-;Out of memory: Killed process 79 (a.out) total-vm:60768kB, UID:1000 oom_score_adj:0\n",
    b"6,104,900000030,-;oom_reaper: reaped process 79 (a.out), now anon-rss:0kB\n",
    b"6,105,no time,-;Out of memory: Killed process 80 (a.out)\n",
]


def test_the_log_names_the_process_and_whose_limit_it_was() -> None:
    log = memory.parse_kernel_log(LOG)
    assert log.of(78, 800.0) == OutOfMemory("kernel-log", "/a/b", None)
    assert log.of(79, 800.0) == OutOfMemory("kernel-log", None, None)
    assert log.of(77, 4.0) == OutOfMemory("kernel-log", "", None)
    assert log.of(77, 800.0) is None, "an older process of this pid"
    assert log.of(80, 0.0) is None
    assert log.of(81, 0.0) is None


def test_a_group_of_version_2(tmp_path: Path) -> None:
    """This kernel may not offer the controller there: what its files look like is known."""
    job = tmp_path / "user.slice" / "job"
    job.mkdir(parents=True)
    (tmp_path / "user.slice" / "memory.max").write_text("104857600\n")
    (job / "memory.max").write_text("max\n")
    (job / "memory.events").write_text("low 0\nhigh 0\nmax 7\noom 1\noom_kill 4\noom_group_kill 0\n")
    mounts = f"30 23 0:26 / {tmp_path} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n31 23 0:27 / /proc rw - proc proc rw\n"
    (hierarchy,) = memory.find_hierarchies(mounts)
    group = memory.group_of("1:name=systemd:/x\n0::/user.slice/job\n", old=False)
    assert group == "/user.slice/job"
    folder = hierarchy.folder(group)
    assert (hierarchy.kills(folder), hierarchy.limit(folder)) == (4, 104857600)
    (job / "memory.events.local").write_text("oom_kill 1\n")
    assert hierarchy.kills(folder) == 1, "the group's own, not those below"
    assert hierarchy.kills(folder + "/none") is None


def test_version_1_comes_first_and_a_mount_may_show_a_part() -> None:
    mounts = (
        "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
        "35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "36 31 0:33 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    )
    first, second = memory.find_hierarchies(mounts)
    assert (first.old, second.old) == (True, False)
    assert first.folder("/docker/abc/job") == "/sys/fs/cgroup/memory/job"
    assert memory.group_of("4:memory:/docker/abc/job\n0::/\n", old=True) == "/docker/abc/job"
    assert memory.group_of("0::/\n", old=True) is None
