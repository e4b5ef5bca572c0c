"""What the dialect's bodies must look like. Each function returns a clean copy, or raises Invalid and names the key."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from simspool.agent.alerts.rules import InvalidRule, parse_rule
from simspool.spool.alert_definition import RULES, SOURCES
from simspool.spool.ids import is_digest
from simspool.spool.records import STATUSES

from . import access, columns
from .artifacts import CATEGORIES
from .errors import Invalid
from .points import PointBatch
from .times import from_text, now_us

MAX_NAME, MAX_TEXT, MAX_TAGS, MAX_ROWS = 1024, 1 << 20, 1000, 200_000
_LEVELS = ("debug", "info", "warning", "error", "critical")
_NOTIFICATIONS = ("none", "all", "error", "lost", "email")
_OWN_RULES = frozenset(RULES) - {"is above", "is below", "is inside range", "is outside range"}


def text(body: Mapping[str, Any], key: str, *, most: int = MAX_NAME, optional: bool = False, empty: bool = False) -> str | None:
    """Return a text of the body, or None where it may be absent."""
    value = body.get(key)
    if value is None and optional:
        return None
    if not isinstance(value, str) or (not value and not empty):
        raise Invalid(f"{key}: text is expected")
    if len(value) > most:
        raise Invalid(f"{key}: {len(value)} characters are too many (at most {most})")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Invalid(f"{key}: the text holds lone surrogates") from None
    if "\0" in value:
        raise Invalid(f"{key}: the text holds a NUL character")
    return value


def name(body: Mapping[str, Any], key: str = "name") -> str:
    """Return a name: text without control characters. It may look like a path; it is never used as one."""
    value = text(body, key)
    assert value is not None
    if any(ord(c) < 32 or ord(c) == 127 for c in value):
        raise Invalid(f"{key}: control characters are not allowed")
    return value


def number(body: Mapping[str, Any], key: str, default: float | None = None, *, least: float = -math.inf) -> float | int | None:
    """Return a finite number of the body."""
    value = body.get(key, default)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < 1e15:
        raise Invalid(f"{key}: a number is expected")
    return value


def integer(value: Any, key: str, least: int = -(1 << 63), beyond: int = 1 << 63) -> int:
    """Return an integer of 64 bits."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < beyond:
        raise Invalid(f"{key}: an integer from {least} on is expected")
    return value


def tags(body: Mapping[str, Any]) -> list[str]:
    """Return a list of tags, each once, in order."""
    value = body.get("tags")
    if not isinstance(value, list) or len(value) > MAX_TAGS:
        raise Invalid(f"tags: a list of at most {MAX_TAGS} is expected")
    return list(dict.fromkeys(name({"tags": tag}, "tags") for tag in value))


