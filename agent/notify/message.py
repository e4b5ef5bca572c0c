"""What people read: a message of one notice, or of many, in words, fields and JSON. Names may hold anything; none of it steers a reader."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from simspool.agent.alerts.rules import InvalidRule, parse_rule
from simspool.spool import runstate

from .queue import Notice

_LATE = 120.0  # s from the moment to its record: it was judged afterwards
_LINE = 500  # characters of one value
_SUBJECT = 180
_INPUTS = 20  # of a decision, in words


@dataclass(frozen=True, slots=True)
class Message:
    """A message to deliver. `id` stays the same however often it is tried; `fields` are single lines of text; `record` is for JSON.

    `at` is when it was recorded (wall s); `repeated`: a copy of it may have been delivered already, just before an agent was killed.
    """

    id: str
    subject: str
    body: str
    fields: Mapping[str, str]
    records: Sequence[Mapping[str, Any]]
    at: float
    repeated: bool = False


def plain(value: object, limit: int = _LINE) -> str:
    """Return text on one line, without control, direction or other unprintable characters, and at most so long."""
    text = str(value)[: 4 * limit]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape", errors="surrogatepass").decode("ascii") for c in text)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def compose(notices: Sequence[Notice], *, repeated: bool = False, digest: str | None = None) -> Message:
    """Return the message for one notice, or the digest of many (whose id is `digest` where it has one already)."""
    told = [_fields(notice, repeated=repeated) for notice in notices]
    found = [_record(notice, fields) for notice, fields in zip(notices, told, strict=True)]
    at = max(notice.at for notice in notices) / 1e9
    again = ["", "Perhaps you have this already: the agent was killed just when it sent it."] if repeated else []
    if len(notices) == 1 and digest is None:
        body = [_words(notices[0], told[0]), *again]
        return Message(notices[0].id, told[0]["subject"], "\n".join(body) + "\n", told[0], found, at, repeated)
    identity = digest or digest_id(notices)
    firing = sum(n.event == "firing" for n in notices)
    subject = f"[simspool] {len(notices)} notifications, {firing} of alerts that fire"
    lines = [f"{len(notices)} notifications came at once. Each in a line, the oldest first:", ""]
    lines += [f"{f['time']}  {f['subject'].removeprefix('[simspool] ')}  [{f['run_id']}]" for f in told]
    runs = len({n.run for n in notices})
    fields = dict.fromkeys(told[0], "") | {
        "id": identity, "event": "digest", "subject": subject, "repeated": "1" if repeated else "", "time": _utc(at),
        "alert": f"{len(notices)} notifications", "run": f"{runs} run{'' if runs == 1 else 's'}",
    }  # fmt: skip
    return Message(identity, subject, "\n".join([*lines, *again]) + "\n", fields, found, at, repeated)


def digest_id(notices: Sequence[Notice]) -> str:
    """Return the id of a digest: made of what is in it."""
    return hashlib.sha256(" ".join(["digest", *sorted(n.id for n in notices)]).encode()).hexdigest()[:32]


def sample(host: str, now: float) -> Message:
    """Return the message of `agent notify test`."""
    subject = "[simspool] TEST: notifications reach you"
    body = f"This is a test of simspool's notifications, from {plain(host)}. Nothing has happened.\n"
    identity = hashlib.sha256(f"test {host} {now!r}".encode()).hexdigest()[:32]
    fields = {
        "id": identity, "event": "test", "subject": subject, "alert": "", "run": "", "run_id": "", "folder": "", "status": "",
        "reason": "a test", "rule": "", "host": plain(host), "time": _utc(now), "done": "", "repeated": "",
    }  # fmt: skip
    record = {key: value for key, value in fields.items() if value}
    return Message(identity, subject, body, fields, [record], now)


def _fields(notice: Notice, *, repeated: bool) -> dict[str, str]:
    state, body = notice.state, notice.body
    run = plain(runstate.value(state, "name", "") or notice.run, 200)
    definition = _definition(notice)
    reason = plain(body.get("reason") or "", 300)
    if notice.event == "ended":
        status = plain(body.get("status", ""))
        subject = f"[simspool] {status.upper()}: {run}" + (f" ({reason})" if reason else "")
        alert = rule = done = ""
    else:
        status, alert = runstate.status(state), plain(body.get("alert", ""), 200)
        rule = _rule(definition)
        what = "ALERT" if notice.event == "firing" else "RESOLVED"
        subject = f"[simspool] {what} {alert}: {run}" + (f" ({reason})" if reason else "")
        done = "the run is aborted for it" if definition.get("abort") is True and notice.event == "firing" else ""
    return {
        "id": notice.id, "event": notice.event, "subject": plain(subject, _SUBJECT), "alert": alert, "run": run, "run_id": notice.run,
        "folder": plain(runstate.value(state, "folder", "/"), 300), "status": status, "reason": reason, "rule": rule, "host": _host(state),
        "time": _utc(_moment(notice)), "done": done, "repeated": "1" if repeated else "",
    }  # fmt: skip


def _record(notice: Notice, fields: Mapping[str, str]) -> dict[str, Any]:
    """Return the notice as JSON: what the fields say, and the decision's inputs; empty ones are left out."""
    record: dict[str, Any] = {key: value for key, value in fields.items() if value}
    if notice.event != "ended":
        record |= {"at": notice.body.get("at"), "stream": notice.body.get("stream"), "inputs": notice.body.get("inputs")}
    record["recorded"] = _utc(notice.at / 1e9)
    return record


