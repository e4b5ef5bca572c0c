"""What people see first of a run in Simvue: its fields, metadata, status and alerts, made of the run's folded state. Pure."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from simspool.spool import runstate
from simspool.spool.records import FINAL_STATUSES

from .simvue_books import ALERTS, REASON
from .simvue_words import clean, metric_there, moment, name_there, word_there

_NOTIFICATIONS = ("none", "all", "error", "lost")
_AGGREGATIONS = ("average", "sum", "at least one", "all")
_THRESHOLDS, _RANGES = ("is above", "is below"), ("is inside range", "is outside range")
_BEYOND = ("hold", "hysteresis", "clear_after")
_DEFAULT_WINDOW = 5.0  # seconds, as spool/alert_definition.py has it


@dataclass(slots=True)
class Wanted:
    """What a run is to have. `fields` go as they are; `metadata` are merged there; `changed` is what is different, as (what, detail).

    `ended`: it has a final status, which is told after its points.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    alerts: dict[str, dict[str, Any]] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    changed: set[tuple[str, str]] = field(default_factory=set)
    ended: bool = False


def digest(value: Any) -> str:
    """Return what tells whether a value is the one that was sent."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:8]


def wanted(state: Mapping[str, Any]) -> Wanted:
    """Return what a run's state is in Simvue."""
    made = Wanted()
    if not state:
        made.fields["folder"] = "/"
        made.status = {"status": "running"}
        return made
    status = runstate.status(state)
    made.ended = status in FINAL_STATUSES
    made.status = {"status": status}
    finished = runstate.finished(state)
    if made.ended and finished is not None:
        made.status["endtime"] = moment(finished // 1000)
    name = runstate.value(state, "name")
    if isinstance(name, str) and name:
        made.fields["name"] = name_there(name)
        if made.fields["name"] != name:
            made.changed.add(("renamed", f"the run's name as {made.fields['name']}"))
    folder = runstate.value(state, "folder", "/")
    made.fields["folder"] = clean(folder) if isinstance(folder, str) and folder.startswith("/") else "/"
    description = runstate.value(state, "description")
    if isinstance(description, str):
        made.fields["description"] = clean(description)
    made.fields["tags"] = [_word(made, "tag", tag) for tag in runstate.tags(state)]
    seen = runstate.value(state, "visibility")
    if seen is not None:
        users = [str(u) for u in seen] if isinstance(seen, list) else []
        made.fields["visibility"] = {"public": seen == "public", "tenant": seen == "tenant", "users": users}
    retention = runstate.value(state, "retention")
    if isinstance(retention, int | float) and 1 <= retention < 1e12:
        made.fields["ttl"] = int(retention)
    timeout = runstate.value(state, "timeout")
    # once nobody sends heartbeats, a server must not call a run lost whose backlog takes longer than that
    beating = isinstance(timeout, int | float) and 1 <= timeout < 1e12 and not runstate.ended(state)
    made.fields["heartbeat_timeout"] = int(timeout) if beating else None
    system = runstate.value(state, "system")
    if isinstance(system, dict):
        made.fields["system"] = plain(system)
    told = runstate.value(state, "notification", "none")
    made.fields["notifications"] = {"state": told if told in _NOTIFICATIONS else "none"}
    started = runstate.started(state)
    if started is not None:
        made.fields["started"] = moment(started // 1000)
    for key, value in runstate.metadata(state).items():
        made.metadata[_word(made, "metadata", key)] = plain(value)
    why = runstate.reason(state)
    if why:
        made.metadata[REASON] = clean(why)
    _alerts(made, runstate.alerts(state))
    return made


def _word(made: Wanted, what: str, word: str) -> str:
    there = word_there(word)
    if there != word:
        made.changed.add(("renamed", f"{what} {clean(word)[:200]} as {there}"))
    return there


def plain(value: Any) -> Any:
    """Return a value that JSON has a form for; numbers that are not finite are text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(str(key)): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value


def _alerts(made: Wanted, alerts: Mapping[str, Mapping[str, Any]]) -> None:
    said = {}
    for name, alert in alerts.items():
        definition = alert["definition"]
        if definition is None:
            made.changed.add(("not kept", f"alert {clean(name)[:200]}: the run has no definition of it"))
        else:
            spare = alert_body(name, definition, known=False)
            made.alerts[name] = {"body": alert_body(name, definition), "spare": spare, "state": alert["state"]}
        if alert["state"] is not None:
            said[name_there(name)] = {"state": alert["state"]} | ({"reason": clean(alert["reason"])} if alert["reason"] else {})
    if said:
        made.metadata[ALERTS] = json.dumps(said, sort_keys=True)


def alert_body(name: str, definition: Mapping[str, Any], *, known: bool = True) -> dict[str, Any]:
    """Return an alert as Simvue takes it, with `abort` as it was defined.

    A rule that Simvue does not have (or any, where not `known`) becomes a user alert whose description says it: its state is ours to set.
    """
    meant = definition.get("alert")
    rule: Mapping[str, Any] = meant if isinstance(meant, dict) else {}
    source = str(definition.get("source"))
    found = _rule(source, rule) if known else None
    text = definition.get("description")
    description = clean(text) if isinstance(text, str) and text else None
    if found is None and source != "user":
        said = ", ".join(f"{key} {plain(value)}" for key, value in rule.items())
        description = f"{description + ' ' if description else ''}[judged by simspool: {source}: {said}]"[:4000]
    made: dict[str, Any] = {
        "name": name_there(name), "description": description, "enabled": True, "abort": definition.get("abort") is True,
        "notification": "email" if definition.get("notification") == "email" else "none", "source": source if found else "user",
    }  # fmt: skip
    if found:
        made["alert"] = found
    return made


def _rule(source: str, rule: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a definition in Simvue's words; None for one that it would judge otherwise."""
    if any(rule.get(key) for key in _BEYOND):
        return None
    frequency = _whole(rule.get("frequency"), 1)
    if source == "events":
        pattern = rule.get("pattern")
        plain_text = isinstance(pattern, str) and not pattern.startswith("re:")
        return {"pattern": clean(str(pattern)), "frequency": frequency} if plain_text and frequency else None
    window = _whole(rule.get("window"), int(_DEFAULT_WINDOW))
    metric, aggregation = rule.get("metric"), rule.get("aggregation", "average")
    if source != "metrics" or not frequency or not window or not isinstance(metric, str) or aggregation not in _AGGREGATIONS:
        return None
    named = metric if any(c in metric for c in "*?[") else metric_there(metric)
    made: dict[str, Any] = {"rule": rule.get("rule"), "metric": named, "aggregation": aggregation, "window": window, "frequency": frequency}
    if made["rule"] in _THRESHOLDS and _finite(rule.get("threshold")):
        return {**made, "threshold": float(rule["threshold"])}  # 0 is a threshold like any other
    if made["rule"] in _RANGES and _finite(rule.get("range_low")) and _finite(rule.get("range_high")):
        return {**made, "range_low": float(rule["range_low"]), "range_high": float(rule["range_high"])}
    return None


def _whole(value: Any, default: int) -> int:
    if value is None:
        return default
    return int(value) if isinstance(value, int | float) and value >= 1 and value == int(value) else 0


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def folder_body(body: Mapping[str, Any], changed: Callable[[str, str], None]) -> dict[str, Any]:
    """Return what a folder's record says in Simvue's words; `changed` is told what is different."""
    made: dict[str, Any] = {}
    if isinstance(body.get("description"), str):
        made["description"] = clean(body["description"])
    if isinstance(body.get("tags"), list):
        made["tags"] = [word_there(str(tag)) for tag in body["tags"]]
    if isinstance(body.get("metadata"), dict):
        made["metadata"] = {word_there(str(key)): plain(value) for key, value in body["metadata"].items()}
        for key in body["metadata"]:
            if word_there(str(key)) != key:
                changed("renamed", f"metadata {clean(str(key))[:200]} of a folder as {word_there(str(key))}")
    return made
