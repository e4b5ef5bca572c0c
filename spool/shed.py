"""What was deleted from a run on purpose, before any server had it: `shed.json` beside the run's writers (FORMAT.md section 12).

A reader that misses a segment or a blob finds here that this is no damage.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from . import atomic

NAME = "shed.json"


def path_of(run_path: str) -> str:
    """Return where a run says what was shed of it."""
    return os.path.join(run_path, NAME)


def _read(run_path: str) -> dict[str, Any]:
    try:
        body = atomic.read_json(path_of(run_path), 1 << 26)
    except (OSError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}


def segments(run_path: str, writer: str) -> list[tuple[int, int, int]]:
    """Return a writer's segments that were shed, as (number, first, last)."""
    listed = _read(run_path).get("segments")
    found = listed.get(writer) if isinstance(listed, dict) else None
    if not isinstance(found, list):
        return []
    return [(s[0], s[1], s[2]) for s in found if isinstance(s, list) and len(s) == 3 and all(isinstance(n, int) for n in s)]


def files(run_path: str) -> frozenset[str]:
    """Return the digests of the run's blobs that were shed. One that was saved again since is there all the same."""
    found = _read(run_path).get("blobs")
    return frozenset(found) if isinstance(found, dict) else frozenset()


def covers(writer_folder: str, numbers: Collection[int]) -> bool:
    """Say whether all these segments of a writer were shed."""
    folder = writer_folder.rstrip("/")
    known = {number for number, _, _ in segments(os.path.dirname(os.path.dirname(folder)), os.path.basename(folder))}
    return known.issuperset(numbers)


def note(run_path: str, spans: Mapping[str, Sequence[tuple[int, int, int]]], blobs: Mapping[str, int]) -> None:
    """Add segments, by writer, and blobs with their sizes to what was shed, durably. Repeating it is harmless. Raises OSError."""
    body = _read(run_path)
    listed: dict[str, list[list[int]]] = body.get("segments") or {}
    for writer, found in spans.items():
        listed[writer] = sorted([list(s) for s in {*map(tuple, listed.get(writer, [])), *map(tuple, found)}])
    atomic.write_json(path_of(run_path), {**body, "segments": listed, "blobs": {**(body.get("blobs") or {}), **blobs}})
