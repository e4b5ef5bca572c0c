"""Artifacts: a name, a digest and a category per run. The bytes are blobs; the name is metadata only and never a path here.

A digest gives nothing away: an artifact's bytes may be read only when its owner has shown them (uploaded them, or could read them
already), and the reader may see the artifact.
"""

# ruff: noqa: S608 - queries are made of our own text; what users send is bound
from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from simspool.spool import ids
from simspool.spool.ids import is_digest

from . import access, plain
from .errors import Invalid, NotFound
from .identity import Principal
from .listing import Page
from .times import now_us, to_text

CATEGORIES = ("input", "output", "code")
_SORTS = {"created": "t.created", "name": "t.name", "size": "t.size"}
Link = Callable[[str, str], str]  # (artifact, digest) to a download URL

_SEEN = (
    "(t.owner = :me OR EXISTS (SELECT 1 FROM run_artifacts ra JOIN runs r ON r.id = ra.run WHERE ra.artifact = t.id AND "
    + access.visible("r")
    + "))"
)
_SHOWN = "EXISTS (SELECT 1 FROM blob_owners b WHERE b.digest = t.digest AND b.owner = t.owner)"


def readable_digests(db: sqlite3.Connection, who: Principal, digests: Sequence[str]) -> set[str]:
    """Return those of the digests whose bytes are here and which this user may read."""
    rows = db.execute(
        "SELECT value FROM json_each(:digests) WHERE value IN (SELECT digest FROM blob_owners WHERE owner = :me)"
        f" OR EXISTS (SELECT 1 FROM artifacts t WHERE t.digest = value AND {_SHOWN} AND {_SEEN})",
        {**access.parameters(who), "digests": json.dumps(list(digests))},
    )
    return {row[0] for row in rows}


def add_blob(db: sqlite3.Connection, owner: str, digest: str, size: int) -> None:
    """Record that a blob is here, durable, and that this user has shown its bytes."""
    db.execute("INSERT OR IGNORE INTO blobs VALUES (?, ?, ?)", (digest, size, now_us()))
    db.execute("INSERT OR IGNORE INTO blob_owners VALUES (?, ?)", (digest, owner))
    db.execute("UPDATE artifacts SET size = ? WHERE digest = ? AND owner = ?", (size, digest, owner))


def create(db: sqlite3.Connection, who: Principal, body: dict[str, Any]) -> tuple[str, bool]:
    """Create an artifact; return its id and whether its content is known (this user could read it already)."""
    identity = ids.to_text(ids.new_id())
    digest = body["checksum"]
    known = bool(readable_digests(db, who, [digest]))
    if known:
        db.execute("INSERT OR IGNORE INTO blob_owners VALUES (?, ?)", (digest, who.user))
        size = db.execute("SELECT size FROM blobs WHERE digest = ?", (digest,)).fetchone()
        body = body | ({"size": size[0]} if size else {})
    _insert(db, identity, who, body)
    return identity, known


def _insert(db: sqlite3.Connection, identity: str, who: Principal, body: dict[str, Any]) -> None:
    db.execute(
        "INSERT OR REPLACE INTO artifacts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            identity, who.user, who.tenant, body["name"], body["checksum"], body["size"], body.get("mime_type"),
            body.get("original_path") or "", json.dumps(body.get("metadata") or {}), body.get("created") or now_us(),
        ),
    )  # fmt: skip


def drained(
    db: sqlite3.Connection, who: Principal, run: str, writer: str, seq: int, wall_us: int, record: dict[str, Any]
) -> None:
    """Store a drained artifact record. Its id follows from (writer, sequence), so the same record is the same artifact.

    Raises ValueError for a record that is not one.
    """
    name, digest, size, category = record.get("name"), record.get("digest"), record.get("size"), record.get("category")
    digest = digest.removeprefix("sha256:") if isinstance(digest, str) else ""
    if not isinstance(name, str) or not is_digest(digest) or category not in CATEGORIES:
        raise ValueError("an artifact record needs name, category and digest")
    if not isinstance(size, int) or not 0 <= size < 1 << 62:
        raise ValueError("an artifact record needs the size of its file")
    raw = hashlib.blake2b(f"{writer}/{seq}".encode(), digest_size=16).digest()
    identity = ids.to_text(raw)
    metadata = record.get("metadata")
    body = {
        "name": plain.text(name), "checksum": digest, "size": size, "mime_type": plain.text(record.get("mime") or ""),
        "original_path": plain.text(record.get("path") or ""),
        "metadata": metadata if isinstance(metadata, dict) else {}, "created": wall_us,
    }  # fmt: skip
    _insert(db, identity, who, body)
    _attach(db, run, identity, plain.text(name), str(category), wall_us)


def _attach(db: sqlite3.Connection, run: str, artifact: str, name: str, category: str, at: int) -> None:
    # a run has one artifact of a name: the one attached last
    db.execute(
        "DELETE FROM run_artifacts WHERE run = ? AND artifact <> ? AND artifact IN (SELECT id FROM artifacts WHERE name = ?)"
        " AND attached <= ?",
        (run, artifact, name, at),
    )
    newer = db.execute(
        "SELECT 1 FROM run_artifacts ra JOIN artifacts a ON a.id = ra.artifact WHERE ra.run = ? AND a.name = ? AND ra.attached > ?",
        (run, name, at),
    ).fetchone()
    if newer is None:
        db.execute("INSERT OR REPLACE INTO run_artifacts VALUES (?, ?, ?, ?)", (run, artifact, category, at))


