"""Comparing what was recorded of a run with what a target counted of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from simspool.agent.targets.port import Recount

from .recorded import TIES, Edge, Ends, Kept, Metric, Tally
from .restored import Gone

FEWER = frozenset({"merged", "not kept", "dropped", "refused"})
MORE = frozenset({"possibly double"})
_MOST = 50


@dataclass(slots=True)
class Facts:
    """What the spool knows of one run and one target, beside its segments.

    `stored`: keys of files with a receipt (a digest, or "writer.sequence"). `lost`: records at or below the marks that the spool lost:
    perhaps before they were sent, perhaps after. `counts` and `events` are the catalog's, of everything ever
    taken in, for records that are no longer here (`partly`: some are not; `pruned`: none is). `status` is None while the run goes on, or
    not all of it is acknowledged.
    """

    marks: Mapping[str, int]
    stored: frozenset[str]
    counts: Mapping[str, int]
    events: int
    remarks: Sequence[tuple[str, str, int]]
    gone: Sequence[Gone] = ()
    status: str | None = None
    waiting: int = 0
    refused: int = 0
    lost: int = 0
    partly: bool = False
    pruned: bool = False
    files: Mapping[str, Sequence[Kept]] = field(default_factory=dict)


@dataclass(slots=True)
class Outcome:
    """A run's verdict for one target: equal, explained (it differs only as the target said it would), differs, unknown (there), or
    nothing (none of it is acknowledged yet). `notes` are no differences.
    """

    run: str
    target: str
    verdict: str = "equal"
    differences: list[str] = field(default_factory=list)
    explained: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    points: int = 0
    events: int = 0
    files: int = 0
    waiting: int = 0
    refused: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


class _Allowance:
    """What remarks explain: points that are fewer, or more, than were recorded; first by the metric they name, then at large."""

    def __init__(self, remarks: Sequence[tuple[str, str, int]]) -> None:
        self._left = {(word, detail): count for word, detail, count in remarks}

    def use(self, name: str, difference: int) -> bool:
        """Take so many points (fewer are negative) from what is allowed; False when it is not."""
        words, needed = (FEWER, -difference) if difference < 0 else (MORE, difference)
        ways = sorted((k for k, n in self._left.items() if k[0] in words and n), key=lambda k: name not in k[1])
        if sum(self._left[k] for k in ways) < needed:
            return False
        for way in ways:
            taken = min(needed, self._left[way])
            self._left[way] -= taken
            needed -= taken
        return True


def compare(run: str, target: str, tally: Tally, facts: Facts, found: Recount | None, *, exact: bool) -> Outcome:
    """Return the verdict. `exact`: the target's own marks say which records it has, to the one."""
    out = Outcome(run, target, waiting=facts.waiting, refused=facts.refused)
    if facts.pruned:
        out.notes.append("pruned here: compared with what was counted before")
    elif facts.partly:
        out.notes.append("some of its records are no longer in the spool: compared with what was counted before, where that is more")
    for gone in facts.gone:
        text = f"records {gone.first} to {gone.last} of writer {gone.writer} are gone for good: lost there, and no longer in the spool"
        out.differences.append(text)
    if found is None:
        out.verdict = "unknown" if any(facts.marks.values()) else "nothing"
        if out.verdict == "unknown":
            out.differences.append("the target does not know the run, though it acknowledged records of it")
        return out
    if not any(facts.marks.values()):
        out.notes.append("nothing of it is acknowledged yet")
    for writer, mark in facts.marks.items():
        if writer in found.marks and found.marks[writer] < mark:
            out.differences.append(f"writer {writer}: acknowledged up to record {mark}, there up to {found.marks[writer]}")
    allowed = _Allowance(facts.remarks)
    _metrics(out, tally, facts, found, allowed, exact=exact)
    least = facts.events if facts.pruned else tally.events.least
    most = max(least, least if exact else tally.events.most, facts.events if facts.partly else 0)
    out.events = found.events
    _counted(out, "events", least, most, found.events, allowed, facts.lost)
    _files(out, facts.files if facts.pruned else tally.files, facts, found)
    if facts.status is not None and found.status is not None and facts.status != found.status:
        out.differences.append(f"status: {facts.status} here, {found.status} there")
    out.verdict = "differs" if out.differences else "explained" if out.explained else "equal"
    if len(out.differences) > _MOST:
        out.differences[_MOST:] = [f"... and {len(out.differences) - _MOST} more"]
    return out


