"""Whether a dead writer's segment still holds what was taken in: the catalog is fsynced, a script's last second may not have been.

A power cut that takes bytes which the catalog knows leaves it ahead of the disk. Nothing of them was sent: what is sent is synced first.
"""

from __future__ import annotations

import os

from simspool.agent.catalog import Catalog
from simspool.spool import frames, ids, layout
from simspool.spool.records import UNSEQUENCED_KINDS
from simspool.spool.segment_header import seed as segment_seed

from .follow import Followed


def is_as_taken(catalog: Catalog, followed: Followed) -> bool:
    """Say whether the open segment that was read last has the frames that were taken from it. Sealed ones are durable, and not asked.

    Cost: reading one segment. True where that cannot be told: the disk refuses, the segment is gone.
    """
    rows = catalog.rows(
        'SELECT "first", start, "end", segment, chain, "last" FROM pieces WHERE writer = ?'
        ' AND segment = (SELECT max(segment) FROM pieces WHERE writer = ?) ORDER BY "first"',
        (followed.writer, followed.writer),
    )
    if not rows:
        return True
    expected, start, _, segment, chain, _ = rows[0]
    end, last = rows[-1][2], rows[-1][5]
    try:
        fd = os.open(layout.segment_path(followed.tail.folder, segment, "open"), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return True
    try:
        data = os.pread(fd, end - start, start)
    except OSError:
        return True
    finally:
        os.close(fd)
    at, seed = 0, segment_seed(ids.from_text(followed.writer), segment)
    while at + frames.MIN_FRAME <= len(data):
        verdict, length = frames.check_frame(data, seed, at)
        if verdict != "valid":
            at = data.find(frames.MARKER_BYTES, at + 1)  # between the frames of a salvaged piece lies what was no frame then either
            if at < 0:
                break
            continue
        kind, seq = data[at + 2], frames.HEAD.unpack_from(data, at)[4]
        at += length
        if kind not in UNSEQUENCED_KINDS and seq >= expected:
            chain = frames.extend_chain_gap(chain, seq - expected)
            chain, expected = frames.extend_chain(chain, (int.from_bytes(data[at - 4 : at], "little"),)), seq + 1
    return expected <= last + 1 and frames.extend_chain_gap(chain, last + 1 - expected) == followed.chain