def keyed(body: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return an object of the body, whose keys are text."""
    value = body.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
        raise Invalid(f"{key}: an object is expected")
    return value


def run(body: Mapping[str, Any], *, new: bool) -> dict[str, Any]:
    """Return a run's body, to create (`new`) or to change one. Keys that runs do not have are left out."""
    out: dict[str, Any] = {}
    if new or "folder" in body:
        out["folder"] = folder_path({"folder": body.get("folder", "/")}, "folder")
    if body.get("name") is not None:
        out["name"] = name(body)
    if "status" in body:
        if body["status"] not in STATUSES:
            raise Invalid(f"status: {str(body['status'])[:40]!r} is not one of {', '.join(STATUSES)}")
        out["status"] = body["status"]
    if "description" in body:
        out["description"] = text(body, "description", most=MAX_TEXT, optional=True, empty=True)
    if body.get("tags") is not None:
        out["tags"] = tags(body)
    for key in ("metadata", "system"):
        if body.get(key) is not None:
            out[key] = keyed(body, key)
    for key in ("ttl", "heartbeat_timeout"):
        if key in body:
            out[key] = number(body, key, least=0)
    if body.get("visibility") is not None:
        out["visibility"] = access.normalise(body["visibility"])
    if body.get("alerts") is not None:
        out["alerts"] = names(body["alerts"], "alerts")
    if body.get("notifications") is not None:
        value = body["notifications"]
        state = value.get("state") if isinstance(value, dict) else value
        if state not in _NOTIFICATIONS:
            raise Invalid(f"notifications: not one of {', '.join(_NOTIFICATIONS)}")
        out["notifications"] = {"state": state}
    for key in ("started", "endtime"):
        if body.get(key) is not None:
            out[key] = from_text(body[key], key)
    return out


def names(value: object, key: str) -> list[str]:
    """Return a list of ids or names."""
    if not isinstance(value, list) or len(value) > 100_000 or not all(isinstance(v, str) and len(v) <= MAX_NAME for v in value):
        raise Invalid(f"{key}: a list of text is expected")
    for entry in value:
        text({key: entry}, key, empty=True)
    return value


def folder_path(body: Mapping[str, Any], key: str = "path") -> str:
    """Return a folder's path: it begins with / and names things in the dialect, never on disk."""
    value = name(body, key)
    if not value.startswith("/"):
        raise Invalid(f"{key}: a folder's path begins with /")
    return value if value == "/" else value.rstrip("/") or "/"


def document(kind: str, body: Mapping[str, Any], *, new: bool) -> dict[str, Any]:
    """Return the body of a folder, tag, alert, grid or storage. Unknown keys are kept: they are the user's."""
    out = {k: v for k, v in body.items() if isinstance(k, str) and k not in {"id", "obj_type"}}
    if kind == "folder" and (new or "path" in out):
        out["path"] = folder_path(out)
    elif kind != "folder" and (new or "name" in out):
        out["name"] = name(out)
    if out.get("tags") is not None:
        out["tags"] = tags(out)
    if out.get("metadata") is not None:
        keyed(out, "metadata")
    if out.get("description") is not None:
        text(out, "description", most=MAX_TEXT, empty=True)
    if "visibility" in out:
        access.normalise(out["visibility"])
    if kind == "alert":
        _alert(out, new=new)
    elif kind == "grid" and (new or "grid" in out):
        _grid(out)
    elif kind == "storage" and new and out.get("backend") not in {"S3", "File"}:
        raise Invalid("backend: S3 or File is expected")
    return out


def _alert(out: dict[str, Any], *, new: bool) -> None:
    if new and out.get("source") not in SOURCES:
        raise Invalid("source: events, metrics or user is expected")  # those of the dialect; alerts about alerts are of ours alone
    if "notification" in out and out["notification"] not in _NOTIFICATIONS:
        raise Invalid(f"notification: not one of {', '.join(_NOTIFICATIONS)}")
    definition = out.get("alert")
    if definition is not None and not isinstance(definition, dict):
        raise Invalid("alert: an object is expected")
    if new and out["source"] == "events" and not isinstance((definition or {}).get("pattern"), str):
        raise Invalid("alert.pattern: text is expected")
    if new and out["source"] == "alerts":
        _own_rule(out)
    if new and out["source"] == "metrics":
        definition = definition or {}
        if str(definition.get("rule")) in _OWN_RULES:
            _own_rule(out)
            return
        name(definition, "metric")
        if "threshold" in definition:
            number(definition, "threshold")
        elif number(definition, "range_low") is None or number(definition, "range_high") is None:
            raise Invalid("alert: `threshold`, or `range_low` and `range_high`, is expected")
        elif definition["range_low"] >= definition["range_high"]:
            raise Invalid("alert.range_low: it must be below range_high")


def _own_rule(out: Mapping[str, Any]) -> None:
    """Check a rule that only our agents judge as they do themselves."""
    try:
        parse_rule({"id": "alert", "name": out["name"], "source": out["source"], "alert": out.get("alert")})
    except InvalidRule as error:
        raise Invalid(f"alert: {error}") from None


def _grid(out: dict[str, Any]) -> None:
    axes = out.get("grid")
    if not isinstance(axes, list) or not 1 <= len(axes) <= 2:
        raise Invalid("grid: one or two axes are expected")
    for axis in axes:
        if not isinstance(axis, list) or not axis or not all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in axis):
            raise Invalid("grid: an axis is a list of numbers")
        if list(axis) != sorted(axis) and list(axis) != sorted(axis, reverse=True):
            raise Invalid("grid: an axis must be ordered")
    labels = out.get("labels", [])
    if not isinstance(labels, list) or (labels and len(labels) != len(axes)):
        raise Invalid("labels: one for each axis is expected")


