"""Cutting ranges: lazily, from the catalog's pieces, as large as the moment wants (DESIGN 2.8)."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from simspool.agent.budget.account import WHOLE, Stretch, extend_over, had_spans
from simspool.agent.catalog import Catalog
from simspool.agent.chains import chain_over, walk
from simspool.agent.journal import Cursor
from simspool.agent.targets.port import Range
from simspool.spool import Spool, SpoolError, frames, ids, layout
from simspool.spool.frames import Shape
from simspool.spool.reader import read_header
from simspool.spool.records import UNSEQUENCED_KINDS
from simspool.spool.segment_header import SIZE as HEADER_SIZE
from simspool.spool.segment_header import STATIC_SIZE, SegmentHeader
from simspool.spool.segment_header import seed as segment_seed

_PIECES = 64
_SELECT = 'SELECT "first", "last", segment, start, "end", chain, gaps, irregular FROM pieces'


class Unreadable(Exception):
    """Raised when a writer's bytes cannot be read again as they were ingested. The writer waits; the others go on."""


@dataclass(frozen=True, slots=True)
class _Piece:
    first: int
    last: int
    segment: int
    start: int
    end: int
    chain: int
    gaps: list[tuple[int, int, str]]
    irregular: bool


def _piece(row: tuple[Any, ...]) -> _Piece:
    first, last, segment, start, end, chain, gaps, irregular = row
    return _Piece(first, last, segment, start, end, chain, [(a, b, c) for a, b, c in json.loads(gaps or "[]")], bool(irregular))


