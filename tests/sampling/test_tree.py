"""Process trees, measured on real ones."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from simspool.sdk.sampling.tree import Processes, TreeMeter
from simspool.spool.process import start_ticks

MIB = 1 << 20


def measure(meter: TreeMeter, *roots: tuple[int, int]) -> dict[str, float | int]:
    meter._processes.refresh()
    meter._search_at = 0.0  # what the search may cost is no matter here
    return meter.measure(roots)


def gone(pid: int) -> None:
    while psutil.pid_exists(pid):
        time.sleep(0.01)


NEST = """
    import subprocess, sys, threading
    text, depth = sys.argv[1], int(sys.argv[2])
    command = [sys.executable, "-S", "-c", text, text, str(depth - 1)]
    below = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2 if depth else 0)]
    for child in below:
        child.stdout.readline()
    print(depth, flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("way", ["children files", "all processes"])
def test_the_whole_tree_is_found(program: Callable[..., Any], way: str) -> None:
    import textwrap

    root = program(NEST, textwrap.dedent(NEST), 3)
    root.hear()
    processes = Processes()
    processes._has_children_files = way == "children files"
    meter = TreeMeter(processes)
    values = measure(meter, root.identity)
    found = [psutil.Process(root.pid), *psutil.Process(root.pid).children(recursive=True)]
    assert values["resources/processes.count"] == len(found) == 15
    assert meter.pids == {p.pid for p in found}
    assert values["resources/processes.threads"] == sum(p.num_threads() for p in found)
    assert values["resources/processes.files.open"] == sum(p.num_fds() for p in found)
    rss = sum(p.memory_info().rss for p in found) / MIB
    assert values["resources/cpu.usage.memory"] == pytest.approx(rss, rel=0.05)
    assert "resources/cpu.usage.percentage" not in values, "nothing to compare with yet"
    assert "resources/cpu.usage.percentage" in measure(meter, root.identity)


def test_a_child_of_a_thread_is_found(program: Callable[..., Any]) -> None:
    root = program("""
        import subprocess, sys, threading
        def work():
            child = subprocess.Popen(["sleep", "100"])
            print(child.pid, flush=True)
            child.wait()
        threading.Thread(target=work, daemon=True).start()
        sys.stdin.readline()
    """)
    child = int(root.hear())
    meter = TreeMeter(Processes())
    assert measure(meter, root.identity)["resources/processes.count"] == 2
    assert meter.pids == {root.pid, child}
    os.kill(child, 9)


def test_a_program_of_very_many_threads_is_found_by_its_childrens_parent(program: Callable[..., Any]) -> None:
    """Reading every thread's list of children would cost more than a look at every process."""
    root = program("""
        import subprocess, sys, threading, time
        child = subprocess.Popen(["sleep", "100"])
        for _ in range(int(sys.argv[1])): threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
        print(child.pid, flush=True); sys.stdin.readline(); child.kill()
        """, max(len(psutil.pids()) + 50, 100))  # fmt: skip
    child = int(root.hear())
    processes = Processes()
    meter = TreeMeter(processes)
    measure(meter, root.identity)
    assert meter.pids == {root.pid, child}
    assert processes._everything is not None
    root.tell()


def test_processor_time_is_neither_lost_nor_counted_twice(program: Callable[..., Any]) -> None:
    """Children that live between two looks only, long ones, and grandchildren whose parent ends: all is there, once."""
    root = program("""
        import os, subprocess, sys, time
        BURN = "import time\\nend = time.process_time() + float(__import__('sys').argv[1])\\nwhile time.process_time() < end: pass"
        LONG = "import subprocess, sys\\nfor _ in range(3): subprocess.run([sys.executable, '-S', '-c', sys.argv[1], '0.1'])"
        def burn(seconds): return subprocess.Popen([sys.executable, "-S", "-c", BURN, str(seconds)])
        print("ready", flush=True); sys.stdin.readline()
        before = sum(os.times()[:4])
        for _ in range(5):
            burn(0.05).wait()
        below = [burn(0.4), subprocess.Popen([sys.executable, "-S", "-c", LONG, BURN])]
        for child in below:
            child.wait()
        print(sum(os.times()[:4]) - before, flush=True); sys.stdin.readline()
    """)
    root.hear()
    meter = TreeMeter(Processes())
    measure(meter, root.identity)
    start = meter._totals[0]
    root.tell()
    said: list[str] = []
    listening = threading.Thread(target=lambda: said.append(root.hear()))
    listening.start()
    looks = 0
    while listening.is_alive():
        listening.join(0.03)
        measure(meter, root.identity)
        looks += 1
    measure(meter, root.identity)
    assert looks > 5
    assert meter._totals[0] - start == pytest.approx(float(said[0]), abs=0.06)


def test_input_and_output_are_counted(program: Callable[..., Any], tmp_path: Path) -> None:
    root = program(
        """
        import os, sys
        print("ready", flush=True); sys.stdin.readline()
        fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
        os.write(fd, bytes(8 << 20)); os.fsync(fd)
        print("done", flush=True); sys.stdin.readline()
        """, tmp_path / "file",
    )  # fmt: skip
    root.hear()
    meter = TreeMeter(Processes())
    before = measure(meter, root.identity)
    root.tell()
    root.hear()
    after = measure(meter, root.identity)
    assert after["resources/processes.io.written"] - before["resources/processes.io.written"] == pytest.approx(8, abs=0.1)
    assert after["resources/processes.io.written.rate"] > 0


def test_proportional_memory_is_read_rarely(program: Callable[..., Any]) -> None:
    root = program("import sys; print(1, flush=True); sys.stdin.readline()")
    root.hear()
    meter = TreeMeter(Processes(), pss_every=3600)
    assert "resources/processes.memory.pss" not in measure(meter, root.identity)
    meter._pss_at = 0.0
    values = measure(meter, root.identity)
    assert 0 < values["resources/processes.memory.pss"] <= values["resources/cpu.usage.memory"] + 1
    assert "resources/processes.memory.pss" not in measure(meter, root.identity)


# ---------------------------------------------------------------------- what comes and goes


def test_a_process_with_another_start_time_is_another_process(program: Callable[..., Any]) -> None:
    root = program("import sys; print(1, flush=True); sys.stdin.readline()")
    root.hear()
    pid, start = root.identity
    assert measure(TreeMeter(Processes()), (pid, start + 1)) == {}
    assert measure(TreeMeter(Processes()), (pid, start))["resources/processes.count"] == 1


def test_a_member_whose_pid_is_reused_is_forgotten(program: Callable[..., Any]) -> None:
    """The pid of a child that ended is given to a process of somebody else (here: the kernel is told which pid is the next)."""
    if os.geteuid() != 0:
        pytest.skip("not root: pids cannot be chosen")
    root = program("""
        import subprocess, sys
        child = subprocess.Popen(["sleep", "100"]); print(child.pid, flush=True)
        sys.stdin.readline(); child.kill(); child.wait(); print("reaped", flush=True); sys.stdin.readline()
    """)
    child = int(root.hear())
    meter = TreeMeter(Processes())
    measure(meter, root.identity)
    assert meter.pids == {root.pid, child}
    root.tell()
    root.hear()
    time.sleep(0.05)  # start times are in hundredths of a second
    other = None
    for _ in range(50):
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(child - 1))
        other = subprocess.Popen(["sleep", "100"])
        if other.pid == child:
            break
        other.kill()
        other.wait()
    assert other is not None
    try:
        if other.pid != child:
            pytest.skip("others on this machine took the pid")
        measure(meter, root.identity)
        assert meter.pids == {root.pid}
    finally:
        other.kill()
        other.wait()


