"""Receipts: what a far spool says of what it was brought from one origin. Made there, read here; `applying` has their effect.

A receipt tells the whole present state, not what changed, so any of them may get lost: the next one says it all. Custody is what the far
spool has durably; delivered is what all targets that count there have acknowledged: the least of their marks, with the chain at it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from simspool.agent.catalog import Catalog
from simspool.agent.targets.settings import TargetSettings
from simspool.agent.truth.known import KnownTarget, counting, known_targets
from simspool.spool import Spool, ids, records
from simspool.spool.ids import is_digest

from .custody import carried_from, position_list
from .parts import NotTaken, Position

VERSION = 1
LIMIT = 64 << 20
"""Bytes of the largest receipt."""
_VALUES = 4_000_000  # in it: an empty list is 2 bytes there and 56 in memory
_REASON = 2000
_BIG = 1 << 62
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RunReceipt:
    """What became of one run. `files` are digests in custody; `stored` and `refused_files` are of artifact records, "writer.sequence", as
    some targets keep the files of each record and others each content once (a refused one is a digest where no more is known there).

    `delivered`: writer -> (mark, chain); `blocked`: writers that a target there refuses as a whole, with the reason. `complete`: every
    record and file of the run is delivered, and no more comes.
    """

    custody: Mapping[str, Position] = field(default_factory=dict)
    files: Sequence[str] = ()
    delivered: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    stored: Sequence[str] = ()
    refused: Sequence[tuple[str, int, str]] = ()
    blocked: Mapping[str, str] = field(default_factory=dict)
    refused_files: Sequence[tuple[str, str]] = ()
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Receipt:
    """A receipt, checked for its form and nothing else: `origin` is the spool that it is for, `far` the one that made it, `at` when (wall s
    there), `targets` which deliver there. `pruned`: runs that the far spool delivered and deleted: {writer: last sequence}."""

    id: str
    origin: str
    far: str
    at: float
    targets: Sequence[Mapping[str, Any]] = ()
    runs: Mapping[str, RunReceipt] = field(default_factory=dict)
    pruned: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


# ------------------------------------------------------------------ made at the far spool


def make_receipt(spool: Spool, catalog: Catalog, settings: Sequence[TargetSettings], origin: str) -> dict[str, Any]:
    """Return the receipt for everything that came from the spool `origin`; `encode` makes the document of it. Only reads.

    `settings` are the targets in force here; without any, nothing counts as delivered.
    """
    from .carried import read

    targets = counting(known_targets(catalog, settings)) if settings else []
    rows = catalog.rows("SELECT p.run, p.last FROM pruned p JOIN ids i ON i.key = p.run WHERE i.server = ?", (carried_from(origin),))
    pruned: dict[str, dict[str, int]] = {run: json.loads(last) for run, last in rows}
    runs: dict[str, dict[str, Any]] = {}
    for run in spool.run_ids():
        carried = read(spool.run(run))
        if carried is not None and carried.origin == origin:
            runs[run] = {"custody": {w: position_list(p) for w, p in carried.writers.items()}, "files": sorted(carried.files)}
    for run in {**runs, **pruned}:
        entry = runs.setdefault(run, {"custody": {}, "files": []})
        entry |= _of_run(catalog, targets, run, entry["custody"], pruned.get(run, {}))
    return {
        "simspool-receipt": VERSION, "id": ids.to_text(ids.new_id()), "for": origin, "from": spool.id, "at": time.time(),
        "targets": [{"name": t.name, "kind": t.kind, "server": t.server, "required": t.required} for t in targets],
        "runs": runs, "pruned": pruned,
    }  # fmt: skip


def encode(body: Mapping[str, Any]) -> bytes:
    """Return a receipt's document: canonical JSON. Raises NotTaken for one that is too large to be read again."""
    data = records.encode(dict(body))
    if len(data) > LIMIT or _values(data) > _VALUES:
        raise NotTaken(f"the receipt has {len(data)} bytes, which is more than is ever read: prune, or import into several spools")
    return data