class RangeCutter:
    """Cuts ranges of one spool. Confined to the agent's worker thread."""

    def __init__(self, spool: Spool, catalog: Catalog) -> None:
        self._spool, self._catalog = spool, catalog

    def cut(self, writer: str, run: str, cursor: Cursor | None, budget: int, most: int = _PIECES) -> list[Range]:
        """Return the ranges that follow the cursor, in order, about `budget` bytes in all: at least one range, and at most `most`.

        What they hold is fdatasynced. Raises Unreadable when the bytes are gone, or differ from what was ingested.
        """
        mark = cursor.mark if cursor is not None else 0
        pieces = self._pieces(writer, mark)
        if not pieces or pieces[0].first > mark + 1:
            raise Unreadable(f"record {mark + 1} of writer {writer} in run {run} is not in the spool any more: restore it from a copy")
        ranges: list[Range] = []
        used = 0
        before = self._seen_before(writer, cursor)
        while pieces and (used < budget or not ranges) and len(ranges) < most:
            group, size = [pieces.pop(0)], 0
            while pieces and pieces[0].segment == group[0].segment and used + size + pieces[0].end - pieces[0].start < budget:
                size += pieces[0].end - pieces[0].start
                group.append(pieces.pop(0))
            after = pieces[0].chain if pieces else self._chain_after(writer, group[-1].last)
            made = self._build(writer, run, group, cursor if not ranges else None, after, budget - used, before=before)
            before = before if before is None else made.chain_after
            ranges.append(made)
            used += len(made.data)
            if made.last != group[-1].last:
                break
        return ranges

    def again(self, writer: str, run: str, cursor: Cursor | None, last: int) -> Range:
        """Return the one range from the cursor to `last`, as it was cut before. Raises Unreadable."""
        mark = cursor.mark if cursor is not None else 0
        rows = self._catalog.rows(f'{_SELECT} WHERE writer = ? AND "last" > ? AND "first" <= ? ORDER BY "first"', (writer, mark, last))
        group = [_piece(row) for row in rows]
        if not group or group[0].first > mark + 1 or group[-1].last < last or group[0].segment != group[-1].segment:
            raise Unreadable(f"records {mark + 1} to {last} of writer {writer} in run {run} are not in the spool as they were")
        return self._build(writer, run, group, cursor, 0, 0, until=last, before=self._seen_before(writer, cursor))

    def _seen_before(self, writer: str, cursor: Cursor | None) -> int | None:
        """Return the server's own chain where something was shed or damaged: what one server got, another did not; else None."""
        sql = "SELECT 1 FROM shed WHERE writer = ? UNION ALL SELECT 1 FROM damage WHERE writer = ? LIMIT 1"
        if self._catalog.one(sql, (writer, writer)) is None:
            return None
        return cursor.chain if cursor is not None else 0

    def _pieces(self, writer: str, mark: int) -> list[_Piece]:
        rows = self._catalog.rows(f'{_SELECT} WHERE writer = ? AND "last" > ? ORDER BY "first" LIMIT ?', (writer, mark, _PIECES))
        return [_piece(r) for r in rows]

    def has(self, writer: str, seq: int) -> bool:
        """Say whether the catalog knows where a record lies (not pruned, and ingested)."""
        row = self._catalog.one('SELECT 1 FROM pieces WHERE writer = ? AND "first" <= ? AND "last" >= ?', (writer, seq, seq))
        return row is not None

    def is_damaged(self, sent: Range) -> bool:
        """Say whether a range that was sent does not hold the frames that were ingested."""
        head = json.loads(sent.data[4 : 4 + int.from_bytes(sent.data[:4], "little")])
        body = sent.data[len(sent.data) - head["bytes"] :]
        found = walk(body, 0, segment_seed(ids.from_text(sent.writer), sent.segment))
        return chain_over(((seq, crc) for seq, _, crc in found), head["chain"], sent.first, sent.last) != sent.chain_after

    def _chain_after(self, writer: str, last: int) -> int:
        row = self._catalog.one('SELECT chain FROM pieces WHERE writer = ? AND "first" = ?', (writer, last + 1))
        if row is None:
            row = self._catalog.one("SELECT chain FROM writers WHERE id = ?", (writer,))
        assert row is not None
        return int(row[0])

    def _open(self, writer: str, run: str, segment: int) -> tuple[int, bool]:
        folder = os.path.join(self._spool.runs, run, "w", writer)
        for suffix in ("seg", "open", "seg"):
            try:
                path = layout.segment_path(folder, segment, suffix)
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), suffix == "seg"
            except FileNotFoundError:
                continue
            except OSError as error:
                raise Unreadable(f"{path}: {error.strerror}") from None
        raise Unreadable(f"segment {segment} of writer {writer} is gone from {folder}: restore it from a copy")

    def _build(
        self, writer: str, run: str, group: list[_Piece], cursor: Cursor | None, after: int, budget: int, *, until: int | None = None,
        before: int | None = None,
    ) -> Range:  # fmt: skip
        """Return the range of a group of pieces: no longer than the budget where it is one regular piece, or to the record `until`.

        `after` is the chain behind the group; with `until`, it is found. `before` is the server's chain before it, where it may be its own.
        """
        first_piece, last_piece = group[0], group[-1]
        if first_piece.segment == WHOLE:
            return self._gone(writer, run, first_piece, cursor)
        fd, sealed = self._open(writer, run, first_piece.segment)
        try:
            header, static = self._header(fd, writer, run, first_piece.segment)
            first, start, chain = first_piece.first, first_piece.start, first_piece.chain
            if cursor is not None and cursor.mark >= first:
                first = cursor.mark + 1
                if before is None and cursor.segment == first_piece.segment and first_piece.start <= cursor.offset <= first_piece.end:
                    start, chain = cursor.offset, cursor.chain
                else:
                    start, chain = self._walk_to(fd, header, first_piece, cursor.mark)
            if not sealed:
                os.fdatasync(fd)
            last, end = last_piece.last, last_piece.end
            if until is not None:
                last = until
                end, after = self._walk_to(fd, header, last_piece, until)
            parts = []
            for piece in group:
                begin = start if piece is first_piece else piece.start
                stop = end if piece is last_piece else piece.end
                data = os.pread(fd, stop - begin, begin)
                if len(data) != stop - begin:
                    raise Unreadable(f"segment {piece.segment} of writer {writer} is shorter than it was")
                parts.append(_regular(data, piece, header.seed) if piece.irregular else data)
            if until is None and len(group) == 1 and len(parts[0]) > budget and not first_piece.gaps and not first_piece.irregular:
                parts[0], last, end, after = _shorter(parts[0], start, header.seed, chain, budget)
        except (OSError, SpoolError) as error:
            why = getattr(error, "strerror", None) or error
            raise Unreadable(f"segment {first_piece.segment} of writer {writer}: {why}") from None
        finally:
            os.close(fd)
        if before is not None:
            chain, after = before, _seen_after(before, chain, group, first, last, after)
        definitions = self._definitions(writer, first_piece.segment, header) if start > HEADER_SIZE else b""
        gaps = [[max(a, first), min(b, last), reason] for piece in group for a, b, reason in piece.gaps if b >= first and a <= last]
        body = b"".join([definitions, *parts])
        head = {
            "run": run, "writer": writer, "segment": first_piece.segment, "first": first, "last": last, "chain": chain,
            "bytes": len(body), "gaps": gaps,
        }  # fmt: skip
        text = json.dumps(head, separators=(",", ":")).encode()
        data = len(text).to_bytes(4, "little") + text + static + body
        return Range(run, writer, first, last, data, after, last_piece.segment, end)

    def _gone(self, writer: str, run: str, piece: _Piece, cursor: Cursor | None) -> Range:
        """Return the range that declares what is left of a writer whose run was shed as a whole."""
        row = self._catalog.one("SELECT header FROM writers WHERE id = ?", (writer,))
        first, chain = (cursor.mark + 1, cursor.chain) if cursor is not None else (piece.first, 0)
        try:
            header = SegmentHeader.unpack(row[0] if row is not None else b"")
        except SpoolError as error:
            raise Unreadable(f"writer {writer} of run {run} was shed, and its header is not known: {error}") from None
        head = {
            "run": run, "writer": writer, "segment": header.number, "first": first, "last": piece.last, "chain": chain, "bytes": 0,
            "gaps": [[first, piece.last, "shed"]],
        }  # fmt: skip
        text = json.dumps(head, separators=(",", ":")).encode()
        after = frames.extend_chain_gap(chain, piece.last - first + 1)
        return Range(run, writer, first, piece.last, len(text).to_bytes(4, "little") + text + header.pack(), after, header.number, 0)

    def _header(self, fd: int, writer: str, run: str, segment: int) -> tuple[SegmentHeader, bytes]:
        header, good = read_header(fd, writer, ids.from_text(run), segment, None)
        return header, os.pread(fd, STATIC_SIZE, 0) if good else header.pack()

    def _definitions(self, writer: str, segment: int, header: SegmentHeader) -> bytes:
        rows = self._catalog.rows("SELECT shape, body FROM definitions WHERE writer = ? AND segment = ?", (writer, segment))
        made = []
        for number, body in rows:
            names, types = json.loads(body)
            made.append(frames.encode_definition(Shape(number, tuple(names), types), 0, header.seed))
        return b"".join(made)

    def _walk_to(self, fd: int, header: SegmentHeader, piece: _Piece, mark: int) -> tuple[int, int]:
        """Return the offset and chain after the record `mark` inside a piece."""
        data = os.pread(fd, piece.end - piece.start, piece.start)
        chain, expected, at = piece.chain, piece.first, piece.start
        for seq, end, crc in walk(data, piece.start, header.seed):
            if seq < expected:
                continue
            if seq > mark:
                break
            chain = frames.extend_chain_gap(chain, seq - expected)
            chain, expected, at = frames.extend_chain(chain, (crc,)), seq + 1, end
        if expected <= mark:  # the mark lies inside a gap
            chain = frames.extend_chain_gap(chain, mark - expected + 1)
        return at, chain

    def had(self, writer: str, run: str, cursor: Cursor | None, mark: int, chain: int) -> list[tuple[int, int]]:
        """Return which shed spans between the cursor and a mark a server had, by its chain there. Raises Unreadable."""
        after = cursor.mark if cursor is not None else 0
        rows = self._catalog.rows(f'{_SELECT} WHERE writer = ? AND "last" > ? AND "first" <= ? ORDER BY "first"', (writer, after, mark))
        pieces = [_piece(row) for row in rows]
        stretches = []
        at, known = after, self._known(writer, run, after)
        for piece in pieces:
            upto = min(piece.last, mark)
            then = self._chain_after(writer, upto) if upto == piece.last else self._known(writer, run, upto)
            whole = piece.first > at and upto == piece.last and piece.segment != WHOLE
            stretches.append(Stretch(at + 1, upto - at, known, then, _is_gone(piece), whole))
            at, known = upto, then
        return had_spans(stretches, cursor.chain if cursor is not None else 0, chain)

    def _known(self, writer: str, run: str, mark: int) -> int:
        """Return the catalog's own chain at a mark. Raises Unreadable."""
        found = self.locate(writer, run, mark)
        return found.chain if found is not None else 0

    def locate(self, writer: str, run: str, mark: int) -> Cursor | None:
        """Return the cursor at a mark, by reading again; None when no piece holds it (pruned, or never ingested). Raises Unreadable."""
        if mark == 0:
            return Cursor(writer, 0, 0, 0, 0)
        row = self._catalog.one(f'{_SELECT} WHERE writer = ? AND "first" <= ? AND "last" >= ?', (writer, mark, mark))
        if row is None:
            return None
        piece = _piece(row)
        if _is_gone(piece):
            return Cursor(writer, mark, frames.extend_chain_gap(piece.chain, mark - piece.first + 1), 0, 0)
        fd, _ = self._open(writer, run, piece.segment)
        try:
            header, _ = self._header(fd, writer, run, piece.segment)
            offset, chain = self._walk_to(fd, header, piece, mark)
        except (OSError, SpoolError) as error:
            why = getattr(error, "strerror", None) or error
            raise Unreadable(f"segment {piece.segment} of writer {writer}: {why}") from None
        finally:
            os.close(fd)
        return Cursor(writer, mark, chain, piece.segment, offset)