def test_processes_that_die_in_the_middle_of_a_measurement(program: Callable[..., Any]) -> None:
    """A storm of short-lived processes: whatever is met, nothing raises, and the root is always there."""
    root = program("""
        import os, sys
        print("ready", flush=True)
        while True:
            for _ in range(20):
                if os.fork() == 0: os._exit(0)
            try:
                while True: os.waitpid(-1, 0)
            except ChildProcessError: pass
    """)
    root.hear()
    meter = TreeMeter(Processes())
    sizes = set()
    for _ in range(300):
        values = measure(meter, root.identity)
        assert values["resources/processes.count"] >= 1
        assert values.get("resources/cpu.usage.percentage", 0) >= 0
        sizes.add(values["resources/processes.count"])
    assert len(sizes) > 1


def test_an_orphan_of_the_session_still_counts_and_a_daemon_does_not(program: Callable[..., Any]) -> None:
    root = program("""
        import os, subprocess, sys
        PLAIN = "import subprocess; print(subprocess.Popen(['sleep', '100']).pid, flush=True); input()"
        DAEMON = "import subprocess; print(subprocess.Popen(['sleep', '100'], start_new_session=True).pid, flush=True); input()"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        parents = [subprocess.Popen([sys.executable, "-c", text], **pipes) for text in (PLAIN, DAEMON)]
        print(*(p.stdout.readline().decode().strip() for p in parents), flush=True)
        sys.stdin.readline()
        for p in parents:
            p.stdin.write(b"\\n"); p.stdin.close(); p.wait()
        print("orphaned", flush=True)
        sys.stdin.readline()
    """, start_new_session=True)  # fmt: skip
    plain, daemon = map(int, root.hear().split())
    meter = TreeMeter(Processes())
    try:
        measure(meter, root.identity)
        assert {plain, daemon} < meter.pids
        root.tell()
        root.hear()
        measure(meter, root.identity)
        assert meter.pids == {root.pid, plain}
    finally:
        os.kill(plain, 9)
        os.kill(daemon, 9)


