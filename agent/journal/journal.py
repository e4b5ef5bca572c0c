"""Writing the journal, and making the catalog agree with it (FORMAT.md W8).

Journal segments are ordinary ones below `<spool>/agent/w`, with the spool's id as run id. Every agent opens a writer of its own.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from simspool.agent.budget import account
from simspool.agent.catalog import Catalog
from simspool.spool import Durability, Kind, Spool, Writer, ids, layout
from simspool.spool.lease import Lease

from .others import Entry, JournalReader

_COMPACT_WRITERS, _COMPACT_BYTES = 24, 4 << 20
_BODY = 200_000  # bytes of JSON in one record: a frame holds 1 MiB
# in this order: a mark never gets ahead of what was refused, or remarked, below it
_KEYS = ("taken", "refused", "remarks", "blobs", "refused_blobs", "cursors", "blocked")


class NotHolder(OSError):
    """Raised when another agent has the spool's lease: what one agent does for all hosts is not this one's to do."""

    def __init__(self) -> None:
        super().__init__(errno.EBUSY, "another agent has the lease of this spool")


class Cursor(NamedTuple):
    """How far a server has a writer: `mark` is the last sequence it has durably, `chain` the chain there.

    The next frame lies at (`segment`, `offset`).
    """

    writer: str
    mark: int
    chain: int
    segment: int
    offset: int


class Journal:
    """The agent's durable memory. Confined to the agent's worker thread.

    Every method that returns has its records fsynced, and then in the catalog. Raises OSError when the journal cannot be written: nothing
    may be sent then. Raises sqlite3.Error when only the catalog cannot: what was journaled is put there later.

    With a `lease`, only its holder may send, delete and compact: others get NotHolder. Without one, no other agent is there.
    """

    def __init__(self, spool: Spool, catalog: Catalog, *, lease: Lease | None = None) -> None:
        self._spool, self._catalog, self._lease = spool, catalog, lease
        self._folder = os.path.join(spool.agent, "w")
        self._writer: Writer | None = None
        self._unindexed: list[tuple[int, dict[str, Any], int]] = []
        self._readers: dict[str, JournalReader] = {}
        self._said = 0  # the generation that the records of this writer are of
        self.generation = int((catalog.one("SELECT value FROM meta WHERE key = 'generation'") or (0,))[0])  # the highest that is known
        self._follow(salvage=True)
        if lease is None or lease.held:
            with contextlib.suppress(OSError):  # a full disk: it stays as it is
                self.compact_if_large()

    @property
    def mark(self) -> str:
        """What names of folders that this agent is about to delete end with, so that it deletes no other agent's."""
        return f"-{self._lease.me.id}" if self._lease is not None else ""

    def require(self) -> None:
        """Raise NotHolder unless this agent may do at this moment what one agent does for all hosts."""
        if self._lease is not None and not self._lease.still():
            raise NotHolder

    # ------------------------------------------------------------------ writing

    def _append(self, kind: Kind, bodies: Iterable[dict[str, Any]]) -> None:
        if self._writer is None:
            self._writer, self._said = Writer(self._folder, ids.from_text(self._spool.id), durability=Durability.LAZY), 0
        writer, generation = self._writer, self._generation_of(kind)
        if generation != self._said:
            bodies = [{"generation": generation}, *bodies] if kind == Kind.CHECKPOINT else bodies
            if kind != Kind.CHECKPOINT and not writer.record(Kind.CHECKPOINT, {"generation": generation}):
                raise OSError(errno.EIO, f"the journal in {self._spool.agent} cannot be written: {writer.last_error}")
            self._said = generation
        for body in bodies:
            if not writer.record(kind, body):
                raise OSError(errno.EIO, f"the journal in {self._spool.agent} cannot be written: {writer.last_error}")
        if not writer.sync():
            raise OSError(errno.EIO, f"the journal in {self._spool.agent} cannot be fsynced: {writer.last_error}")

    def _generation_of(self, kind: Kind) -> int:
        """Return the generation of the lease that a record is of: what a holder learned from a server is of its own, also too late."""
        if self._lease is None:
            return self.generation
        if kind in {Kind.INTENT, Kind.RECEIPT} and self._lease.mine:
            return self._lease.mine
        return max(self._lease.mine, self._lease.highest, self.generation)

    def intend(self, server: str, ranges: Sequence[tuple[str, int, int]], *, doubtful: bool = False) -> None:
        """Note, before sending, which (writer, first, last) go to a server in one request.

        `doubtful`: what is sent twice may be there twice, so that a range without a receipt is sent again as it was, and known as such.
        Raises NotHolder.
        """
        self.require()
        body: dict[str, Any] = {"server": server, "ranges": [list(r) for r in ranges]}
        if doubtful:
            self._note(Kind.INTENT, [body | {"doubtful": True}])
        else:
            self._append(Kind.INTENT, [body])

    def receive(
        self,
        server: str,
        at: float,
        cursors: Sequence[Cursor] = (),
        refused: Sequence[tuple[str, int, str]] = (),
        blobs: Sequence[str] = (),
        refused_blobs: Sequence[tuple[str, str]] = (),
        blocked: Sequence[tuple[str, str]] = (),
        remarks: Sequence[tuple[str, int, str, str, str, int]] = (),
        taken: Sequence[tuple[str, int]] = (),
    ) -> None:
        """Note what a server acknowledged: positions of writers, files it has, and what it will never take (with reasons).

        `blocked` names writers that it refuses as a whole; `remarks` (writer, first, what, detail, run, count) what it took otherwise than
        it was recorded; `taken` (writer, seq) what it refused before and took now. `at` is the wall time in seconds.
        """
        body: dict[str, Any] = {"server": server, "at": at}
        for key, value in zip(_KEYS, (taken, refused, remarks, blobs, refused_blobs, cursors, blocked), strict=True):
            if value:
                body[key] = [list(v) if isinstance(v, tuple) else v for v in value]
        self._note(Kind.RECEIPT, list(_cut(body)))

    def prune(self, run: str, at: float, last: dict[str, int]) -> None:
        """Note, before deleting, that a run's acknowledged records (up to `last` per writer) go, and its blobs. Raises NotHolder."""
        self.require()
        self._note(Kind.PRUNE, [{"run": run, "at": at, "last": last}])

    def shed(self, body: dict[str, Any]) -> None:
        """Note, before deleting, what goes without a receipt (see budget.account.bodies)."""
        self._note(Kind.SHED, [body])

    def note_ids(self, server: str, ids: dict[str, str]) -> None:
        """Note what a target wants to know again of its server: ids of what it made there, by keys of its own."""
        self._note(Kind.IDMAP, [{"server": server, "ids": ids}])

    def reopen(self, server: str, writers: Sequence[str] = (), files: Sequence[str] = ()) -> None:
        """Note that writers which a server refused, and files that it has no more or refused, are to be sent (again)."""
        for i in range(0, max(len(writers), len(files)), 1000):
            body = {"server": server, "writers": list(writers[i : i + 1000]), "files": list(files[i : i + 1000])}
            self._note(Kind.IDMAP, [{"reopen": body}])

    def again(self, server: str, records: Sequence[tuple[str, int]], *, sent: bool = False) -> None:
        """Note that single refused records, (writer, seq), are to be sent again; with `sent`, that they now are."""
        for i in range(0, len(records), 1000):
            body = {"server": server, "records": [[w, seq, int(sent)] for w, seq in records[i : i + 1000]]}
            self._note(Kind.INTENT if sent else Kind.IDMAP, [{"again": body}])

    def give_up(self, server: str, at: float, items: Sequence[tuple[str, int, str, str]]) -> None:
        """Note that nobody wants any more to send what a server refused: (writer, seq, key, reason), with sequence 0 for a writer's rest,
        and only a key for a file. `at` is the wall time in seconds.
        """
        for i in range(0, len(items), 500):
            self._note(Kind.IDMAP, [{"give_up": {"server": server, "at": at, "items": [list(one) for one in items[i : i + 500]]}}])

    def rewind(self, server: str, cursor: Cursor) -> None:
        """Note that a server has less than its receipts said (it was restored from a backup): send again from there."""
        self._note(Kind.IDMAP, [{"rewind": {"server": server, "cursor": list(cursor)}}])

    def _note(self, kind: Kind, bodies: list[dict[str, Any]]) -> None:
        """Append, then index; what an earlier failure left unindexed goes first, as positions only move past what is indexed."""
        self._append(kind, bodies)
        self._unindexed += [(kind, body, self._said) for body in bodies]
        with self._catalog.transaction():
            for one in self._unindexed:
                self._index(*one)
            self._note_position()
        self._unindexed.clear()

    def close(self) -> None:
        """Seal the journal's segment. A kill instead loses nothing: receipts are fsynced one by one."""
        self._readers.clear()
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close({"status": None})
            if self._unindexed:
                return  # the next start reads it again
            with self._catalog.transaction() as db:
                self._note_generation(self._said)
                db.execute("INSERT OR REPLACE INTO journal(writer, sequence, closed) VALUES (?,?,1)", (writer.id_text, writer.sequence))

    def _note_generation(self, generation: int) -> None:
        if generation > self.generation:
            self._catalog.connection.execute("INSERT OR REPLACE INTO meta(key, value) VALUES ('generation', ?)", (str(generation),))
            self.generation = generation

    def _note_position(self) -> None:
        assert self._writer is not None
        self._note_generation(self._said)
        self._catalog.connection.execute(
            "INSERT OR REPLACE INTO journal(writer, sequence, closed) VALUES (?,?,0)", (self._writer.id_text, self._writer.sequence)
        )

    # ------------------------------------------------------------------ reading

    def follow(self) -> int:
        """Take in what other agents journaled since the last look. Returns how many records. Raises OSError and SpoolError."""
        return self._follow(salvage=False)

    def _follow(self, *, salvage: bool) -> int:
        """Bring the catalog up to the journal: after a crash, when it was deleted, and while agents of other hosts write theirs."""
        rows = self._catalog.rows("SELECT writer, sequence, closed FROM journal")
        known = {w: (seq, closed) for w, seq, closed in rows}
        own = self._writer.id_text if self._writer is not None else ""
        listed = layout.list_writers(self._folder)
        gone = {w for w, (_, closed) in known.items() if not closed and w != own}.difference(listed)
        if gone and not {own, *known}.issuperset(listed):  # another agent's checkpoints took its place before it was read to its end
            known, own = {}, ""
            self._readers.clear()
        entries: list[Entry] = []
        news: list[JournalReader] = []
        try:
            for writer in listed:
                sequence, closed = known.get(writer, (0, 0))
                if closed or writer == own:
                    continue
                reader = self._readers.get(writer)
                if reader is None:
                    reader = self._readers[writer] = JournalReader(os.path.join(self._folder, writer), self._spool.id, sequence)
                found = reader.read(salvage=salvage)
                entries += found
                if found or reader.over or writer not in known:
                    news.append(reader)
            if news:
                self._take(sorted(entries), news, anew=bool(gone) and not known)
        except BaseException:
            self._readers.clear()  # what they have read is not in the catalog
            raise
        for reader in news:
            if reader.over:
                self._readers.pop(reader.writer, None)
        return len(entries)

    def _take(self, entries: list[Entry], news: list[JournalReader], *, anew: bool) -> None:
        with self._catalog.transaction() as db:
            if anew:
                for table in ("cursors", "uploads", "refused", "remarks", "ids", "intents", "again", "given_up", "rewinds", "journal"):
                    db.execute(f"DELETE FROM {table}")  # noqa: S608
            for entry in entries:
                self._index(entry.kind, entry.body, entry.generation)
            db.executemany(
                "INSERT OR REPLACE INTO journal(writer, sequence, closed) VALUES (?,?,?)",
                [(r.writer, r.sequence, int(r.over)) for r in news],
            )
            self._note_generation(max((entry.generation for entry in entries), default=0))

    # ------------------------------------------------------------------ compaction

    def _is_large(self) -> bool:
        """Say whether most of the journal is past: intents, and receipts that later ones replace."""
        writers = layout.list_writers(self._folder)
        if len(writers) > _COMPACT_WRITERS:
            return True
        size = sum(os.stat(s.path).st_blocks * 512 for w in writers for s in layout.segments(os.path.join(self._folder, w)))
        if size <= _COMPACT_BYTES:
            return False
        [cursors], [uploads], [refused] = (
            self._catalog.one(f"SELECT count(*) FROM {table}") or (0,)  # noqa: S608
            for table in ("cursors", "uploads", "refused")
        )
        [ids], [remarks] = (self._catalog.one(f"SELECT count(*) FROM {table}") or (0,) for table in ("ids", "remarks"))  # noqa: S608
        return bool(size > max(_COMPACT_BYTES, 4 * (100 * (cursors + ids) + 70 * uploads + 200 * (refused + remarks))))

    def compact_if_large(self) -> None:
        """Keep the journal of an agent that runs for months small. Raises OSError; then it stays as it is."""
        if self._is_large():
            self.close()
            self.compact()

    def compact(self) -> None:
        """Write everything that still counts as checkpoints into a new writer, durably; then delete the old ones.

        Killed in the middle, both are there: checkpoints say again what the old ones add up to. Raises NotHolder.
        """
        self._follow(salvage=False)
        self.require()
        rows = self._catalog.rows
        old = [
            w for (w,) in rows("SELECT writer FROM journal WHERE closed = 1 ORDER BY writer")
            if os.path.isdir(os.path.join(self._folder, w))
        ]  # fmt: skip
        bodies: list[dict[str, Any]] = []
        for key, sql in (
            ("refused", "SELECT server, 0, writer, seq, reason FROM refused"),
            ("remarks", 'SELECT server, 0, writer, "first", what, detail, run, "count" FROM remarks'),
            ("blobs", "SELECT server, at, digest FROM uploads WHERE state = 'stored'"),
            ("refused_blobs", "SELECT server, at, digest, reason FROM uploads WHERE state IN ('refused', 'dropped')"),
            ("cursors", 'SELECT server, at, writer, mark, chain, segment, "offset" FROM cursors'),
            ("blocked", "SELECT server, at, writer, blocked FROM cursors WHERE blocked IS NOT NULL"),
        ):
            by_server: dict[str, list[tuple[Any, ...]]] = {}
            for server, *row in rows(f"{sql} ORDER BY 1, 2"):
                by_server.setdefault(server, []).append(tuple(row))
            for server, found in by_server.items():
                for i in range(0, len(found), 1000):
                    part = found[i : i + 1000]
                    # one time for all of a part, the latest: grace may become longer by it, never shorter
                    body = {"server": server, "at": part[-1][0] or 0, key: [r[1] if key == "blobs" else list(r[1:]) for r in part]}
                    bodies += _cut(body)
        bodies += self._ids_left()
        rewound = rows("SELECT server, writer, generation FROM rewinds")
        bodies += [{"rewound": [list(r) for r in rewound[i : i + 1000]]} for i in range(0, len(rewound), 1000)]
        bodies += account.remembered(self._catalog)
        bodies += [{"run": run, "at": at, "last": json.loads(last)} for run, at, last in rows("SELECT run, at, last FROM pruned")]
        self._append(Kind.CHECKPOINT, bodies or [{}])
        with self._catalog.transaction() as db:
            self._note_position()
            db.executemany("DELETE FROM journal WHERE writer = ?", [(w,) for w in old])
        for writer in old:
            shutil.rmtree(os.path.join(self._folder, writer), ignore_errors=True)

    def _ids_left(self) -> Iterator[dict[str, Any]]:
        """Yield what says again which ids targets noted, and which ranges are in doubt."""
        by_server: dict[str, dict[str, str]] = {}
        for server, key, value in self._catalog.rows("SELECT server, key, value FROM ids"):
            found = by_server.setdefault(server, {})
            found[key] = value
            if len(found) == 1000:
                yield {"server": server, "ids": by_server.pop(server)}
        yield from ({"server": server, "ids": found} for server, found in by_server.items())
        for table, key, columns in (("given_up", "give_up", "at, writer, seq, key, reason"), ("again", "again", "0, writer, seq, sent")):
            for server, at, *row in self._catalog.rows(f"SELECT server, {columns} FROM {table}"):  # noqa: S608
                yield {key: {"server": server, "at": at, "items" if key == "give_up" else "records": [row]}}
        for server, *one in self._catalog.rows('SELECT server, writer, "first", "last" FROM intents'):
            yield {"server": server, "ranges": [one], "doubtful": True}

    def _index(self, kind: int, body: dict[str, Any], generation: int) -> None:
        """Put one journal record into the catalog. Repeating it is harmless: marks only grow, except by a rewind."""
        db = self._catalog.connection
        if "rewound" in body:
            db.executemany("INSERT OR REPLACE INTO rewinds(server, writer, generation) VALUES (?,?,?)", body["rewound"])
            return
        if "shed" in body:
            account.index(db, body)
            return
        if kind == Kind.PRUNE or (kind == Kind.CHECKPOINT and "run" in body):
            db.execute("INSERT OR REPLACE INTO pruned(run, at, last) VALUES (?,?,?)", (body["run"], body["at"], json.dumps(body["last"])))
            db.execute("DELETE FROM ids WHERE key >= ? AND key < ?", (body["run"] + "/", body["run"] + "0"))  # "0" is what follows "/"
            return
        if kind == Kind.IDMAP and "rewind" in body:
            back = body["rewind"]
            writer, mark, chain, segment, offset = back["cursor"]
            db.execute(
                'UPDATE cursors SET mark=?, chain=?, segment=?, "offset"=? WHERE server=? AND writer=?',
                (mark, chain, segment, offset, back["server"], writer),
            )
            if generation:
                db.execute(
                    "INSERT INTO rewinds(server, writer, generation) VALUES (?,?,?) ON CONFLICT(server, writer) DO UPDATE SET"
                    " generation = max(generation, excluded.generation)",
                    (back["server"], writer, generation),
                )
            db.execute("DELETE FROM intents WHERE server = ? AND writer = ?", (back["server"], writer))
            for table, column in (("refused", "seq"), ("again", "seq"), ("given_up", "seq"), ("remarks", '"first"')):  # it is sent anew
                db.execute(f"DELETE FROM {table} WHERE server = ? AND writer = ? AND {column} > ?", (back["server"], writer, mark))  # noqa: S608
            for segment, marks in db.execute("SELECT segment, marks FROM shed WHERE writer = ?", (writer,)).fetchall():
                had = json.loads(marks)  # what it lost and nobody has any more counts as shed before it had it
                if had.get(back["server"], 0) > mark:
                    text = json.dumps({**had, back["server"]: mark})
                    db.execute("UPDATE shed SET marks = ? WHERE writer = ? AND segment = ?", (text, writer, segment))
            return
        if kind == Kind.IDMAP and "reopen" in body:
            back = body["reopen"]
            writers, files = ([(back["server"], one) for one in back[key]] for key in ("writers", "files"))
            db.executemany("UPDATE cursors SET blocked = NULL WHERE server = ? AND writer = ?", writers)
            db.executemany("DELETE FROM uploads WHERE server = ? AND digest = ?", files)
            db.executemany("DELETE FROM given_up WHERE server = ? AND writer = ? AND seq = 0", writers)
            db.executemany("DELETE FROM given_up WHERE server = ? AND writer = '' AND key = ?", files)
            return
        if "again" in body:
            self._index_again(body["again"])
            return
        if "give_up" in body:
            self._index_given_up(body["give_up"])
            return
        if "ids" in body:
            db.executemany(
                "INSERT OR REPLACE INTO ids(server, key, value) VALUES (?,?,?)", [(body["server"], k, v) for k, v in body["ids"].items()]
            )
            return
        if body.get("doubtful"):
            db.executemany(
                'INSERT OR REPLACE INTO intents(server, writer, "first", "last") VALUES (?,?,?,?)',
                [(body["server"], *r) for r in body["ranges"]],
            )
            return
        if kind not in {Kind.RECEIPT, Kind.CHECKPOINT}:
            return
        server, at = body.get("server"), body.get("at", 0)
        # a holder that was suspended may tell of what a server had before it was restored
        past = {w for (w,) in db.execute("SELECT writer FROM rewinds WHERE server = ? AND generation > ?", (server, generation))}
        cursors = [c for c in body.get("cursors", ()) if c[0] not in past]
        db.executemany(
            'INSERT INTO cursors(server, writer, mark, chain, segment, "offset", at) VALUES (?,?,?,?,?,?,?) ON'
            " CONFLICT(server, writer) DO UPDATE SET"
            ' mark=excluded.mark, chain=excluded.chain, segment=excluded.segment, "offset"=excluded."offset", at=excluded.at, blocked=NULL'
            " WHERE excluded.mark >= mark OR ?",
            [(server, *c, at, kind == Kind.CHECKPOINT) for c in cursors],  # checkpoints know of rewinds
        )
        db.executemany(
            'DELETE FROM intents WHERE server = ? AND writer = ? AND "last" <= ?', [(server, c[0], c[1]) for c in cursors]
        )
        settled = [(server, *r[:2]) for key in ("taken", "refused") for r in body.get(key, ())]
        db.executemany("DELETE FROM again WHERE server = ? AND writer = ? AND seq = ?", settled)
        db.executemany("DELETE FROM refused WHERE server = ? AND writer = ? AND seq = ?", settled)
        db.executemany(
            "INSERT OR REPLACE INTO refused(server, writer, seq, reason) VALUES (?,?,?,?)", [(server, *r) for r in body.get("refused", ())]
        )
        db.executemany(
            'INSERT OR REPLACE INTO remarks(server, writer, "first", what, detail, run, "count") VALUES (?,?,?,?,?,?,?)',
            [(server, *r) for r in body.get("remarks", ())],
        )
        db.executemany(
            "INSERT OR REPLACE INTO uploads(server, digest, state, at) VALUES (?,?,'stored',?)",
            [(server, digest, at) for digest in body.get("blobs", ())],
        )
        db.executemany(
            "INSERT OR REPLACE INTO uploads(server, digest, state, reason, at) VALUES (?,?,'refused',?,?)",
            [(server, digest, reason, at) for digest, reason in body.get("refused_blobs", ())],
        )
        db.executemany(
            'INSERT INTO cursors(server, writer, mark, chain, segment, "offset", at, blocked) VALUES (?,?,0,0,0,0,?,?)'
            " ON CONFLICT(server, writer) DO UPDATE SET blocked=excluded.blocked",
            [(server, writer, at, reason) for writer, reason in body.get("blocked", ())],
        )

    def _index_again(self, body: dict[str, Any]) -> None:
        db, server = self._catalog.connection, body["server"]
        db.executemany("INSERT OR REPLACE INTO again(server, writer, seq, sent) VALUES (?,?,?,?)", [(server, *r) for r in body["records"]])
        for writer, seq, _ in body["records"]:  # what was given up is refused again, until it is taken
            where = "server = ? AND writer = ? AND seq = ?"
            columns = "server, writer, seq, reason"
            sql = f"INSERT OR IGNORE INTO refused({columns}) SELECT {columns} FROM given_up WHERE {where}"  # noqa: S608
            db.execute(sql, (server, writer, seq))
            db.execute(f"DELETE FROM given_up WHERE {where}", (server, writer, seq))  # noqa: S608

    def _index_given_up(self, body: dict[str, Any]) -> None:
        db, server, at = self._catalog.connection, body["server"], body["at"]
        for writer, seq, key, reason in body["items"]:
            db.execute(
                "INSERT OR REPLACE INTO given_up(server, writer, seq, key, reason, at) VALUES (?,?,?,?,?,?)",
                (server, writer, seq, key, reason, at),
            )
            for table in ("refused", "again"):
                db.execute(f"DELETE FROM {table} WHERE server = ? AND writer = ? AND seq = ?", (server, writer, seq))  # noqa: S608
            if key:
                db.execute("UPDATE uploads SET state = 'dropped' WHERE server = ? AND digest = ? AND state = 'refused'", (server, key))


def _cut(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a receipt in parts that each fit a frame."""
    if len(json.dumps(body)) <= _BODY:
        yield body
        return
    for key in _KEYS:
        part: list[Any] = []
        size = 0
        for row in body.get(key, ()):
            part.append(row)
            size += len(json.dumps(row))
            if size > _BODY:
                yield {"server": body["server"], "at": body["at"], key: part}
                part, size = [], 0
        if part:
            yield {"server": body["server"], "at": body["at"], key: part}
