"""A run in MLflow's words: what of a range becomes metrics and lines, and what must be changed for it."""

from __future__ import annotations

import hashlib
import json
import math
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from simspool.spool import Kind
from simspool.spool.records import label

from .port import Range, Remark
from .records import Fact, Gap, Point, records

PER_REQUEST, PARAMS, TAGS = 1000, 100, 100  # MLflow's limits: entries of all sorts, and of these sorts
PARAM_LENGTH, TAG_LENGTH = 6000, 8000  # characters
_NAME_LENGTH = 230  # MLflow takes 250; "simspool.name." fits before it
_BAD = re.compile(r"[^/\w.\- :]")  # \w is any script's letters, as in MLflow
_BAD_IN_PATH = re.compile(r"[^\w.\- +=@,()~]")
_STEPS = range(-(1 << 63), 1 << 63)
_EXACT = 1 << 53
_HOUSEKEEPING = frozenset({Kind.INBOX})
# what MLflow's own sampler calls the same thing, in the same unit; its "megabytes" are not MiB, so those keep our names
_HOST = {"host.cpu.percentage": "cpu_utilization_percentage"}
_CARD = {
    "gpu.utilisation.percent": "gpu_{}_utilization_percentage",
    "gpu.utilisation.memory": "gpu_{}_memory_usage_percentage",
    "gpu.power": "gpu_{}_power_usage_watts",
}
_OF_CARD = re.compile(r"gpu_(\d+)_(utilization_percentage|memory_usage_percentage|power_usage_watts)")
RECORDS = "simspool/records"
OTHERS = "simspool/files"


class Metric(NamedTuple):
    """One value as MLflow takes it: `at` in ms since 1970. `seq` and `of` (an index of ranges) say which record it is from."""

    key: str
    value: float
    at: int
    step: int
    seq: int
    of: int


@dataclass(slots=True)
class Plan:
    """What the ranges of one run become. The lists are one entry a range, in their order."""

    metrics: list[Metric] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    refused: list[dict[int, str]] = field(default_factory=list)
    remarks: list[list[Remark]] = field(default_factory=list)
    stateful: list[bool] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)  # name there -> ours


class Seen:
    """Which points went to a server of late, and of which record they were: it stores equal ones once, so the later one has merged.

    Bounded: it knows the last 50,000 to 100,000 points of all runs. Equal points are recorded within one millisecond of each other, unless
    the user gave their times.
    """

    _MOST = 50_000

    def __init__(self) -> None:
        self._now: dict[int, int] = {}
        self._before: dict[int, int] = {}

    def merges(self, run: str, metric: Metric, owner: int) -> bool:
        """Note a point of a record (`owner`, a hash); say whether another record's was equal."""
        name, value, at, step = metric[:4]
        key = hash((run, name, value if value == value else None, at, step))
        known = self._now.get(key)
        if known is None:
            known = self._before.get(key)
            if known is None:
                if len(self._now) >= self._MOST:
                    self._now, self._before = {}, self._now
                self._now[key] = owner
                return False
        return known != owner


@lru_cache(maxsize=20_000)
def name_there(name: str) -> str:
    """Return the key that MLflow takes for a name. One that is not its own has a digest in it: no two names ever meet."""
    clean = text(name)
    made = _BAD.sub("_", clean)
    if made == name and len(made) <= _NAME_LENGTH and _is_plain(made):
        return made
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
    parts = [part for part in made[: _NAME_LENGTH - 9].split("/") if part not in {"", ".", ".."}]
    return "/".join(parts).lstrip("./") + f"_{digest}"


def _is_plain(name: str) -> bool:
    norm = posixpath.normpath(name)
    return norm == name and norm != "." and not norm.startswith(("..", "/"))


@lru_cache(maxsize=5_000)
def resource_there(name: str) -> str:
    """Return the key of a resource: under `system/`, where MLflow shows them; as its own sampler names it if the unit is the same."""
    rest = name.removeprefix("resources/")
    stem, _, card = rest.rpartition(".")
    if rest in _HOST:
        rest = _HOST[rest]
    elif stem in _CARD and card.isdigit():
        rest = _CARD[stem].format(card)
    return name_there("system/" + rest)


def resource_here(key: str) -> str:
    """Return our name of a key that `resource_there` made of a plain name."""
    rest = key.removeprefix("system/")
    for ours, theirs in _HOST.items():
        if rest == theirs:
            return "resources/" + ours
    found = _OF_CARD.fullmatch(rest)
    if found:
        for ours, theirs in _CARD.items():
            if theirs == f"gpu_{{}}_{found[2]}":
                return f"resources/{ours}.{found[1]}"
    return "resources/" + rest


def text(value: str) -> str:
    """Return text that any database takes: no lone surrogates, no NUL."""
    return value.encode(errors="replace").decode().replace("\0", "\ufffd")


