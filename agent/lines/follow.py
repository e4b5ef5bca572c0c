"""Files that grow, followed through rotation, truncation and replacement (docs/logs.md)."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import stat
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from simspool.spool import filesystem

from .followed import Followed, Key, key_of, open_regular

if TYPE_CHECKING:
    from watchdog.observers.api import BaseObserver

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.02, 0.25
_SCAN_EVERY = 1.0  # for names with wildcards
_SCAN_SHARE = 20  # a scan that takes a second comes every twenty
_SCAN_AFTER_BELL = 0.05
_KEEP_OLD = 10.0  # seconds that a file without a name stays open after its last byte
_MOST_OLD = 8  # such files of one name
_MOST_OPEN = 200
_MOST_PAST = 1000
_ROTATED = re.compile(r"[._-][\d._:T-]+")


class FollowedFiles:
    """Follows paths and globs. Not for several threads at once.

    Each byte of a file is given once and in order, as whole lines, also when the file is renamed, replaced or deleted
    meanwhile; a rotated log's old file is read to its end before the new one. What is truncated away between two reads is lost: nobody
    can know it. A line without an end is given when the file is over (a newer one has begun, or `finish`), and counted in `lost_parts`
    when it was truncated.

    Wait on `fileno()` (readable when a name appears) for at most `pause` seconds between two reads.
    """

    def __init__(self, patterns: Sequence[str], from_start: bool = True) -> None:
        """`from_start=False` begins behind the lines that are there now; files that appear later are read whole.

        Raises ValueError for a folder: its files must be asked for.
        """
        self._paths = [os.path.abspath(path) for path in patterns if not glob.has_magic(path)]
        self._globs = [os.path.abspath(path) for path in patterns if glob.has_magic(path)]
        for path in self._paths:
            if os.path.isdir(path):
                raise ValueError(f"{path} is a folder: give a file, or a pattern such as {path}/*.log")
        self.pause = _SHORTEST_PAUSE
        self.problems: dict[str, str] = {}  # files that cannot be read, and why
        self.restarts = self.lost_parts = self.cut = 0  # of files that are over; `counts` has them all
        self._files: dict[Key, Followed] = {}  # in the order in which they were found
        self._current: dict[str, Key] = {}  # which file a path was last
        self._past: OrderedDict[Key, tuple[int, bytes]] = OrderedDict()  # files that are over, but may come back under a followed name
        self._from_start = from_start
        self._next_scan = self._not_before = 0.0
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._observer: BaseObserver | None = None
        self._watch()
        self._scan()
        self._from_start = True

    # -- waiting

    def fileno(self) -> int:
        """Return a descriptor that is readable when a file appeared under a pattern."""
        return self._bell

    def _watch(self) -> None:
        """Let watchdog ring for new names. Appends are looked for: a look is cheaper than a notification of each write."""
        folders = {base for base in map(_base, self._globs) if os.path.isdir(base) and not filesystem.is_network(base)}
        if not folders:
            return
        from watchdog.events import FileCreatedEvent, FileMovedEvent, FileSystemEventHandler
        from watchdog.observers import Observer

        follower = self

        class Handler(FileSystemEventHandler):
            def on_any_event(self, event: Any) -> None:
                follower._ring()

        observer = Observer()
        try:
            observer.start()
        except OSError:  # no inotify instance is left: the scan is sufficient
            return
        for folder in folders:
            with contextlib.suppress(OSError):
                observer.schedule(Handler(), folder, recursive=False, event_filter=[FileCreatedEvent, FileMovedEvent])
        self._observer = observer

    def _ring(self) -> None:
        with contextlib.suppress(OSError):  # closed, or full of rings
            os.eventfd_write(self._bell, 1)

    # -- reading

    def read(self) -> Iterator[tuple[str, bytes]]:
        r"""Yield (path, block of whole lines that end with "\n") as long as there is something; at most 256 KiB and a line at once.

        Path is the name under which the file was found. The iterator may be left at any time; the next one goes on.
        """
        gave, more = False, True
        while more:
            more = False
            self._scan()
            unfinished: set[str] = set()  # labels whose older file has more to read
            for file in list(self._files.values()):
                if file.label in unfinished:
                    continue
                if not file.given and file.has_data():
                    file.given = True
                    yield from self._flush_older(file)
                block, at_end = self._read(file)
                if not at_end:
                    unfinished.add(file.label)
                    more = True
                if block:
                    gave = True
                    yield file.label, block
            yield from self._retire()
        self.pause = _SHORTEST_PAUSE if gave else min(_LONGEST_PAUSE, self.pause * 1.5)

    def finish(self) -> Iterator[tuple[str, bytes]]:
        """Yield what is left, with lines that have no end, and close."""
        self._next_scan = 0.0
        yield from self.read()
        for file in self._files.values():
            rest = file.lines.flush()
            if rest:
                yield file.label, rest
        self.close()

    def close(self) -> None:
        """Release everything. What was not read is not given."""
        if self._bell < 0:
            return
        if self._observer is not None:
            self._observer.stop()
            self._observer.join(5)
            self._observer = None
        for file in self._files.values():
            file.rest()
            self._count(file)
        self._files.clear()
        os.close(self._bell)
        self._bell = -1

    def counts(self) -> dict[str, int]:
        """Return what befell the files: truncations and rewritings, lines lost in them, lines cut for their length."""
        files = self._files.values()
        return {
            "restarts": self.restarts + sum(file.restarts for file in files),
            "lost_parts": self.lost_parts + sum(file.lost_parts for file in files),
            "cut": self.cut + sum(file.lines.cut for file in files),
        }

    def _count(self, file: Followed) -> None:
        self.restarts += file.restarts
        self.lost_parts += file.lost_parts
        self.cut += file.lines.cut

    def _read(self, file: Followed) -> tuple[bytes, bool]:
        try:
            block, at_end = file.read()
            if file.compressed:
                self.problems[file.name] = "it is compressed"
            return block, at_end
        except OSError as error:  # a stale handle of a network disk, a bad block: opened again when it changes
            self.problems[file.name] = error.strerror or str(error)
            file.rest()
            file.seen = (-1, -1)
            return b"", True

    def _flush_older(self, newer: Followed) -> Iterator[tuple[str, bytes]]:
        """Yield last lines without an end, of the files that had this name before."""
        for file in self._files.values():
            if file is newer:
                return
            if file.label == newer.label:
                rest = file.lines.flush()
                if rest:
                    yield file.label, rest

    def _retire(self) -> Iterator[tuple[str, bytes]]:
        """Let go files that have no followed name any more and say nothing more, and descriptors when there are too many."""
        old: dict[str, int] = {}
        now = time.monotonic()
        for file in reversed(list(self._files.values())):
            if file.named or (file.fd is not None and file.seen == (-1, -1) and not file.compressed):
                continue
            old[file.label] = old.get(file.label, 0) + 1
            if now - file.changed < _KEEP_OLD and old[file.label] <= _MOST_OLD:
                continue
            rest = file.lines.flush()
            if rest:
                yield file.label, rest
            if not file.is_unlinked():
                self._past[file.key] = file.position
                if len(self._past) > _MOST_PAST:
                    self._past.popitem(last=False)
            file.rest()
            self._count(file)
            del self._files[file.key]
        opened = [file for file in self._files.values() if file.fd is not None]
        if len(opened) > _MOST_OPEN:
            opened.sort(key=lambda file: file.changed)
            for file in opened[: len(opened) - _MOST_OPEN]:
                if file.named and file.seen != (-1, -1):
                    file.rest()

    # -- finding

    def _scan(self) -> None:
        """Find out which files have the names now."""
        now = time.monotonic()
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)
            self._next_scan = min(self._next_scan, max(self._not_before, now + _SCAN_AFTER_BELL))
            self.pause = _SHORTEST_PAUSE
        names = list(self._paths)
        whole = now >= self._next_scan
        if whole:
            for pattern in self._globs:
                names += glob.iglob(pattern, recursive=True)
        found: set[Key] = set()
        new: list[tuple[int, str]] = []
        for name in names:
            try:
                status = os.stat(name)
            except OSError:
                continue
            if not stat.S_ISREG(status.st_mode):  # not even opened: a writer may wait for the reader of a FIFO
                self.problems[name] = "it is not a regular file"
                continue
            key = key_of(status)
            file = self._files.get(key)
            if file is None:
                new.append((status.st_mtime_ns, name))
                continue
            if file.fd is None and (status.st_size, status.st_mtime_ns) != file.seen:
                with contextlib.suppress(OSError):
                    file.fd = open_regular(name)
            file.name = name
            if name in self._current:
                self._current[name] = key
            found.add(key)
        if whole:
            for file in self._files.values():
                file.named = file.key in found
        for _, name in sorted(new):  # a rotated log is older than its successor
            self._add(name)
        if whole and self._globs:
            end = time.monotonic()
            self._not_before = end + _SCAN_SHARE * (end - now)
            self._next_scan = max(end + _SCAN_EVERY, self._not_before)

    def _add(self, name: str) -> None:
        """Begin with a file that was not known."""
        try:
            fd = open_regular(name)
        except OSError as error:
            self.problems[name] = error.strerror or str(error)
            return
        key = key_of(os.fstat(fd))
        if key in self._files:  # the name went to another file at this moment
            os.close(fd)
            return
        if name in self._paths:
            self._add_between(name)
            self._current[name] = key
        file = Followed(name, fd, self._past.pop(key, (0, b"")))
        if not self._from_start:
            file.to_end()
        self._files[key] = file
        self.problems.pop(name, None)

    def _add_between(self, path: str) -> None:
        """Find files that had the path's name between two looks: rotated on, like the one that had it at the last look."""
        last = self._files.get(self._current.get(path, (0, 0)))
        if last is None or last.fd is None:
            return
        folder, base = os.path.split(path)
        since = os.fstat(last.fd).st_mtime_ns
        between: list[tuple[int, str, Key]] = []
        rotated = False
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(base) and _ROTATED.fullmatch(entry.name[len(base) :]) and entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    key = key_of(status)
                    rotated |= key == last.key
                    if status.st_mtime_ns >= since and key not in self._files and key not in self._past:
                        between.append((status.st_mtime_ns, entry.path, key))
        if not rotated:
            return
        for _, found, key in sorted(between):
            with contextlib.suppress(OSError):
                file = Followed(path, open_regular(found))
                file.named = False
                if file.key == key:
                    self._files[key] = file
                else:
                    file.rest()


def _base(pattern: str) -> str:
    """Return the folder of a pattern that has no wildcard in it."""
    folder = os.path.dirname(pattern)
    while glob.has_magic(folder):
        folder = os.path.dirname(folder)
    return folder
