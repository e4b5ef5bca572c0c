"""Requests to a running script: files in the run's `control/` folder (FORMAT.md section 2).

A file is enough for an abort to happen; a datagram with the same content only makes it sooner. A request has an id, and whoever acts on it
acts once per id. It names the writers that were open when it was decided: later openings of the run are not meant, unless it is sticky.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from . import atomic, layout, records
from .layout import RunFolder, Spool
from .process import this_host

_ID = re.compile(r"[0-9a-f]{32}\Z")
_LIMIT = 4 << 20  # bytes of a request: 100,000 writers
_LONGEST_REASON = 4000  # characters
SOURCES = ("alert", "user", "script", "server")


@dataclass(frozen=True, slots=True)
class AbortRequest:
    """A request to stop a run.

    `id`: 32 hex digits. `by`: alert, user, script or server. `alert` names the alert. `writers`: the ids of those that are meant.
    `wall` and `boot` (ns) with `boot_id` (hex) say when it was decided.
    """

    id: str
    reason: str
    by: str = "user"
    alert: str | None = None
    sticky: bool = False
    writers: tuple[str, ...] = ()
    wall: int = 0
    boot: int = 0
    boot_id: str = ""

    def concerns(self, writer: str) -> bool:
        """Say whether a writer is meant."""
        return self.sticky or writer in self.writers

    def encode(self) -> bytes:
        """Return the request as JSON."""
        return json.dumps(self._as_dict(), sort_keys=True).encode()

    def _as_dict(self) -> dict[str, Any]:
        return {
            "id": self.id, "reason": self.reason, "by": self.by, "alert": self.alert, "sticky": self.sticky, "writers": list(self.writers),
            "at": {"wall": self.wall, "boot": self.boot, "boot_id": self.boot_id},
        }  # fmt: skip


def decode_request(data: bytes) -> AbortRequest:
    """Return the request in a file's or a datagram's bytes. Raises ValueError when it is none."""
    try:
        return _parse(json.loads(data))
    except RecursionError:
        raise ValueError("an abort request is nested too deeply") from None


def _parse(body: Any) -> AbortRequest:
    if not isinstance(body, dict):
        raise ValueError("an abort request is an object")  # noqa: TRY004 - of the bytes, not the caller
    at, writers = body.get("at"), body.get("writers")
    identity, reason, by, alert = body.get("id"), body.get("reason"), body.get("by"), body.get("alert")
    if (
        not isinstance(identity, str)
        or not _ID.match(identity)
        or not isinstance(reason, str)
        or by not in SOURCES
        or not isinstance(writers, list)
        or not all(isinstance(w, str) for w in writers)
        or not isinstance(at, dict)
        or not (alert is None or isinstance(alert, str))
    ):
        raise ValueError("not an abort request")
    wall, boot, boot_id = at.get("wall"), at.get("boot"), at.get("boot_id")
    if not isinstance(wall, int) or not isinstance(boot, int) or not isinstance(boot_id, str):
        raise ValueError("an abort request without a time")  # noqa: TRY004
    return AbortRequest(identity, reason[:_LONGEST_REASON], by, alert, body.get("sticky") is True, tuple(writers), wall, boot, boot_id)


def make_request(
    run: RunFolder, identity: str, reason: str, *, by: str, alert: str | None = None, sticky: bool = False,
    writers: tuple[str, ...] | None = None,
) -> AbortRequest:  # fmt: skip
    """Return a request decided now, for the writers that are open now (or those given). It has no effect before `put_request`."""
    meant = open_writers(run) if writers is None else writers
    boot = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return AbortRequest(identity, reason[:_LONGEST_REASON], by, alert, sticky, meant, time.time_ns(), boot, this_host().boot_id.hex())


def put_request(run: RunFolder, request: AbortRequest) -> bool:
    """Write a request durably; False when one of this id is there already. Raises OSError."""
    atomic.make_folder(run.control)
    return atomic.write_file(os.path.join(run.control, f"abort-{request.id}.json"), request.encode() + b"\n", exclusive=True)


def requests(run: RunFolder, known: Collection[str] = ()) -> list[AbortRequest]:
    """Return the run's requests, the oldest first, without those whose ids are `known`. What is no request is left out."""
    found = []
    try:
        names = os.listdir(run.control)
    except OSError:
        return []
    for name in names:
        if name.startswith("abort-") and name.endswith(".json") and name[6:-5] not in known:
            try:
                request = _parse(atomic.read_json(os.path.join(run.control, name), _LIMIT))
            except (OSError, ValueError):
                continue
            if request.id == name[6:-5]:
                found.append(request)
    return sorted(found, key=lambda r: (r.wall, r.id))


def open_writers(run: RunFolder) -> tuple[str, ...]:
    """Return the ids of the writers that have an open segment, or none at all yet: those that may still record."""
    return tuple(
        w for w in run.writer_ids()
        if not (found := layout.segments(run.writer(w))) or not all(s.sealed for s in found)
    )  # fmt: skip


def notice_path(bell: str, writer: str) -> str:
    """Return the datagram socket on which a writer's process hears of requests, beside the agent's bell."""
    return os.path.join(os.path.dirname(bell), f"w-{writer}")


def alerts_folder(run: RunFolder) -> str:
    """Return where a run keeps the definitions of its alerts."""
    return os.path.join(run.control, "alerts")


def shared_alerts(spool: Spool) -> str:
    """Return where a spool keeps all definitions, for use in other runs."""
    return os.path.join(spool.path, "alerts")


def alert_file(run: RunFolder, name: str) -> str:
    """Return where a run keeps the definition of its alert of this name."""
    import hashlib

    return os.path.join(alerts_folder(run), hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:32] + ".json")


def shared_alert_file(spool: Spool, identity: str) -> str:
    """Return where a spool keeps the definition of an alert. Raises ValueError for what is no id."""
    from . import ids

    ids.from_text(identity)
    return os.path.join(shared_alerts(spool), f"{identity}.json")


def keep_alert(path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Write an alert's body durably unless one is there; return what is there now. Raises OSError."""
    atomic.make_folder(os.path.dirname(path))
    if atomic.write_file(path, records.encode(dict(body)) + b"\n", exclusive=True):
        return dict(body)
    return read_alert(path) or dict(body)


def read_alert(path: str) -> dict[str, Any] | None:
    """Return an alert's body from its file; None when there is none, or what is there is no alert."""
    try:
        with open(path, "rb") as f:
            body = records.decode(f.read(_LIMIT))
    except (OSError, ValueError):
        return None
    return body if isinstance(body.get("id"), str) and isinstance(body.get("name"), str) else None


def alerts_in(folder: str) -> list[dict[str, Any]]:
    """Return the bodies of all alerts in a folder of them, by name and id."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    found = [body for name in names if name.endswith(".json") and (body := read_alert(os.path.join(folder, name))) is not None]
    return sorted(found, key=lambda body: (body["name"], body["id"]))