def _of_run(
    catalog: Catalog, targets: Sequence[KnownTarget], run: str, custody: Mapping[str, Sequence[Any]], pruned: Mapping[str, int]
) -> dict[str, Any]:
    writers = json.dumps([*custody, *pruned])
    cursors: dict[tuple[str, str], tuple[int, int, str | None]] = {
        (server, writer): (mark, chain, blocked)
        for server, writer, mark, chain, blocked in catalog.rows(
            "SELECT server, writer, mark, chain, blocked FROM cursors WHERE writer IN (SELECT value FROM json_each(?))", (writers,)
        )
    }
    delivered: dict[str, tuple[int, int]] = {}
    blocked: dict[str, str] = {}
    for writer in {**custody, **pruned} if targets else ():
        found = [cursors.get((t.server, writer), (0, 0, None)) for t in targets]
        for target, (_, _, reason) in zip(targets, found, strict=True):
            if reason is not None:
                blocked.setdefault(writer, f"{target.name}: {reason}")
        mark, chain = _least([(mark, chain) for mark, chain, _ in found])
        last = pruned.get(writer)
        if last is not None and mark < last and writer not in blocked:
            # a target that came after the pruning has nothing of it, and does not take back what the others had then
            had = {chain for (_, w), (m, chain, _) in cursors.items() if w == writer and m == last}
            mark, chain = (last, had.pop()) if len(had) == 1 else (mark, chain)
        if chain is None:
            blocked.setdefault(writer, f"the far spool's targets have different records of it up to {mark}: `agent check` there says more")
        elif mark:
            delivered[writer] = mark, chain
    refused = _refused(catalog, targets, writers, delivered)
    stored, refused_files, waiting = _files(catalog, targets, run, delivered, pruned)
    known = dict(catalog.rows("SELECT id, sequence - 1 FROM writers WHERE run = ? AND complete = 1", (run,)))
    whole = all(final and delivered.get(w, (0,))[0] >= known.get(w, _BIG) for w, (_, _, _, final) in custody.items())
    whole = whole and all(delivered.get(w, (0,))[0] >= last for w, last in pruned.items())
    complete = bool(targets) and whole and not waiting and not blocked
    return {
        "delivered": delivered, "stored": stored, "refused": refused, "blocked": blocked, "refused_files": refused_files,
        "complete": complete,
    }  # fmt: skip


def _least(found: Sequence[tuple[int, int]]) -> tuple[int, int | None]:
    """Return the least mark and the chain at it; no chain where targets with this mark have different ones."""
    mark = min(m for m, _ in found)
    chains = {c for m, c in found if m == mark}
    return mark, chains.pop() if len(chains) == 1 else None


def _refused(
    catalog: Catalog, targets: Sequence[KnownTarget], writers: str, delivered: Mapping[str, tuple[int, int]]
) -> list[tuple[str, int, str]]:
    found: dict[tuple[str, int], str] = {}
    for target in targets:
        for table, word in (("refused", ""), ("given_up", "given up there: ")):
            sql = f"SELECT writer, seq, reason FROM {table} WHERE server = ? AND seq > 0 AND writer IN (SELECT value FROM json_each(?))"  # noqa: S608
            for writer, seq, reason in catalog.rows(sql, (target.server, writers)):
                if seq <= delivered.get(writer, (0,))[0]:
                    found.setdefault((writer, seq), f"{target.name}: {word}{reason}"[:_REASON])
    return [(writer, seq, reason) for (writer, seq), reason in sorted(found.items())]


def _files(
    catalog: Catalog, targets: Sequence[KnownTarget], run: str, delivered: Mapping[str, tuple[int, int]], pruned: Mapping[str, int]
) -> tuple[list[str], list[tuple[str, str]], bool]:
    """Return which artifact records' bytes all targets have, which one of them refused, and whether others wait."""
    states: dict[str, dict[str, tuple[str, str]]] = {}
    rows = catalog.rows("SELECT writer, seq, digest FROM artifacts WHERE run = ? ORDER BY writer, seq", (run,))
    keys = json.dumps([one for writer, seq, digest in rows for one in (digest, f"{writer}.{seq}")])
    wanted = "digest IN (SELECT value FROM json_each(?))"
    for server, key, state, reason in catalog.rows(f"SELECT server, digest, state, reason FROM uploads WHERE {wanted}", (keys,)):  # noqa: S608
        states.setdefault(server, {})[key] = state, reason or ""
    stored: list[str] = []
    refused: dict[str, str] = {}
    waiting = False
    for writer, seq, digest in rows:
        key = f"{writer}.{seq}"
        if seq > delivered.get(writer, (0,))[0]:
            waiting = True
            continue
        found = [(t, states.get(t.server, {})) for t in targets]
        each = [(t, of.get(key) or of.get(digest) or ("", "")) for t, of in found]
        wrong = next((f"{t.name}: {reason}" for t, (state, reason) in each if state in {"refused", "dropped"}), None)
        if wrong is not None:
            refused[key] = wrong[:_REASON]
        elif all(state == "stored" for _, (state, _) in each):
            stored.append(key)
        elif writer not in pruned:
            waiting = True
    if pruned:  # of those, the catalog may know no artifact any more: what is not named here was stored
        for target in targets:
            for key, reason in catalog.rows(
                "SELECT digest, reason FROM uploads WHERE server = ? AND state IN ('refused', 'dropped')", (target.server,)
            ):
                if "." not in key or key.split(".")[0] in pruned:
                    refused.setdefault(key, f"{target.name}: {reason or 'given up there'}"[:_REASON])
    return stored, sorted(refused.items()), waiting


