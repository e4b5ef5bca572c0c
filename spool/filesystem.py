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


_BEHIND = 8 << 20  # bytes that are written to the disk, or forgotten, together


def write_behind(fd: int, begun: int, written: int) -> int:
    """Have the kernel begin to write a file's new bytes to the disk, without waiting: the fsync at its end then finds little to do.

    `begun`: up to where that was done before, 0 at first; returns up to where it is now. `written`: how many bytes the file has. A hint: it
    promises nothing, and whatever the disk says of it comes with the fsync.
    """
    if written - begun < _BEHIND:
        return begun
    with contextlib.suppress(OSError):
        os.posix_fadvise(fd, begun, written - begun, os.POSIX_FADV_DONTNEED)  # begins the writing; what is not written yet stays
    return written


def forget_behind(fd: int, begun: int, at: int) -> int:
    """Have the kernel use the memory again that a large file's bytes took while it was read, in order and once: it reads faster so.

    `begun`: up to where that was done before, 0 at first; returns up to where it is now. `at`: up to where the file was read.
    """
    if at - begun < _BEHIND:
        return begun
    with contextlib.suppress(OSError):
        os.posix_fadvise(fd, begun, at - begun, os.POSIX_FADV_DONTNEED)
    return at