def _words(notice: Notice, fields: Mapping[str, str]) -> str:
    moment, recorded = _moment(notice), notice.at / 1e9
    if notice.event == "ended":
        first = f"The run {fields['run']!r} has ended: {fields['status']}."
    else:
        first = f"The alert {fields['alert']!r} {'fires' if notice.event == 'firing' else 'is resolved'} in the run {fields['run']!r}."
    lines = [first, ""]
    pairs = [
        ("reason", fields["reason"]), ("rule", fields["rule"]), ("run", fields["run"]), ("id", fields["run_id"]),
        ("folder", fields["folder"]), ("status", fields["status"]), ("host", fields["host"]),
        ("when", f"{_local(moment)} ({_utc(moment)})"), ("done", fields["done"]),
    ]  # fmt: skip
    if abs(recorded - moment) > _LATE:
        pairs.append(("noted", f"{_local(recorded)}: late, no agent was there to see it happen"))
    stream = notice.body.get("stream")
    if isinstance(stream, Mapping):
        pairs += [(plain(key, 40), plain(value)) for key, value in stream.items()]
    inputs = notice.body.get("inputs")
    if isinstance(inputs, Mapping):
        pairs += [(plain(key, 40), plain(value, 200)) for key, value in list(inputs.items())[:_INPUTS]]
    lines += [f"  {key:<10} {value}" for key, value in pairs if value]
    look = "agent show" if notice.event == "ended" else "agent alerts"
    return "\n".join([*lines, "", f"Look closer: {look} {notice.run}"])


def _definition(notice: Notice) -> Mapping[str, Any]:
    known = runstate.alerts(notice.state).get(str(notice.body.get("alert")), {})
    found = known.get("definition")
    return found if isinstance(found, dict) else {}


def _rule(definition: Mapping[str, Any]) -> str:
    try:
        return plain(parse_rule(definition).describe())
    except InvalidRule:  # only its name is known, or a newer version has other rules
        return ""


def _host(state: Mapping[str, Any]) -> str:
    system = runstate.value(state, "system")
    return plain(system.get("hostname") or "", 100) if isinstance(system, Mapping) else ""


def _moment(notice: Notice) -> float:
    """Return when it happened (wall s)."""
    if notice.event == "ended":
        return notice.at / 1e9
    at, began = notice.body.get("at"), runstate.started(notice.state)
    if began is None or isinstance(at, bool) or not isinstance(at, int | float) or not math.isfinite(at) or abs(at) > 1e10:
        return notice.at / 1e9
    return began / 1e9 + at


def _utc(moment: float) -> str:
    try:
        return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return f"{moment:g}"


def _local(moment: float) -> str:
    try:
        return datetime.fromtimestamp(moment, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
    except (ValueError, OverflowError, OSError):
        return f"{moment:g}"


def as_json(record: Mapping[str, Any]) -> str:
    """Return a record as one line of strict ASCII JSON; numbers that JSON lacks are text."""
    return json.dumps(_strict(record), allow_nan=False, default=str)


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(k): _strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(v) for v in value]
    return value
