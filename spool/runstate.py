"""What a run's records add up to: one fold, used by the catalog, the server and the SDK's Client alike.

The fold is commutative between writers (each scalar is a register stamped with (wall ns, writer, sequence); the largest stamp wins), so
ranges may arrive in any order. Its state is plain JSON. It never raises for odd bodies: what it does not understand it leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .records import FINAL_STATUSES, STATUSES, Kind

Stamp = list[Any]  # [wall ns, writer, sequence]
_REGISTERS = ("name", "description", "folder", "visibility", "retention", "timeout", "system", "notification", "created")
_BADNESS = {"completed": 0, "lost": 1, "terminated": 2, "failed": 3}
_REASON = 2000  # characters
_UNSEEN = 1 << 63  # the sequence of a writer of which only others have told
_IMPLICIT = frozenset({"fork", "re-entrant"})
AGENTS = frozenset({"agent", "inbox"})  # roles of writers that an agent opened: no run waits for them
_ALERT_KINDS = frozenset({Kind.ALERT, Kind.ALERT_STATE, Kind.DECISION})
FOLDED_KINDS = _ALERT_KINDS | {Kind.RUN, Kind.ATTACH, Kind.METADATA, Kind.TAGS, Kind.STATUS, Kind.CONFIG, Kind.CLOSE, Kind.SURVIVOR}
MOST_ALERTS = 1000  # of one run; of more, those whose names come first
_ALERT_KEYS = ("id", "name", "source", "abort", "notification", "by", "since", "description", "alert")
_LONGEST = 4096  # characters of a reason or description
_DEFINED, _SAID, _DECIDED = "defined", "said", "decided"


def empty() -> dict[str, Any]:
    """Return the state of a run of which nothing is known."""
    return {
        "fields": {}, "metadata": {}, "config": {}, "tags": {"set": [[], [0, "", 0]], "added": {}}, "status": None, "writers": {},
        "alerts": {},
    }  # fmt: skip


def apply(state: dict[str, Any], writer: str, seq: int, kind: int, wall_ns: int, body: Mapping[str, Any] | None) -> None:
    """Fold one record into the state. Repeating a record changes nothing."""
    if body is None or kind not in FOLDED_KINDS:
        return
    stamp: Stamp = [wall_ns, writer, seq]
    if kind == Kind.RUN:
        _open_writer(state, stamp, "creator", None)
        for name in _REGISTERS:
            if name in body:
                _set(state["fields"], name, body[name], stamp)
        _merge(state["metadata"], body.get("metadata"), stamp)
        if isinstance(body.get("tags"), list):
            _set_tags(state, body["tags"], stamp)
        if body.get("status") in STATUSES:
            _set_status(state, body["status"], body.get("reason"), stamp)
    elif kind == Kind.ATTACH:
        _open_writer(state, stamp, role_of(kind, body), body.get("rank"))
    elif kind == Kind.METADATA:
        _merge(state["metadata"], body.get("set"), stamp)
    elif kind == Kind.CONFIG:
        _merge(state["config"], body.get("set"), stamp)
        fields = body.get("fields")
        if isinstance(fields, dict):
            for name in _REGISTERS:
                if name in fields:
                    _set(state["fields"], name, fields[name], stamp)
    elif kind == Kind.TAGS:
        tags = body.get("tags")
        if isinstance(tags, list):
            if body.get("op") == "set":
                _set_tags(state, tags, stamp)
            else:
                for tag in tags:
                    _set(state["tags"]["added"], str(tag), True, stamp)
    elif kind == Kind.STATUS:
        if body.get("status") in STATUSES:
            _set_status(state, body["status"], body.get("reason"), stamp)
    elif kind == Kind.CLOSE:
        entry = _open_writer(state, stamp, "attach", None)
        if entry.get("close_seq", 0) <= seq:
            entry.pop("survivor", None)  # its own word counts more
            entry.pop("drops", None)
            entry["close_seq"], entry["closed"], entry["status"] = seq, wall_ns, _final(body.get("status"), None)
            _set_reason(entry, body)
            if body.get("drops"):
                entry["drops"] = body["drops"]
    elif kind in _ALERT_KINDS:
        _fold_alert(state, stamp, kind, body)
    elif kind == Kind.SURVIVOR:
        dead = body.get("writer")
        if isinstance(dead, str):
            entry = state["writers"].setdefault(dead, {"opened": wall_ns, "as": "attach", "seq": _UNSEEN})
            if entry["seq"] == _UNSEEN:
                entry["opened"] = min(entry["opened"], wall_ns)
            known = entry.get("survivor")
            if "closed" not in entry and (known is None or stamp < known):
                entry["survivor"] = stamp
                entry["status"] = _final(body.get("status"), "lost")
                _set_reason(entry, body)


def role_of(kind: int, body: Mapping[str, Any] | None) -> str:
    """Return as what a writer opened the run, by its first record: creator, attach, reconnect, fork, re-entrant, agent or inbox."""
    if kind == Kind.RUN:
        return "creator"
    return str((body or {}).get("reason") or "attach") if kind == Kind.ATTACH else "attach"


def _set_reason(entry: dict[str, Any], body: Mapping[str, Any]) -> None:
    entry.pop("reason", None)
    if isinstance(body.get("reason"), str):
        entry["reason"] = body["reason"][:_REASON]


def _fold_alert(state: dict[str, Any], stamp: Stamp, kind: int, body: Mapping[str, Any]) -> None:
    """An alert's first definition, its last state and its last decision count."""
    if kind == Kind.DECISION and isinstance(body.get("watched"), dict):
        known = state.setdefault("watched", {})
        for writer, last in body["watched"].items():
            if isinstance(last, int):
                known[writer] = max(last, known.get(writer, 0))
        return
    name = body.get("name") if kind == Kind.ALERT else body.get("alert")
    if not isinstance(name, str) or not name:
        return
    found: dict[str, Any] = {}
    if kind == Kind.ALERT:
        found[_DEFINED] = [_definition(body), stamp]
    elif kind == Kind.ALERT_STATE:
        if body.get("state") not in ("ok", "critical"):  # not a set: what a record says may not be hashable
            return
        found[_SAID] = [body["state"], stamp]
    else:
        at, reason = body.get("at"), body.get("reason")
        if not isinstance(at, (int, float)) or not abs(at) < 1e15 or not isinstance(reason, str):
            return
        found[_DECIDED] = [reason[:_LONGEST], [at, *stamp]]  # in the order of what happened, not of when it was judged
    alerts = state.setdefault("alerts", {})  # states of an older version have none
    if name not in alerts and len(alerts) >= MOST_ALERTS:
        last = max(alerts)
        if name > last:
            return
        del alerts[last]
    entry = alerts.setdefault(name, {})
    for part, value in found.items():
        known = entry.get(part)
        if known is None or (value[1] < known[1] if part == _DEFINED else value[1] >= known[1]):
            entry[part] = value


