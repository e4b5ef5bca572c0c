"""What kind of disk a folder lies on, and the system calls that Python's os module lacks."""

from __future__ import annotations

import contextlib
import os

# Mapped segments need a local file system that gives real blocks to fallocate, so that a full disk is an error, not SIGBUS.
MAPPABLE = frozenset({"ext2", "ext3", "ext4", "xfs", "tmpfs", "overlay"})
NETWORK = frozenset({"nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "9p", "afs", "glusterfs", "orangefs", "pvfs2"})
_FICLONE = 0x40049409


def type_of(path: str) -> str:
    """Return the file system type of a path as in /proc/self/mountinfo ("ext4", "nfs4", ...), or "unknown"."""
    real = os.path.realpath(path)
    best, kind = "", "unknown"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
            for line in f:
                left, _, right = line.partition(" - ")
                mount = left.split()[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
                if len(mount) >= len(best) and (mount == "/" or real == mount or real.startswith(mount + "/")):
                    best, kind = mount, right.split()[0]
    except (OSError, IndexError):
        return "unknown"
    return kind


def is_mappable(path: str) -> bool:
    """Say whether mapped segments are safe in this folder."""
    return type_of(path) in MAPPABLE


def is_network(path: str) -> bool:
    """Say whether a path lies on a network file system, where notifications of others' writes do not arrive."""
    kind = type_of(path)
    return kind in NETWORK or kind.startswith("fuse.sshfs")


def reflink(source_fd: int, target_fd: int) -> bool:
    """Make the (empty) target share all of the source's blocks. False where the disk cannot."""
    import fcntl

    try:
        fcntl.ioctl(target_fd, _FICLONE, source_fd)
    except OSError:
        return False
    return True


_BEHIND = 8 << 20  # bytes that are let go together


def let_go(fd: int, begun: int, at: int) -> int:
    """Have the kernel need no memory for a large file that is written, or read once, in order: `at` is up to where it was.

    What was written begins its way to the disk, without waiting: an fsync then finds little to do. What is on the disk leaves memory, which
    the bytes that follow are given. `begun`: up to where that was done before, 0 at first; returns up to where it is now. A hint: it
    promises nothing, and whatever the disk says of it comes with the fsync.
    """
    if at - begun < _BEHIND:
        return begun
    with contextlib.suppress(OSError):
        os.posix_fadvise(fd, begun, at - begun, os.POSIX_FADV_DONTNEED)  # what is not written yet stays
    return at
