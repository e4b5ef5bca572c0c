"""The command runs as without us: its bytes, exit code, environment, descriptors and readers downstream."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from executing import EXEC, Place, until

PYTHON = sys.executable


@pytest.mark.parametrize("code", [0, 2, 255])
def test_exit_codes_pass(place: Place, code: int) -> None:
    place.run("--", "sh", "-c", f"exit {code}", code=code)
    assert place.show()["status"] == ("failed" if code else "completed")
    assert place.bodies("process-exit")[0]["code"] == code


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGKILL", "SIGABRT", "SIGRTMIN"])
def test_a_command_that_a_signal_ends_ends_exec_by_the_same_signal_and_without_a_core(place: Place, name: str) -> None:
    number = int(getattr(signal, name))
    os.chmod(place.cwd, 0o777)
    program = f"import os, signal; {number} == 9 or signal.signal({number}, signal.SIG_DFL); os.kill(os.getpid(), {number})"
    place.run("--keep-output", "0", "--", "sh", "-c", f'ulimit -c 0; exec {PYTHON} -c "$1"', "sh", program, code=-number)
    shown = place.show()
    assert shown["status"] == ("failed" if name == "SIGABRT" else "terminated")
    assert name.removeprefix("SIGRTMIN") in shown["reason"]
    assert place.bodies("process-exit")[0]["signal"] == number
    assert list(place.cwd.iterdir()) == []


def test_what_cannot_be_started_is_a_failed_run_with_the_shells_exit_code(place: Place) -> None:
    (place.cwd / "plain").write_text("no program\n")
    (place.cwd / "lost").write_text("#!/no/such/interpreter\n")
    (place.cwd / "lost").chmod(0o755)
    for command, code, why in (
        ("no-such-command", 127, "No such file or directory"), ("./plain", 126, "Permission denied"), ("./lost", 126, "interpreter"),
    ):  # fmt: skip
        done = place.run("--name", command.replace("/", "-"), "--", command, code=code)
        assert why in done.stderr.decode()
        shown = place.show(command.replace("/", "-"))
        assert (shown["status"], why in shown["reason"]) == ("failed", True)


def test_a_pattern_that_the_shell_has_filled_in_is_explained(place: Place) -> None:
    (place.cwd / "b.txt").write_text("")
    done = place.run("--output", "a.txt", "b.txt", "--", "true", code=127)
    assert b"quote patterns" in done.stderr


def test_a_script_without_an_interpreter_is_run_by_sh(place: Place) -> None:
    (place.cwd / "script").write_text('echo "$0 $1"\n')
    (place.cwd / "script").chmod(0o755)
    assert place.run("./script", "x y").stdout == b"./script x y\n"


def test_bytes_are_unchanged_on_both_streams_and_the_end_without_a_newline_too(place: Place) -> None:
    data = bytes(range(256)) * 300
    (place.cwd / "data").write_bytes(data)
    done = place.run("--metric", r"(?P<x>\d+)", "--", "sh", "-c", "cat data; cat data >&2; exit 5", code=5)
    assert done.stdout == data
    assert done.stderr.startswith(data)
    assert place.artifact("stdout") == place.artifact("stderr") == data


def test_output_comes_at_once_and_stdin_is_the_commands(place: Place) -> None:
    process = place.start("--", "cat", stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    for word in (b"one\n", b"two"):
        process.stdin.write(word)
        process.stdin.flush()
        assert os.read(process.stdout.fileno(), 100) == word
    process.stdin.close()
    assert process.wait(30) == 0


def test_options_behind_the_command_are_the_commands(place: Place) -> None:
    assert place.run("echo", "--name", "-n", "--", "x").stdout == b"--name -n -- x\n"
    assert place.bodies("run")[0]["metadata"]["command"] == "echo --name -n -- x"


def test_the_environment_is_ours_with_the_run(place: Place) -> None:
    before = {k: v for k, v in os.environ.items() if k not in {"LC_ALL", "LC_CTYPE", "LANG"}} | {"LANG": "C"}
    done = place.run("--", "env", "-0", env=before)
    found = dict(entry.split("=", 1) for entry in done.stdout.decode().split("\0") if entry)
    own = {name: found.pop(name) for name in ("SIMSPOOL_RUN", "SIMSPOOL_DIR", "SIMSPOOL_INBOX")}
    before.pop("SIMSPOOL_DIR", None)
    assert found == before
    assert own["SIMSPOOL_DIR"] == str(place.spool)
    assert own["SIMSPOOL_INBOX"] == str(place.spool / "runs" / own["SIMSPOOL_RUN"] / "inbox")
    assert Path(own["SIMSPOOL_INBOX"]).is_dir()


def test_descriptors_signals_and_the_process_group_are_as_without_us(place: Place) -> None:
    probe = (
        "import os; print(os.getpgrp(), os.getsid(0), sorted(os.listdir('/proc/self/fd'))); "
        # without the two that the C library keeps to itself
        "print({l[:6]: int(l[8:], 16) & ~(3 << 31) for l in open('/proc/self/status') if l.startswith(('SigBlk', 'SigIgn', 'SigCgt'))})"
    )
    program = [PYTHON, "-S", "-c", probe]
    read, write = os.pipe()
    try:
        with_us = place.run("--", *program, pass_fds=(write,))
        without = subprocess.run(program, capture_output=True, cwd=place.cwd, pass_fds=(write,), check=True)
    finally:
        os.close(read)
        os.close(write)
    assert with_us.stdout == without.stdout


def test_closed_streams_are_closed_for_the_command_too(place: Place) -> None:
    command = f"{' '.join(EXEC)} -- sh -c 'test -e /proc/self/fd/1 || echo none >&2' >&- <&-"
    done = subprocess.run(["sh", "-c", command], cwd=place.cwd, capture_output=True, timeout=60, check=True)
    assert done.stderr.startswith(b"none\n"), done.stderr


def test_a_reader_that_goes_away_ends_the_command_as_without_us(place: Place) -> None:
    line = f"{' '.join(EXEC)} -- yes | head -n 2; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=place.cwd, capture_output=True, timeout=60, check=True)
    assert done.stdout == b"y\ny\n141\n"
    assert place.show()["reason"].endswith("SIGPIPE")


def test_a_command_that_writes_seldom_learns_it_at_its_next_write(place: Place) -> None:
    """Not at the one after: the pipe has no reader as soon as ours has none."""
    read, write = os.pipe()
    process = place.start("--", "sh", "-c", "echo one; read x; echo two; echo three > done", stdin=subprocess.PIPE, stdout=write)
    os.close(write)
    assert os.read(read, 10) == b"one\n"
    os.close(read)
    shell = int(until(lambda: children(process.pid, "sh"), "the command")[0])
    until(lambda: not has_reader(shell), "the end of the reading")
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.close()
    assert process.wait(30) == -signal.SIGPIPE
    assert not (place.cwd / "done").exists()


def children(pid: int, name: str) -> list[int]:
    """Return the children of a process that run a program."""
    found = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [child.pid] if child.name() == name else []
    return found


def has_reader(pid: int) -> bool:
    """Say whether anybody has the other end of a process's stdout open for reading."""
    wanted = os.readlink(f"/proc/{pid}/fd/1")
    for other in (p for p in os.listdir("/proc") if p.isdecimal() and int(p) != pid):
        try:
            for fd in os.listdir(f"/proc/{other}/fd"):
                if os.readlink(f"/proc/{other}/fd/{fd}") == wanted:
                    return True
        except OSError:
            continue
    return False