def _is_gone(piece: _Piece) -> bool:
    """Say whether a piece is nothing but a gap."""
    return piece.start == piece.end


def _seen_after(before: int, known: int, group: list[_Piece], first: int, last: int, known_after: int) -> int:
    """Return a server's chain after the records `first` to `last` of a group, from its chain before them.

    `known` and `known_after` are the catalog's there. They differ from the server's where something before was shed that it got.
    """
    at = first
    for piece, following in zip(group, [*(p.chain for p in group[1:]), known_after], strict=True):
        upto = min(piece.last, last)
        then = following if upto == piece.last else known_after
        count = upto - at + 1
        before = frames.extend_chain_gap(before, count) if _is_gone(piece) else extend_over(before, known, then, count)
        known, at = then, upto + 1
        if upto == last:
            break
    return before


def _shorter(data: bytes, base: int, crc_seed: int, chain: int, budget: int) -> tuple[bytes, int, int, int]:
    """Return the whole frames that fit `budget` bytes, at least one record; the last one's sequence, the offset and chain after it."""
    last, end = 0, base
    crcs: list[int] = []
    for seq, after, crc in walk(data, base, crc_seed):
        if crcs and after - base > budget:
            break
        last, end = seq, after
        crcs.append(crc)
    if not crcs:
        raise Unreadable(f"the bytes at {base} are not the records that were there")
    return data[: end - base], last, end, frames.extend_chain(chain, crcs)


def _regular(data: bytes, piece: _Piece, crc_seed: int) -> bytes:
    """Return only the frames whose sequences go forward: what a salvage found may hold older ones again."""
    kept, expected, at = [], piece.first, 0
    while at + frames.MIN_FRAME <= len(data):
        verdict, length = frames.check_frame(data, crc_seed, at)
        if verdict != "valid":
            break
        kind, seq = data[at + 2], frames.HEAD.unpack_from(data, at)[4]
        if kind in UNSEQUENCED_KINDS or seq >= expected:
            kept.append(data[at : at + length])
            expected = expected if kind in UNSEQUENCED_KINDS else seq + 1
        at += length
    return b"".join(kept)
