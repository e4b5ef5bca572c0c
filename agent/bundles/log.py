"""Which bundles a spool has imported, and from which spools; the names of receipts."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from simspool.agent.carry.carried import read
from simspool.agent.carry.custody import carried_from
from simspool.agent.catalog import Catalog
from simspool.spool import Spool, atomic, ids

from .taking import Taken


def _path(spool: Spool, bundle: str) -> str:
    return os.path.join(spool.agent, "carried", f"{bundle}.json")


def note_import(spool: Spool, taken: Taken) -> None:
    """Note that all of a bundle is here now. A courtesy: it is what a second import says, nothing hangs on it."""
    path = _path(spool, taken.bundle)
    with contextlib.suppress(OSError):
        atomic.make_folder(os.path.dirname(path))
        atomic.write_json(path, {"from": taken.origin, "at": time.time()}, exclusive=True)


def imported(spool: Spool, bundle: str) -> float | None:
    """Return when all of a bundle was first here (wall s), None where it was not."""
    try:
        at = atomic.read_json(_path(spool, bundle))["at"]
        return float(at)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def origins(spool: Spool, catalog: Catalog) -> list[str]:
    """Return the ids of the spools from which runs were carried here, also of runs that are pruned."""
    found = {carried.origin for run in spool.run_ids() if (carried := read(spool.run(run))) is not None}
    prefix = carried_from("")
    rows = catalog.rows("SELECT DISTINCT server FROM ids WHERE server >= ? AND server < ?", (prefix, prefix + "~"))
    found |= {server.removeprefix(prefix) for (server,) in rows}
    return sorted(one for one in found if ids.is_id(one))


def receipt_name(body: Mapping[str, Any]) -> str:
    """Return the name of a receipt's file."""
    when = f"{datetime.fromtimestamp(body['at'], UTC):%Y%m%dT%H%M%SZ}"
    return f"simspool-{body['for'][-8:]}-{when}-{body['id'][-8:]}.receipt"