def test_a_slow_reader_slows_the_command_and_nothing_piles_up(place: Place) -> None:
    program = "import os\nn = 0\nwhile n < 200: n += 1; os.write(1, b'x' * 65536); open('count', 'w').write(str(n))"
    read, write = os.pipe()
    process = place.start("--", PYTHON, "-c", program, stdout=write)
    os.close(write)
    count = place.cwd / "count"
    until(count.exists, "the first block")
    seen = -1
    while seen != (now := int(count.read_text() or 0)):  # until it stands still
        seen = now
        until(lambda: is_asleep(process.pid, "exec-1"), "a reader that waits")
    assert seen <= 4  # a pipe before us, one block with us, a pipe behind us
    total = 0
    while data := os.read(read, 1 << 20):
        total += len(data)
    os.close(read)
    assert total == 200 * 65536
    assert process.wait(30) == 0


def is_asleep(pid: int, name: str) -> bool:
    """Say whether a thread sleeps in a write, at three looks."""
    for _ in range(3):
        states = [Path(f"/proc/{pid}/task/{t}/stat").read_text().split(") ")[1][0] for t in os.listdir(f"/proc/{pid}/task")]
        if any(state == "R" for state in states):
            return False
        until(lambda: True, "")
    return True


def test_it_starts_light(place: Place) -> None:
    """Nothing of the agent's daemon is loaded beside a command."""
    options = ("--metric", r"x=(?P<x>\d+)", "--output", "*", "--abort-when", "x is above 3")
    command = [sys.executable, "-X", "importtime", "-m", "simspool.agent", "exec", *options, "--", "true"]
    done = subprocess.run(command, cwd=place.cwd, capture_output=True, text=True, timeout=60, check=True)
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert {"click", "re2"} <= loaded
    assert not loaded & {"aiohttp", "asyncio", "apscheduler", "sqlite_utils", "sqlite3", "codecarbon", "numpy", "psutil", "watchdog"}


