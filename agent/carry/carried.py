"""Which runs of a spool were recorded elsewhere and carried here (`carried.json`, FORMAT.md section 13).

A carried run is foreign, whatever host its headers name: its processes are nobody's here. It is ingested, drained, verified and pruned
like any other, and nothing else is done with it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from simspool.spool import RunFolder, Spool, atomic, ids, layout
from simspool.spool.ids import is_digest

from .parts import Position

_LIMIT = 1 << 26  # bytes


@dataclass(frozen=True, slots=True)
class Carried:
    """Where a run comes from (the origin spool's id), by which way ("bundle", "relay"), and what of it is here durably.

    `writers` says how far each writer is here, `files` the sizes (bytes) of its files by digest.
    """

    origin: str
    via: str
    writers: Mapping[str, Position] = field(default_factory=dict)
    files: Mapping[str, int] = field(default_factory=dict)

    def is_final(self, writer: str) -> bool:
        """Say whether a writer is here to its end."""
        known = self.writers.get(writer)
        return known is not None and known.final


def path_of(run: RunFolder) -> str:
    """Return where a run says that it was carried here."""
    return os.path.join(run.path, layout.CARRIED)


def read(run: RunFolder) -> Carried | None:
    """Return what a run's folder says of how it came here; None for one that was recorded here.

    A file that cannot be understood still says that the run is foreign: from nowhere, and nothing of it counts as noted.
    """
    try:
        body = atomic.read_json(path_of(run), _LIMIT)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return Carried("", "")
    if not isinstance(body, dict):
        return Carried("", "")
    origin, via = body.get("from"), body.get("via")
    return Carried(
        origin if isinstance(origin, str) else "",
        via if isinstance(via, str) else "",
        _positions(body.get("writers")),
        _files(body.get("files")),
    )


def _positions(found: Any) -> dict[str, Position]:
    out = {}
    for writer, entry in found.items() if isinstance(found, dict) else ():
        if isinstance(entry, dict) and ids.is_id(writer):
            position = Position.of_list([entry.get(key) for key in ("segment", "offset", "after", "final")])
            if position is not None:
                out[writer] = position
    return out


def _files(found: Any) -> dict[str, int]:
    if not isinstance(found, dict):
        return {}
    return {d: size for d, size in found.items() if is_digest(d) and type(size) is int and size >= 0}


def note(run: RunFolder, carried: Carried, at: float) -> None:
    """Write down how a run came here and what of it is here, atomically and durably. `at` is wall time (s). Raises OSError."""
    writers = {
        w: {"segment": p.segment, "offset": p.offset, "after": p.after, "final": p.final} for w, p in sorted(carried.writers.items())
    }
    body = {"from": carried.origin, "via": carried.via, "writers": writers, "files": dict(sorted(carried.files.items())), "at": at}
    atomic.write_json(path_of(run), body)


class CarriedRuns:
    """Looks up, cheaply, what was carried here. Safe to call from any thread.

    Whether a run is foreign is asked of the disk once: it says so before it has a writer, and never changes that. `forget` it when its
    folder goes.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._foreign: dict[str, bool] = {}
        self._final: dict[str, tuple[tuple[int, int, int], frozenset[str]]] = {}

    def is_carried(self, run: str) -> bool:
        """Say whether a run was recorded elsewhere."""
        known = self._foreign.get(run)
        if known is not None:
            return known
        folder = self._spool.run(run)
        has_writers = os.path.isdir(folder.writers)  # looked for first: what comes later says where it is from before
        found = folder.is_carried
        if found or has_writers:
            self._foreign[run] = found
        return found

    def is_final(self, run: str, writer: str) -> bool:
        """Say whether a writer of a carried run is here to its end. False for a run of this spool's own."""
        if not self.is_carried(run):
            return False
        folder = self._spool.run(run)
        try:
            info = os.stat(path_of(folder))
        except OSError:
            return False
        stamp = (info.st_ino, info.st_mtime_ns, info.st_size)
        known = self._final.get(run)
        if known is None or known[0] != stamp:
            carried = read(folder)
            known = stamp, frozenset(w for w, p in carried.writers.items() if p.final) if carried is not None else frozenset()
            self._final[run] = known
        return writer in known[1]

    def forget(self, run: str) -> None:
        """The run's folder is gone: another one of that name is asked anew."""
        self._foreign.pop(run, None)
        self._final.pop(run, None)
