"""Looking at a spool's catalog from a command: brought up to date when no agent runs, as that agent keeps it otherwise."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator

from simspool.agent.catalog import Catalog
from simspool.agent.catalog.schema import ForeignSchema
from simspool.agent.catalog.store import catalog_path, claim, is_damage
from simspool.agent.ingest import Ingest
from simspool.agent.journal import Journal
from simspool.spool import Locked, Spool
from simspool.spool.lease import Lease
from simspool.spool.lock import SpoolLock


@contextlib.contextmanager
def open_view(spool: Spool) -> Iterator[Catalog]:
    """Give a catalog that has everything recorded up to now (beside a running agent: up to a second ago)."""
    lock = SpoolLock(spool)
    try:
        lock.acquire()
    except (Locked, OSError):
        path = catalog_path(spool)
        # an agent of this user on another machine, or of another state folder, or a read-only disk: nothing to read here but the spool
        try:
            catalog = Catalog(path if os.path.exists(path) else None, shared=True)
        except (sqlite3.Error, ForeignSchema):
            catalog = Catalog(None)
        try:
            if catalog.path is None:
                _ingest(spool, catalog, bury=False)
            yield catalog
        finally:
            catalog.close()
        return
    try:
        catalog = _up_to_date(spool)
        catalog.give_back()
        lock.release()  # looking on needs none: whoever waits for it may begin
        try:
            yield catalog
        finally:
            catalog.close()
    finally:
        lock.release()


@contextlib.contextmanager
def opened_to_write(spool: Spool) -> Iterator[tuple[Catalog, Journal]]:
    """Give the catalog and the journal, as an agent has them. Raises Locked while another process has the spool."""
    lock = SpoolLock(spool)
    lock.acquire()
    try:
        catalog = _up_to_date(spool)
        try:
            journal = Journal(spool, catalog, lease=Lease(spool))
            try:
                yield catalog, journal
            finally:
                journal.close()
        finally:
            catalog.close()
    finally:
        lock.release()


def _up_to_date(spool: Spool) -> Catalog:
    path, held = claim(spool)
    catalog = Catalog(path, claim=held)
    try:
        journal = Journal(spool, catalog, lease=Lease(spool))  # not held: another host's agent may have it
        _ingest(spool, catalog, bury=True)
        journal.close()
    except sqlite3.Error as error:
        if not is_damage(error):
            catalog.close()
            raise
        catalog.condemn()
        return _up_to_date(spool)
    except BaseException:
        catalog.close()
        raise
    return catalog


def _ingest(spool: Spool, catalog: Catalog, *, bury: bool) -> None:
    ingest = Ingest(spool, catalog)
    try:
        ingest.take_all(bury=bury)
    finally:
        ingest.close()