def _metrics(out: Outcome, tally: Tally, facts: Facts, found: Recount, allowed: _Allowance, *, exact: bool) -> None:
    left = dict(found.metrics)
    for name in sorted({*tally.metrics, *(facts.counts if facts.pruned or facts.partly else ())}):
        metric = tally.metrics.get(name, Metric())
        before = facts.counts.get(name, 0)
        least, most = (before, before) if facts.pruned else (metric.least, max(metric.most, before if facts.partly else 0))
        if exact and not facts.partly:
            most = least
        there = found.names.get(name, name)
        if there not in left:
            there = name.encode("utf-8", "backslashreplace").decode()
        count = left.pop(there, 0)
        out.points += count
        fine = _counted(out, f"metric {name}", least, most, count, allowed, facts.lost)
        if fine and not facts.lost and not facts.pruned and not facts.partly and metric.least == metric.most == count:
            _edges(out, name, metric, found.first.get(there), found.last.get(there), facts)
    out.differences += [f"metric {name}: {count} points there, none was recorded" for name, count in sorted(left.items()) if count]


def _counted(out: Outcome, what: str, least: int, most: int, count: int, allowed: _Allowance, lost: int) -> bool:
    """Compare a count; True when it is as it should be. `lost` more may be there, which the spool lost since."""
    if least <= count <= most:
        return True
    difference = count - (least if count < least else most)
    unit = "" if what == "events" else " points"
    text = f"{what}: {least if count < least else most}{unit} recorded, {count} there ({difference:+})"
    if 0 < difference <= lost:
        out.explained.append(text + f", as {lost} records were lost here since")
    elif allowed.use(what.removeprefix("metric "), difference):
        out.explained.append(text + ", as the target said")
    else:
        out.differences.append(text)
    return False


def _edges(out: Outcome, name: str, metric: Metric, first: Edge | None, last: Edge | None, facts: Facts) -> None:
    if any(word in {"clamped", "truncated"} and name in detail for word, detail, _ in facts.remarks):
        return
    for edge, word, choices in ((first, "first", _firsts), (last, "last", _lasts)):
        if edge is None:
            continue
        known = [c for ends in metric.ends if (c := choices(ends))]
        if known and all(len(c) < TIES for c in known) and not any(_same(edge, one) for ends in known for one in ends):
            step, value = known[0][-1]
            out.differences.append(f"metric {name}: the {word} point is {value} at step {step}, there {edge[1]} at step {edge[0]}")


def _firsts(ends: Ends) -> list[Edge]:
    return ends.firsts


def _lasts(ends: Ends) -> list[Edge]:
    return ends.lasts


def _same(a: Edge, b: Edge) -> bool:
    try:
        x, y = float(a[1]), float(b[1])
    except (TypeError, ValueError, OverflowError):
        return False
    return a[0] == b[0] and (x == y or (x != x and y != y) or abs(x - y) <= 1e-12 * max(abs(x), abs(y)))


def _files(out: Outcome, recorded: Mapping[str, Sequence[Kept]], facts: Facts, found: Recount) -> None:
    """Compare files: of each name the one recorded last, as a run has one of a name; where it is not there by name, its content is."""
    out.files = len(found.files)
    contents = list(found.files.values())
    for name, all_of_it in sorted(recorded.items()):
        kept = max(all_of_it, key=lambda k: k.wall)
        if not kept.acknowledged or not {kept.digest, kept.key} & facts.stored:
            continue
        same = [k for k in all_of_it if k.wall == kept.wall]
        there = found.files.get(name)
        if there is None:
            there = next((c for c in contents if c in {kept.digest, kept.size}), None)
        if there is None:
            out.differences.append(f"file {name}: acknowledged, and not there")
        elif not any(there in {k.digest, k.size} for k in same):
            what = f"sha256 {there[:12]}" if isinstance(there, str) else f"{there} bytes"
            out.differences.append(f"file {name}: sha256 {kept.digest[:12]}, {kept.size} bytes here, {what} there")