def test_hundreds_of_megabytes_pass_with_flat_memory(place: Place) -> None:
    line = "step 12 residual 1.25e-03 and some more words as solvers print them, 0 0 0"
    count = 4_000_000  # 300 MB
    program = f'yes "{line}" | head -n {count}; yes "{line}" | head -n {count // 40} >&2; grep VmHWM /proc/$PPID/status'
    with open(place.cwd / "out", "wb") as out, open(place.cwd / "err", "wb") as err:
        options = ("--metric", r"loss (?P<loss>\S+)", "--event", "^ERROR")
        place.run(*options, "--", "sh", "-c", program, stdout=out, stderr=err, capture_output=False, timeout=100)
    expected = hashlib.sha256(f"{line}\n".encode() * 1000)
    found = hashlib.sha256()
    with open(place.cwd / "out", "rb") as f:
        found.update(f.read((len(line) + 1) * 1000))
        f.seek(count * (len(line) + 1))
        peak = int(re.findall(rb"VmHWM:\s+(\d+) kB", f.read())[0])
    assert found.digest() == expected.digest()
    assert peak < 45_000, f"{peak} kB"
    kept = place.artifact("stdout")
    assert len(kept) < (16 << 20) + 200
    assert kept.startswith(line.encode())
    assert b"VmHWM" in kept
    assert re.search(rb"\n\[\.\.\. [\d,]+ bytes are left out here", kept)
    events = place.events()
    assert len(events) < 1000
    assert any("are no events" in e for e in events)


def test_what_the_command_leaves_behind_keeps_its_stream_and_is_not_waited_for(place: Place) -> None:
    process = place.start("--", "sh", "-c", "(read x < fifo; echo late) & echo soon", stdin=subprocess.DEVNULL)
    os.mkfifo(place.cwd / "fifo")
    assert process.stdout is not None
    assert process.wait(30) == 0
    assert os.read(process.stdout.fileno(), 100) == b"soon\n"
    (place.cwd / "fifo").write_text("\n")
    assert process.stdout.read() == b"late\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="SKIPPED: mounting needs root")
def test_a_full_disk_under_our_stdout_ends_nothing(place: Place) -> None:
    small = place.cwd / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(small)], check=True)
    try:
        with open(small / "out", "wb") as out:
            command = ("sh", "-c", "head -c 1000000 /dev/zero; echo end")
            done = place.run("--", *command, stdout=out, capture_output=False, stderr=subprocess.PIPE)
        assert b"stdout cannot be passed on: No space left on device" in done.stderr
        assert len(place.artifact("stdout")) == 1000004
    finally:
        subprocess.run(["umount", str(small)], check=True)
