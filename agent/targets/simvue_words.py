"""Records in Simvue's words: what of a range becomes points and events, and what must be changed for it. Pure: nothing is remembered."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

import msgpack

from simspool.spool import Kind
from simspool.spool.records import label

from .port import Range, Remark
from .records import Fact, Gap, Point, records

_BAD_IN_METRIC = re.compile(r"[^a-zA-Z0-9\-_\s/.:=><+()%]")
_BAD_IN_NAME = re.compile(r"[^a-zA-Z0-9\-_\s/.:]")  # of runs, alerts and files
_BAD_IN_WORD = re.compile(r"[^\w\-\s.]")  # tags, and keys of metadata
_LEVELS = frozenset({"debug", "info", "warning", "error", "critical"})
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - times go without a zone
_STEPS = range(1 << 63)
_WHOLE = range(-(1 << 63), 1 << 64)  # what msgpack has a form for
_LONGEST = 512  # characters of a name in a remark
# of these nothing is lost: they become the run's status, its files, its alerts' states, or are the agent's own bookkeeping
_ELSEWHERE = frozenset({
    Kind.RUN, Kind.ATTACH, Kind.ARTIFACT, Kind.METADATA, Kind.TAGS, Kind.STATUS, Kind.FOLDER, Kind.ALERT, Kind.ALERT_STATE, Kind.DECISION,
    Kind.CONFIG, Kind.ABORT, Kind.INBOX, Kind.NOTIFICATION, Kind.CLOSE, Kind.SURVIVOR,
})  # fmt: skip
_STATELESS = frozenset({Kind.EVENT, Kind.ARTIFACT, Kind.INBOX, Kind.NOTIFICATION, Kind.ABORT, Kind.PROCESS_START, Kind.PROCESS_EXIT})


class Item(NamedTuple):
    """A record as it is posted: an element of a batch's list, packed; and how many points (or events) it is."""

    seq: int
    packed: bytes
    size: int


@dataclass(slots=True)
class Plan:
    """What a range becomes. `changed` counts what is different there, by (what, detail); `folders` are bodies of kind 27; `gaps` declared
    losses; `renamed` our names of metrics to those there; `stateful`: the run's state may have changed."""

    points: list[Item] = field(default_factory=list)
    events: list[Item] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    changed: Counter[tuple[str, str]] = field(default_factory=Counter)
    folders: list[Mapping[str, Any]] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    stateful: bool = False

    def remarks(self, sent: Range) -> list[Remark]:
        """Return what is different, for people."""
        return [Remark(sent.run, what, detail, n, sent.writer, sent.first) for (what, detail), n in self.changed.items()]


def plan(sent: Range, *, levels: bool) -> Plan:
    """Put a range into Simvue's words.

    `levels`: the server knows levels of events.
    """
    made = Plan()
    packer = msgpack.Packer(unicode_errors="replace")
    for item in records(sent):
        if isinstance(item, Point):
            _point(made, item, packer)
        elif isinstance(item, Gap):
            made.gaps.append(item)
            made.changed["lost", item.reason] += item.last - item.seq + 1
        elif item.kind == Kind.EVENT:
            _event(made, item, packer, levels=levels)
        else:
            _fact(made, item)
    return made


def _point(made: Plan, point: Point, packer: msgpack.Packer) -> None:
    if point.step not in _STEPS:
        made.refused[point.seq] = f"Simvue takes steps from 0 to 2^63 - 1, not {point.step}"
        return
    stamp = moment(point.at)
    if stamp is None:
        made.refused[point.seq] = f"Simvue has no form for the time {point.at / 1e6:.6g} s since 1970"
        return
    values: dict[str, float | int | bool] = {}
    for name, value in point.values.items():
        there = metric_there(name)
        if there != name:
            made.renamed[name] = there
            made.changed["renamed", f"metric {name[:_LONGEST]} as {there}"] += 1
        if isinstance(value, int) and value not in _WHOLE:
            made.changed["rounded", f"metric {name[:_LONGEST]}: whole numbers beyond 64 bits"] += 1
            value = _float(value)  # noqa: PLW2901
        values[there] = value
    packed = packer.pack({"time": point.time, "timestamp": stamp, "step": point.step, "values": values})
    made.points.append(Item(point.seq, packed, len(values)))