def test_the_measuring_process_and_its_children_are_left_out() -> None:
    """An agent that the script started is not the script's usage."""
    text = """
import os, subprocess
from simspool.sdk.sampling.tree import Processes, TreeMeter
from simspool.spool.process import start_ticks
child = subprocess.Popen(["sleep", "100"])
parent = os.getppid()
meter = TreeMeter(Processes(), hidden=frozenset({os.getpid()}))
meter.measure([(parent, start_ticks(parent)[0])])
print(os.getpid() in meter.pids, child.pid in meter.pids, parent in meter.pids)
own = TreeMeter(Processes(), hidden=frozenset({os.getpid()}))
own.measure([(os.getpid(), start_ticks(os.getpid())[0])])
print(os.getpid() in own.pids, child.pid in own.pids)
child.kill()
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["False False True", "True True"]


def test_a_root_that_ended_leaves_nothing(program: Callable[..., Any]) -> None:
    root = program("import sys; print(1, flush=True); sys.stdin.readline()")
    root.hear()
    meter, identity = TreeMeter(Processes()), root.identity
    assert measure(meter, identity)
    root.process.kill()
    while (found := start_ticks(root.pid)) is not None and found[1] != "Z":
        time.sleep(0.01)
    assert measure(meter, identity) == {}, "a zombie uses nothing"
    root.process.wait()
    assert measure(meter, identity) == {}


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="not root: /proc cannot be mounted again")
def test_a_kernel_that_hides_other_users_processes(tmp_path: Path) -> None:
    """With hidepid=2, one's own tree is measured in full, and another user's process is as if it were not there."""
    text = """
import os, subprocess, sys
from simspool.sdk.sampling.tree import Processes, TreeMeter
from simspool.spool.process import start_ticks
root = start_ticks(1)
os.setgroups([]); os.setgid(65534); os.setuid(65534)
child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdin.write(b"ready\\n"); child.stdin.flush(); child.stdout.readline()  # before, the kernel hides it from everybody
for way in (True, False):
    processes = Processes(); processes._has_children_files = way
    meter = TreeMeter(processes)
    values = meter.measure([(os.getpid(), start_ticks(os.getpid())[0])])
    print(meter.pids == {os.getpid(), child.pid}, values["resources/processes.files.open"] > 3)
print(start_ticks(1), TreeMeter(Processes()).measure([(1, root[0])]))
child.kill()
"""
    place = tmp_path / "program.py"
    place.write_text(text)
    os.chmod(tmp_path, 0o755)
    command = f"mount -t proc -o hidepid=2 proc /proc && exec {sys.executable} -"
    with place.open() as source:
        done = subprocess.run(["unshare", "-m", "sh", "-c", command], stdin=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["True True", "True True", "None {}"]
