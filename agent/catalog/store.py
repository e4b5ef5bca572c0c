"""The catalog's connection: durable, asserted, one transaction a batch.

It is confined to one thread at a time; the agent does all catalog, journal and ingest work in one worker thread.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from simspool.spool import Spool, atomic

from . import schema


def state_folder() -> str:
    """Return the user's folder for local state: SIMSPOOL_STATE, else $XDG_STATE_HOME/simspool."""
    given = os.environ.get("SIMSPOOL_STATE")
    if given:
        return os.path.abspath(given)
    base = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(base, "simspool")


def catalog_path(spool: Spool) -> str:
    """Return where a spool's catalog lies: on this machine's disk, never in the spool, which may be on the network."""
    return os.path.join(state_folder(), place_key(spool), "catalog.db")


def place_key(spool: Spool) -> str:
    """Return a name for this spool at this place: a copied spool has the same id, and must not share state with the original."""
    place = hashlib.sha256(os.fsencode(os.path.realpath(spool.path))).hexdigest()[:10]
    return f"{spool.id}-{place}"


def pruned(run: str, writer: str) -> str:
    """Return the SQL condition that retention deleted a writer's records: nothing of them can be sent any more (a named gap)."""
    return f"({run} IN (SELECT run FROM pruned) AND NOT EXISTS (SELECT 1 FROM pieces WHERE pieces.writer = {writer}))"  # noqa: S608 - names of columns


FILE_KEY = "(a.writer || '.' || a.seq)"
"""The SQL of an artifact record's own key (alias `a`), under which targets that keep files by run give receipts; others by digest."""


def is_damage(error: BaseException) -> bool:
    """Say whether an error means that the file itself is no good, not that the disk is full or somebody has it locked."""
    if isinstance(error, schema.ForeignSchema):
        return True
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class Catalog:
    """An open catalog.

    With `path` None it lives in memory only (for looking at a spool without leaving a trace). A file that is not a catalog, is damaged,
    or was made by a newer version is set aside under another name and begun anew: everything in it can be rebuilt. Only whoever holds the
    spool's lock may do that (`shared` says that another process may have it open). Raises sqlite3.Error.
    """

    def __init__(self, path: str | None, *, shared: bool = False) -> None:
        self.path = path
        if path is not None:
            atomic.make_folder(os.path.dirname(path))
        try:
            self.connection = self._open()
        except (sqlite3.DatabaseError, schema.ForeignSchema) as error:
            if shared or not is_damage(error):  # a full disk or a lock is no reason to give up what is known
                raise
            self._set_aside()
            self.connection = self._open()

    def _set_aside(self) -> None:
        assert self.path is not None
        for suffix in ("", "-wal", "-shm"):
            if os.path.exists(self.path + suffix):
                os.replace(self.path + suffix, f"{self.path}{suffix}.damaged")

    def condemn(self) -> None:
        """Damage was found in use: set the file aside, so that the next start builds a new one."""
        self.close()
        if self.path is not None:
            self._set_aside()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path or ":memory:", isolation_level=None, check_same_thread=False, timeout=30)
        try:
            if self.path is not None:
                os.chmod(self.path, 0o600)
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
                level = connection.execute("PRAGMA synchronous").fetchone()[0]
                assert (mode, level) == ("wal", 2), f"the catalog is not durable: {mode}, {level}"
            schema.migrate(connection, self.path)
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One durable transaction; nested uses join the outer one."""
        if self.connection.in_transaction:
            yield self.connection
            return
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield self.connection
            self.connection.execute("COMMIT")
        except BaseException:
            open_still: bool = self.connection.in_transaction  # SQLite may have rolled back by itself
            if open_still:
                self.connection.execute("ROLLBACK")
            raise

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a query."""
        return self.connection.execute(sql, parameters).fetchall()

    def one(self, sql: str, parameters: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        """Return the first row of a query, or None."""
        row: tuple[Any, ...] | None = self.connection.execute(sql, parameters).fetchone()
        return row

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()