def _float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def _event(made: Plan, fact: Fact, packer: msgpack.Packer, *, levels: bool) -> None:
    message, level = fact.body.get("message"), fact.body.get("level")
    stamp = moment(_time_of(fact))
    if not isinstance(message, str) or stamp is None:
        made.refused[fact.seq] = "an event without a message" if stamp else "Simvue has no form for the event's time"
        return
    body: dict[str, Any] = {"message": clean(message), "timestamp": stamp}
    if level is not None:
        if levels and level in _LEVELS:
            body["log_level"] = level
        else:
            why = f"level {str(level)[:40]} of events" if levels else "the levels of events: this server has none"
            made.changed["not kept", why] += 1
    made.events.append(Item(fact.seq, packer.pack(body), 1))


def _time_of(fact: Fact) -> int:
    stamp = fact.body.get("timestamp")
    if isinstance(stamp, int) and not isinstance(stamp, bool):
        return stamp
    if isinstance(stamp, str):
        try:
            found = datetime.fromisoformat(stamp)
        except ValueError:
            return fact.at
        return round((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1e6)
    return fact.at


def _fact(made: Plan, fact: Fact) -> None:
    made.stateful |= fact.kind not in _STATELESS
    if fact.kind in {Kind.METRICS_JSON, Kind.RESOURCES_JSON}:
        made.refused[fact.seq] = "it is no metrics record: its values, step or time make no sense"
    elif fact.kind == Kind.FOLDER:
        made.folders.append(fact.body)
    elif fact.kind == Kind.ARTIFACT:
        name = str(fact.body.get("name") or "")
        there = name_there(name)
        if there != name:
            made.changed["renamed", f"file {name[:_LONGEST]} as {there}"] += 1
        if fact.body.get("metadata"):
            made.changed["not kept", f"metadata of file {clean(name)[:_LONGEST]}"] += 1
    elif fact.kind not in _ELSEWHERE:
        made.changed["not kept", f"{label(fact.kind)} records: Simvue has no place for them"] += 1


def clean(value: str) -> str:
    """Return text that any database takes: no lone surrogates, no NUL."""
    return value.encode(errors="replace").decode().replace("\0", "\ufffd")


def moment(microseconds: int) -> str | None:
    """Return a time since 1970 as Simvue has it: UTC, without a zone. None for one that it cannot say."""
    try:
        return (_EPOCH + timedelta(microseconds=microseconds)).isoformat(timespec="microseconds")
    except OverflowError:
        return None


def _fitting(value: str, bad: re.Pattern[str]) -> str:
    made = bad.sub("_", clean(value))
    if made == value and made:
        return made
    return f"{made}_{hashlib.sha256(value.encode(errors='surrogatepass')).hexdigest()[:8]}"  # no two names ever meet


@lru_cache(maxsize=20_000)
def metric_there(name: str) -> str:
    """Return the metric's name that Simvue takes. One that is not its own has a digest in it."""
    return _fitting(name, _BAD_IN_METRIC)


@lru_cache(maxsize=5_000)
def name_there(name: str) -> str:
    """Return the name of a run, an alert or a file that Simvue takes."""
    return _fitting(name, _BAD_IN_NAME)


@lru_cache(maxsize=5_000)
def word_there(word: str) -> str:
    """Return the tag, or key of metadata, that Simvue takes. Keys of our own are not for users."""
    found = _fitting(word, _BAD_IN_WORD)
    return found if not word.startswith("simspool.") else _fitting(word.replace(".", "#", 1), _BAD_IN_WORD)
