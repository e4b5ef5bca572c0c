"""News for the ingest: the doorbell of scripts, and watchdog for files that appear. Both are hints; the scan is sufficient."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from simspool.agent.inbox.ring import RING
from simspool.spool import Spool, filesystem

if TYPE_CHECKING:
    from watchdog.observers.api import BaseObserver, ObservedWatch

_MAX_WATCHES = 64  # watchdog keeps a thread for each
_MAX_INBOXES = 32


class Doorbell:
    """A datagram socket that scripts ring with their writer's and run's ids. Overflow is harmless: the scan follows."""

    def __init__(self, path: str, rung: Callable[[bytes], None]) -> None:
        self.path, self._rung = path, [rung]
        self._socket: socket.socket | None = None
        self.of_inboxes: Callable[[bytes], None] = lambda _: None  # hears of lines in a run's inbox

    def also(self, rung: Callable[[bytes], None]) -> None:
        """Tell somebody else as well, first."""
        self._rung.insert(0, rung)

    def start(self) -> None:
        """Bind and listen on the running loop. Raises OSError (a path over 107 bytes, no socket folder)."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            bell.bind(self.path)
            os.chmod(self.path, 0o600)
        except OSError:
            bell.close()
            raise
        self._socket = bell
        asyncio.get_running_loop().add_reader(bell, self._read)

    def _read(self) -> None:
        assert self._socket is not None
        for _ in range(256):
            try:
                data = self._socket.recv(64)
            except OSError:
                return
            if data.startswith(RING):
                self.of_inboxes(data)
                continue
            for tell in self._rung:
                tell(data)

    def stop(self) -> None:
        """Close the bell and remove its path."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)


class FolderWatch:
    """watchdog on the folder of runs and the folders of active writers: new runs, writers, segments and seals.

    Appends are not watched (mapped ones raise no event, others raise four each). Where inotify is not to be had, or the spool
    is on a network disk, it does nothing: the scan is sufficient.
    """

    def __init__(self, spool: Spool, changed: Callable[[], None]) -> None:
        self._spool, self._changed = spool, changed
        self._observer: BaseObserver | None = None
        self._watches: dict[str, ObservedWatch] = {}
        self._inboxes: dict[str, ObservedWatch] = {}

    def start(self) -> str | None:
        """Begin; returns why not, when it does not work here."""
        if filesystem.is_network(self._spool.path):
            return "the spool is on a network disk: new data is found by scanning"
        from watchdog.events import DirCreatedEvent, FileCreatedEvent, FileMovedEvent, FileSystemEventHandler
        from watchdog.observers import Observer

        changed, loop = self._changed, asyncio.get_running_loop()

        class Handler(FileSystemEventHandler):
            def on_any_event(self, event: Any) -> None:
                if isinstance(event, (DirCreatedEvent, FileCreatedEvent, FileMovedEvent)):
                    with contextlib.suppress(RuntimeError):  # the loop has ended
                        loop.call_soon_threadsafe(changed)

        self._handler = Handler()
        observer = Observer()
        try:
            observer.start()
        except OSError as error:
            return f"no file notifications ({error.strerror}): new data is found by scanning"
        self._observer = observer
        self.follow([])
        return None

    def follow(self, folders: Iterable[str]) -> None:
        """Watch these folders (and that of the runs), and no others."""
        if self._observer is None:
            return
        wanted = [self._spool.runs, *folders][:_MAX_WATCHES]
        for gone in self._watches.keys() - set(wanted):
            with contextlib.suppress(KeyError, OSError):
                self._observer.unschedule(self._watches[gone])
            del self._watches[gone]
        for folder in wanted:
            if folder not in self._watches:
                with contextlib.suppress(OSError):  # gone, or out of watches: the scan finds it
                    self._watches[folder] = self._observer.schedule(self._handler, folder, recursive=False)

    def follow_inboxes(self, folders: list[str], changed: Callable[[str], None]) -> None:
        """Watch these inboxes for files that come and grow, and no others; `changed` is told of the folder, in a thread of watchdog's."""
        observer = self._observer
        if observer is None:
            return
        from watchdog.events import FileCreatedEvent, FileModifiedEvent, FileMovedEvent, FileSystemEventHandler

        class Handler(FileSystemEventHandler):
            def on_any_event(self, event: Any) -> None:
                changed(os.path.dirname(os.fsdecode(event.src_path)))

        wanted = folders[:_MAX_INBOXES]
        for gone in self._inboxes.keys() - set(wanted):
            with contextlib.suppress(KeyError, OSError):
                observer.unschedule(self._inboxes[gone])
            del self._inboxes[gone]
        for folder in wanted:
            if folder not in self._inboxes:
                with contextlib.suppress(OSError):  # gone, or out of watches: the copier's own look finds it
                    kinds = [FileCreatedEvent, FileModifiedEvent, FileMovedEvent]
                    self._inboxes[folder] = observer.schedule(Handler(), folder, recursive=False, event_filter=kinds)

    def stop(self) -> None:
        """End watching."""
        if self._observer is not None:
            self._observer.stop()
            self._observer.join(5)
            self._observer = None
