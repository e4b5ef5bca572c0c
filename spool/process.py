"""Who a process is, beyond its pid: PID namespace, boot id, pid and start time together (DESIGN I9)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from .segment_header import host_field


class Identity(Protocol):
    """What names a process: a segment's header has it, and a lease."""

    @property
    def host(self) -> str:
        """The host's name."""

    @property
    def machine(self) -> bytes:
        """See `Host`."""

    @property
    def boot_id(self) -> bytes:
        """The boot's id."""

    @property
    def pid_namespace(self) -> int:
        """The PID namespace's inode number."""

    @property
    def pid(self) -> int:
        """The pid there."""

    @property
    def start_ticks(self) -> int:
        """When it began, in ticks since boot."""


@dataclass(frozen=True, slots=True)
class Host:
    """This machine and PID namespace, as a segment header names them. Parts that the system hides are zero."""

    name: str
    boot_id: bytes
    pid_namespace: int
    machine: bytes


@lru_cache(maxsize=1)
def this_host() -> Host:
    """Return this host's identity; parts that the system hides are zero."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as f:
            boot_id = bytes.fromhex(f.read().strip().replace("-", ""))
    except (OSError, ValueError):
        boot_id = bytes(16)
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        namespace = 0
    return Host(os.uname().nodename, boot_id, namespace, _machine())


def _machine() -> bytes:
    """Return a digest of the machine id (which itself is to be kept private); zeros where there is none."""
    import hashlib

    try:
        with open("/etc/machine-id", "rb") as f:
            text = f.read(64).strip()
    except OSError:
        text = b""
    return hashlib.sha256(b"simspool machine " + text).digest()[:16] if text else bytes(16)


def start_ticks(pid: int) -> tuple[int, str] | None:
    """Return (start time in ticks since boot, state letter) of a process of this namespace, or None when there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            fields = f.read().rpartition(b")")[2].split()
    except OSError:
        return None
    try:
        return int(fields[19]), fields[0].decode()
    except (IndexError, ValueError):  # it ended while we read
        return None


def is_alive(header: Identity) -> bool | None:
    """Say whether a process, a writer's for one, lives: True, False, or None when this host and namespace cannot know.

    False needs proof: the pid is free, a zombie, or has another start time, and that also where this host has booted since.
    """
    here = this_host()
    same_machine = header.machine == here.machine and host_field(header.host) == host_field(here.name)
    if not same_machine or not any(here.boot_id):  # cluster nodes may share a name ("localhost") or an image's machine id
        return None
    if header.boot_id != here.boot_id:
        # a container's service may be shown another boot id than its scripts: that process is there is no proof, but a doubt
        return None if header.pid_namespace == here.pid_namespace and _is_there(header) else False
    if header.pid_namespace != here.pid_namespace:
        return None
    return _is_there(header)


def _is_there(header: Identity) -> bool:
    found = start_ticks(header.pid)
    return found is not None and found[0] == header.start_ticks and found[1] not in "ZX"
