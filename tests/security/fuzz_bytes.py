"""What the fuzz command feeds bytes to: frames, segments (read, folded, judged) and bodies of drain requests (cut, verified, applied)."""

from __future__ import annotations

import gzip
import json
import sqlite3
import time
import zlib
from pathlib import Path
from random import Random
from typing import Any

import msgpack
import mutations
import zstandard

from simspool.agent.alerts.engine import RunRules
from simspool.agent.catalog import schema as catalog_schema
from simspool.agent.ingest.summary import Summary
from simspool.agent.server import bodies, checks, documents, drain, drain_routes, runs, schema
from simspool.agent.server.errors import Refused
from simspool.agent.server.identity import Principal
from simspool.agent.server.ranges import MAX_RANGES, split
from simspool.spool import Kind, frames, ids, layout, reader, records, runstate, segment_header
from simspool.spool.errors import DamagedSegment, NewerFormat
from simspool.spool.segment_header import SegmentHeader

_WRITER, _RUN = bytes(range(16)), bytes(range(16, 32))
_HEADER = SegmentHeader(
    writer=_WRITER, run=_RUN, number=1, first=1, durability=1, pid=7, start_ticks=1, anchor_boot=1_000,
    anchor_wall=1_700_000_000_000_000_000,
    origin_boot=1_000, pid_namespace=1, boot_id=bytes(16), uid=0, rank=None, host="host",
)  # fmt: skip
_ALERT = {"rule": "is above", "metric": "loss", "threshold": 0.5, "window": 1.0, "frequency": 1.0}
_BODIES: tuple[tuple[int, dict[str, Any]], ...] = (
    (Kind.RUN, {"name": "made", "folder": "/made", "status": "running", "metadata": {"k": 1}, "tags": ["t"],
    "created": "2026-01-01T00:00:00.0",
                "system": {"cwd": "/tmp"}, "ttl": 5, "visibility": {"public": True}}),
    (Kind.ATTACH, {"rank": 3}),
    (Kind.METRICS_JSON, {"values": {"loss": 0.5, "n": 3, "ok": True}, "step": 4, "time": 1.5, "timestamp": 1_700_000_000_000_000}),
    (Kind.EVENT, {"message": "halfway", "level": "info", "timestamp": "2026-01-01T00:00:00.5"}),
    (Kind.ARTIFACT, {"name": "a", "category": "output", "digest": "ab" * 32, "size": 5, "mime": "text/plain", "path": "/a",
    "metadata": {}}),
    (Kind.METADATA, {"set": {"a": {"b": [1, 2]}}}), (Kind.TAGS, {"op": "add", "tags": ["x"]}), (Kind.STATUS, {"status": "failed",
    "reason": "r"}),
    (Kind.FOLDER, {"path": "/made", "metadata": {"m": 1}, "tags": ["f"], "description": "d"}),
    (Kind.ALERT, {"id": "01" * 16, "name": "hot", "source": "metrics", "abort": True, "notification": "none", "alert": _ALERT,
    "by": "script"}),
    (Kind.ALERT, {"id": "02" * 16, "name": "said", "source": "events", "abort": False, "notification": "email",
                  "alert": {"pattern": "re:half(way)?", "hold": 1.0}}),
    (Kind.ALERT, {"id": "03" * 16, "name": "both", "source": "alerts", "abort": False, "alert": {"when": "hot and not 2 of said"}}),
    (Kind.ALERT_STATE, {"id": "01" * 16, "alert": "hot", "state": "critical"}),
    (Kind.DECISION, {"id": "04" * 16, "rule": "01" * 16, "alert": "hot", "state": "firing", "trigger": {"writer": "00" * 16, "sequence": 3},
                     "inputs": {"value": 1.0}, "suspended": [1.0, 2.0], "elsewhere": {"rule": "01" * 16, "alerts": {"hot": ["a"]}}}),
    (Kind.PROCESS_START, {"pid": 5, "start_ticks": 6, "boot_id": "00" * 16, "pid_namespace": 1, "host": "h", "identifier": "p",
    "command": "c"}),
    (Kind.PROCESS_EXIT, {"identifier": "p", "pid": 5, "code": 1, "signal": None}), (Kind.CONFIG, {"set": {"durability": "each"}}),
    (Kind.ABORT, {"id": "05" * 16, "reason": "r", "by": "user", "step": "asked"}), (Kind.INBOX, {"file": "a.jsonl", "epoch": 1,
    "offset": 3}),
    (Kind.NOTIFICATION, {"channel": "mail", "decision": "04" * 16, "told": True}), (Kind.SURVIVOR, {"writer": "00" * 16, "status": "lost"}),
    (200, {"anything": [1]}), (Kind.CLOSE, {"status": "completed", "code": 0}),
)  # fmt: skip
Frames = list[bytes]