def _definition(body: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: body[key] for key in _ALERT_KEYS if key in body}
    if isinstance(kept.get("description"), str):
        kept["description"] = kept["description"][:_LONGEST]
    return kept


def _final(status: Any, default: str | None) -> str | None:
    return status if isinstance(status, str) and status in FINAL_STATUSES else default


def _open_writer(state: dict[str, Any], stamp: Stamp, role: str, rank: Any) -> dict[str, Any]:
    """Return a writer's entry; its earliest record says when and as what it was opened."""
    wall_ns, writer, seq = stamp
    entry: dict[str, Any] = state["writers"].setdefault(writer, {"opened": wall_ns, "as": role, "seq": _UNSEEN})
    if seq < entry["seq"]:
        entry["opened"], entry["as"], entry["seq"] = wall_ns, role, seq
        entry.pop("rank", None)
        if isinstance(rank, int):
            entry["rank"] = rank
    return entry


def _set(registers: dict[str, Any], name: str, value: Any, stamp: Stamp) -> None:
    known = registers.get(name)
    if known is None or known[1] <= stamp:
        registers[name] = [value, stamp]


def _merge(registers: dict[str, Any], values: Any, stamp: Stamp) -> None:
    if isinstance(values, dict):
        for key, value in values.items():
            _set(registers, key, value, stamp)


def _set_tags(state: dict[str, Any], tags: list[Any], stamp: Stamp) -> None:
    if state["tags"]["set"][1] <= stamp:
        state["tags"]["set"] = [[str(t) for t in tags], stamp]


def _set_status(state: dict[str, Any], status: str, reason: Any, stamp: Stamp) -> None:
    known = state["status"]
    if known is None or known[2] <= stamp:
        state["status"] = [status, reason, stamp]


