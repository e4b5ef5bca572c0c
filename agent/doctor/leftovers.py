"""What went wrong before: damage that was set aside, what targets refused, what killed operations left."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from urllib.parse import quote

from simspool.agent.catalog.store import catalog_path
from simspool.spool import Spool, layout

from .findings import Finding, Site

_DAY = 86400.0
_REFUSED = (  # as `agent dead ls` counts: the rest of a writer, single records, files; not what was given up
    "SELECT (SELECT count(*) FROM cursors c WHERE blocked IS NOT NULL AND NOT EXISTS"
    " (SELECT 1 FROM given_up g WHERE g.server = c.server AND g.writer = c.writer AND g.seq = 0))"
    " + (SELECT count(*) FROM refused) + (SELECT count(*) FROM uploads WHERE state = 'refused')"
)


def leftovers(site: Site) -> Iterator[Finding]:
    """Count what is in the quarantine and in the dead letter; the spool's segments are not read (`agent check` does)."""
    if not site.is_there():
        yield Finding("damage", "skipped", "there is no spool yet")
        return
    spool = site.spool()
    count = sum(1 for _ in layout.walk_files(spool.quarantine)) if os.path.isdir(spool.quarantine) else 0
    if count:
        text = f"{count} files are in {spool.quarantine}: copies of what was damaged, or lines that were not understood"
        yield Finding("damage", "warn", text, "`agent check` says what of", {"quarantine": count})
    else:
        yield Finding("damage", "ok", "nothing is in quarantine", "", {"quarantine": 0})
    refused = _refused(catalog_path(spool))
    if refused is None:
        yield Finding("dead letter", "skipped", "the agent has no index here yet that could tell")
    elif refused:
        text = f"{refused} entries were refused by targets"
        yield Finding("dead letter", "warn", text, "`agent dead ls` shows the reasons", {"refused": refused})
    else:
        yield Finding("dead letter", "ok", "no target has refused anything", "", {"refused": 0})
    old = _temporary(spool)
    if old:
        yield Finding("temporary files", "warn", f"{old} were left by killed operations", "`agent check --repair`", {"files": old})
    else:
        yield Finding("temporary files", "ok", "none were left behind", "", {"files": 0})


def _refused(path: str) -> int | None:
    """Count by the agent's index, which is only read; None where there is none."""
    if not os.path.exists(path):
        return None
    # without a log beside it nobody has it open, and to open it as usual would leave one
    how = "mode=ro" if os.path.exists(f"{path}-wal") else "mode=ro&immutable=1"
    try:
        connection = sqlite3.connect(f"file:{quote(path)}?{how}", uri=True, timeout=10)
        try:
            return int(connection.execute(_REFUSED).fetchone()[0])
        finally:
            connection.close()
    except sqlite3.Error:
        return None


def _temporary(spool: Spool) -> int:
    before, count = time.time() - _DAY, 0
    for folder in (spool.path, spool.agent, spool.quarantine):
        try:
            entries = os.scandir(folder)
        except OSError:
            continue
        with entries:
            count += sum(1 for e in entries if ".tmp-" in e.name and e.is_file(follow_symlinks=False) and e.stat().st_mtime < before)
    return count