# ------------------------------------------------------------------ read at the origin


def parse_receipt(data: bytes) -> Receipt:
    """Return what a receipt's document says. Raises NotTaken for one that is not valid, is too large, or of a newer version."""
    if len(data) > LIMIT or _values(data) > _VALUES:
        raise NotTaken(f"this is no receipt: {len(data)} bytes are more than is ever read")
    try:
        body = records.decode(data)
        version = body["simspool-receipt"]
    except (ValueError, KeyError):
        raise NotTaken("this is no receipt: it was damaged, or is something else") from None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise NotTaken("this is no receipt: its version is no number")
    if version > VERSION:
        raise NotTaken(f"this receipt has version {version}, and {VERSION} is what is known here: upgrade simspool")
    try:
        return Receipt(
            _text(body["id"], 64), _id(body["for"]), _id(body["from"]), _time(body["at"]),
            [{str(k): v for k, v in _table(one).items()} for one in _list(body["targets"])],
            {_id(run): _run_receipt(_table(entry)) for run, entry in _table(body["runs"]).items()},
            {_id(run): {_id(w): _number(n) for w, n in _table(last).items()} for run, last in _table(body["pruned"]).items()},
        )  # fmt: skip
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        what = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
        raise NotTaken(f"this is no receipt: {what}"[:_REASON]) from None


def _run_receipt(entry: Mapping[str, Any]) -> RunReceipt:
    return RunReceipt(
        {_id(w): _position(one) for w, one in _table(entry["custody"]).items()},
        [_digest(one) for one in _list(entry["files"])],
        {_id(w): _row(one, _number, _number) for w, one in _table(entry["delivered"]).items()},
        [_key(one) for one in _list(entry["stored"])],
        [_row(one, _id, _number, _text) for one in _list(entry["refused"])],
        {_id(w): _text(why) for w, why in _table(entry.get("blocked", {})).items()},
        [_row(one, _key, _text) for one in _list(entry["refused_files"])],
        entry["complete"] is True,
    )


def _values(data: bytes) -> int:
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def _position(value: Any) -> Position:
    found = Position.of_list(value)
    if found is None:
        raise ValueError("a position is something else")
    return found


def _row(value: Any, *parts: Callable[[Any], Any]) -> tuple[Any, ...]:
    return tuple(part(one) for part, one in zip(parts, _list(value), strict=True))


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("an object is expected where there is something else")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError("a list is expected where there is something else")
    return value


def _text(value: Any, most: int = _REASON) -> str:
    if not isinstance(value, str) or len(value) > most:
        raise ValueError("a text is something else, or too long")
    return value


def _id(value: Any) -> str:
    text = _text(value, ids.LENGTH)
    ids.from_text(text)
    return text


def _digest(value: Any) -> str:
    if not is_digest(value):
        raise ValueError("a digest is not 64 hex digits")
    return str(value)


def _key(value: Any) -> str:
    """Return an artifact record, "writer.sequence", or a digest."""
    text = _text(value, 64)
    writer, point, seq = text.partition(".")
    if not point:
        return _digest(text)
    if not (seq.isascii() and seq.isdigit() and seq[0] != "0"):
        raise ValueError("a file's key is not WRITER.SEQUENCE")
    return f"{_id(writer)}.{_number(int(seq))}"


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _BIG:
        raise ValueError("a number is something else, or too large")
    return value


def _time(value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not (math.isfinite(value) and 0 <= value < 1e12):
        raise ValueError("a time is something else")
    return float(value)
