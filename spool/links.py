"""Opening a file of the user's without going through a link that somebody else has planted.

In a folder that several people write to, another user may put a link to a file that only we can read where we are about to save or follow a
file, or swap one for it at the last moment. So a path is walked folder by folder, each held open, and a link in it counts only when we made
it, or root did, or whoever owns the folder in which it lies (the kernel's `fs.protected_symlinks`, which is not switched on everywhere,
has the same rule for sticky folders). What is opened is what was looked at.
"""

from __future__ import annotations

import errno
import os
import stat

_MOST_LINKS = 40
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def open_file(path: str) -> int:
    """Open a regular file for reading; returns its descriptor. A FIFO or a device is never opened.

    Raises OSError: EISDIR for a folder, EINVAL for what is no regular file, EPERM for a link of somebody else's, and what open(2) says.
    ValueError for a NUL in the name.
    """
    folder = os.open("/" if path.startswith("/") else ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    todo, links = _parts(path), 0
    try:
        while todo:
            name = todo.pop()
            here = os.open(name, _LOOK, dir_fd=folder)
            info = os.fstat(here)
            if stat.S_ISLNK(info.st_mode):
                links += 1
                try:
                    _require_trusted(path, name, info, os.fstat(folder), links)
                    target = os.readlink("", dir_fd=here)
                finally:
                    os.close(here)
                if _is_magic(folder):  # /proc/self/fd/3 is no name of anything: the kernel knows what it is
                    here = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=folder)
                    info = os.fstat(here)
                else:
                    if target.startswith("/"):
                        os.close(folder)
                        folder = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                    todo += _parts(target)
                    continue
            if not todo:
                os.close(here)
                return _open(path, name, folder, info)
            os.close(folder)
            folder = here
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    finally:
        os.close(folder)


def _parts(path: str) -> list[str]:
    return [part for part in reversed(path.split("/")) if part]


def _require_trusted(path: str, name: str, link: os.stat_result, folder: os.stat_result, links: int) -> None:
    if links > _MOST_LINKS:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    if link.st_uid not in {0, os.geteuid(), folder.st_uid}:
        raise PermissionError(errno.EPERM, f"{name} is a link that uid {link.st_uid} made in a folder of another's", path)


def _is_magic(folder: int) -> bool:
    try:
        return os.fstat(folder).st_dev == os.stat("/proc").st_dev
    except OSError:
        return False


def _open(path: str, name: str, folder: int, info: os.stat_result) -> int:
    """Open what was looked at; what has come into its place since is a file, or is refused."""
    _require_regular(path, info)
    follow = 0 if _is_magic(folder) else os.O_NOFOLLOW
    # O_NONBLOCK: it may have become a FIFO at this moment, and that must not hang anybody
    fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | follow, dir_fd=folder)
    try:
        _require_regular(path, os.fstat(fd))
    except OSError:
        os.close(fd)
        raise
    return fd


def _require_regular(path: str, info: os.stat_result) -> None:
    if stat.S_ISDIR(info.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(info.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file (a FIFO, socket or device)", path)
