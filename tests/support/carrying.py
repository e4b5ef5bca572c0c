"""Carrying in one process: what an origin gives out, kept as a bundle would keep it, and brought to a far spool whole, in part or twice."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sides import SERVER, Side

from simspool.agent.carry.incoming import Incoming
from simspool.agent.carry.outgoing import Outgoing
from simspool.agent.carry.parts import HEAD, BlobPart, NotTaken, RunPart, SegmentPart
from simspool.spool import RunFolder, Spool, layout


@dataclass
class Parcel:
    """Everything of one carry."""

    origin: str
    runs: list[RunPart] = field(default_factory=list)
    blobs: list[tuple[str, BlobPart, bytes]] = field(default_factory=list)
    segments: list[tuple[SegmentPart, bytes]] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)

    def members(self) -> Iterator[tuple[str, object, bytes]]:
        """Yield what there is in order: (begin | blob | segment | end, part, bytes)."""
        for run in self.runs:
            yield "begin", run, b""
            yield from (("blob", blob, data) for of, blob, data in self.blobs if of == run.run)
            yield from (("segment", part, data) for part, data in self.segments if part.run == run.run)
            yield "end", run, b""


def settle(side: Side) -> None:
    """Take in everything that is there, and bury the dead, as `agent bundle create` begins."""
    for _ in range(3):
        side.take_in()
        if not side.ingest.bury():
            return


def pack(side: Side, runs: Collection[str] | None = None, *, full: bool = False, server: str = SERVER) -> Parcel:
    """Return what the far side lacks of what is taken in."""
    out = Outgoing(side.spool, side.catalog, server, runs, full=full)
    parcel = Parcel(side.spool.id, out.runs())
    for run in parcel.runs:
        parcel.blobs += [(run.run, part, Path(path).read_bytes()) for part, path in out.blobs(run.run)]
        parcel.segments += list(out.segments(run.run))
    parcel.problems = out.problems
    return parcel


def put(incoming: Incoming, kind: str, part: object, data: bytes) -> bool:
    """Put one member; True when something was new."""
    if isinstance(part, RunPart):
        (incoming.begin_run if kind == "begin" else incoming.end_run)(part)
        return False
    if isinstance(part, BlobPart):
        return incoming.blob(part, [data[:7], data[7:]])
    assert isinstance(part, SegmentPart)
    return incoming.segment(part, data)


def bring(
    spool: Spool, parcel: Parcel, *, only: Callable[[int], bool] = lambda _: True, upto: int = 1 << 62,
    pruned: Callable[[str], Mapping[str, int] | None] = lambda _: None,
) -> tuple[int, list[str]]:  # fmt: skip
    """Import a parcel: those members (by number) that `only` says, the first `upto`; return how many were new, and what was not taken."""
    new, refused = 0, []
    with Incoming(spool, parcel.origin, via="bundle", pruned=pruned) as incoming:
        for n, (kind, part, data) in enumerate(parcel.members()):
            if n >= upto:
                break
            if only(n):
                try:
                    new += put(incoming, kind, part, data)
                except NotTaken as error:
                    refused.append(str(error))
    return new, refused


def segments_of(run: RunFolder) -> dict[tuple[str, int], tuple[bytes, bool]]:
    """Return a run's segments: (writer, number) -> bytes, and whether it is sealed."""
    return {
        (writer, s.number): (Path(s.path).read_bytes(), s.sealed)
        for writer in run.writer_ids()
        for s in layout.segments(run.writer(writer))
    }  # fmt: skip


def differences(origin: Spool, far: Spool, run: str, *, whole: bool) -> list[str]:
    """Say where the far side's files of a run are no prefix of the origin's; with `whole`, where they are not the same."""
    ours, theirs = segments_of(origin.run(run)), segments_of(far.run(run))
    found = [f"{key} is not in the origin" for key in theirs.keys() - ours.keys()]
    for key, (data, sealed) in ours.items():
        there, sealed_there = theirs.get(key, (b"", False))
        if there and (there[:256] != data[:256] or not data[HEAD:].startswith(there[HEAD:])):
            found.append(f"{key} has other bytes there")
        if sealed_there and (not sealed or data != there):
            found.append(f"{key} is sealed there")
        if whole and (sealed != sealed_there or data.rstrip(b"\0") != there.rstrip(b"\0")):
            found.append(f"{key} has {len(there)} bytes there, and {len(data)} here")
    if whole:
        blobs = [sorted(os.listdir(s.run(run).blobs)) if os.path.isdir(s.run(run).blobs) else [] for s in (origin, far)]
        found += [f"files {blobs[0]} here, {blobs[1]} there"] if blobs[0] != blobs[1] else []
    return found


def tree(folder: str | Path) -> dict[str, str]:
    """Return every file below a folder with a digest of mode and bytes, links and folders too."""
    found = {}
    for base, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = os.path.join(base, name)
            info = os.lstat(path)
            content = Path(path).read_bytes() if os.path.isfile(path) and not os.path.islink(path) else b""
            found[os.path.relpath(path, folder)] = f"{info.st_mode:o} {info.st_nlink} {hashlib.sha256(content).hexdigest()}"
    return found