def attach(db: sqlite3.Connection, who: Principal, run: str, artifact: str, category: str) -> None:
    """Attach an artifact that the user may see to a run. The caller has checked the run. Raises NotFound and Invalid."""
    if category not in CATEGORIES:
        raise Invalid(f"category: {category!r} is not one of {', '.join(CATEGORIES)}")
    row = _row(db, who, artifact)
    if row["owner"] != who.user:
        # readers of the run must not depend on another user's artifact: what this user could read becomes the user's own
        if not readable_digests(db, who, [row["digest"]]):
            raise NotFound(f"artifact {artifact[:64]!r} has no content that you may read")
        raise Invalid(f"artifact {artifact[:64]!r} belongs to another user: save the file with your own run instead")
    _attach(db, run, artifact, row["name"], category, now_us())


def _row(db: sqlite3.Connection, who: Principal, identity: str) -> sqlite3.Row:
    row: sqlite3.Row | None = db.execute(
        f"SELECT t.*, {_SHOWN} AS uploaded FROM artifacts t WHERE t.id = :id AND {_SEEN}",
        {**access.parameters(who), "id": identity},
    ).fetchone()
    if row is None:
        raise NotFound(f"artifact {identity[:64]!r} was not found")
    return row


def _view(row: sqlite3.Row, link: Link) -> dict[str, Any]:
    return {
        "id": row["id"], "name": row["name"], "checksum": row["digest"], "size": row["size"], "mime_type": row["mime"],
        "original_path": row["path"], "metadata": json.loads(row["metadata"]), "created": to_text(row["created"]),
        "uploaded": bool(row["uploaded"]), "storage_id": None, "user": row["owner"],
        "url": link(row["id"], row["digest"]) if row["uploaded"] else None,
    }  # fmt: skip


def get(db: sqlite3.Connection, who: Principal, identity: str, link: Link) -> dict[str, Any]:
    """Return an artifact as the dialect shows it; `url` is None while its bytes are not here. Raises NotFound."""
    return _view(_row(db, who, identity), link)


def list_page(
    db: sqlite3.Connection, who: Principal, page: Page, runs: Sequence[str] | None, link: Link
) -> tuple[list[dict[str, Any]], int]:
    """Return a page of the artifacts that the user may see (of some runs), newest first, and how many there are. Raises Invalid."""
    order = []
    for column, descending in page.sorting:
        if column not in _SORTS:
            raise Invalid(f"sorting: {column[:80]!r} is not one of {', '.join(sorted(_SORTS))}")
        order.append(f"{_SORTS[column]} {'DESC' if descending else 'ASC'}")
    where, values = _SEEN, access.parameters(who)
    if runs is not None:
        where += (
            " AND EXISTS (SELECT 1 FROM run_artifacts x JOIN runs r ON r.id = x.run WHERE x.artifact = t.id"
            f" AND x.run IN (SELECT value FROM json_each(:runs)) AND {access.visible('r')})"
        )
        values["runs"] = json.dumps(list(runs))
    total = db.execute(f"SELECT count(*) FROM artifacts t WHERE {where}", values).fetchone()[0]
    rows = db.execute(
        f"SELECT t.*, {_SHOWN} AS uploaded FROM artifacts t WHERE {where}"
        f" ORDER BY {', '.join([*order, 't.created DESC', 't.id DESC'])} LIMIT :limit OFFSET :start",
        {**values, "limit": page.limit, "start": page.start},
    )
    return [_view(row, link) for row in rows], int(total)


def of_run(
    db: sqlite3.Connection, run: str, name: str | None, category: str | None, link: Link
) -> list[dict[str, Any]]:
    """Return a run's artifacts, in order of name. The caller has checked the run."""
    rows = db.execute(
        f"SELECT t.*, ra.category, {_SHOWN} AS uploaded FROM run_artifacts ra JOIN artifacts t ON t.id = ra.artifact"
        " WHERE ra.run = :run AND (:name IS NULL OR t.name = :name) AND (:category IS NULL OR ra.category = :category)"
        " ORDER BY t.name, t.id",
        {"run": run, "name": name, "category": category},
    )
    return [_view(row, link) | {"category": row["category"]} for row in rows]


def category_of(db: sqlite3.Connection, run: str, artifact: str) -> str:
    """Return an artifact's category in a run. The caller has checked the run. Raises NotFound."""
    row = db.execute("SELECT category FROM run_artifacts WHERE run = ? AND artifact = ?", (run, artifact)).fetchone()
    if row is None:
        raise NotFound(f"artifact {artifact[:64]!r} is not attached to run {run[:64]!r}")
    return str(row["category"])


def expected(db: sqlite3.Connection, artifact: str) -> tuple[str, str, int]:
    """Return (owner, digest, size) of an artifact whose signed URL was shown. Raises NotFound when it was deleted since."""
    row = db.execute("SELECT owner, digest, size FROM artifacts WHERE id = ?", (artifact,)).fetchone()
    if row is None:
        raise NotFound(f"artifact {artifact[:64]!r} was deleted")
    return str(row["owner"]), str(row["digest"]), int(row["size"])


def delete(db: sqlite3.Connection, who: Principal, identity: str) -> None:
    """Delete an artifact of the user's own; its blob stays for others that share the content. Raises NotFound and Forbidden."""
    row = _row(db, who, identity)
    access.require_owner(row, who, f"artifact {identity[:64]!r}")
    db.execute("DELETE FROM run_artifacts WHERE artifact = ?", (identity,))
    db.execute("DELETE FROM artifacts WHERE id = ?", (identity,))