def _record(kind: int, seq: int, payload: bytes) -> bytes:
    return frames.build(kind, seq, 1_000 + seq * 1_000_000, payload[: frames.MAX_FRAME - 64], _HEADER.seed)


def _specimen() -> Frames:
    """A segment's frames: definitions, metrics with and without a time, one record of each kind, a seal."""
    out: Frames = []
    shapes = [frames.Shape(0, ("loss", "n", "ok"), "dq?"), frames.Shape(1, ("loss",), "d")]
    out += [frames.encode_definition(shape, 1, _HEADER.seed) for shape in shapes for _ in range(2)]
    seq = 0
    for step in range(6):
        seq += 1
        shape, flags = shapes[step % 2], (0, 1, 2, 3, 0, 1)[step]
        form = shape.layout(flags)
        prefix = frames.HEAD.pack(frames.MARKER, Kind.METRICS, flags, form.size, seq, 0)[:8]
        extra = [1.5] * (flags & 1) + [1_700_000_000_000_000] * (flags >> 1)
        values = [0.25, 3, 1][: len(shape.names)]
        raw = form.pack(prefix, seq, 1_000 + seq * 1_000_000, shape.id, step, *extra, *values, 0)[:-4]
        out.append(raw + zlib.crc32(raw, _HEADER.seed).to_bytes(4, "little"))
    for kind, body in _BODIES:
        seq += 1
        out.append(_record(kind, seq, records.encode(body)))
    seal = {"last": seq, "definitions": [{"shape": s.id, "names": list(s.names), "types": s.types} for s in shapes]}
    out.append(frames.encode_json(Kind.SEAL, 0, 1, seal, _HEADER.seed))
    return out


_FRAMES = _specimen()
_FIRST_RECORD = 10  # the place of the first frame with a JSON payload that has a sequence


def _again(frame: bytes) -> bytes:
    """Return a frame with the checksum that it should have: only then is what it says looked at."""
    return frame[:-4] + zlib.crc32(frame[:-4], _HEADER.seed).to_bytes(4, "little")


