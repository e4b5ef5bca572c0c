"""The processes of the abort campaign: made by one process without threads, so that forks and chosen pids are safe.

A victim records a run; a bystander must never be signalled. Both block SIGTERM, so that a signal which came by mistake stays to be
seen, and a victim lives until it is killed.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import time
from dataclasses import replace
from typing import Any

from simspool.spool import Kind, Origin, Spool, Writer, ids, layout, process
from simspool.spool.process import start_ticks, this_host
from simspool.spool.segment_header import STATIC_SIZE, SegmentHeader

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE3, _NEWPID, _NEWNS, _MS_PRIVATE_REC = 435, 0x20000000, 0x00020000, 0x44000
_SLEEP = 600


class _CloneArgs(ctypes.Structure):
    _fields_ = [(n, ctypes.c_uint64) for n in (
        "flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls", "set_tid", "set_tid_size", "cgroup"
    )]  # fmt: skip


def fork_as(pid: int) -> int:
    """Fork with a chosen pid, 0 for any. Raises OSError: EEXIST while another has it."""
    if pid == 0:
        return os.fork()
    wanted = (ctypes.c_int32 * 1)(pid)
    args = _CloneArgs(exit_signal=signal.SIGCHLD, set_tid=ctypes.addressof(wanted), set_tid_size=1)
    made = int(_LIBC.syscall(_CLONE3, ctypes.byref(args), ctypes.sizeof(args)))
    if made < 0:
        raise OSError(ctypes.get_errno(), f"clone3 with pid {pid}")
    return made


class Stage:
    """A process that makes the others. Methods talk to it; they may be called from one thread at a time."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._ours.close()
                _serve(theirs)
            finally:
                os._exit(0)
        theirs.close()
        self._ours.settimeout(30)
        self._file = self._ours.makefile("rw")

    def ask(self, what: str, **options: Any) -> Any:
        """Have something done; returns the answer."""
        self._file.write(json.dumps({"do": what, **options}) + "\n")
        self._file.flush()
        answer = json.loads(self._file.readline())
        if isinstance(answer, dict) and "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def close(self) -> None:
        """End it, and all that it made."""
        self.ask("end")
        self._file.close()
        self._ours.close()
        os.waitpid(self.pid, 0)


def _serve(line: socket.socket) -> None:
    file, made = line.makefile("rw"), set[int]()
    for text in file:
        order = json.loads(text)
        what = order.pop("do")
        try:
            acts = {"victim": _victim, "bystander": _bystander, "contained": _contained, "kill": _kill, "end": _end}
            answer: Any = acts[what](made, **order)
        except Exception as error:
            answer = {"error": f"{what}: {type(error).__name__}: {error}"}
        file.write(json.dumps(answer) + "\n")
        file.flush()


def _identity(pid: int) -> list[int]:
    found = start_ticks(pid)
    assert found is not None
    return [pid, found[0]]


def _wait_for_ever() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    while True:
        time.sleep(_SLEEP)


def _bystander(made: set[int], pid: int = 0) -> list[int]:
    deadline = time.monotonic() + 2
    while True:
        try:
            child = fork_as(pid)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.001)  # the one that had it is not reaped yet
            continue
        if child == 0:
            _wait_for_ever()
        made.add(child)
        return _identity(child)


def _victim(
    made: set[int], spool: str, run: str, children: int = 0, daemon: bool = False, options: dict[str, Any] | None = None,
    foreign: list[int] | None = None, namespace: bool = False, ignore_children: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Make a process that has a run open. Returns its identity, its writer, and the identities of its children and its daemon."""
    read, write = os.pipe()
    first = os.fork()
    if first == 0:
        try:
            os.close(read)
            if namespace:
                _go_inside(write)
            if ignore_children:
                signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps them
            _be_a_victim(write, spool, run, children, daemon, options, foreign)
        except BaseException as error:
            os.write(write, f"{json.dumps({'error': repr(error)})}\n".encode())
        finally:
            os._exit(1)
    made.add(first)
    os.close(write)
    with os.fdopen(read) as told:
        answer: dict[str, Any] = {}
        for _ in range(1 + namespace):
            answer |= json.loads(told.readline())
            if "error" in answer:
                return answer
    made.update(pid for pid, _ in answer["children"] + answer["daemon"])
    if namespace:
        answer["process"] = answer["outside"]
        made.add(answer["outside"][0])
    return answer


def _go_inside(write: int) -> None:
    """Go on in a child that is the first process of a PID namespace, with a /proc of its own."""
    assert _LIBC.unshare(_NEWPID) == 0  # whose children are in the new namespace
    inside = os.fork()
    if inside:
        os.write(write, f"{json.dumps({'outside': _identity(inside)})}\n".encode())
        _wait_for_ever()
    assert _LIBC.unshare(_NEWNS) == 0
    assert _LIBC.mount(b"none", b"/", None, _MS_PRIVATE_REC, None) == 0
    assert _LIBC.mount(b"proc", b"/proc", b"proc", 0, None) == 0
    process.this_host.cache_clear()


def _be_a_victim(
    write: int, spool: str, run: str, children: int, daemon: bool, options: dict[str, Any] | None, foreign: list[int] | None
) -> None:  # fmt: skip
    found, far = [], []
    for _ in range(children):
        child = os.fork()
        if child == 0:
            _wait_for_ever()
        found.append(_identity(child))
    if daemon:
        read, inner = os.pipe()
        middle = os.fork()
        if middle == 0:
            if (grandchild := os.fork()) == 0:
                _wait_for_ever()
            os.write(inner, json.dumps(_identity(grandchild)).encode())
            os._exit(0)
        os.waitpid(middle, 0)
        far.append(json.loads(os.read(read, 100)))
    folder = Spool(spool, "").run(run)
    os.makedirs(folder.writers, exist_ok=True)
    writer = Writer(folder.writers, ids.from_text(run), origin=Origin.now())
    writer.record(Kind.RUN, {"name": "victim", "status": "running", "folder": "/", "metadata": {}, "tags": []})
    if options:
        writer.record(Kind.CONFIG, {"set": options})
    if foreign:
        host = this_host()
        body = {"pid": foreign[0], "start_ticks": foreign[1], "boot_id": host.boot_id.hex(), "pid_namespace": host.pid_namespace}
        writer.record(Kind.PROCESS_START, {**body, "host": host.name, "foreign": True})
    told = {"process": _identity(os.getpid()), "writer": writer.id_text, "children": found, "daemon": far}
    os.write(write, f"{json.dumps(told)}\n".encode())
    _wait_for_ever()


def _contained(made: set[int], **options: Any) -> dict[str, Any]:
    return _victim(made, namespace=True, **options)


def _kill(made: set[int], pid: int, reap: bool = True) -> bool:
    os.kill(pid, signal.SIGKILL)
    if reap:
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:
            pass  # its parent, another victim, does that
        made.discard(pid)
    return True


def _end(made: set[int]) -> bool:
    for pid in made:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    for pid in made:
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:
            pass
    made.clear()
    return True


def rewrite_header(spool: Spool, run: str, writer: str, **fields: Any) -> None:
    """Change what a writer's segment says of its process."""
    [segment] = layout.segments(spool.run(run).writer(writer))
    with open(segment.path, "r+b") as f:
        header = replace(SegmentHeader.unpack(f.read(STATIC_SIZE)), **fields)
        f.seek(0)
        f.write(header.pack())
