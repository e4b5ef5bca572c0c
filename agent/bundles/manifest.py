"""A bundle's manifest: what is in it, in order. The one text of a bundle that is believed, so it is checked to the last number.

The volumes, one after another, are one string of bytes, and the members lie in it in the manifest's order, from its first byte to its last:
nothing can overlap, and nothing can lie between or behind. No name in it becomes the name of a file: ids are ids, digests
are digests. A run's member comes first, then its blobs, then the parts of its segments.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from simspool.agent.carry.parts import HEAD
from simspool.spool import NewerFormat, ids

from .blocks import HEADER, count, most_stored
from .errors import BadBundle
from .volumes import MOST

VERSION = 1
LIMIT = 64 << 20
"""The most bytes of a manifest."""
MEMBERS = 200_000
"""The most members of a bundle."""
_SEGMENT = (8 << 20) + (1 << 20) + HEAD  # of one member: what `carry.outgoing` gives at most
_RUN = 4 << 20
_BLOB = 1 << 50
_TARGET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NOTHING = hashlib.sha256().hexdigest()
_BEGIN, _MIDDLE, _END = b'{"bundle":', b',"sha256":"', b'"}\n'


@dataclass(frozen=True, slots=True)
class Member:
    """One thing in a bundle: `stored` bytes in the volumes hold `size` bytes of content, whose SHA-256 (hex) is `sha256`.

    `kind`: "run" (its state, as JSON), "blob" (of `runs`, all of this bundle), or "segment" (a head, then the bytes from `start` to `end`;
    the fields are those of `carry.parts.SegmentPart`). `run` is its own id, or that of the run member before it.
    """

    kind: str
    run: str
    size: int
    stored: int
    sha256: str
    writer: str = ""
    number: int = 0
    start: int = 0
    end: int = 0
    sealed: bool = False
    before: str = ""
    after: str = ""
    previous: int = -1
    previous_end: int = 0
    runs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle is. `origin`: the id of the spool that recorded it; `to`: that of the spool it is for (empty: whichever it comes to);
    `receipt`: the id of the receipt that it builds on (empty: none); `created`: wall time (s); `volumes`: their sizes (bytes)."""

    id: str
    origin: str
    target: str
    created: float
    to: str
    receipt: str
    volumes: tuple[int, ...]
    members: tuple[Member, ...]

    @property
    def content(self) -> int:
        """The bytes of all members, unpacked."""
        return sum(m.size for m in self.members)


def encode(manifest: Manifest) -> bytes:
    """Return a manifest as it is written. Raises BadBundle for one over the limits."""
    body = {
        "simspool-bundle": VERSION, "id": manifest.id, "from": manifest.origin, "target": manifest.target, "created": manifest.created,
        "to": manifest.to, "receipt": manifest.receipt, "volumes": list(manifest.volumes), "members": [_row(m) for m in manifest.members],
    }  # fmt: skip
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    data = _BEGIN + text + _MIDDLE + hashlib.sha256(text).hexdigest().encode() + _END
    if len(data) > LIMIT or len(manifest.members) > MEMBERS:
        raise BadBundle(f"a bundle of {len(manifest.members)} members is over the limit of {MEMBERS}: name fewer runs")
    return data


def _row(member: Member) -> dict[str, Any]:
    row: dict[str, Any] = {"kind": member.kind, "size": member.size, "stored": member.stored, "sha256": member.sha256}
    if member.kind == "run":
        row["run"] = member.run
    elif member.kind == "blob":
        row["runs"] = list(member.runs)
    else:
        row |= {name: getattr(member, name) for name in _SEGMENT_KEYS}
    return row