def mutated(random: Random) -> Frames:
    """Return a segment's frames with some of them changed: in their bytes, in what they say, in their order."""
    out = list(_FRAMES)
    for _ in range(random.randint(1, 3)):
        at, how = random.randrange(len(out)), random.randrange(10)
        if how < 4:  # what a record says, well framed
            at = random.randrange(_FIRST_RECORD, len(_FRAMES) - 1)
            kind, body = _BODIES[at - _FIRST_RECORD]
            said = mutations.as_json(mutations.of_value(random, body))
            out[min(at, len(out) - 1)] = _record(kind if random.random() < 0.9 else random.randrange(256), at - 3, said)
        elif how < 6:  # any bytes, with the right checksum
            changed = mutations.of_bytes(random, out[at], _FRAMES, most=3)
            changed = changed.ljust(-(-max(len(changed), 32) // 8) * 8, b"\0")
            if random.random() < 0.8:
                changed = changed[:4] + len(changed).to_bytes(4, "little") + changed[8:]
            out[at] = _again(changed)
        elif how < 8:
            out[at] = mutations.of_bytes(random, out[at], _FRAMES)
        elif how == 8 and len(out) > 2:
            del out[at]
        else:
            out.insert(random.randrange(len(out)), out[at])
    return out


class FrameSubject:
    """frames.decode and check_frame, over bytes; segment headers and drop counters."""

    documented = (DamagedSegment, NewerFormat)

    def __init__(self, folder: Path) -> None:
        self._head = _HEADER.pack()

    def make(self, random: Random) -> bytes:
        """Return a header and frames, changed."""
        head = mutations.of_bytes(random, self._head) if random.random() < 0.2 else self._head
        body = b"".join(mutated(random))
        return head + (mutations.of_bytes(random, body, _FRAMES) if random.random() < 0.3 else body)

    def run(self, data: bytes) -> str:
        """Decode; what is decoded must lie inside the bytes and cover what it says it does."""
        body = data[segment_header.STATIC_SIZE :]
        found = frames.decode(body, _HEADER.seed, {}, mark_every=256)
        assert 0 <= found.end <= len(body)
        size = 0
        for item in found.items:
            rows = item.rows if isinstance(item, frames.MetricBatch) else [item]
            size += 32 * len(rows)
            if isinstance(item, frames.MetricBatch):
                item.values(item.rows[-1])
        assert size <= found.end
        for offset in (0, found.end, len(body) - 3):
            verdict, length = frames.check_frame(body, _HEADER.seed, max(offset, 0))
            assert verdict != "valid" or 32 <= length <= len(body) - offset
        segment_header.read_drops(data[: segment_header.SIZE].ljust(segment_header.SIZE, b"\0"), _HEADER.seed)
        header = SegmentHeader.unpack(data[: segment_header.STATIC_SIZE])
        return "whole" if found.end == len(body) else f"stops, {'' if header == _HEADER else 'another '}header"


class SegmentSubject:
    """A writer's segment on a disk: read live and dead, folded into run state and catalog, judged by the alert rules in it."""

    documented = (DamagedSegment, NewerFormat)

    def __init__(self, folder: Path) -> None:
        self._folder = folder / ids.to_text(_WRITER)
        self._folder.mkdir(mode=0o700)
        self._run = ids.to_text(_RUN)
        self._path = layout.segment_path(str(self._folder), 1, "open")
        self._db = sqlite3.connect(":memory:", isolation_level=None)
        catalog_schema.migrate(self._db, None)
        self._db.execute("INSERT INTO runs (id) VALUES (?)", (self._run,))
        self._head = _HEADER.pack().ljust(segment_header.SIZE, b"\0")
        self._n = 0

    def make(self, random: Random) -> bytes:
        """Return a segment's file, changed."""
        head = mutations.of_bytes(random, self._head, most=2) if random.random() < 0.15 else self._head
        body = b"".join(mutated(random))
        if random.random() < 0.3:
            body = mutations.of_bytes(random, body, _FRAMES)
        return head + body + bytes(random.choice((0, 0, 8, 500)))

    def run(self, data: bytes) -> str:
        """Read it as the agent does; sequences go up, and every gap and damage has its bounds."""
        with open(self._path, "wb") as file:
            file.write(data)
        self._n += 1
        batches: list[tuple[SegmentHeader, Any]] = []
        damage = last = 0
        with reader.Tail(str(self._folder), self._run) as tail:
            for is_dead in (False, True):
                for chunk in tail.read(dead=is_dead):
                    assert chunk.first <= chunk.last + 1
                    for gap in chunk.gaps:
                        assert gap[0] <= gap[1]
                    for found in chunk.damage:
                        damage += 1
                        assert 0 <= found.start <= found.end
                    for item in chunk.items:
                        assert item.first > last
                        last = item.last
                        batches.append((chunk.header, item))
            assert tail.complete
        reader.read_drop_counts(str(self._folder))
        self._fold(batches)
        return "damaged" if damage else "whole"

    def _fold(self, batches: list[tuple[SegmentHeader, Any]]) -> None:
        writer, rules = ids.to_text(_WRITER), RunRules(self._run)
        self._db.execute("BEGIN")
        try:
            self._take(batches, rules, writer)
        finally:
            self._db.execute("ROLLBACK")

    def _take(self, batches: list[tuple[SegmentHeader, Any]], rules: RunRules, writer: str) -> None:
        summary, state = Summary(self._db), runstate.empty()
        summary.new_runs.add(self._run)
        for header, item in batches:
            rules.feed(writer, header, item, "script")
            if isinstance(item, frames.MetricBatch):
                summary.metrics(self._run, header, item)
            else:
                summary.record(self._run, writer, header, item)
                runstate.apply(state, writer, item.seq, item.kind, header.wall_ns(item.boot_ns), item.body)
        summary.flush()
        rules.tick(1e6)
        rules.take()
        for read in (runstate.status, runstate.reason, runstate.tags, runstate.metadata, runstate.alerts, runstate.started,
        runstate.finished):
            read(state)


_DIALECT: tuple[tuple[str, dict[str, Any]], ...] = (
    ("runs", {"folder": "/a", "name": "n", "status": "running", "tags": ["x"], "metadata": {"a": {"b": 1}}, "ttl": 60,
    "heartbeat_timeout": 9,
              "visibility": {"users": ["u"], "public": False, "tenant": True}, "description": "d", "system": {}, "notifications": "none"}),
    ("metrics", {"run": "r", "metrics": [{"values": {"x": 1.5, "y": 2}, "step": 1, "time": 2.5, "timestamp": "2026-01-01T00:00:00.5"}]}),
    ("events", {"run": "r", "events": [{"message": "m", "log_level": "info", "timestamp": "2026-01-01T00:00:00.5"}]}),
    ("alert", {"name": "a", "source": "metrics", "alert": {"metric": "x", "rule": "is above", "threshold": 1, "window": 1, "frequency": 1,
               "aggregation": "average"}, "notification": "none", "abort": True, "description": "d", "enabled": True}),
    ("folder", {"path": "/a/b", "tags": ["t"], "metadata": {"x": 1}, "description": "d"}), ("tag", {"name": "t", "colour": "red"}),
    ("grid", {"name": "g", "grid": [[1, 2, 3], [4, 5]], "labels": ["x", "y"]}),
    ("artifact", {"name": "a", "size": 5, "checksum": "ab" * 32, "original_path": "/a", "mime_type": "text/plain", "metadata": {}}),
)  # fmt: skip


class DrainBodySubject:
    """Bodies of requests to the embedded server: ranges (cut, verified, half of them applied); the dialect's JSON, msgpack, zstd, gzip."""

    documented = (Refused,)

    def __init__(self, folder: Path) -> None:
        self._db = sqlite3.connect(":memory:", isolation_level=None)
        self._db.row_factory = sqlite3.Row
        schema.migrate(self._db)
        self._who = Principal("me", "mine")
        self._static = _HEADER.pack()
        self._n = 0

    def make(self, random: Random) -> tuple[str, bytes]:
        """Return (what it is, the body)."""
        if random.random() < 0.6:
            return "ranges", b"".join(self._range(random) for _ in range(random.choice((1, 1, 1, 2, 3))))
        kind, value = random.choice(_DIALECT)
        value = mutations.of_value(random, value)
        how = random.randrange(10)
        if how < 3:
            try:
                data = msgpack.packb(value)
            except (ValueError, OverflowError, UnicodeError, RecursionError):
                data = mutations.as_json(value)
            return f"msgpack {kind}", mutations.of_bytes(random, data, most=3) if random.random() < 0.5 else data
        data = mutations.as_json(value)
        if how < 5:
            data = mutations.of_bytes(random, data, most=3)
        if how == 5:
            packed = zstandard.compress(bytes(random.choice((10, 5_000_000)) if random.random() < 0.02 else 100) + data)
            return "zstd", mutations.of_bytes(random, packed, most=2) if random.random() < 0.8 else packed
        if how == 6:
            packed = gzip.compress(bytes(100) + data, 1)
            return "gzip", mutations.of_bytes(random, packed, most=2) if random.random() < 0.8 else packed
        return f"json {kind}", data

    def _range(self, random: Random) -> bytes:
        parts = _FRAMES[:-1] if random.random() < 0.3 else mutated(random)
        body = b"".join(parts)
        static = mutations.of_bytes(random, self._static, most=1) if random.random() < 0.05 else self._static
        head: dict[str, Any] = {
            "run": ids.to_text(_RUN), "writer": ids.to_text(_WRITER), "segment": 1, "first": 1, "last": 6 + len(_BODIES), "chain": 0,
            "bytes": len(body), "gaps": [],
        }  # fmt: skip
        if random.random() < 0.3:
            head = mutations.of_value(random, head, most=2)
        raw = mutations.as_json(head)
        out = len(raw).to_bytes(4, "little") + raw + static + body
        return mutations.of_bytes(random, out, most=2) if random.random() < 0.1 else out

    def run(self, given: tuple[str, bytes]) -> str:
        """Do with it what the server does; nothing of it stays."""
        kind, data = given
        self._n += 1
        if kind == "zstd":
            assert len(bodies.unzstd(data, 1 << 20)) <= 1 << 20
            return "unpacked"
        if kind == "gzip":
            assert len(bodies.gunzip(data, 1 << 20)) <= 1 << 20
            return "unpacked"
        if kind == "ranges":
            return self._drain(data)
        coding, _, what = kind.partition(" ")
        value = bodies.parse(data, f"application/{coding}")
        if not isinstance(value, dict):
            return "no object"
        return self._undone(lambda: self._create(what, value))

    def _create(self, what: str, value: dict[str, Any]) -> str:
        if what == "runs":
            runs.create(self._db, self._who, checks.run(value, new=True))
        elif what == "metrics":
            checks.metrics(value.get("metrics"), 1, time.time_ns())
        elif what == "events":
            checks.events(value.get("events"))
        elif what == "artifact":
            checks.artifact(value)
        else:
            documents.create(self._db, self._who, what, checks.document(what, value, new=True))
        return "taken"

    def _drain(self, data: bytes) -> str:
        cut = split(data)
        assert len(cut) <= MAX_RANGES
        prepared = [drain_routes._prepare(raw) for raw in cut]
        good = sum(not isinstance(one, dict) for one in prepared)
        if good and self._n % 2 == 0:
            verdicts = self._undone(lambda: [v["verdict"] for v in drain.apply_ranges(self._db, self._who, prepared)])
            json.dumps(verdicts)
            return f"applied: {verdicts[0]}"
        return "verified" if good else "malformed"

    def _undone(self, work: Any) -> Any:
        self._db.execute("BEGIN")
        try:
            return work()
        finally:
            self._db.execute("ROLLBACK")


SUBJECTS = {"frames": FrameSubject, "segments": SegmentSubject, "drain-bodies": DrainBodySubject}