def path_there(category: str, name: str) -> str:
    """Return where a file goes among a run's artifacts. A name that cannot be a path as it is has a digest in it."""
    wanted = f"{category or 'files'}/{name}"
    parts = [_BAD_IN_PATH.sub("_", text(part)) for part in wanted.split("/") if part not in {"", ".", ".."}]
    made = "/".join(_short(part, 150) for part in parts)
    ours = made.startswith("simspool/")
    if made == wanted and not ours and len(made.encode()) <= 400:
        return made
    digest = hashlib.sha256(wanted.encode(errors="surrogatepass")).hexdigest()[:8]
    stem, extension = posixpath.splitext(parts[-1] if len(parts) > 1 else "file")
    folder = "/".join(_short(part, 60) for part in parts[int(ours) : -1][:4])
    return f"{folder or 'files'}/{_short(stem, 60)}_{digest}{_short(extension, 16)}"


def _short(part: str, most: int) -> str:
    """Return what fits so many bytes: file systems take 255, and stores add to names while they write."""
    return part.encode()[:most].decode(errors="ignore")


def own_path(writer: str, seq: int, name: str) -> str:
    """Return a place that only this record's file can have."""
    tail = _BAD_IN_PATH.sub("_", text(name.rstrip("/").rpartition("/")[2]))[-30:].lstrip(".") or "file"
    return f"{OTHERS}/{writer}.{seq}/{tail}"


def records_path(writer: str, first: int, last: int) -> str:
    """Return where a range's records that are not points go. The same range has the same place: sending it again changes nothing."""
    return f"{RECORDS}/{writer}-{first:012d}-{last:012d}.jsonl"


def plan(made: Plan, run: str, ranges: Sequence[Range], seen: Seen) -> Iterator[int]:
    """Put ranges of one run into MLflow's words, in `made`, step by step: yield how many metrics are there, about every PER_REQUEST.

    What is not a metric is there at the end.
    """
    for of, sent in enumerate(ranges):
        yield from _plan_one(made, run, of, sent, seen)


def _plan_one(made: Plan, run: str, of: int, sent: Range, seen: Seen) -> Iterator[int]:
    lines: list[bytes] = []
    refused: dict[int, str] = {}
    changed: Counter[tuple[str, str]] = Counter()
    keys: tuple[dict[str, str], dict[str, str]] = {}, {}  # names there, of the script's and of the recorder's
    stateful = False
    enough = len(made.metrics) + PER_REQUEST
    for item in records(sent):
        if len(made.metrics) >= enough:
            yield len(made.metrics)
            enough = len(made.metrics) + PER_REQUEST
        if isinstance(item, Point):
            if item.step not in _STEPS:
                refused[item.seq] = f"MLflow has no room for step {item.step}"
                continue
            at = item.at // 1000
            if at < 0:
                changed["clamped", "times before 1970"] += 1
                at = 0
            owner, known = hash((sent.writer, item.seq)), keys[item.resource]
            for name, value in item.values.items():
                key = known.get(name)
                if key is None:
                    key = known[name] = resource_there(name) if item.resource else name_there(name)
                    if key != name and not (item.resource and resource_here(key) == name):
                        made.renamed[key] = text(name)
                if key in made.renamed:
                    changed["renamed", f"metric {name[:200]} as {key}"] += 1
                number = value if type(value) is float and value - value == 0 else _number(name, value, changed)
                metric = Metric(key, number, at, item.step, item.seq, of)
                if seen.merges(run, metric, owner):
                    changed["merged", f"metric {name[:200]}: equal points of one millisecond are one"] += 1
                made.metrics.append(metric)
        elif isinstance(item, Fact):
            if item.kind in _HOUSEKEEPING:
                continue
            stateful |= item.kind not in {Kind.EVENT, Kind.ARTIFACT}
            lines.append(_line(sent.writer, item.seq, item.at, label(item.kind), item.body))
            if item.kind == Kind.ARTIFACT:
                category, name = str(item.body.get("category") or ""), str(item.body.get("name") or "")
                where = path_there(category, name)
                if where != f"{category or 'files'}/{name}":
                    changed["renamed", f"file {name[:200]} as {where}"] += 1
        elif isinstance(item, Gap):
            lines.append(_line(sent.writer, item.seq, 0, "gap", {"last": item.last, "reason": item.reason}))
            changed["lost", item.reason] += item.last - item.seq + 1
    made.lines.append(b"".join(lines))
    made.refused.append(refused)
    made.remarks.append([Remark(run, what, text(detail), n, sent.writer, sent.first) for (what, detail), n in changed.items()])
    made.stateful.append(stateful)


def _number(name: str, value: float | bool, changed: Counter[tuple[str, str]]) -> float:
    if isinstance(value, float) and math.isnan(value):
        return value
    try:
        number = float(value)
    except OverflowError:
        number = math.inf if value > 0 else -math.inf
    if math.isinf(number):
        changed["clamped", f"metric {name[:200]}: infinite values are the largest number there"] += 1
    elif not -_EXACT <= value <= _EXACT and int(number) != value:
        changed["rounded", f"metric {name[:200]}: whole numbers beyond 2^53"] += 1
    return number


def _line(writer: str, seq: int, at: int, kind: str, body: Any) -> bytes:
    value = {"writer": writer, "seq": seq, "time": at / 1e6, "kind": kind, "record": body}
    return json.dumps(_finite(value), ensure_ascii=True, separators=(",", ":")).encode() + b"\n"


def _finite(value: Any) -> Any:
    """Return a value that JSON has a form for: readers in any language take the lines."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value
