"""Writing the journal, and making the catalog agree with it (FORMAT.md W8).

Journal segments are ordinary ones below `<spool>/agent/w`, with the spool's id as run id. Every agent opens a writer of its own.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from simspool.agent.catalog import Catalog
from simspool.spool import Durability, Kind, Spool, Tail, Writer, ids, layout
from simspool.spool.frames import Record

_COMPACT_WRITERS, _COMPACT_BYTES, _BATCH = 24, 4 << 20, 2000


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
    may be sent then.
    """

    def __init__(self, spool: Spool, catalog: Catalog) -> None:
        self._spool, self._catalog = spool, catalog
        self._folder = os.path.join(spool.agent, "w")
        self._writer: Writer | None = None
        self._replay()

    # ------------------------------------------------------------------ writing

    def _append(self, kind: Kind, bodies: Iterable[dict[str, Any]]) -> None:
        if self._writer is None:
            self._writer = Writer(self._folder, ids.from_text(self._spool.id), durability=Durability.LAZY)
        writer = self._writer
        for body in bodies:
            if not writer.record(kind, body):
                raise OSError(errno.EIO, f"the journal in {self._spool.agent} cannot be written: {writer.last_error}")
        if not writer.sync():
            raise OSError(errno.EIO, f"the journal in {self._spool.agent} cannot be fsynced: {writer.last_error}")

    def intend(self, server: str, ranges: Sequence[tuple[str, int, int]]) -> None:
        """Note, before sending, which (writer, first, last) go to a server in one request."""
        self._append(Kind.INTENT, [{"server": server, "ranges": [list(r) for r in ranges]}])

    def receive(
        self,
        server: str,
        at: float,
        cursors: Sequence[Cursor] = (),
        refused: Sequence[tuple[str, int, str]] = (),
        blobs: Sequence[str] = (),
        refused_blobs: Sequence[tuple[str, str]] = (),
        blocked: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Note what a server acknowledged: positions of writers, blobs it has, and what it will never take (with reasons).

        `blocked` names writers that it refuses as a whole. `at` is the wall time in seconds.
        """
        body: dict[str, Any] = {"server": server, "at": at}
        for key, value in (
            ("cursors", cursors), ("refused", refused), ("blobs", blobs), ("refused_blobs", refused_blobs), ("blocked", blocked),
        ):  # fmt: skip
            if value:
                body[key] = [list(v) if isinstance(v, tuple) else v for v in value]
        self._append(Kind.RECEIPT, [body])
        with self._catalog.transaction():
            self._index(Kind.RECEIPT, body)
            self._note_position()

    def prune(self, run: str, at: float, last: dict[str, int], blobs: Sequence[str]) -> None:
        """Note, before deleting, that a run's acknowledged records (up to `last` per writer) and blobs go."""
        body = {"run": run, "at": at, "last": last, "blobs": list(blobs)}
        self._append(Kind.PRUNE, [body])
        with self._catalog.transaction():
            self._index(Kind.PRUNE, body)
            self._note_position()

    def rewind(self, server: str, cursor: Cursor) -> None:
        """Note that a server has less than its receipts said (it was restored from a backup): send again from there."""
        body = {"server": server, "cursor": list(cursor)}
        self._append(Kind.IDMAP, [{"rewind": body}])
        with self._catalog.transaction():
            self._index(Kind.IDMAP, {"rewind": body})
            self._note_position()

    def close(self) -> None:
        """Seal the journal's segment. A kill instead loses nothing: receipts are fsynced one by one."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close({"status": None})
            with self._catalog.transaction() as db:
                db.execute("INSERT OR REPLACE INTO journal(writer, sequence, closed) VALUES (?,?,1)", (writer.id_text, writer.sequence))

    def _note_position(self) -> None:
        assert self._writer is not None
        self._catalog.connection.execute(
            "INSERT OR REPLACE INTO journal(writer, sequence, closed) VALUES (?,?,0)", (self._writer.id_text, self._writer.sequence)
        )

    # ------------------------------------------------------------------ reading

    def _replay(self) -> None:
        """Bring the catalog up to the journal, after a crash or when it was deleted; then keep the journal small."""
        known = {w: (seq, closed) for w, seq, closed in self._catalog.rows("SELECT writer, sequence, closed FROM journal")}
        writers = layout.list_writers(self._folder)
        for writer in writers:
            sequence, closed = known.get(writer, (0, 0))
            if closed:
                continue
            last = sequence
            with self._catalog.transaction() as db:
                with Tail(os.path.join(self._folder, writer), self._spool.id) as tail:
                    for chunk in tail.read(dead=True):
                        for item in chunk.items:
                            if isinstance(item, Record) and item.body is not None and item.seq > sequence:
                                self._index(item.kind, item.body)
                                last = item.seq
                # only one agent at a time holds the spool, so this writer's process has ended
                db.execute("INSERT OR REPLACE INTO journal(writer, sequence, closed) VALUES (?,?,1)", (writer, last))
        if len(writers) > _COMPACT_WRITERS or self._bytes(writers) > _COMPACT_BYTES:
            self._compact(writers)

    def _bytes(self, writers: list[str]) -> int:
        return sum(os.stat(s.path).st_size for w in writers for s in layout.segments(os.path.join(self._folder, w)))

    def _compact(self, writers: list[str]) -> None:
        """Write everything that still counts as checkpoints into a new writer, durably; then delete the old ones."""
        rows = self._catalog.rows
        bodies: list[dict[str, Any]] = []
        for server, key, sql, width in (
            *((s, "cursors", "SELECT writer, mark, chain, segment, offset FROM cursors WHERE server = ?", 5) for s in self._servers()),
            *((s, "refused", "SELECT writer, seq, reason FROM refused WHERE server = ?", 3) for s in self._servers()),
            *((s, "blobs", "SELECT digest FROM uploads WHERE server = ? AND state = 'stored'", 1) for s in self._servers()),
            *(
                (s, "refused_blobs", "SELECT digest, reason FROM uploads WHERE server = ? AND state = 'refused'", 2)
                for s in self._servers()
            ),
            *((s, "blocked", "SELECT writer, blocked FROM cursors WHERE server = ? AND blocked IS NOT NULL", 2) for s in self._servers()),
        ):
            found = rows(sql, (server,))
            for i in range(0, len(found), _BATCH):
                part = found[i : i + _BATCH]
                bodies.append({"server": server, "at": 0, key: [r[0] for r in part] if width == 1 else [list(r) for r in part]})
        bodies += [{"run": run, "at": at, "last": {}, "blobs": []} for run, at in rows("SELECT run, at FROM pruned")]
        self._append(Kind.CHECKPOINT, bodies or [{}])
        with self._catalog.transaction() as db:
            self._note_position()
            db.executemany("DELETE FROM journal WHERE writer = ?", [(w,) for w in writers])
        for writer in writers:
            shutil.rmtree(os.path.join(self._folder, writer), ignore_errors=True)

    def _servers(self) -> list[str]:
        return [
            s for (s,) in self._catalog.rows("SELECT server FROM cursors UNION SELECT server FROM uploads UNION SELECT server FROM refused")
        ]

    def _index(self, kind: int, body: dict[str, Any]) -> None:
        """Put one journal record into the catalog. Repeating it is harmless: marks only grow, except by a rewind."""
        db = self._catalog.connection
        if kind == Kind.PRUNE or (kind == Kind.CHECKPOINT and "run" in body):
            db.execute("INSERT OR REPLACE INTO pruned(run, at, last) VALUES (?,?,?)", (body["run"], body["at"], str(body.get("last"))))
            return
        if kind == Kind.IDMAP and "rewind" in body:
            back = body["rewind"]
            writer, mark, chain, segment, offset = back["cursor"]
            db.execute(
                'UPDATE cursors SET mark=?, chain=?, segment=?, "offset"=? WHERE server=? AND writer=?',
                (mark, chain, segment, offset, back["server"], writer),
            )
            return
        if kind not in {Kind.RECEIPT, Kind.CHECKPOINT}:
            return
        server, at = body.get("server"), body.get("at", 0)
        db.executemany(
            'INSERT INTO cursors(server, writer, mark, chain, segment, "offset", at) VALUES (?,?,?,?,?,?,?) ON'
            ' CONFLICT(server, writer) DO UPDATE SET'
            ' mark=excluded.mark, chain=excluded.chain, segment=excluded.segment, "offset"=excluded."offset", at=excluded.at, blocked=NULL'
            " WHERE excluded.mark >= mark",
            [(server, *c, at) for c in body.get("cursors", ())],
        )
        db.executemany(
            "INSERT OR REPLACE INTO refused(server, writer, seq, reason) VALUES (?,?,?,?)", [(server, *r) for r in body.get("refused", ())]
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
