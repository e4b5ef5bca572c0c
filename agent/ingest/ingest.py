"""The ingest pass: find writers, read what is new, close what is dead (DESIGN 2.4, 6)."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from simspool.agent.carry.carried import CarriedRuns
from simspool.agent.catalog import Catalog
from simspool.agent.live import LiveWriter
from simspool.agent.notes import RunNotes
from simspool.agent.retention import GOING
from simspool.agent.survivors import Survivors
from simspool.spool import NewerFormat, Spool, SpoolError, Tail, ids, layout
from simspool.spool.filesystem import is_network
from simspool.spool.process import is_alive
from simspool.spool.reader import read_drop_counts
from simspool.spool.runstate import AGENTS
from simspool.spool.segment_header import SegmentHeader

from .durable import Hardener
from .follow import Followed, save_all
from .summary import Summary
from .taken import is_as_taken

PASS_BYTES = 8 << 20
MAX_OPEN = 400
_SETTLED_NS = 2_000_000_000
# Network file systems show lists of names that are up to a minute old (sshfs 20 s, NFS 60 s), some have time stamps of whole seconds, and
# their clock is another one: what is not a day old by it has to stay as it is for two minutes of this host's.
_SETTLED_NETWORK_NS = 120_000_000_000
_OLD_NS = 86_400_000_000_000
_STILLBORN = 3600.0
_DROPS_EVERY = 5  # looks at living writers
LOOKS = 20
"""So often what follows from what was just taken in is looked for: a run that is taken in anew, ends of the dead, what is noted of them."""


@dataclass(slots=True)
class Progress:
    """What a pass did: bytes read, records and points taken, and whether more is waiting."""

    bytes: int = 0
    records: int = 0
    more: bool = False


class _Poison(Exception):
    """Raised when one writer's records make a pass fail: it is left out, and the pass begun anew."""