def artifact(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return an artifact's body."""
    digest = body.get("checksum")
    if not is_digest(digest):
        raise Invalid("checksum: the SHA-256 in lower-case hex is expected")
    return {
        "name": name(body),
        "checksum": digest,
        "size": integer(body.get("size"), "size", 0, 1 << 62),
        "mime_type": text(body, "mime_type", optional=True, empty=True),
        "original_path": text(body, "original_path", most=1 << 16, optional=True, empty=True) or "",
        "metadata": keyed(body, "metadata"),
    }


def category(body: Mapping[str, Any]) -> str:
    """Return an artifact's category."""
    if body.get("category") not in CATEGORIES:
        raise Invalid(f"category: one of {', '.join(CATEGORIES)} is expected")
    return str(body["category"])


def events(rows: object) -> list[tuple[int, str | None, str]]:
    """Return (time µs, level, message) of the events of a body."""
    if not isinstance(rows, list) or len(rows) > MAX_ROWS:
        raise Invalid(f"events: a list of at most {MAX_ROWS} is expected")
    out = []
    for row in rows:
        if not isinstance(row, dict):
            raise Invalid("events: objects are expected")
        message = text(row, "message", most=MAX_TEXT, empty=True)
        level = row.get("log_level")
        if level is not None and level not in _LEVELS:
            raise Invalid(f"log_level: one of {', '.join(_LEVELS)} is expected")
        stamp = row.get("timestamp")
        out.append((now_us() if stamp is None else from_text(stamp), level, message or ""))
    return out


def metrics(rows: object, first: int, wall: int) -> list[PointBatch]:
    """Return the points of a body as batches of one shape, with sequences from `first` on and this wall time (ns)."""
    if not isinstance(rows, list) or len(rows) > MAX_ROWS:
        raise Invalid(f"metrics: a list of at most {MAX_ROWS} is expected")
    out: list[PointBatch] = []
    for seq, row in enumerate(rows, first):
        if not isinstance(row, dict) or not isinstance(row.get("values"), dict):
            raise Invalid("metrics: objects with `values` are expected")
        values = row["values"]
        if not values:
            raise Invalid("metrics: `values` is empty")
        step = integer(row.get("step", 0), "step")
        time, stamp = row.get("time", 0.0), row.get("timestamp")
        if isinstance(time, bool) or not isinstance(time, (int, float)):
            raise Invalid("time: seconds as a number are expected")
        at = None if stamp is None else from_text(stamp)
        types = "".join(columns.kind_of(v) for v in values.values())
        if "j" in types and not all(isinstance(v, (int, float)) for v in values.values()):
            raise Invalid("metrics: values are numbers or bools")
        keys = tuple(values)
        last = out[-1] if out else None
        if last is None or last.names != keys or last.types != types or (last.stamps is None) != (at is None):
            for key in keys:
                name({"values": key}, "values")
            last = PointBatch(keys, types, [], [], [], [], None if at is None else [], [[] for _ in keys])
            out.append(last)
        last.seqs.append(seq)
        last.walls.append(wall)
        last.steps.append(step)
        last.times.append(_seconds(time))
        if last.stamps is not None:
            last.stamps.append(at)
        for column, value in zip(last.values, values.values(), strict=True):
            column.append(value)
    return out


def _seconds(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        raise Invalid("time: seconds as a number are expected") from None


def arrays(rows: object) -> list[dict[str, Any]]:
    """Return the array metrics of a body."""
    if not isinstance(rows, list) or len(rows) > MAX_ROWS:
        raise Invalid(f"a list of at most {MAX_ROWS} array metrics is expected")
    out = []
    for row in rows:
        if not isinstance(row, dict):
            raise Invalid("array metrics: objects are expected")
        stamp = row.get("timestamp")
        out.append(
            {
                "metric": name(row, "metric"), "grid": name(row, "grid"), "step": integer(row.get("step", 0), "step"),
                "time": number(row, "time", 0.0), "timestamp": now_us() if stamp is None else from_text(stamp), "array": row.get("array"),
            }
        )  # fmt: skip
    return out


def unique(values: Iterable[str]) -> list[str]:
    """Return the values, each once, in order."""
    return list(dict.fromkeys(values))