def decode(data: bytes) -> Manifest:
    """Return the manifest that these bytes are. Raises BadBundle for what is none, NewerFormat for one of a newer simspool."""
    if len(data) > LIMIT:
        raise BadBundle(f"the manifest is over {LIMIT} bytes: this is no bundle that simspool made")
    tail = len(_MIDDLE) + 64 + len(_END)
    if not (data.startswith(_BEGIN) and data.endswith(_END) and data[-tail : len(_MIDDLE) - tail] == _MIDDLE):
        raise BadBundle("the manifest is cut or is none: copy the bundle again")
    text = data[len(_BEGIN) : -tail]
    if hashlib.sha256(text).hexdigest().encode() != data[len(_MIDDLE) - tail : -len(_END)]:
        raise BadBundle("the manifest is altered: its digest is another; copy the bundle again")
    if text.count(b"{") > MEMBERS + 1 or text.count(b"[") > MEMBERS + 2:
        raise BadBundle(f"the manifest has over {MEMBERS} members: this is no bundle that simspool made")
    try:
        body = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadBundle(f"the manifest is not JSON that simspool writes: {error}"[:300]) from None
    version = body.get("simspool-bundle") if isinstance(body, dict) else None
    if type(version) is int and version > VERSION:
        raise NewerFormat(f"the bundle has format {version}, this simspool reads {VERSION}: upgrade simspool; nothing was changed")
    if version != VERSION:
        raise BadBundle("the manifest is of something else: this is no bundle")
    return _manifest(_Fields(body, "the manifest"))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number")


class _Fields:
    """The values of one object of the manifest, each checked. Every key has to be asked for."""

    def __init__(self, values: Mapping[str, Any], what: str) -> None:
        if not isinstance(values, dict):
            raise BadBundle(f"{what} is not an object: this is no bundle that simspool made")
        self._values, self._what, self._asked = values, what, 0

    def get(self, key: str) -> Any:
        self._asked += 1
        try:
            return self._values[key]
        except KeyError:
            raise self.wrong(key) from None

    def wrong(self, key: str) -> BadBundle:
        return BadBundle(f"{self._what} has no {key!r} that is possible: this is no bundle that simspool made")

    def whole(self, key: str, least: int, most: int) -> int:
        value = self.get(key)
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(key)
        return value

    def digest(self, key: str) -> str:
        value = self.get(key)
        if not ids.is_digest(value):
            raise self.wrong(key)
        return value

    def id(self, key: str, *, empty: bool = False) -> str:
        value = self.get(key)
        if not isinstance(value, str) or not (ids.is_id(value) or (empty and not value)):
            raise self.wrong(key)
        return value

    def end(self) -> None:
        if len(self._values) != self._asked:
            raise BadBundle(f"{self._what} says more than this simspool knows: this is no bundle that it can take")


def _manifest(fields: _Fields) -> Manifest:
    fields.get("simspool-bundle")
    created, target = fields.get("created"), fields.get("target")
    if isinstance(created, bool) or not isinstance(created, int | float) or not math.isfinite(created) or not 0 <= created < 1e11:
        raise fields.wrong("created")
    if not isinstance(target, str) or not _TARGET.fullmatch(target):
        raise fields.wrong("target")
    volumes, rows = fields.get("volumes"), fields.get("members")
    if not isinstance(volumes, list) or len(volumes) > MOST or not all(type(v) is int and 0 < v <= _BLOB for v in volumes):
        raise fields.wrong("volumes")
    if not isinstance(rows, list):
        raise fields.wrong("members")
    members = tuple(_members(rows))
    made = Manifest(
        fields.id("id"), fields.id("from"), target, float(created), fields.id("to", empty=True), fields.id("receipt", empty=True),
        tuple(volumes), members,
    )  # fmt: skip
    fields.end()
    if sum(volumes) != sum(m.stored for m in members):
        raise BadBundle("the members and the volumes of the manifest do not have the same size: this is no bundle that simspool made")
    return made