class Ingest:
    """Follows all writers of a spool. Confined to the agent's worker thread.

    A writer that cannot be read (a newer format, a failing disk) is left out with its reason in `problems`; the others go on.
    Runs that were carried here (`carried`) are taken in like any other, and nothing more: nobody here judges, measures, tells or declares
    anything of them.

    Where the catalog fails (sqlite3.Error), a pass has no effect at all: positions in memory go back to the stored ones. `learn` is called
    before runs that are gone are taken for lost: another host's agent may have journaled that it pruned them. `judges_others`: whether this
    agent closes what processes of other hosts left.
    """

    def __init__(
        self, spool: Spool, catalog: Catalog, *, report: Callable[[str], None] = lambda _: None, turn: Callable[[], None] = lambda: None,
        notes: RunNotes | None = None, learn: Callable[[], object] = lambda: None, judges_others: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self.spool, self.catalog = spool, catalog
        self.carried = CarriedRuns(spool)
        self._own_notes = RunNotes(spool)
        self.survivors = Survivors(spool, notes or self._own_notes, judges_others=judges_others)
        self._turn, self._learn = turn, learn
        self._tell: Callable[[list[tuple[str, str]]], None] = lambda _: None
        self.newer: set[str] = set()
        self._report = report
        self._bad: dict[str, tuple[str, str]] = {}  # writer -> (run, why)
        self._poison: set[str] = set()
        self._unread: set[str] = set()
        self._looks = 0
        self.begun = 0  # writers whose first record was read
        self.scanned = False
        self.hardener = Hardener(spool, report)
        self._is_network = is_network(spool.path)
        self._unsettled: dict[str, tuple[int, int]] = {}  # run -> its folder's time, and since when it is that, by this host's clock
        self._load()

    def _load(self) -> None:
        """Take positions from the catalog."""
        rows = self.catalog.rows
        self._summary = Summary(self.catalog.connection, silent=self.carried.is_carried)
        self._seen: dict[str, int] = dict(rows("SELECT id, seen FROM runs"))
        self._pruned = {r for (r,) in rows("SELECT run FROM pruned")}
        self._followed: dict[str, Followed] = {}
        self._open: dict[str, None] = {}
        # folders without a segment, whose process never came to it as far as anyone can tell
        self._stillborn = dict(rows("SELECT id, run FROM writers WHERE complete = 1 AND segment = 0"))
        for row in rows('SELECT id, run, segment, "offset", sequence, chain, closed, role, header FROM writers WHERE complete = 0'):
            self._follow(*row)
        self._stale = False

    @contextlib.contextmanager
    def _pass(self) -> Iterator[sqlite3.Connection]:
        """One transaction; when it fails, memory goes back to what is stored."""
        if self._stale:
            self.close()
            self._load()
        try:
            with self.catalog.transaction() as db:
                yield db
        except BaseException:
            self._stale = True
            raise

    def tell(self, found: Callable[[list[tuple[str, str]]], None]) -> None:
        """Have `found` told of the (writer, run) that are followed, now, and of new ones from then on (in this thread). Of carried runs it
        is not.
        """
        self._tell = found
        found([(f.writer, f.run) for f in self._followed.values() if not self.carried.is_carried(f.run)])

    @property
    def problems(self) -> dict[str, str]:
        """Why runs are left out, by run."""
        return dict(self._bad.values())

    @property
    def unread(self) -> dict[str, str]:
        """Why there are writers whose records are not all known, by run."""
        return {run: why for writer, (run, why) in list(self._bad.items()) if writer in self._unread or writer in self._poison}

    @property
    def active(self) -> list[str]:
        """The ids of writers that are not complete."""
        return list(self._followed)

    @property
    def active_runs(self) -> set[str]:
        """The runs that have such a writer."""
        return {f.run for f in list(self._followed.values())}

    def active_folders(self) -> list[str]:
        """The folders where new segments, seals and writers of active runs appear, the newest first."""
        found: dict[str, None] = {}
        for f in reversed(list(self._followed.values())):
            found[os.path.join(self.spool.runs, f.run, "w")] = None
            found[f.tail.folder] = None
        return list(found)

    def follows(self, writer: str) -> bool:
        """Say whether a writer is known and not complete."""
        return writer in self._followed

    def live_runs(self) -> list[str]:
        """Return the runs with a writer whose process lives: not the agent's own, nor those of carried runs."""
        return sorted({f.run for f in self._followed.values() if f.header is not None and self._is_ours(f) and is_alive(f.header)})

    def unended_runs(self) -> set[str]:
        """Return the runs with a writer that has not ended, or is not read yet; agents' own do not count. Safe to call from any thread."""
        return {f.run for f in list(self._followed.values()) if self._is_ours(f) and not f.closed}

    def live_writers(self) -> list[LiveWriter]:
        """Return the scripts' writers that have not ended, without their options. Safe to call from any thread."""
        return [
            LiveWriter(f.run, f.writer, f.role, f.header, {})
            for f in list(self._followed.values())
            if f.header is not None and f.role is not None and self._is_ours(f) and not f.closed
        ]

    def busy_runs(self) -> set[str]:
        """Return the runs with a writer that lives, or that died and is to be closed yet; the agent's own writers do not count, nor does
        what cannot be read.
        """
        left = (f for f in self._followed.values() if self._is_ours(f) and f.writer not in self._bad)
        return {f.run for f in left if f.header is not None and is_alive(f.header) is not None}

    def _is_ours(self, followed: Followed) -> bool:
        """Whether a writer is a script's of this spool."""
        return followed.role not in AGENTS and not self.carried.is_carried(followed.run)

    def knows_all(self, run: str, *, but: str | None, scripts: bool) -> bool:
        """Say whether everything is taken in that agents before this one noted in a run.

        With `scripts`, also whether no script's writer is open. `but` is a writer that need not be read. What cannot be read is not
        waited for.
        """
        if not self.scanned:
            return False
        for f in self._followed.values():
            if f.run != run or f.writer == but or f.writer in self._bad or f.writer in self._poison:
                continue
            if f.role in {None, "agent"}:
                if (f.quiet == 0 and layout.segments(f.tail.folder)) or (f.header is not None and is_alive(f.header) is False):
                    return False
            elif scripts and f.role not in AGENTS:
                return False
        return True

    def _follow(
        self, writer: str, run: str, segment: int = 0, offset: int = 0, sequence: int = 1, chain: int = 0, closed: int = 0,
        role: str | None = None, header: bytes | None = None,
    ) -> None:  # fmt: skip
        tail = Tail(os.path.join(self.spool.runs, run, "w", writer), run, segment=segment, offset=offset, sequence=sequence)
        known = SegmentHeader.unpack(header) if header else None
        self._followed[writer] = Followed(writer, run, tail, chain, bool(closed), role, known, trusted=sequence == 1)

    # ------------------------------------------------------------------ finding

    def scan(self) -> int:
        """Look for new runs and writers; returns how many writers were found. Cost: one stat a run that did not change.

        Raises FileNotFoundError when the whole spool is gone.
        """
        try:
            names = os.listdir(self.spool.runs)
        except FileNotFoundError:
            names = []
        entries = {name for name in names if ids.is_id(name)}
        if not entries and self._seen and not os.path.exists(os.path.join(self.spool.path, "SPOOL")):
            raise FileNotFoundError(errno.ENOENT, "the spool is gone: is its disk mounted?", self.spool.path)
        found: list[tuple[str, str, int]] = []
        now = time.time_ns()
        for run in sorted(entries):
            self._turn()  # many runs on a slow disk take minutes: no hang
            folder = os.path.join(self.spool.runs, run, "w")
            try:
                changed = os.stat(folder).st_mtime_ns
            except OSError:
                continue
            if self._seen.get(run) != changed:
                # a folder that changed just now may change again without a new time stamp
                found.append((run, folder, changed if self._is_settled(run, changed, now) else 0))
        # one that is being deleted has its name back, or a journaled prune, in a moment
        going = {name[len(GOING) :].partition("-")[0] for name in names if name.startswith(GOING)}
        gone = self._seen.keys() - entries - self._pruned - going
        if gone:
            self._learn()
        late = [(w, r) for w, r in self._stillborn.items() if layout.segments(os.path.join(self.spool.runs, r, "w", w))]
        new: list[tuple[str, str]] = []
        for run, folder, _ in found:
            old = {w for (w,) in self.catalog.rows("SELECT id FROM writers WHERE run = ?", (run,))} if run in self._seen else set()
            new += [(w, run) for w in layout.list_writers(folder) if w not in old]
        found = [(run, folder, changed) for run, folder, changed in found if self._seen.get(run) != changed]
        if not (found or new or gone or late):
            self.scanned = True
            return 0
        with self._pass() as db:
            for run in sorted(gone):
                self._forget(db, run)
            db.executemany(
                "INSERT INTO runs(id, seen, complete, status, folder) VALUES (?,?,0,'created','/')"
                " ON CONFLICT(id) DO UPDATE SET seen=excluded.seen",
                [(run, changed) for run, _, changed in found],
            )
            db.executemany(
                'INSERT OR IGNORE INTO writers(id, run, segment, "offset", sequence, chain, complete, closed) VALUES (?,?,0,0,1,0,0,0)', new
            )
            db.executemany("UPDATE writers SET complete = 0 WHERE id = ?", [(w,) for w, _ in late])
            db.executemany("UPDATE runs SET complete = 0 WHERE id = ?", [(r,) for r in dict.fromkeys(r for _, r in new + late)])
        self._summary.new_runs.update(r for r, _, _ in found if r not in self._seen)
        for writer, run in new + late:
            self._stillborn.pop(writer, None)
            self._follow(writer, run)
        for run, _, changed in found:
            self._seen[run] = changed
        self.scanned = True
        self._tell([(w, r) for w, r in new + late if not self.carried.is_carried(r)])
        return len(new) + len(late)

    def _is_settled(self, run: str, changed: int, now: int) -> bool:
        """Whether a list of a folder that is made now has all that the folder's time tells of (ns of its disk's clock; `now`: ours)."""
        if not self._is_network:
            return now - changed > _SETTLED_NS
        if now - changed > _OLD_NS:
            self._unsettled.pop(run, None)
            return True
        known, since = self._unsettled.get(run, (0, 0))
        if known != changed:
            self._unsettled[run] = changed, time.monotonic_ns()
            return False
        if time.monotonic_ns() - since <= _SETTLED_NETWORK_NS:
            return False
        del self._unsettled[run]
        return True

    def look_again(self, run: str) -> None:
        """Have the next scan list a run's writers, whatever its folder's time says: there is one that is not known. From any thread."""
        if run in self._seen:
            self._seen[run] = -1

    def _begin_again(self, followed: Followed) -> None:
        """The disk lost what was taken in (a power cut, most likely): take the run in anew, as it is there now. Receipts stay."""
        with self._pass() as db:
            self._forget(db, followed.run, "has lost records that were not synced yet, to a power cut perhaps: it is taken in anew")
        self._summary.forget()

    def _forget(self, db: sqlite3.Connection, run: str, why: str = "was deleted from the spool: what was not sent is lost") -> None:
        """Somebody deleted a run's folder: what is not there is not in the catalog. Receipts stay."""
        where = "writer IN (SELECT id FROM writers WHERE run = ?)"
        if db.execute("SELECT 1 FROM pruned WHERE run = ?", (run,)).fetchone():
            self._pruned.add(run)
            return
        [records] = db.execute("SELECT coalesce(sum(sequence - 1), 0) FROM writers WHERE run = ?", (run,)).fetchone()
        for table in ("pieces", "definitions", "damage"):
            db.execute(f"DELETE FROM {table} WHERE {where}", (run,))  # noqa: S608
        for table in ("artifacts", "metrics", "events", "notices", "told", "writers"):
            db.execute(f"DELETE FROM {table} WHERE run = ?", (run,))  # noqa: S608
        db.execute("DELETE FROM runs WHERE id = ?", (run,))
        for followed in [f for f in self._followed.values() if f.run == run]:
            self._let_go(followed)
        self._stillborn = {w: r for w, r in self._stillborn.items() if r != run}
        self._seen.pop(run, None)
        self._unsettled.pop(run, None)
        self.carried.forget(run)
        self._report(f"run {run} with {records} records {why}")

    # ------------------------------------------------------------------ reading

    def read(self, writers: Iterable[str] | None = None, *, budget: int = PASS_BYTES) -> Progress:
        """Read what is new from these writers (default: all that are active), about `budget` bytes, in one transaction.

        Raises sqlite3.Error when the catalog cannot take it.
        """
        while True:
            try:
                return self._read(None if writers is None else list(writers), budget)
            except _Poison:
                continue

    def _read(self, writers: list[str] | None, budget: int) -> Progress:
        progress, changed = Progress(), []
        with self._pass() as db:
            for writer in list(self._followed) if writers is None else writers:
                followed = self._followed.get(writer)
                if followed is None:
                    continue
                if progress.bytes >= budget:
                    progress.more = True
                    break
                if self._read_one(followed, progress, budget, dead=False):
                    changed.append(followed)
            self._store(db, changed)
        self._limit_open()
        return progress

    def _read_one(self, followed: Followed, progress: Progress, budget: int, *, dead: bool) -> bool:
        """Take in what is new of one writer; True when there was something to store."""
        tail, before, role = followed.tail, (followed.tail.segment, followed.tail.offset), followed.role
        if followed.writer in self._poison:
            return False
        limit = max(1 << 20, min(budget - progress.bytes, PASS_BYTES // 2))
        used = progress.bytes
        try:
            for chunk in tail.read(dead=dead, limit=limit):
                progress.bytes += chunk.end - chunk.start
                progress.records += followed.take(self._summary, chunk)
                self.hardener.saw(tail.folder, chunk)
                if followed.closed:
                    break  # whatever follows a close record is not the writer's
        except NewerFormat as error:
            self._bad[followed.writer] = (followed.run, str(error))
            self.newer.add(followed.run)
            return False
        except (OSError, SpoolError) as error:
            why = f"cannot read {tail.folder}: {getattr(error, 'strerror', None) or error}: it is tried again"
            self._bad[followed.writer] = (followed.run, why)
            self._unread.add(followed.writer)
            tail.close()
        except sqlite3.Error:
            raise
        except Exception as error:
            self._set_poison(followed, error)
            raise _Poison from error
        else:
            self._bad.pop(followed.writer, None)
            self._unread.discard(followed.writer)
            self._open[followed.writer] = None
            self.begun += role is None and followed.role is not None
        if progress.bytes - used >= limit:
            progress.more = True
        if (tail.segment, tail.offset) != before or followed.complete:
            followed.quiet = 0
            return True
        followed.quiet += 1
        return False

    def _set_poison(self, followed: Followed, error: Exception) -> None:
        what = f"its records cannot be taken in ({type(error).__name__}: {error}): they stay in {followed.tail.folder}; please report this"
        self._poison.add(followed.writer)
        self._bad[followed.writer] = (followed.run, what)

    def _store(self, db: sqlite3.Connection, changed: list[Followed]) -> None:
        """Write what was taken, stop following complete writers, note runs that are complete with them."""
        done = [f for f in changed if f.complete]
        try:
            save_all(db, changed)
            self._summary.flush()
        except (sqlite3.Error, MemoryError):
            raise
        except Exception as error:
            if len(changed) == 1:
                self._set_poison(changed[0], error)
            else:  # one of them has what SQLite has no form for: find it by storing them one by one
                self._isolate(changed)
            raise _Poison from error
        db.executemany(
            "UPDATE runs SET complete = NOT EXISTS (SELECT 1 FROM writers WHERE run = ? AND complete = 0) WHERE id = ?",
            [(run, run) for run in dict.fromkeys(f.run for f in done)],
        )
        for followed in done:
            self._let_go(followed)

    def _isolate(self, changed: list[Followed]) -> None:
        for followed in changed:
            try:
                save_all(self.catalog.connection, [followed])
            except sqlite3.Error:
                raise
            except Exception as error:  # noqa: BLE001 - kept as the writer's problem
                self._set_poison(followed, error)

    def _let_go(self, followed: Followed) -> None:
        followed.tail.close()
        self._followed.pop(followed.writer, None)
        self._open.pop(followed.writer, None)
        self._bad.pop(followed.writer, None)

    def _limit_open(self) -> None:
        """Keep the number of open files bounded; the longest unread are closed, positions stay."""
        while len(self._open) > MAX_OPEN:
            writer = next(iter(self._open))
            del self._open[writer]
            with contextlib.suppress(KeyError):
                self._followed[writer].tail.close()

    def close(self) -> None:
        """Let go of all files."""
        for followed in self._followed.values():
            followed.tail.close()
        self._own_notes.close()

    def take_all(self, *, bury: bool) -> None:
        """Take in everything that is in the spool now; with `bury` the ends of the dead too, and what follows from them."""
        for _ in range(LOOKS):
            self.scan()
            while self.read().more:
                pass
            self.read()  # a second look tells who is silent
            if not bury or not self.bury():
                return

    # ------------------------------------------------------------------ the dead

    def bury(self, writers: Collection[str] | None = None) -> int:
        """Salvage writers whose process is provably gone; declare those without a close record. Returns how many ended, the agent's own
        included, of which the last words are still to be read.

        Without `writers`, those that had nothing new in the last read are looked at. Raises sqlite3.Error when the catalog cannot take it.
        """
        ended = 0
        self._looks += 1
        for followed in list(self._followed.values()) if writers is None else [f for w in writers if (f := self._followed.get(w))]:
            if self._followed.get(followed.writer) is not followed:
                continue
            if (followed.quiet == 0 and writers is None) or followed.run in self.newer or followed.writer in self._poison:
                continue
            header = followed.header
            if header is None:
                ended += self._park(followed)
            elif self._is_over(followed, header):
                ended += self._bury(followed)
            elif self._looks % _DROPS_EVERY == 0:
                self._count_drops(followed)
        # a folder that has no segment yet may be all that a killed process left
        return ended + self.survivors.release({f.run for f in self._followed.values() if f.header is not None and f.role not in AGENTS})

    def _is_over(self, followed: Followed, header: SegmentHeader) -> bool:
        """Whether no more comes of a writer. Of one that was carried here, its origin says so, and no process of this host matters."""
        if self.carried.is_carried(followed.run):
            return self.carried.is_final(followed.run, followed.writer)
        lives = is_alive(header)
        if lives is not None:
            return not lives
        at = (followed.tail.segment, followed.tail.offset)
        over = not followed.closed and self.survivors.is_over_elsewhere(
            followed.run, followed.writer, followed.role, header, at, partial(self._state_now, followed.run)
        )
        if over:
            followed.tail.close()  # a network disk shows what was written before a file was closed to who opens it after that
        return over

    def _state_now(self, run: str) -> Mapping[str, Any]:
        try:
            return self._summary.state(run)
        finally:
            self._summary.forget()

    def _bury(self, followed: Followed) -> bool:
        if not followed.trusted and not is_as_taken(self.catalog, followed):
            self._begin_again(followed)
            return True  # there is something to look at
        followed.trusted = True
        writer, progress = followed.writer, Progress()
        while not followed.tail.complete:
            at = (followed.tail.segment, followed.tail.offset)
            try:
                with self._pass() as db:
                    self._read_one(followed, progress, progress.bytes + PASS_BYTES, dead=True)
                    save_all(db, [followed])
                    self._summary.flush()
            except _Poison:
                return False
            if writer in self._bad or (at == (followed.tail.segment, followed.tail.offset) and not followed.tail.complete):
                return False
        if not followed.closed and self._is_ours(followed):  # of a carried one, its origin has declared it, or will
            header = followed.header
            assert header is not None
            state, last = self._summary.state(followed.run), followed.tail.sequence - 1
            problem = self.survivors.declare(followed.run, writer, followed.role, header, last, state)
            if problem is None:  # not all is known yet
                self._summary.forget()
                return False
            if problem:
                self._bad[writer] = (followed.run, f"cannot note that a process of it died: {problem}: it is tried again")
                self._summary.forget()
                return False
        followed.declared = True
        digests = self.catalog.rows("SELECT DISTINCT digest FROM artifacts WHERE writer = ?", (writer,))
        self.hardener.publish(followed.run, [d for (d,) in digests])
        self._count_drops(followed)
        with self._pass() as db:
            self._store(db, [followed])
        return True

    def _count_drops(self, followed: Followed) -> None:
        """Take the drop counters of a writer that has not said them in a close record."""
        with contextlib.suppress(OSError, SpoolError):
            counts = json.dumps(read_drop_counts(followed.tail.folder))
            if counts != (followed.drops or "{}") and not followed.closed:
                followed.drops = counts
                with self._pass() as db:
                    db.execute("UPDATE writers SET drops = ? WHERE id = ?", (counts, followed.writer))

    def _park(self, followed: Followed) -> bool:
        """A writer's folder that has had no segment for an hour: killed at birth, or very slow. The scan goes on looking at it."""
        try:
            age = time.time() - os.stat(followed.tail.folder).st_mtime
        except OSError:
            age = _STILLBORN + 1
        if age <= _STILLBORN or layout.segments(followed.tail.folder):
            return False
        followed.tail.complete = followed.declared = True
        with self._pass() as db:
            self._store(db, [followed])
        self._stillborn[followed.writer] = followed.run
        return True
