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


class Catalog:
    """An open catalog.

    With `path` None it lives in memory only (for looking at a spool without leaving a trace). A file that is not a catalog, or is
    damaged, is set aside under another name and begun anew: everything in it can be rebuilt.
    """

    def __init__(self, path: str | None) -> None:
        self.path = path
        if path is not None:
            atomic.make_folder(os.path.dirname(path))
        try:
            self.connection = self._open()
        except sqlite3.DatabaseError:
            if path is None or not os.path.exists(path):
                raise
            for suffix in ("", "-wal", "-shm"):
                if os.path.exists(path + suffix):
                    os.replace(path + suffix, f"{path}{suffix}.damaged")
            self.connection = self._open()

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
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")

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
