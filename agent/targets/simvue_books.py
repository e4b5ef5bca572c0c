"""What a Simvue server has of a run, counted: how a request whose end nobody knows is told from one that never arrived.

The dialect has no key that would make a batch come in once, but a run's metadata are ours to write, and the server counts its points. So
before a batch is posted, the run is told what comes (`simspool.sending`: how many points and events there are, and what is added, by
writer), and afterwards what is there (`simspool.mark.<writer>`). After a crash or a lost reply the difference of the counts says how many
of the batches arrived: exactly, as long as nobody else writes points into the run and the server counts what it has acknowledged.
Where the numbers do not fit, nothing is left out, and what may be there twice is counted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

RUN, SENDING, STATE, NAMES, ALERTS, REASON = (
    "simspool.run", "simspool.sending", "simspool.state", "simspool.names", "simspool.alerts", "simspool.reason",
)  # fmt: skip
MARK, LOST, SAID = "simspool.mark.", "simspool.lost.", "simspool.said."
_MOST_REFUSED = 2000  # of a writer, that are remembered there


@dataclass(slots=True)
class Left:
    """Of a writer's records from sequence `first` on, so many points and events are there already; of `doubtful` more it is not known."""

    first: int
    points: int
    events: int
    doubtful: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """What one range adds: so many points and events of a writer's records from `first` to `last`."""

    writer: str
    first: int
    last: int
    points: int
    events: int


@dataclass(slots=True)
class Books:
    """What there is of a run: points and events in all, each writer's mark (last sequence, chain), and what is there beyond the marks.

    `doubted`: something was under way when the books were last closed.
    """

    points: int = 0
    events: int = 0
    marks: dict[str, tuple[int, int]] = field(default_factory=dict)
    left: dict[str, Left] = field(default_factory=dict)
    doubted: bool = False

    @classmethod
    def read(cls, metadata: Mapping[str, Any], points: int, events: int) -> Books:
        """Return the books of a run with these metadata and counts. What makes no sense in them counts as not written."""
        marks = {}
        for key, value in metadata.items():
            if key.startswith(MARK) and (mark := _mark(value)) is not None:
                marks[key.removeprefix(MARK)] = mark
        made = cls(points, events, marks)
        try:
            note = json.loads(str(metadata.get(SENDING) or "{}"))
            base = int(note.get("points", 0)), int(note.get("events", 0))
            parts = [Part(str(w), int(f), int(n), int(p), int(e)) for w, f, n, p, e in note.get("parts", ())]
            cuts = [[int(n) for n in side] for side in note.get("cuts", ([], []))]
            left = {str(w): Left(int(f), int(p), int(e), int(d)) for w, (f, p, e, d) in note.get("left", {}).items()}
            point_cuts, event_cuts = cuts
            halves = note.get("halves") is True
        except (ValueError, TypeError, AttributeError, RecursionError):
            return made
        made.doubted = bool(parts)
        made.left = left
        stored_points = _stored(points - base[0], point_cuts, halves=halves)
        stored_events = _stored(events - base[1], event_cuts, halves=halves)
        at = [0, 0]
        for part in parts:
            before = left.get(part.writer)
            p, maybe_p = _share(stored_points, at[0], part.points)
            e, maybe_e = _share(stored_events, at[1], part.events)
            at = [at[0] + part.points, at[1] + part.events]
            maybe = maybe_p + maybe_e
            if before is not None and before.first == part.first:
                p, e, maybe = before.points + p, before.events + e, before.doubtful + maybe
            made.left[part.writer] = Left(part.first, p, e, maybe)
        made.left = {w: one for w, one in made.left.items() if one.first > marks.get(w, (0, 0))[0]}
        made.points, made.events = max(points, base[0]), max(events, base[1])  # a count that lags behind must not make later ones look new
        return made

    @staticmethod
    def awaits_events(metadata: Mapping[str, Any]) -> bool:
        """Say whether it matters for the books of a run with these metadata how many events there are."""
        try:
            return bool(json.loads(str(metadata.get(SENDING) or "{}"))["cuts"][1])
        except (ValueError, TypeError, LookupError, RecursionError):
            return False

    def mark(self, writer: str) -> int:
        """Return the last sequence that is there of a writer."""
        return self.marks.get(writer, (0, 0))[0]

    def note(self, parts: Sequence[Part] = (), cuts: tuple[list[int], list[int]] | None = None) -> str:
        """Return what the run is to be told of what comes next."""
        made: dict[str, Any] = {"points": self.points, "events": self.events}
        if parts:
            made["parts"] = [[p.writer, p.first, p.last, p.points, p.events] for p in parts]
            made["cuts"] = cuts or ([], [])
        if self.left:
            made["left"] = {w: [one.first, one.points, one.events, one.doubtful] for w, one in self.left.items()}
        return json.dumps(made, separators=(",", ":"))

    def settle(self, writer: str, last: int, chain: int, points: int, events: int) -> None:
        """A writer's records up to `last` are there; of these, so many points and events had been before."""
        self.marks[writer] = (last, chain)
        left = self.left.pop(writer, None)
        if left is not None and (left.points > points or left.events > events):
            self.left[writer] = Left(last + 1, left.points - points, left.events - events)

    def written(self, writer: str) -> str:
        """Return a writer's mark as metadata have it."""
        return "{} {}".format(*self.marks[writer])


@dataclass(slots=True)
class Said:
    """What was said of a writer's records as they were taken, for when our journal has not heard it: the run's metadata have it.

    `refused`: sequence -> reason. `doubles`: first sequence of a range -> how many of its points and events may be there twice.
    """

    refused: dict[int, str] = field(default_factory=dict)
    doubles: dict[int, int] = field(default_factory=dict)

    @classmethod
    def read(cls, value: Any) -> Said:
        """Return what metadata have. What makes no sense counts as not written."""
        try:
            found = json.loads(str(value or "{}"))
            refused = {int(seq): str(reason) for reason, seqs in found.get("refused", {}).items() for seq in seqs}
            return cls(refused, {int(first): int(n) for first, n in found.get("doubles", {}).items()})
        except (ValueError, TypeError, AttributeError, RecursionError):
            return cls()

    def written(self) -> str:
        """Return it as metadata have it."""
        by_reason: dict[str, list[int]] = {}
        for seq, reason in sorted(self.refused.items())[-_MOST_REFUSED:]:
            by_reason.setdefault(reason[:200], []).append(seq)
        made = {"refused": by_reason, "doubles": self.doubles}
        return json.dumps({key: value for key, value in made.items() if value}, separators=(",", ":"))


def _mark(value: Any) -> tuple[int, int] | None:
    try:
        last, chain = (int(n) for n in str(value).split())
    except ValueError:
        return None
    return (last, chain) if last >= 0 and chain >= 0 else None


def _stored(more: int, cuts: Sequence[int], *, halves: bool) -> tuple[int, int]:
    """Return how much is there for sure, and how much may be, of a number that there is more, where whole batches end at `cuts`.

    `halves`: they were cut smaller because something in them is refused, and what was refused is not to be taken for what is there.
    """
    if not cuts:
        return 0, 0
    if more < 0 or more > cuts[-1]:  # deleted, lagging, or somebody else's: it tells nothing
        return 0, cuts[-1]
    return 0 if halves else max((cut for cut in cuts if cut <= more), default=0), more


def _share(stored: tuple[int, int], start: int, size: int) -> tuple[int, int]:
    sure = min(max(stored[0] - start, 0), size)
    return sure, min(max(stored[1] - start, 0), size) - sure if stored[1] > stored[0] else 0
