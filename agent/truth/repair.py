"""`agent check --repair`: what a scrub found, made good where that is safe.

- A file's bytes that are damaged or gone come back from a good copy: another run's, the pool's, or a target's. What was damaged goes into
  the quarantine. Every copy is verified by its digest before it gets its place.
- A damaged segment is never edited. It is copied into the quarantine with a report, and what is lost is declared to targets that lack it:
  the catalog is built anew where it still counts on bytes that are no longer there, so that the drain goes on behind the gap.
- A catalog that disagrees with the spool is set aside, and the next command builds another.
- What killed operations left behind (older than a day), and pool entries that no run names, go.

Each step is safe to be killed in, and repeating everything changes nothing more. It needs the spool's lock: no agent serves it meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence

from simspool.agent.catalog import Catalog
from simspool.agent.ingest import Ingest
from simspool.agent.journal import Journal
from simspool.agent.scrub import Finding
from simspool.spool import DamagedBlob, Spool, atomic, blobs
from simspool.spool.lease import Lease

_SEGMENT = frozenset({"corrupt", "torn", "loss", "header", "drops", "lost", "missing"})
_BLOB = frozenset({"blob-damaged", "blob-missing"})
_DAY = 86400.0
Fetch = Callable[[str, str], str]
"""Fetch the bytes with a digest from a target into a file; return an empty text, or why there are none."""


class Repairer:
    """Repairs what a scrub found. `fetch` asks the targets. With `dry`, it only says what it would do."""

    def __init__(self, spool: Spool, fetch: Fetch, *, dry: bool) -> None:
        self._spool, self._fetch, self._dry = spool, fetch, dry
        self._done: dict[str, tuple[bool, str]] = {}

    def finding(self, found: Finding) -> tuple[bool, str] | None:
        """Repair one finding; return whether that made it good, and what was done or why not. None where there is nothing to repair."""
        if not found.is_damage:
            return None
        if found.kind in _BLOB or (found.kind == "unreadable" and len(os.path.basename(found.path)) == 64):
            # a damaged one is put right in all runs at once; where it is missing, each run says so
            key = found.path if found.kind == "blob-missing" else os.path.basename(found.path)
            act = self._blob
        else:
            key, act = found.path, self._segment
        if key not in self._done:
            try:
                self._done[key] = act(found)
            except OSError as error:
                self._done[key] = False, f"not repaired: {error.strerror or error}: {error.filename or found.path}"
        return self._done[key]

    # ------------------------------------------------------------------ files

    def _blob(self, found: Finding) -> tuple[bool, str]:
        digest = os.path.basename(found.path)
        good, bad = self._copies(digest)
        wanted = {*bad, found.path} - {good}
        if good is not None:
            if not self._dry:
                self._put_right(digest, good, wanted)
            return True, f"{'can be ' if self._dry else ''}restored from {good}"
        if self._dry:
            return False, "no good copy is in the spool: `agent check --repair` asks the targets for it"
        atomic.make_folder(self._spool.quarantine)
        fetched = os.path.join(self._spool.quarantine, f"fetched-{digest}")
        try:
            why = self._fetch(digest, fetched)
            if why:
                return False, f"not repaired: no good copy is in the spool, and {why}"
            blobs.verify(fetched, digest)
            self._put_right(digest, fetched, wanted)
        except DamagedBlob:
            return False, "not repaired: no good copy is in the spool, and what the target has is something else"
        finally:
            atomic.remove(fetched)
        return True, "restored from the target"

    def _copies(self, digest: str) -> tuple[str | None, list[str]]:
        """Return the path of a good copy, if there is one, and those of bad ones."""
        good, bad = None, []
        known: dict[tuple[int, int], bool] = {}
        paths = [self._spool.pool_path(digest), *(os.path.join(self._spool.run(r).blobs, digest) for r in self._spool.run_ids())]
        for path in paths:
            try:
                info = os.stat(path)
                key = (info.st_dev, info.st_ino)
                if key not in known:
                    known[key] = _is_good(path, digest)
            except FileNotFoundError:
                continue
            if known[key]:
                good = good or path
            else:
                bad.append(path)
        return good, bad

    def _put_right(self, digest: str, good: str, paths: set[str]) -> None:
        """Give the good bytes these names; what is there goes into the quarantine. Killed in between, a name is missing: found again."""
        atomic.make_folder(self._spool.quarantine)
        for path in sorted(paths):
            if os.path.exists(path):
                aside = os.path.join(self._spool.quarantine, f"blob-{digest}")
                if os.path.exists(aside):
                    atomic.remove(path)
                else:
                    atomic.rename(path, aside)
        folders = [f for r in self._spool.run_ids() if os.path.join((f := self._spool.run(r)).blobs, digest) in paths]
        for folder in folders or [self._spool.run(os.path.basename(os.path.dirname(os.path.dirname(good))))]:
            if blobs.put_file(self._spool, folder, good).digest != digest:
                raise DamagedBlob(f"{good} changed while it was copied")
            blobs.publish(self._spool, folder, [digest])

    # ------------------------------------------------------------------ segments

    def _segment(self, found: Finding) -> tuple[bool, str]:
        """Keep a copy of a damaged segment. It is never made good: what is lost is lost, and declared."""
        if found.kind == "unreadable" or not os.path.isfile(found.path):
            return False, "not repaired: restore it from a copy of the spool; until then what it held is declared as lost"
        name = f"segment-{found.run}-{found.writer}-{os.path.basename(found.path)}"
        copy = os.path.join(self._spool.quarantine, name)
        if os.path.exists(copy):
            return True, f"declared as lost; a copy was made before: {copy}"
        if self._dry:
            return False, f"`agent check --repair` keeps a copy as {copy}, and has what is lost declared to targets that lack it"
        atomic.make_folder(self._spool.quarantine)
        with open(found.path, "rb") as file:
            data = file.read()
        report = {"at": time.time(), "path": found.path, "finding": found.as_dict()}
        atomic.write_file(f"{copy}.json", json.dumps(report, indent=1).encode())
        atomic.write_file(copy, data)
        return True, f"declared as lost; a copy is kept as {copy}"

    # ------------------------------------------------------------------ the catalog, and what is left over

    def catalog(self, path: str) -> str:
        """Build a catalog anew in memory and compare; set the one on disk aside where they disagree. Returns what was found, or nothing."""
        if not os.path.exists(path):
            return ""
        known = Catalog(path, shared=self._dry)
        fresh = Catalog(None)
        try:
            problem = str((known.one("PRAGMA quick_check") or ("no answer",))[0])
            why = "" if problem == "ok" else problem
            why = why or self._disagreement(known, fresh)
        finally:
            fresh.close()
            known.close()
        if why and not self._dry:
            Catalog(path).condemn()
        what = "can be" if self._dry else "was"
        return f"the catalog disagrees with the spool ({why}): it {what} set aside, and is built anew by the next command" if why else ""

    def _disagreement(self, known: Catalog, fresh: Catalog) -> str:
        Journal(self._spool, fresh, lease=Lease(self._spool)).close()  # not held: nothing of the journal is to change
        self._take_in(fresh)
        pruned = {r for (r,) in fresh.rows("SELECT run FROM pruned")}
        shed = {w for (w,) in fresh.rows("SELECT writer FROM shed")}
        here = {
            w: row for w, *row in fresh.rows("SELECT id, sequence, chain, run FROM writers WHERE complete = 1 OR closed = 1")
            if row[2] not in pruned and w not in shed
        }  # fmt: skip
        rows = {w: row for w, *row in known.rows("SELECT id, sequence, chain, run FROM writers WHERE complete = 1")}
        for writer, row in here.items():
            if writer in rows and rows[writer] != row:
                return f"writer {writer} has other records"
        tables = {"cursors": "server, writer, mark, chain", "refused": "server, writer, seq", "uploads": "server, digest, state"}
        for table, columns in tables.items():
            if set(known.rows(f"SELECT {columns} FROM {table}")) != set(fresh.rows(f"SELECT {columns} FROM {table}")):  # noqa: S608
                return f"its {table} are not those of the journal"
        return ""

    def _take_in(self, catalog: Catalog) -> None:
        """Read the whole spool into a catalog, the last words of dead writers included where that may be noted in their runs."""
        ingest = Ingest(self._spool, catalog)
        try:
            ingest.take_all(bury=not self._dry)
        finally:
            ingest.close()

    def leftovers(self) -> Iterator[str]:
        """Delete what killed operations left, and pool entries that no run has; yield what."""
        before = time.time() - _DAY
        for folder in self._folders():
            for name in _names(folder):
                path = os.path.join(folder, name)
                if ".tmp-" in name and os.path.isfile(path) and os.stat(path).st_mtime < before:
                    if not self._dry:
                        atomic.remove(path)
                    yield f"{path}: left by a killed operation{' (kept: this only looks)' if self._dry else ', removed'}"
        named = self._digests()
        for prefix in _names(self._spool.pool):
            for digest in _names(os.path.join(self._spool.pool, prefix)):
                path = self._spool.pool_path(digest)
                with contextlib.suppress(FileNotFoundError):
                    info = os.stat(path)
                    if info.st_nlink == 1 and info.st_mtime < before and len(digest) == 64 and digest not in named:
                        if not self._dry:
                            atomic.remove(path)
                        yield f"{path}: no run has it{' (kept: this only looks)' if self._dry else ', removed'}"

    def _folders(self) -> Iterator[str]:
        yield self._spool.path
        yield self._spool.agent
        yield self._spool.quarantine
        for run in self._spool.run_ids():
            folder = self._spool.run(run)
            yield from (folder.path, folder.blobs, folder.inbox, folder.control)

    def _digests(self) -> set[str]:
        """Return the digests that any run names, by its links or its records."""
        found: set[str] = set()
        catalog = Catalog(None)
        try:
            self._take_in(catalog)
            found.update(d for (d,) in catalog.rows("SELECT DISTINCT digest FROM artifacts"))
        finally:
            catalog.close()
        for run in self._spool.run_ids():
            found.update(_names(self._spool.run(run).blobs))
        return found


def _is_good(path: str, digest: str) -> bool:
    try:
        blobs.verify(path, digest)
    except FileNotFoundError:
        raise
    except (DamagedBlob, OSError):
        return False
    return True


def _names(folder: str) -> Sequence[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
