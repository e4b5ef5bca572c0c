"""SQLite behind one writer thread with group commit, and a few readers.

Guarantee: when `write` returns, what its function did is committed with WAL and synchronous=FULL (both asserted at opening), so it
survives a power cut as far as the disk keeps its promises. Waiting writes share a commit; each has a savepoint of its own, so one
that raises undoes only itself.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from . import schema

P = ParamSpec("P")
T = TypeVar("T")
_READERS = 2
_GROUP = 64
_Job = tuple[Callable[[sqlite3.Connection], Any], "Future[Any]"]


def connect(path: Path) -> sqlite3.Connection:
    """Open the database for writing: WAL, synchronous=FULL, asserted; explicit transactions."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    connection.row_factory = sqlite3.Row
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    connection.execute("PRAGMA synchronous = FULL")
    level = connection.execute("PRAGMA synchronous").fetchone()[0]
    if mode != "wal" or level != 2:
        connection.close()
        raise RuntimeError(f"SQLite refused WAL with synchronous=FULL on {path} (it has {mode}, {level}): use a local disk")
    connection.execute("PRAGMA busy_timeout = 30000")
    connection.execute("PRAGMA temp_store = MEMORY")
    return connection


class Database:
    """One database file. `write` and `read` may be awaited from any task of one event loop."""

    def __init__(self, path: Path) -> None:
        """Open and migrate. Raises what `connect` and `schema.migrate` raise."""
        self._path = path
        self._connection = connect(path)
        try:
            schema.migrate(self._connection)
        except BaseException:
            self._connection.close()
            raise
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._local = threading.local()
        self._opened: list[sqlite3.Connection] = []
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="server-read")
        self._writer = threading.Thread(target=self._write_loop, name="server-write", daemon=True)
        self._writer.start()
        self._closed = False

    async def write(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a function in the writer's transaction; return its result after the commit.

        What the function raises is raised here, and nothing that it did stays.
        """
        if self._closed:
            raise RuntimeError("the database is closed")
        future: Future[T] = Future()
        self._jobs.put((lambda connection: function(connection, *args, **kwargs), future))
        return await asyncio.wrap_future(future)

    async def read(
        self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a function on a read-only connection, in one consistent snapshot."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, lambda: self._read(function, *args, **kwargs))

    def _read(self, function: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=30)
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA query_only = ON")
            self._local.connection = connection
            self._opened.append(connection)
        connection.execute("BEGIN")
        try:
            return function(connection, *args, **kwargs)
        finally:
            connection.execute("ROLLBACK")

    def _write_loop(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            group = [job]
            stop = False
            while len(group) < _GROUP:
                try:
                    more = self._jobs.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    stop = True
                    break
                group.append(more)
            self._commit_group(group)
            if stop:
                return

    def _commit_group(self, group: list[_Job]) -> None:
        connection = self._connection
        settled: list[tuple[Future[Any], Any, BaseException | None]] = []
        try:
            connection.execute("BEGIN IMMEDIATE")
            for function, future in group:
                if not future.set_running_or_notify_cancel():
                    continue
                connection.execute("SAVEPOINT job")
                try:
                    settled.append((future, function(connection), None))
                except BaseException as error:  # noqa: BLE001 - it belongs to the caller of write(), who gets it
                    connection.execute("ROLLBACK TO job")
                    settled.append((future, None, error))
                connection.execute("RELEASE job")
            connection.execute("COMMIT")
        except BaseException as error:  # noqa: BLE001 - a full disk fails the whole group, and each waiter must know
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            for _, future in group:
                if future.cancelled() or future.done():
                    continue
                future.set_exception(error)
            return
        for future, result, failure in settled:
            if failure is None:
                future.set_result(result)
            else:
                future.set_exception(failure)

    def close(self) -> None:
        """Finish the waiting writes, checkpoint and close. Harmless when repeated."""
        if self._closed:
            return
        self._closed = True
        self._jobs.put(None)
        self._writer.join()
        self._readers.shutdown(wait=True)
        for connection in self._opened:
            connection.close()
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._connection.close()
