"""The command itself: started as a shell would start it, with its two output streams in our hands.

Guarantee: it has our stdin, process group, session, terminal, working folder, signal mask and dispositions, and every descriptor that we
were given; only stdout and stderr are pipes, or pseudo terminals where ours are terminals. It is started by posix_spawn: no fork of this
process with its threads.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

NOT_FOUND, NOT_EXECUTABLE = 127, 126  # as shells have it
_RESET = (signal.SIGPIPE, signal.SIGXFSZ)  # Python ignores these two for itself
_WINDOW = b"\0" * 8  # struct winsize

Terminal = Literal["auto", "always", "never"]


class CannotStart(Exception):
    """Raised when the command could not be started. `code` is what a shell would exit with: 127 (not found) or 126."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


@dataclass(slots=True)
class Stream:
    """One of the command's output streams: `number` (1 or 2) is ours, to pass it on to; `source` is where the command's bytes arrive.

    `is_terminal`: the command has a pseudo terminal for it.
    """

    number: int
    source: int
    is_terminal: bool = False

    def match_window(self) -> None:
        """Give the pseudo terminal the size of ours."""
        if self.is_terminal:
            for fd in (self.number, 0, 2):
                with contextlib.suppress(OSError):
                    fcntl.ioctl(self.source, termios.TIOCSWINSZ, fcntl.ioctl(fd, termios.TIOCGWINSZ, _WINDOW))
                    return


@dataclass(slots=True)
class Child:
    """A command that was started: its pid (not to be reaped by anybody else) and its streams; a stream that we lack, it lacks too."""

    pid: int
    streams: list[Stream]


def start(
    command: Sequence[str], environment: Mapping[str, str], terminal: Terminal, mask: set[signal.Signals], closed: Sequence[int] = ()
) -> Child:  # fmt: skip
    """Start a command with this environment and signal mask, without the standard streams that are `closed`. Raises CannotStart."""
    streams: list[Stream] = []
    theirs: list[int] = []
    actions: list[tuple[int, ...]] = []
    try:
        for number in (1, 2):
            if number in closed:
                continue
            wants = terminal == "always" and number == 1
            stream, end = _stream(number, is_terminal=wants or (terminal != "never" and os.isatty(number)))
            streams.append(stream)
            theirs.append(end)
            actions.append((os.POSIX_SPAWN_DUP2, end, number))
        actions += [(os.POSIX_SPAWN_CLOSE, number) for number in closed]
        pid = _spawn(list(command), environment, actions, mask)
    except BaseException:
        for stream in streams:
            os.close(stream.source)
        raise
    finally:
        for end in theirs:
            os.close(end)
    return Child(pid, streams)


def fill_closed() -> tuple[int, ...]:
    """Put /dev/null in the place of standard streams that we were not given, and return their numbers: for `start`.

    To be called before anything else is opened, which would take their numbers.
    """
    closed = tuple(number for number, stream in enumerate((sys.__stdin__, sys.__stdout__, sys.__stderr__)) if stream is None)
    for number in closed:
        fd = os.open(os.devnull, os.O_RDWR)
        if fd != number:
            os.dup2(fd, number, inheritable=False)
            os.close(fd)
    if 1 in closed:
        sys.stdout = os.fdopen(1, "w", closefd=False)  # Python has None there, and flushes it at its end
    return closed


def _stream(number: int, *, is_terminal: bool) -> tuple[Stream, int]:
    """Return a stream and the command's end of it."""
    if is_terminal:
        with contextlib.suppress(OSError):  # no pseudo terminals here: a pipe, then
            ours, end = os.openpty()
            tty.setraw(end)  # bytes as they are; the real terminal does what a terminal does
            stream = Stream(number, ours, is_terminal=True)
            stream.match_window()
            return stream, end
    ours, end = os.pipe()
    return Stream(number, ours), end


def _spawn(command: list[str], environment: Mapping[str, str], actions: list[tuple[int, ...]], mask: set[signal.Signals]) -> int:
    ignored = [number for number in _RESET if signal.getsignal(number) == signal.SIG_IGN]
    try:
        try:
            return os.posix_spawnp(command[0], command, environment, file_actions=actions, setsigmask=mask, setsigdef=ignored)
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
            script = shutil.which(command[0]) or command[0]  # a script without #!: for sh, as execvp has it
            return os.posix_spawn(
                "/bin/sh", ["/bin/sh", script, *command[1:]], environment, file_actions=actions, setsigmask=mask, setsigdef=ignored
            )
    except (OSError, ValueError) as error:  # ValueError: a NUL in an argument
        why = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        missing = isinstance(error, OSError) and error.errno in {errno.ENOENT, errno.ENOTDIR}
        if missing and os.path.exists(command[0]) and "/" in command[0]:
            why = "the interpreter in its first line is missing"
            missing = False
        raise CannotStart(NOT_FOUND if missing else NOT_EXECUTABLE, f"cannot run {command[0]}: {why}") from None


def inherited_environment() -> dict[str, str]:
    """Return our environment as it was given to us: Python sets LC_CTYPE for itself where the locale is C."""
    found = dict(os.environ)
    try:
        with open("/proc/self/environ", "rb") as f:
            given = {entry.partition(b"=")[0] for entry in f.read().split(b"\0")}
    except OSError:
        return found
    if b"LC_CTYPE" not in given:
        found.pop("LC_CTYPE", None)
    return found
