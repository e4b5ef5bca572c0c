"""Whether a dead writer's segment still holds what was taken in: the catalog is fsynced, a script's last second may not have been.

A power cut that takes bytes which the catalog knows leaves it ahead of the disk. Nothing of them was sent: what is sent is synced first.
"""

from __future__ import annotations

import os

from simspool.agent.catalog import Catalog
from simspool.agent.chains import chain_over, walk
from simspool.spool import ids, layout
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
    first, _, _, segment, chain, _ = rows[0]
    seed = segment_seed(ids.from_text(followed.writer), segment)
    try:
        fd = os.open(layout.segment_path(followed.tail.folder, segment, "open"), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return True
    try:
        found = (
            (seq, crc)
            for _, start, end, *_ in rows
            for seq, _, crc in walk(os.pread(fd, end - start, start), start, seed)
        )  # fmt: skip
        return chain_over(found, chain, first, rows[-1][5]) == followed.chain
    except OSError:
        return True
    finally:
        os.close(fd)