def _members(rows: Iterable[Any]) -> Iterable[Member]:
    run, owners, order, blobs, named = "", _Owners(), _Order(), set[str](), set[str]()
    for number, row in enumerate(rows, 1):
        fields = _Fields(row, f"member {number}")
        kind, sha256 = fields.get("kind"), fields.digest("sha256")
        if kind == "run":
            run = fields.id("run")
            owners.add(run, "", number)
            order = _Order()
            member = Member(kind, run, fields.whole("size", 2, _RUN), fields.whole("stored", 1, _RUN), sha256)
        elif kind == "blob" and run:
            size, runs = fields.whole("size", 0, _BLOB), fields.get("runs")
            if not isinstance(runs, list) or not runs or not all(isinstance(r, str) for r in runs) or len(set(runs)) != len(runs):
                raise fields.wrong("runs")
            if sha256 in blobs:
                raise BadBundle(f"member {number} is there twice: this is no bundle that simspool made")
            blobs.add(sha256)
            named.update(runs)
            member = Member(kind, run, size, fields.whole("stored", 0, most_stored(size)), sha256, runs=tuple(runs))
        elif kind == "segment" and run:
            member = _segment(fields, run, sha256)
            owners.add(member.writer, run, number)
            order.add(member, number)
        else:
            raise fields.wrong("kind")
        fields.end()
        if not (HEADER + 1) * count(member.size) <= member.stored <= most_stored(member.size):
            raise BadBundle(f"member {number} cannot have that size: this is no bundle that simspool made")
        yield member
    if not named <= owners.runs:
        raise BadBundle("a file is of a run that is not in the manifest: this is no bundle that simspool made")


_SEGMENT_KEYS = ("writer", "number", "start", "end", "sealed", "before", "after", "previous", "previous_end")


def _segment(fields: _Fields, run: str, sha256: str) -> Member:
    start = fields.whole("start", HEAD, 1 << 40)
    end = fields.whole("end", start, start + _SEGMENT - HEAD)
    sealed, before, after = fields.get("sealed"), fields.digest("before"), fields.digest("after")
    if type(sealed) is not bool:
        raise fields.wrong("sealed")
    if (start == HEAD) != (before == _NOTHING) or (start == end) != (before == after):
        raise fields.wrong("before")
    size = fields.whole("size", HEAD + end - start, HEAD + end - start)
    return Member(
        "segment", run, size, fields.whole("stored", 1, most_stored(size)), sha256, fields.id("writer"),
        fields.whole("number", 1, (1 << 32) - 1), start, end, sealed, before, after, fields.whole("previous", -1, (1 << 32) - 1),
        fields.whole("previous_end", 0, 1 << 40),
    )  # fmt: skip


class _Owners:
    """Which run each writer is of: one, and no two ids that a disk might take for one."""

    def __init__(self) -> None:
        self._of: dict[str, tuple[str, str]] = {}
        self.runs: set[str] = set()

    def add(self, one: str, run: str, number: int) -> None:
        """Note a writer, or a run (its own owner is "")."""
        if run and (known := self._of.get(one.lower())) is not None:
            if known != (one, run):
                raise BadBundle(f"member {number} has an id that another one has: this is no bundle that simspool made")
            return
        if one.lower() in self._of:
            raise BadBundle(f"member {number} is a run that is there twice: this is no bundle that simspool made")
        self._of[one.lower()] = (one, run)
        if not run:
            self.runs.add(one)


class _Order:
    """The parts of each writer's segments come in their order, none twice."""

    def __init__(self) -> None:
        self._at: dict[str, tuple[int, int, bool]] = {}

    def add(self, member: Member, number: int) -> None:
        segment, end, sealed = self._at.get(member.writer, (0, 0, True))
        goes_on = member.number == segment and member.start == end and not sealed
        begins = member.number > segment and (not segment or member.start == HEAD)
        if not goes_on and not begins:
            raise BadBundle(f"member {number} does not follow the one before it: this is no bundle that simspool made")
        self._at[member.writer] = (member.number, member.end, member.sealed)
