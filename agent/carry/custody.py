"""What the journal of an origin keeps of the other side: which spool it is, and what that has in custody.

All of it is ids (FORMAT.md, IDMAP) under the server id of a target of kind "bundle", so a new catalog has it again, a compaction keeps
it, and what is of one run goes when the run is pruned. Custody saves carrying again; only what is delivered counts as acknowledged.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from simspool.agent.catalog import Catalog

from .parts import Position

FAR, LATEST = "far", "receipt"


def writer_key(run: str, writer: str) -> str:
    """Return the id's key of how far the other side has a writer."""
    return f"{run}/carried/{writer}"


def file_key(run: str, digest: str) -> str:
    """Return the id's key of a file that the other side has for a run."""
    return f"{run}/file/{digest}"


def position_list(position: Position) -> list[Any]:
    """Return a position as JSON, as receipts have it."""
    return [position.segment, position.offset, position.after, position.final]


def position_text(position: Position) -> str:
    """Return a position as the value of its id."""
    return json.dumps(position_list(position), separators=(",", ":"))


def carried_from(origin: str) -> str:
    """Return the server id under which a far spool keeps which of its pruned runs came from an origin."""
    return f"from:{origin}"


def pinned(catalog: Catalog, server: str) -> str | None:
    """Return the id of the far spool whose receipts this target takes; None before the first one."""
    return _value(catalog, server, FAR)


def latest(catalog: Catalog, server: str) -> dict[str, Any] | None:
    """Return {"id", "at" (wall s at the far spool), "targets"} of the latest receipt that was applied; None before the first one."""
    text = _value(catalog, server, LATEST)
    return None if text is None else dict(json.loads(text))


def positions(catalog: Catalog, server: str, run: str) -> dict[str, Position]:
    """Return how far the other side has each writer of a run, as its receipts said."""
    found = ((writer, Position.of_list(json.loads(value))) for writer, value in _under(catalog, server, writer_key(run, "")))
    return {writer: position for writer, position in found if position is not None}


def files(catalog: Catalog, server: str, run: str) -> set[str]:
    """Return the digests that the other side has for a run, as its receipts said."""
    return {digest for digest, _ in _under(catalog, server, file_key(run, ""))}


def count_undelivered(catalog: Catalog, server: str, run: str | None = None) -> int:
    """Return how many records the other side has in custody which are not acknowledged, of one run or of all."""
    [found] = catalog.one(
        'SELECT coalesce(sum(max(0, coalesce((SELECT max(p."last") FROM pieces p WHERE p.writer = w.id AND (p.segment <'
        " json_extract(i.value, '$[0]') OR (p.segment = json_extract(i.value, '$[0]') AND p.\"end\" <= json_extract(i.value, '$[1]')))), 0)"
        " - coalesce(c.mark, 0))), 0) FROM writers w JOIN ids i ON i.server = ? AND i.key = w.run || '/carried/' || w.id"
        " LEFT JOIN cursors c ON c.writer = w.id AND c.server = i.server"
        " WHERE (? IS NULL OR w.run = ?) AND coalesce(c.mark, 0) < w.sequence - 1",
        (server, run, run),
    ) or (0,)
    return int(found)


def _value(catalog: Catalog, server: str, key: str) -> str | None:
    row = catalog.one("SELECT value FROM ids WHERE server = ? AND key = ?", (server, key))
    return None if row is None else str(row[0])


def _under(catalog: Catalog, server: str, prefix: str) -> Iterator[tuple[str, str]]:
    beyond = prefix[:-1] + "0"  # what follows "/"
    for key, value in catalog.rows("SELECT key, value FROM ids WHERE server = ? AND key >= ? AND key < ?", (server, prefix, beyond)):
        yield key[len(prefix) :], value
