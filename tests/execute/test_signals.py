"""Signals reach the command exactly once, whoever sends them: to our pid, to the process group, from a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from executing import EXEC, Place, group_of, until

# Writes each signal's name to a file, and ends at SIGALRM, which arrives after all that were sent before it.
COUNTER = """
import os, signal, sys
seen = open("seen", "a", buffering=1)
def note(number, frame):
    if number == signal.SIGALRM:
        sys.exit(9)
    seen.write(signal.Signals(number).name + "\\n")
for name in ("INT", "TERM", "HUP", "QUIT", "USR1", "USR2", "ALRM", "WINCH"):
    signal.signal(getattr(signal, "SIG" + name), note)
print(os.getpid(), flush=True)
while True:
    signal.pause()
"""
SENT = ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2"]


def counted(place: Place) -> list[str]:
    path = place.cwd / "seen"
    return path.read_text().split() if path.exists() else []


def pid_of(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


@pytest.mark.parametrize("whom", ["pid", "group"])
def test_each_signal_reaches_the_command_once(place: Place, whom: str) -> None:
    process = place.start("--", sys.executable, "-S", "-c", COUNTER, start_new_session=True)
    pid_of(process)
    for n, name in enumerate(SENT, 1):
        number = getattr(signal, name)
        if whom == "pid":
            os.kill(process.pid, number)
        else:
            os.killpg(process.pid, number)
        until(lambda n=n: len(counted(place)) >= n, name)
    os.kill(process.pid, signal.SIGALRM)
    assert process.wait(30) == 9
    assert counted(place) == SENT


def test_a_signal_to_the_group_ends_a_command_that_does_not_handle_it_and_exec_records_it(place: Place) -> None:
    process = place.start("--", "sh", "-c", "echo; sleep 1000", start_new_session=True)
    assert process.stdout is not None
    process.stdout.readline()
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM
    shown = place.show()
    assert (shown["status"], shown["reason"]) == ("terminated", "ended by SIGTERM")


def test_what_nohup_makes_us_ignore_the_command_ignores(place: Place) -> None:
    process = place.start(
        "--", "sh", "-c", "echo; read x; exit 6", start_new_session=True, stdin=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()
    os.kill(process.pid, signal.SIGHUP)
    os.killpg(process.pid, signal.SIGHUP)
    process.stdin.close()
    assert process.wait(30) == 6


class Terminal:
    """A shell with job control on a pseudo terminal of its own."""

    def __init__(self, place: Place, *command: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(place.cwd)
            os.environ["PS1"] = "ready> "
            os.execvp(command[0], command)
        self.said = b""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def until(self, text: str) -> str:
        """Read until a text has come; what comes later is kept for the next time."""
        deadline = time.monotonic() + 40
        while text.encode() not in self.said:
            assert time.monotonic() < deadline, self.said
            try:
                self.said += os.read(self.fd, 4096)
            except OSError:
                break
        assert text.encode() in self.said, self.said
        found, _, self.said = self.said.partition(text.encode())
        return found.decode(errors="replace")

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def code(self) -> int | None:
        """Return the exit code once it has ended; it stays to be waited for."""
        found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return None if found is None else found.si_status

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.fd)


def test_ctrl_c_at_a_terminal_reaches_the_command_once(place: Place) -> None:
    terminal = Terminal(place, *EXEC, "--", sys.executable, "-S", "-c", COUNTER)
    try:
        terminal.until("\n")
        for n in (1, 2, 3):
            terminal.type("\x03")
            until(lambda n=n: len(counted(place)) >= n, "the signal")
        os.kill(terminal.pid, signal.SIGALRM)
        until(lambda: terminal.code() == 9, "the end")
        assert counted(place) == ["SIGINT"] * 3
    finally:
        terminal.end()


def stands(pid: int) -> tuple[str, bool]:
    """Return a process's state letter, and whether its group has the terminal."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], fields[2] == fields[5]


def test_ctrl_z_stops_and_fg_goes_on(place: Place) -> None:
    terminal = Terminal(place, "bash", "--norc", "-i")
    try:
        terminal.until("ready> ")
        terminal.type(f"{' '.join(EXEC)} -- sh -c 'echo on; read a; echo got:$a; read b; echo and:$b'\n")
        terminal.until("on\r\n")
        (own,) = map(int, Path(f"/proc/{terminal.pid}/task/{terminal.pid}/children").read_text().split())
        for line, answer in (("first", "got:first"), ("second", "and:second")):
            terminal.type("\x1a")
            terminal.until("Stopped")
            assert stands(own) == ("T", False)
            terminal.type("fg\n")
            until(lambda: stands(own) in {("S", True), ("R", True)}, "its turn")
            terminal.type(f"{line}\n")
            terminal.until(answer)
        terminal.until("ready> ")
        terminal.type("echo code:$?\n")
        terminal.until("code:0")
    finally:
        terminal.end()


def test_a_command_at_a_terminal_has_a_terminal_of_the_same_size(place: Place) -> None:
    probe = (
        "import os, signal, sys\n"
        "def told(*_): print('size', *os.get_terminal_size(1), flush=True)\n"
        "signal.signal(signal.SIGWINCH, told)\n"
        "print('tty', os.isatty(0), os.isatty(1), os.isatty(2)); told()\n"
        "while True: signal.pause()\n"
    )
    (place.cwd / "probe.py").write_text(probe)
    terminal = Terminal(place, *EXEC, "--", sys.executable, "-S", "probe.py")
    try:
        terminal.until("tty True True True")
        terminal.until("size ")
        terminal.resize(33, 77)
        terminal.until("size 77 33")
    finally:
        terminal.end()


def test_pty_gives_a_terminal_that_changes_no_byte(place: Place) -> None:
    data = bytes(range(256)) * 40
    (place.cwd / "data").write_bytes(data)
    done = place.run("--pty", "--", "sh", "-c", "test -t 1 && ! test -t 2 && cat data")
    assert done.stdout == data
    assert place.run("--no-pty", "--", "sh", "-c", "test -t 1", code=1).stdout == b""


def test_with_pty_a_program_of_the_c_library_prints_line_by_line(place: Place, built: object) -> None:
    program = built("slow", '#include <stdio.h>\nint main(void) { puts("one"); getchar(); puts("two"); return 0; }')  # type: ignore[operator]
    process = place.start("--pty", "--", str(program), stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"one\n"
    process.stdin.close()
    assert process.stdout.read() == b"two\n"
    assert process.wait(30) == 0


def test_the_witness_ends_with_exec_however_it_ends(place: Place) -> None:
    process = place.start("--", "sleep", "1000", start_new_session=True)
    tree = until(lambda: len(own := group_of(process.pid)) >= 3 and own, "the command and the witness")
    (sleep,) = [p for p in tree if Path(f"/proc/{p}/comm").read_text() == "sleep\n"]
    os.kill(process.pid, signal.SIGKILL)
    process.wait(20)
    os.kill(sleep, signal.SIGKILL)
    until(lambda: not group_of(process.pid), "the end of all")
