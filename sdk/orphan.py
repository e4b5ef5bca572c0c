"""Starting a program that is nobody's child: not the script's, so that no `wait` of the script ever sees it.

An ordinary fork in between would be a child that ends: an `os.wait()` in which the script is waiting for its own children would
return that stranger, and a handler of SIGCHLD would be called. Here the process in between is made by `clone` without an exit signal, which
ordinary waits do not look at, and as `vfork` does it: no copy of the memory (of a simulation with 100 GB, or with memory registered to a
network card), the program is started by C alone. That needs the GNU C library on x86-64, where it was tried; elsewhere nothing is started.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any

_CLONE_VM, _CLONE_VFORK = 0x100, 0x4000
_WALL = 0x40000000  # waits see children without an exit signal
_SET_SIGNALS, _SET_MASK, _NEW_SESSION = 0x04, 0x08, 0x80  # of posix_spawnattr_setflags
_STACK = 256 << 10
_OPAQUE = 8192  # bytes: more than any of the C library's structures that are filled in here
_P = ctypes.c_void_p


def is_possible() -> bool:
    """Say whether `start` works on this machine."""
    try:
        library = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        library = ""
    return os.uname().machine == "x86_64" and library.startswith("glibc")


def start(program: str, arguments: Sequence[str], environment: Mapping[str, str], stderr: int | None = None) -> int:
    """Start a program in a session of its own and return its pid; it belongs to init (or the next subreaper) at once.

    stdin, stdout and stderr are /dev/null, `stderr` (a descriptor above 2) where it is given; no signal is blocked or ignored. Other
    descriptors that are not close-on-exec are inherited. Raises OSError when the system refuses, NotImplementedError where
    `is_possible` is False.
    """
    if not is_possible():
        raise NotImplementedError("processes are started only with the GNU C library on x86-64")
    libc = ctypes.CDLL(None, use_errno=True)
    actions, attributes, signals = (ctypes.create_string_buffer(_OPAQUE) for _ in range(3))
    _check(libc.posix_spawn_file_actions_init(actions))
    _check(libc.posix_spawnattr_init(attributes))
    try:
        for fd, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
            if fd == 2 and stderr is not None:
                _check(libc.posix_spawn_file_actions_adddup2(actions, stderr, 2))
            else:
                _check(libc.posix_spawn_file_actions_addopen(actions, fd, b"/dev/null", mode, 0))
        _check(libc.sigemptyset(signals))
        _check(libc.posix_spawnattr_setsigmask(attributes, signals))
        _check(libc.sigfillset(signals))
        _check(libc.posix_spawnattr_setsigdefault(attributes, signals))
        _check(libc.posix_spawnattr_setflags(attributes, ctypes.c_short(_SET_SIGNALS | _SET_MASK | _NEW_SESSION)))
        # the process in between would run the handlers of the script, in the script's memory
        before = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
        try:
            return _spawn(libc, program, arguments, environment, actions, attributes)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    finally:
        libc.posix_spawn_file_actions_destroy(actions)
        libc.posix_spawnattr_destroy(attributes)


def _check(code: int) -> None:
    if code:
        raise OSError(code, os.strerror(code))


def _spawn(
    libc: ctypes.CDLL, program: str, arguments: Sequence[str], environment: Mapping[str, str], actions: Any, attributes: Any
) -> int:  # fmt: skip
    """clone: a process that shares our memory, runs posix_spawn, and ends; this thread waits that long."""
    pid = ctypes.c_int(0)
    path = ctypes.create_string_buffer(os.fsencode(program))
    argv = _strings(arguments)
    envp = _strings([f"{name}={value}" for name, value in environment.items()])
    stacks = ctypes.c_char.from_buffer(mmap.mmap(-1, 3 * _STACK))  # for each of clone, posix_spawn and _exit
    base = ctypes.addressof(stacks)
    end, spawn = _Context(libc, base), _Context(libc, base + _STACK)
    end.make(None, libc["_exit"], 0)
    where = [ctypes.addressof(item) for item in (pid, path, actions, attributes, argv, envp)]
    spawn.make(end, libc.posix_spawn, *where)
    top = base + 3 * _STACK - 64
    between = libc.clone(_P(_address(libc.setcontext)), _P(top), ctypes.c_int(_CLONE_VM | _CLONE_VFORK), _P(spawn.address))
    if between < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.waitpid(between, _WALL)
    if pid.value <= 0:
        raise OSError(0, f"{program} could not be started")
    return pid.value


class _Context:
    """A ucontext_t: where `setcontext` goes on. Its first members are the same on every Linux with the GNU C library."""

    def __init__(self, libc: ctypes.CDLL, stack: int) -> None:
        self._libc, self._stack = libc, stack
        self._memory = ctypes.create_string_buffer(_OPAQUE + 64)
        self.address = (ctypes.addressof(self._memory) + 63) & ~63  # vector registers are saved aligned

    def make(self, link: _Context | None, function: Any, *arguments: int) -> None:
        """Call the function with these words; then go on with `link`."""
        if self._libc.getcontext(_P(self.address)):
            raise OSError(ctypes.get_errno(), "getcontext failed")
        members = (_P * 5).from_address(self.address)  # flags, link, then the stack: base, flags, size
        members[1], members[2], members[4] = link.address if link is not None else None, self._stack, _STACK
        self._libc.makecontext(_P(self.address), _P(_address(function)), ctypes.c_int(len(arguments)), *[_P(a) for a in arguments])


def _address(function: Any) -> int:
    return ctypes.cast(function, _P).value or 0


def _strings(items: Sequence[str]) -> Any:
    return (ctypes.c_char_p * (len(items) + 1))(*[os.fsencode(item) for item in items], None)
