"""A disk that remembers what was synced: records the file operations of a piece of code, and makes what a power cut may leave of them.

The rules are harder than any one file system's. A page of a file that was not fsynced since it was written may be there or not, each by
itself, in any version since the last fsync, and the file's size too; a folder's entries that were not fsynced may be there up to any of
them, each folder by itself; a rename is atomic. Nothing is known of a file through its folder, nor of a folder through its files.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from simspool.spool import segment

PAGE = 4096


@dataclass
class Log:
    """What was done since the recording began, in order. Inodes stand for files and folders; `root` is the folder it is about.

    `afterwards`: what lets go of descriptors, called when nothing is recorded any more.
    """

    root: Path
    operations: list[tuple[Any, ...]] = field(default_factory=list)
    afterwards: list[Callable[[], object]] = field(default_factory=list)

    def promise(self, *what: Any) -> None:
        """Note that from here on something must survive."""
        self.operations.append(("promise", *what))

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Record what the code inside does below the root."""
        add, real = self.operations.append, {name: getattr(os, name) for name in _PATCHED}

        def inode(path: Any, dir_fd: int | None = None) -> int:
            return os.stat(path, dir_fd=dir_fd, follow_symlinks=False).st_ino

        def place(path: Any, dir_fd: int | None = None) -> tuple[int, str]:
            if dir_fd is not None:
                return os.fstat(dir_fd).st_ino, str(path)
            folder, name = os.path.split(os.path.abspath(path))
            return inode(folder), name

        def opened(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            new = bool(flags & os.O_CREAT) and not os.path.lexists(path)
            fd: int = real["open"](path, flags, mode, dir_fd=dir_fd)
            if new:
                add(("entry", *place(path, dir_fd), os.fstat(fd).st_ino, False))
            return fd

        def pwrite(fd: int, data: Any, offset: int) -> int:
            n: int = real["pwrite"](fd, data, offset)
            add(("write", os.fstat(fd).st_ino, offset, bytes(data[:n])))
            return n

        def write(fd: int, data: Any) -> int:
            info = os.fstat(fd)
            at = os.lseek(fd, 0, os.SEEK_CUR) if stat.S_ISREG(info.st_mode) else 0
            n: int = real["write"](fd, data)
            if stat.S_ISREG(info.st_mode):
                add(("write", info.st_ino, at, bytes(data[:n])))
            return n

        def ftruncate(fd: int, size: int) -> None:
            real["ftruncate"](fd, size)
            add(("size", os.fstat(fd).st_ino, size))

        def posix_fallocate(fd: int, start: int, length: int) -> None:
            real["posix_fallocate"](fd, start, length)
            info = os.fstat(fd)
            add(("size", info.st_ino, info.st_size))

        def sync(fd: int) -> None:
            add(("sync", os.fstat(fd).st_ino))

        def rename(source: Any, target: Any) -> None:
            before = place(source)
            real["rename"](source, target)
            add(("rename", *before, *place(target), inode(target)))

        def link(source: Any, target: Any) -> None:
            real["link"](source, target)
            add(("entry", *place(target), inode(target), False))

        def unlink(path: Any, *, dir_fd: int | None = None) -> None:
            at = place(path, dir_fd)
            real["unlink"](path, dir_fd=dir_fd)
            add(("entry", *at, None, False))

        def rmdir(path: Any, *, dir_fd: int | None = None) -> None:
            at = place(path, dir_fd)
            real["rmdir"](path, dir_fd=dir_fd)
            add(("entry", *at, None, False))

        def mkdir(path: Any, mode: int = 0o777) -> None:
            real["mkdir"](path, mode)
            add(("entry", *place(path), inode(path), True))

        own: dict[str, Callable[..., Any]] = {
            "open": opened, "pwrite": pwrite, "write": write, "ftruncate": ftruncate, "posix_fallocate": posix_fallocate, "fsync": sync,
            "fdatasync": sync, "rename": rename, "link": link, "unlink": unlink, "rmdir": rmdir, "mkdir": mkdir,
        }  # fmt: skip
        prepare = segment.prepare

        def prepared(*args: Any, **kwargs: Any) -> Any:
            made = prepare(*args, **kwargs)
            if isinstance(made, segment.MappedSegment):
                made.store = _MappedStore(made, add)
            return made

        with contextlib.ExitStack() as stack:
            for name, function in own.items():
                stack.enter_context(mock.patch.object(os, name, function))
            stack.enter_context(mock.patch.object(segment, "prepare", prepared))
            yield


_PATCHED = ("open", "pwrite", "write", "ftruncate", "posix_fallocate", "fsync", "fdatasync", "rename", "link", "unlink", "rmdir", "mkdir")


class _MappedStore:
    """A mapped segment's store that is also seen by the log. A mapping that was grown or closed goes on by itself."""

    def __init__(self, made: segment.MappedSegment, add: Callable[[tuple[Any, ...]], None]) -> None:
        self._map: mmap.mmap = made._map
        self._inode, self._add = os.fstat(made.fd).st_ino, add

    def __setitem__(self, where: slice, data: bytes) -> None:
        self._map[where] = data
        self._add(("write", self._inode, where.start, bytes(data)))


@dataclass
class _File:
    synced: bytes = b""
    pages: dict[int, list[bytes]] = field(default_factory=dict)  # versions since the last sync
    sizes: list[int] = field(default_factory=lambda: [0])
    now: bytearray = field(default_factory=bytearray)

    def write(self, offset: int, data: bytes) -> None:
        if len(self.now) < offset + len(data):
            self.now.extend(bytes(offset + len(data) - len(self.now)))
            self.sizes.append(len(self.now))
        self.now[offset : offset + len(data)] = data
        for page in range(offset // PAGE, (offset + len(data) - 1) // PAGE + 1):
            self.pages.setdefault(page, []).append(bytes(self.now[page * PAGE : (page + 1) * PAGE]))

    def resize(self, size: int) -> None:
        if size < len(self.now):
            del self.now[size:]
        else:
            self.now.extend(bytes(size - len(self.now)))
        self.sizes.append(size)

    def sync(self) -> None:
        self.synced, self.pages, self.sizes = bytes(self.now), {}, [len(self.now)]

    def after_cut(self, choice: random.Random, kept: float) -> bytes:
        if not self.pages and len(self.sizes) == 1:
            return self.synced
        size = choice.choice(self.sizes) if choice.random() < kept else self.sizes[0]
        left = bytearray(self.synced.ljust(size, b"\0"))
        for page, versions in self.pages.items():
            if choice.random() < kept:
                version = choice.choice(versions)
                at = page * PAGE
                left[at : at + len(version)] = version.ljust(min(PAGE, max(len(left) - at, 0)), b"\0")
        return bytes(left[:size].ljust(size, b"\0"))


def cut(log: Log, at: int, choice: random.Random, target: Path) -> list[tuple[Any, ...]]:
    """Make in `target` what a power cut after `at` operations may leave of the root. Returns what was promised by then."""
    files: dict[int, _File] = {}
    folders: set[int] = {os.stat(log.root).st_ino}
    durable: dict[int, dict[str, int]] = {}
    pending: dict[int, list[tuple[Any, ...]]] = {}
    promises = []
    for what, *rest in log.operations[:at]:
        if what == "promise":
            promises.append(tuple(rest))
        elif what == "write":
            files.setdefault(rest[0], _File()).write(rest[1], rest[2])
        elif what == "size":
            files.setdefault(rest[0], _File()).resize(rest[1])
        elif what == "sync":
            for entry in pending.pop(rest[0], ()):
                _apply(durable, rest[0], entry)
            files.setdefault(rest[0], _File()).sync()
        elif what == "entry":
            folder, name, inode, is_folder = rest
            if is_folder:
                folders.add(inode)
            pending.setdefault(folder, []).append(((name, inode),))
        else:
            folder, name, other, new_name, inode = rest
            assert folder == other, "a rename from folder to folder"
            pending.setdefault(folder, []).append(((name, None), (new_name, inode)))
    kept = choice.choice([0.0, 0.3, 0.7, 1.0])
    for folder, entries in pending.items():
        for entry in entries[: choice.randrange(len(entries) + 1) if 0 < kept < 1 else len(entries) * int(kept)]:
            _apply(durable, folder, entry)

    def lay(folder: int, path: Path) -> None:
        path.mkdir(exist_ok=True)
        for name, inode in durable.get(folder, {}).items():
            if inode in folders:
                lay(inode, path / name)
            else:
                left = contents.get(inode)
                if left is None:
                    left = contents[inode] = files.get(inode, _File()).after_cut(choice, kept)
                (path / name).write_bytes(left)

    contents: dict[int, bytes] = {}  # of files with several names, all see the same
    lay(os.stat(log.root).st_ino, target)
    return promises


def _apply(durable: dict[int, dict[str, int]], folder: int, entry: tuple[tuple[str, int | None], ...]) -> None:
    names = durable.setdefault(folder, {})
    for name, inode in entry:
        if inode is None:
            names.pop(name, None)
        else:
            names[name] = inode