def value(state: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """Return a scalar of the run: name, description, folder, visibility, retention, timeout, system, notification, created."""
    known = state["fields"].get(name)
    return default if known is None or known[0] is None else known[0]


def metadata(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the run's metadata."""
    return {k: v[0] for k, v in sorted(state["metadata"].items())}


def config(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the run's options, as the SDK's `config` stored them."""
    return {k: v[0] for k, v in sorted(state["config"].items())}


def tags(state: Mapping[str, Any]) -> list[str]:
    """Return the run's tags: the last set, then what was added since, without duplicates."""
    base, since = state["tags"]["set"]
    added = sorted((v[1], t) for t, v in state["tags"]["added"].items() if v[1] > since)
    return list(dict.fromkeys([*base, *(t for _, t in added)]))


def alerts(state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the run's alerts by name, in order of names.

    Each has `definition` (the body of its first record; None where only its state is known), `state` ("ok", "critical", or None where
    nothing was said), `since` (wall ns of the record that said so, or None) and `reason` (of its last decision, or None).
    """
    out = {}
    for name, entry in sorted(state.get("alerts", {}).items()):
        said = entry.get(_SAID, [None, [None]])
        decided = entry.get(_DECIDED, [None])
        out[name] = {"definition": entry.get(_DEFINED, [None])[0], "state": said[0], "since": said[1][0], "reason": decided[0]}
    return out


def is_judged(state: Mapping[str, Any]) -> bool:
    """Say whether nothing is left to be judged: there are no alerts, or an agent noted of every writer that it has judged it to its end."""
    watched = state.get("watched", {})
    return not state.get("alerts") or all(w in watched or entry.get("as") == "agent" for w, entry in state["writers"].items())


def _current_writers(state: Mapping[str, Any]) -> tuple[int, list[dict[str, Any]]]:
    """Return when the current life of the run began (the last reconnect), and the writers that count in it: not agents'."""
    writers = [w for w in state["writers"].values() if w["as"] not in AGENTS]
    since = max((w["opened"] for w in writers if w["as"] == "reconnect"), default=0)
    return since, [w for w in writers if w["opened"] >= since or not is_ended(w)]


def is_ended(writer: Mapping[str, Any]) -> bool:
    """Say whether a writer (an entry of `state["writers"]`) has closed or was found dead; an agent's own never counts as open."""
    return "closed" in writer or "survivor" in writer or writer.get("as") in AGENTS


def ended(state: Mapping[str, Any]) -> bool:
    """Say whether all of the run's writers have ended (and there was one)."""
    return bool(state["writers"]) and all(is_ended(w) for w in state["writers"].values())


def status(state: Mapping[str, Any]) -> str:
    """Return the run's status.

    A final status that was set explicitly counts; else, once all writers have ended, the worst of theirs (a forked or re-entrant
    writer that vanished does not count); else created or running. A reconnect begins anew.
    """
    return _status_and_reason(state)[0]


def reason(state: Mapping[str, Any]) -> str | None:
    """Return why the run has its final status, as whoever set it, or the writer with that status, says. None where nobody does."""
    found, why = _status_and_reason(state)
    return why if found in FINAL_STATUSES else None


def _status_and_reason(state: Mapping[str, Any]) -> tuple[str, str | None]:
    since, writers = _current_writers(state)
    explicit = state["status"]
    if explicit is not None and explicit[0] in FINAL_STATUSES and explicit[2][0] >= since:
        return str(explicit[0]), explicit[1] if isinstance(explicit[1], str) else None
    if not writers or not all(is_ended(w) for w in writers):
        fresh = explicit is not None and (explicit[2][0] >= since or explicit[0] not in FINAL_STATUSES)
        return str(explicit[0]) if fresh and explicit[0] not in FINAL_STATUSES and since == 0 else "running", None
    found = [
        w
        for w in writers
        if w.get("status") and not (w["as"] in _IMPLICIT and ("survivor" in w or w["status"] == "completed"))
    ]
    if not found:
        # a run that was only created, to be reconnected to, and whose creator closed without a status, still waits
        waits = explicit is not None and explicit[0] == "created" and since == 0
        return "created" if waits else "completed", None
    worst = max(_BADNESS.get(w["status"], 0) for w in found)
    # of several with one status, the first that ended says why
    first = min((w for w in found if _BADNESS.get(w["status"], 0) == worst), key=lambda w: (_ended_at(w), w.get("reason", "")))
    return str(first["status"]), first.get("reason")


def started(state: Mapping[str, Any]) -> int | None:
    """Return when the first writer opened the run (wall ns)."""
    return min((int(w["opened"]) for w in state["writers"].values()), default=None)


def finished(state: Mapping[str, Any]) -> int | None:
    """Return when the last writer ended (wall ns), or None while one is open. What agents noted later does not count."""
    if not ended(state):
        return None
    writers = list(state["writers"].values())
    return max(_ended_at(w) for w in [w for w in writers if w["as"] not in AGENTS] or writers)


def _ended_at(writer: Mapping[str, Any]) -> int:
    return int(writer["closed"] if "closed" in writer else writer["survivor"][0] if "survivor" in writer else writer["opened"])
