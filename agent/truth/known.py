"""The targets that are configured, and which server each was at the last connect."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from simspool.agent.catalog import Catalog
from simspool.agent.targets.settings import BUNDLE, SERVER, TargetSettings

_BY_RECORD = frozenset({"simvue", "mlflow", "directory", BUNDLE})


@dataclass(frozen=True, slots=True)
class KnownTarget:
    """A target as the catalog knows it. `server` is the id that its receipts are bound to; empty while it was never reached."""

    name: str
    kind: str
    address: str
    required: bool = True
    server: str = ""


def known_targets(catalog: Catalog, settings: Iterable[TargetSettings]) -> list[KnownTarget]:
    """Return the targets of these settings, with the servers that they were last.

    Without any settings it is the server last seen, if there was one: what it has is worth knowing all the same.
    """
    servers = dict(catalog.rows("SELECT url, server FROM servers ORDER BY seen"))
    found = [
        KnownTarget(s.name, s.kind, s.address, s.required, s.address if s.kind == BUNDLE else servers.get(s.address, "")) for s in settings
    ]
    if len(found) == 1 and not found[0].server and not servers:
        # a catalog that was built anew, before anything has connected: it is the one of the latest receipt
        one = found[0]
        return [KnownTarget(one.name, one.kind, one.address, one.required, _latest(catalog))]
    if not found and (latest := _latest(catalog)):
        address = next((url for url, server in servers.items() if server == latest), "")
        return [KnownTarget(SERVER, "", address, True, latest)]
    return found


def counting(targets: Sequence[KnownTarget]) -> list[KnownTarget]:
    """Return those that decide whether something is delivered: the required ones; all where none is required."""
    return [t for t in targets if t.required] or list(targets)


def _latest(catalog: Catalog) -> str:
    row = catalog.one("SELECT server FROM servers ORDER BY seen DESC LIMIT 1")
    row = row or catalog.one("SELECT server FROM cursors WHERE server NOT LIKE ? ORDER BY at DESC LIMIT 1", (f"{BUNDLE}:%",))
    return str(row[0]) if row else ""


def files_by_record(catalog: Catalog, target: KnownTarget) -> bool:
    """Say whether a target keeps the files of each record, and not each content once: its receipts tell, else its kind."""
    row = catalog.one("SELECT digest FROM uploads WHERE server = ? LIMIT 1", (target.server,))
    return "." in row[0] if row else target.kind in _BY_RECORD
