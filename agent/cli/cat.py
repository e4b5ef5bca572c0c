"""`agent cat`: every record of a run, in order. The debugging door: what is shown is what lies in the segments, nothing derived.

Streams: per writer one read of a segment is held at a time, and a writer's files are opened when its time comes.
"""

from __future__ import annotations

import base64
import heapq
import os
from collections.abc import Iterator
from typing import Any

import click

from simspool.agent.exit_codes import CommandError, ExitCode
from simspool.agent.scrub import is_dead
from simspool.spool import Kind, RunFolder, Tail, ids, records
from simspool.spool.frames import BOOT, HAS_TIME, HAS_TIMESTAMP, SEQ, STEP, MetricBatch, Record
from simspool.spool.reader import Chunk, read_drop_counts
from simspool.spool.segment_header import SegmentHeader

from . import output
from .settings import Settings, common

_LABELS = sorted({k.label for k in Kind if k not in records.UNSEQUENCED_KINDS})
_TEXT_MAX = 400
_SPECIAL = ("damage", "gap", "drops")
Line = dict[str, Any]


def _kinds(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> frozenset[str]:
    """Check the names of kinds (singular or plural), and the numbers of kinds of one's own."""
    found = set()
    for value in values:
        text = value.lower()
        known = [label for label in (*_LABELS, *_SPECIAL) if text.rstrip("s") == label.rstrip("s")]
        if not known and not text.isdecimal():
            raise click.BadParameter(f"no kind {value!r}: choose from {', '.join((*_LABELS, *_SPECIAL))}", ctx, param)
        found.add(known[0] if known else records.label(int(text)))
    return frozenset(found)


@click.command(short_help="Print a run's records, in order.")
@click.argument("run", required=False)
@click.option("--kind", "kinds", multiple=True, callback=_kinds, metavar="K", help="Only records of this kind; may be repeated.")
@click.option("--writer", metavar="W", help="Only this writer's records: its id, or a unique beginning.")
@click.option("--journal", is_flag=True, help="The agent's own journal in place of a run.")
@click.option("--dead", is_flag=True, help="Take writers of other machines as dead, and salvage what they left.")
@common
def cat(settings: Settings, run: str | None, kinds: frozenset[str], writer: str | None, journal: bool, dead: bool) -> int:
    """Print the records of RUN in order: by sequence for each writer, by time across writers.

    RUN is an id, a unique beginning of one, or a name. Damage, gaps and drop counts are lines of their own, unless --kind asks for
    something else. A run that is being written is shown up to now.
    """
    if journal == (run is not None):
        raise click.UsageError("give either a RUN or --journal")
    spool = settings.open_spool()
    folder = RunFolder(spool.agent, spool.id) if run is None else spool.run(spool.find_run(run))
    writers = _writers_of(folder, writer)
    hidden = 0
    show = output.echo_json if settings.json else _print
    for line in _merged(folder, writers, dead):
        if not kinds or line["kind"] in kinds:
            show(line)
        else:
            hidden += line["kind"] == "damage"
    if hidden:
        output.note(f"{hidden} damaged places in this run: `agent check {folder.id}` shows them")
    return ExitCode.OK


def _writers_of(folder: RunFolder, prefix: str | None) -> list[str]:
    everything = folder.writer_ids()
    if prefix is None:
        return everything
    found = [w for w in everything if w.startswith(prefix)]
    if len(found) == 1:
        return found
    known = ", ".join(everything[-5:]) or "none"
    raise CommandError(ExitCode.RUN_NOT_FOUND, f"{len(found)} writers of this run begin with {prefix!r}: it has {known}")


def _merged(folder: RunFolder, writers: list[str], dead: bool) -> Iterator[Line]:
    """Yield all lines by wall time; a writer's own order is kept. Writers are opened when the first of their records may be due."""
    waiting = sorted((_began(folder.writer(w)), w) for w in writers)
    waiting.reverse()
    heap: list[tuple[int, str, Line, Iterator[tuple[int, Line]]]] = []
    drops: list[Line] = []
    while waiting or heap:
        while waiting and (not heap or waiting[-1][0] <= heap[0][0]):
            writer = waiting.pop()[1]
            _push(heap, 0, writer, lines_of(folder, writer, dead, drops))
        if heap:
            at, writer, line, source = heapq.heappop(heap)
            yield line
            _push(heap, at, writer, source)
    yield from drops


def _push(heap: list[tuple[int, str, Line, Iterator[tuple[int, Line]]]], at: int, writer: str, source: Iterator[tuple[int, Line]]) -> None:
    following = next(source, None)
    if following is not None:
        heapq.heappush(heap, (max(at, following[0]), writer, following[1], source))


def _began(folder: str) -> int:
    """Return when a writer began (wall ns); its id tells, which has milliseconds."""
    return int.from_bytes(ids.from_text(os.path.basename(folder))[:6], "big") * 1_000_000


def lines_of(folder: RunFolder, writer: str, dead: bool, drops: list[Line]) -> Iterator[tuple[int, Line]]:
    """Yield (wall ns, line) for everything that a writer left."""
    path = folder.writer(writer)
    with Tail(path, folder.id) as tail:
        for chunk in tail.read(dead=is_dead(path, folder.id, assume=dead)):
            yield from _chunk_lines(chunk, writer)
    counts = read_drop_counts(path)
    if counts:
        drops.append({"kind": "drops", "writer": writer, "counts": counts})


def _chunk_lines(chunk: Chunk, writer: str) -> Iterator[tuple[int, Line]]:
    """Yield a chunk's lines; what has no time of its own has 0, and so comes with what was before it."""
    gaps = iter(sorted(chunk.gaps))
    gap = next(gaps, None)
    for damage in chunk.damage:
        body = damage.as_dict()
        yield 0, {"kind": "damage", "writer": writer, "damage": body.pop("kind"), **body}
    for item in chunk.items:
        for seq, wall, line in _item_lines(item, chunk.header, writer):
            while gap is not None and gap[0] < seq:
                yield 0, _gap_line(gap, writer)
                gap = next(gaps, None)
            yield wall, line
    while gap is not None:
        yield 0, _gap_line(gap, writer)
        gap = next(gaps, None)


def _gap_line(gap: tuple[int, int, str], writer: str) -> Line:
    return {"kind": "gap", "writer": writer, "sequences": [gap[0], gap[1]], "reason": gap[2]}


def _item_lines(item: MetricBatch | Record, header: SegmentHeader, writer: str) -> Iterator[tuple[int, int, Line]]:
    label = records.label(item.kind)
    if isinstance(item, MetricBatch):
        for row in item.rows:
            wall = header.wall_ns(row[BOOT])
            time = row[5] if item.flags & HAS_TIME else (row[BOOT] - header.origin_boot) / 1e9
            stamp = row[item.values_at - 1] * 1000 if item.flags & HAS_TIMESTAMP else wall
            line = _base(label, writer, row[SEQ], time, output.iso_ns(stamp), wall)
            line["step"], line["values"] = row[STEP], item.values(row)
            yield row[SEQ], wall, line
        return
    wall, body = header.wall_ns(item.boot_ns), dict(item.body or {})
    time = (item.boot_ns - header.origin_boot) / 1e9
    if item.kind in {Kind.METRICS_JSON, Kind.RESOURCES_JSON, Kind.EVENT}:
        given, stamp = body.pop("time", None), body.pop("timestamp", None)
        line = _base(label, writer, item.seq, time if given is None else given, _stamp(stamp, wall), wall)
        line |= {k: v for k, v in body.items() if k not in line}
    else:
        line = _base(label, writer, item.seq, time, output.iso_ns(wall), wall)
        if item.body is None:
            line["raw"] = base64.b64encode(item.raw).decode()
        else:
            line["body"] = body
    yield item.seq, wall, line


def _base(label: str, writer: str, seq: int, time: Any, timestamp: str, wall: int) -> Line:
    return {"kind": label, "writer": writer, "seq": seq, "time": time, "timestamp": timestamp, "recorded": output.iso_ns(wall)}


def _stamp(given: Any, wall: int) -> str:
    """Return a timestamp for reading: µs since 1970 as ISO 8601, text as it was given, else the wall clock's."""
    if isinstance(given, int):
        return output.iso_ns(given * 1000)
    return output.iso_ns(wall) if given is None else str(given)


def _print(line: Line) -> None:
    kind, writer = line["kind"], line["writer"][-6:]
    if kind in _SPECIAL:
        rest = " ".join(f"{k}={v}" for k, v in line.items() if k not in {"kind", "writer"})
        output.echo(f"{'':27} {writer} {'':>8} {kind:<14} {output.safe(rest)}")
        return
    if kind in {"metrics", "resources"}:
        text = f"step {line['step']}  " + "  ".join(f"{k}={v!r}" for k, v in line["values"].items())
    elif kind == "event":
        text = str(line.get("message"))
    else:
        text = output.json_line(line["body"]) if "body" in line else f"{len(line['raw']) * 3 // 4} bytes of a kind of your own"
    if len(text) > _TEXT_MAX:
        text = f"{text[:_TEXT_MAX]} ... ({len(text):,} characters; --json shows all)"
    output.echo(f"{line['timestamp']:<27} {writer} {line['seq']:>8} {kind:<14} {output.safe(text)}")
