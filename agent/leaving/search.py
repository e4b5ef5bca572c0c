"""Runs are searched for secrets: what of their records, and which of their files, the other side lacks."""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from simspool.agent.carry.outgoing import Outgoing, Span
from simspool.agent.catalog import Catalog
from simspool.sdk.redaction import REDACTED, Redactor
from simspool.spool import Kind, Spool, SpoolError, blobs, records
from simspool.spool.frames import HEAD, HEAD_SIZE, MARKER, MARKER_BYTES, MAX_FRAME, MIN_FRAME, check_frame

from .hint import Hint

_LARGEST_FILE = 4 << 20  # bytes of a text file that is searched
_BLOCK = 256 << 10
_PIECE = 16 << 20  # bytes of a segment that are looked at together
_KINDS = frozenset({
    Kind.RUN, Kind.ATTACH, Kind.EVENT, Kind.ARTIFACT, Kind.METADATA, Kind.TAGS, Kind.STATUS, Kind.FOLDER, Kind.ALERT, Kind.CONFIG,
    Kind.PROCESS_START, Kind.PROCESS_EXIT, Kind.ABORT, Kind.NOTIFICATION, Kind.CLOSE,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Found:
    """A secret, as it seems, and where it is; never the secret itself."""

    run: str
    name: str
    where: str
    what: str


@dataclass(slots=True)
class Seen:
    """How far segments were looked at, by writer and number, and the files that were, by digest."""

    ends: dict[tuple[str, int], int] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)

    def add(self, other: Seen) -> None:
        """Have seen what another one saw, too."""
        self.ends |= other.ends
        self.files |= other.files

    def left(self, span: Span) -> int:
        """Return from where on a span was not looked at."""
        return max(span.start, self.ends.get((span.writer, span.number), 0))


class Search:
    """Looks through runs for what is in there and was not `seen` before. Confined to one thread."""

    def __init__(self, spool: Spool, catalog: Catalog, redactor: Redactor, allowed: Collection[str], seen: Seen) -> None:
        self._spool, self._catalog, self._redactor, self._allowed, self._before = spool, catalog, redactor, allowed, seen
        self._hint = Hint(redactor)
        self.seen = Seen()
        """What was looked at now."""

    def run(self, outgoing: Outgoing, run: str) -> Iterator[tuple[str, str]]:
        """Yield (where, what) of what seems secret in what the far side lacks of a run, each once."""
        told: set[tuple[str, str]] = set()
        for found in self._run(outgoing, run):
            if found not in told:
                told.add(found)
                yield found

    def _run(self, outgoing: Outgoing, run: str) -> Iterator[tuple[str, str]]:
        spans = outgoing.spans(run)
        while True:
            try:
                span = next(spans, None)
                if span is None:
                    break
                yield from self._span(span)
            except (OSError, SpoolError) as error:
                yield "its records", f"they could not be looked at: {getattr(error, 'strerror', None) or error}"
        for digest in outgoing.files(run):
            if digest in self._before.files:
                continue
            self.seen.files.add(digest)
            names = [str(n) for (n,) in self._catalog.rows("SELECT name FROM artifacts WHERE run = ? AND digest = ?", (run, digest))]
            name = next((name for name in names if not self._may_leave(name)), None)
            if name is not None:
                for place, what in self._file(blobs.path_of(self._spool, self._spool.run(run), digest)):
                    yield f"file {name!r}, {place}", what

    def _may_leave(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, glob) for glob in self._allowed)

    # ------------------------------------------------------------------ records

    def _span(self, span: Span) -> Iterator[tuple[str, str]]:
        at, is_frame = self._before.left(span), True
        while True:
            piece = os.pread(span.fd, _PIECE, at)
            is_last = len(piece) < _PIECE
            if not is_last and not self._hint.passes(piece):
                at, is_frame = at + _PIECE - MAX_FRAME, False
                continue
            end = 0
            for begin, length, kind, seq in _frames(piece, span.seed, is_frame=is_frame):
                end = begin + length
                if kind in _KINDS:
                    yield from self._record(kind, seq, piece[begin + HEAD_SIZE : end - 4])
            if is_last:
                self.seen.ends[span.writer, span.number] = at + end
                return
            at, is_frame = (at + end, True) if _PIECE - end <= MAX_FRAME else (at + _PIECE - MAX_FRAME, False)

    def _record(self, kind: int, seq: int, payload: bytes) -> Iterator[tuple[str, str]]:
        if not self._hint.passes(payload):
            return
        try:
            body = records.decode(payload)
        except ValueError:
            return  # damaged: it is carried as it is, and read by nobody
        if kind == Kind.ARTIFACT and self._may_leave(str(body.get("name"))):
            return
        where = f"{Kind(kind).label} (record {seq})"
        for path, value in _texts(body):
            if path[0] == "metadata" or kind == Kind.METADATA:
                name = path[-1]
                if self._redactor.value(name, value) == REDACTED and value != REDACTED:
                    yield f"metadata {name!r}", f"value of {name[:40]}"
                    continue
            spans = self._redactor.find(value)
            yield from ((where, found.what) for found in spans if _is_likely(value[found.start : found.end], found.what))

    # ------------------------------------------------------------------ files

    def _file(self, path: str | None) -> Iterator[tuple[str, str]]:
        try:
            if path is None or not stat.S_ISREG(os.lstat(path).st_mode) or os.lstat(path).st_size > _LARGEST_FILE:
                return
            with open(path, "rb") as file:
                head = file.read(_BLOCK)
                if b"\0" in head:
                    return
                data = head + file.read(_LARGEST_FILE)
        except OSError:
            return  # whoever packs it says what cannot be read
        if not self._hint.passes(data):
            return
        text, line = data.decode(errors="replace"), 1
        for at in range(0, len(text), _BLOCK):
            block = text[at : at + _BLOCK + 4096]  # what lies across two blocks is seen whole in the first
            for span in self._redactor.find(block):
                if span.start < _BLOCK and _is_likely(block[span.start : span.end], span.what):
                    yield f"line {line + block.count(chr(10), 0, span.start)}", span.what
            line += text.count("\n", at, at + _BLOCK)


def _frames(piece: bytes, seed: int, *, is_frame: bool) -> Iterator[tuple[int, int, int, int]]:
    """Yield (where it begins, length, kind, sequence) of the whole frames; damage is passed over.

    `is_frame`: one begins where the piece does. What follows a frame is believed by its head; elsewhere its checksum is looked at.
    """
    at, end, head = 0, len(piece) - MIN_FRAME, HEAD.unpack_from
    while at <= end:
        marker, kind, _, length, seq, _ = head(piece, at)
        if is_frame and marker == MARKER and MIN_FRAME <= length <= MAX_FRAME and not length & 7:
            if at + length > len(piece):
                return
            yield at, length, kind, seq
            at += length
            continue
        is_frame = check_frame(piece, seed, at)[0] == "valid"
        if not is_frame:
            at = piece.find(MARKER_BYTES, at + 1)
            if at < 0:
                return


def _texts(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(value, str):
        yield path or ("",), value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(inner, (*path, str(key)))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, path or ("",))


def _is_likely(secret: str, what: str) -> bool:
    """Say whether what a name announces looks like one: texts are full of `token = next(tokens)`."""
    if not what.startswith("value of"):
        return True
    plain = all(c.isalnum() or c in "_-+/=.:~!@#$%^&*" for c in secret)
    return len(secret) >= 8 and plain and any(c.isdigit() for c in secret) and any(c.isalpha() for c in secret)
