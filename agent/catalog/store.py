"""The catalog's connection: durable, asserted, one transaction a batch.

It is confined to one thread at a time; the agent does all catalog, journal and ingest work in one worker thread.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from simspool.spool import Spool, atomic
from simspool.spool.filesystem import is_network
from simspool.spool.process import this_host

from . import schema


def state_folder() -> str:
    """Return the user's folder for local state: SIMSPOOL_STATE, else $XDG_STATE_HOME/simspool."""
    given = os.environ.get("SIMSPOOL_STATE")
    if given:
        return os.path.abspath(given)
    base = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(base, "simspool")


def catalog_path(spool: Spool) -> str:
    """Return where a spool's catalog lies: on this machine's disk, never in the spool, which may be on the network.

    Where the state folder is on the network as well (a cluster's home), each host has one of its own there.
    """
    folder = os.path.join(state_folder(), place_key(spool))
    return os.path.join(folder, f"catalog-{this_host().name}.db" if is_network(folder) else "catalog.db")


def claim(spool: Spool) -> tuple[str, int]:
    """Return a catalog's path that no other process has claimed, and the descriptor that keeps the claim until it is closed.

    Agents of two PID namespaces of one machine may have the same state folder: the second has a catalog of its own, and no descriptor (-1).
    """
    path = catalog_path(spool)
    atomic.make_folder(os.path.dirname(path))
    fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in {errno.EWOULDBLOCK, errno.EACCES}:  # no locks here: the host's name must do
            return path, fd
        os.close(fd)
        return f"{path.removesuffix('.db')}-{this_host().name}-{this_host().pid_namespace}.db", -1
    return path, fd


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
    spool's lock may do that (`shared` says that another process may have it open). `claim` is a descriptor of `claim`, and closed with it.
    Raises sqlite3.Error.
    """

    def __init__(self, path: str | None, *, shared: bool = False, claim: int = -1) -> None:
        self.path, self._claim = path, claim
        try:
            self.connection = self._open_anyhow(shared)
        except BaseException:
            self.give_back()
            raise

    def _open_anyhow(self, shared: bool) -> sqlite3.Connection:
        path = self.path
        if path is not None:
            atomic.make_folder(os.path.dirname(path))
        try:
            return self._open()
        except (sqlite3.DatabaseError, schema.ForeignSchema) as error:
            if shared or not is_damage(error):  # a full disk or a lock is no reason to give up what is known
                raise
            self._set_aside()
            return self._open()

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
        """Close the connection, and give back the claim."""
        self.connection.close()
        self.give_back()

    def give_back(self) -> None:
        """Let another process claim the file: this one only reads from now on."""
        if self._claim >= 0:
            os.close(self._claim)
            self._claim = -1
