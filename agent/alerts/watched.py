"""One run under watch: its writers' tails, its rules, and what follows from a decision. Confined to the watch's thread."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from simspool.agent.live import LiveWriter, Standing
from simspool.agent.notes import RunNotes
from simspool.spool import DamagedSegment, Kind, NewerFormat, Spool, Tail, runstate
from simspool.spool.frames import Record
from simspool.spool.process import is_alive, this_host
from simspool.spool.segment_header import SegmentHeader

from .curves import curves_of
from .decisions import Decision
from .elsewhere import Seen
from .engine import RunRules
from .references import References
from .replay import run_now
from .site import SiteAlert

SLACK = 0.25  # seconds that a record may need from its moment into its segment, where time alone decides
_SLICE = 4 << 20
_GONE = 2.0  # seconds after the end during which a run is still looked at
_FOLDED = frozenset({Kind.RUN, Kind.ATTACH, Kind.METADATA, Kind.TAGS, Kind.CONFIG, Kind.STATUS})


_SAY_WHO_LIVES = frozenset({Kind.CONFIG, Kind.PROCESS_START, Kind.PROCESS_EXIT, Kind.CLOSE, Kind.SURVIVOR})
_SHOWN = _FOLDED | _SAY_WHO_LIVES | {Kind.ALERT, Kind.ALERT_STATE}  # what may matter to rules of other runs


class Acts(Protocol):
    """What the watch sets off."""

    def abort(self, decision: Decision) -> None:
        """A rule with `abort` fires, of a run that lives."""

    def heard(self, run: str, writer: str, body: Mapping[str, Any], at: int | None) -> None:
        """A script's process said what became of an abort (a record of kind abort), `at` ns on this host's boot clock, if that is known."""


SiteRules = Callable[[Mapping[str, Any]], Iterable[SiteAlert]]
"""Given a run's folded state, returns the site's alerts that are for it."""


@dataclass(slots=True)
class WatchedWriter:
    """A writer of a run that is watched."""

    writer: str
    tail: Tail
    standing: Standing = field(default_factory=Standing)
    header: SegmentHeader | None = None
    sequence: int = 0
    exhausted: bool = False  # read to its end, while the run is caught up with
    closed: bool = False

    @property
    def role(self) -> str:
        """As what it was opened; empty before its first record was read."""
        return self.standing.role


class WatchedRun:
    """Follow writers with `add`; `read` and `tick` as news comes; `settle` acts on what was decided."""

    def __init__(self, spool: Spool, run: str, notes: RunNotes, acts: Acts, site: SiteRules | None, references: References) -> None:
        self.id, self._folder = run, spool.run(run)
        self._references = references
        self._notes, self._acts, self._site = notes, acts, site
        self._curves = curves_of(self._folder)
        self.rules = RunRules(run, curves=self._curves)
        self.writers: dict[str, WatchedWriter] = {}
        self.state = runstate.empty()
        self.is_ready = False  # everything that was recorded before is read
        self._recorded: set[str] = set()
        self._watched: dict[str, int] = {}
        self._waiting: list[Decision] = []
        self._states: dict[str, str] = {}
        self._offered: set[str] = set()
        self._changed = True
        self._has_defined = False
        self._live_changed = True
        self._shows_news = True
        self._noted: dict[str, tuple[int, Mapping[str, Any]]] = {}  # by rule: when, and what, of other runs
        self._over_since = math.inf
        self.problem = ""
        for writer in self._folder.writer_ids():
            self.add(writer)

    def add(self, writer: str) -> WatchedWriter:
        """Follow a writer from its first record."""
        found = self.writers.get(writer)
        if found is None:
            found = self.writers[writer] = WatchedWriter(writer, Tail(self._folder.writer(writer), self.id))
        return found

    def new_writers(self) -> list[str]:
        """Return the writers that have come since."""
        return [w for w in self._folder.writer_ids() if w not in self.writers]

    # ------------------------------------------------------------------ reading

    def read(self, one: WatchedWriter, *, glance: bool = False, dead: bool = False) -> bool:
        """Take in what is new of a writer, in slices; True when there may be more right away. `glance` and `dead`: see Tail.read."""
        used = 0
        try:
            for chunk in one.tail.read(limit=_SLICE, glance=glance, dead=dead):
                one.header = chunk.header
                used += chunk.end - chunk.start
                for item in chunk.items:
                    if isinstance(item, Record):
                        self._note(one, item)
                    self.rules.feed(one.writer, chunk.header, item, one.role or "attach")
                    one.sequence = item.last
        except (NewerFormat, DamagedSegment, OSError) as error:
            self.problem = f"writer {one.writer} cannot be watched: {error}"
            one.tail.close()
            return False
        one.closed = one.closed or (one.tail.complete and not dead)
        return used >= _SLICE

    def _note(self, one: WatchedWriter, record: Record) -> None:
        kind, body = record.kind, record.body
        if not one.role or kind in _SAY_WHO_LIVES:
            one.standing.take(kind, body)
            self._live_changed = True
        if body is None:
            return
        assert one.header is not None
        if kind in _SHOWN:
            self._shows_news = True
        if kind in _FOLDED:
            runstate.apply(self.state, one.writer, record.seq, kind, one.header.wall_ns(record.boot_ns), body)
            self._changed = True
        if one.role == "agent":
            if kind == Kind.DECISION and isinstance(body.get("id"), str):
                self._recorded.add(body["id"])
            elif kind == Kind.DECISION and isinstance(body.get("watched"), dict):
                self._watched |= body["watched"]
            elif kind == Kind.DECISION and isinstance(body.get("elsewhere"), dict):
                self._take_note(one.header.wall_ns(record.boot_ns), body["elsewhere"])
            elif kind == Kind.ALERT_STATE and isinstance(body.get("id"), str):
                self._states[body["id"]] = str(body.get("state"))
        elif kind == Kind.ABORT:
            here = one.header.boot_id == this_host().boot_id
            self._acts.heard(self.id, one.writer, body, record.boot_ns if here else None)
        elif kind == Kind.CLOSE:
            one.closed = True

    def _take_note(self, at: int, elsewhere: Mapping[str, Any]) -> None:
        rule, alerts = elsewhere.get("rule"), elsewhere.get("alerts")
        if isinstance(rule, str) and isinstance(alerts, dict) and at >= self._noted.get(rule, (at, {}))[0]:
            self._noted[rule] = at, alerts

    def catch_up(self) -> bool:
        """Read a slice of what was recorded before the watch began, the agents' own first; True when all of it is read."""
        if self.is_ready:
            return True
        for one in self.writers.values():
            if not one.role and self.read(one):
                return False
        for one in self.writers.values():
            if one.role == "agent" and self.read(one):
                return False
        if self._read_next():
            return False
        for one in self.writers.values():  # behind damage there may be more of a dead one
            if not one.closed and one.header is not None and is_alive(one.header) is False and self.read(one, dead=True):
                return False
        if self.rules.stale:
            self._begin_again()
            return False
        self.is_ready = self._shows_news = True
        self.rules.follow()
        return True

    def _read_next(self) -> bool:
        """Read a slice of the writer that is furthest behind, and judge what all have got to; False when all are read to their ends."""
        left = [w for w in self.writers.values() if w.role != "agent" and not w.exhausted]
        if not left:
            return False
        one = min(left, key=lambda w: self.rules.last_moment(w.writer))
        one.exhausted = not self.read(one)
        moments = [self.rules.last_moment(w.writer) for w in left if not w.exhausted]
        if moments and min(moments) > self.rules.wake:
            self.rules.tick(min(moments))
        return True

    def _begin_again(self) -> None:
        """A rule came that is to judge what has been read: read it all again, with the rules that are known now."""
        self.rules = RunRules(self.id, self.rules.rules.values(), self._curves)
        for one in self.writers.values():
            one.tail.close()
            one.tail = Tail(self._folder.writer(one.writer), self.id)
            one.exhausted = False
        self.is_ready = False

    # ------------------------------------------------------------------ time

    def now(self) -> float | None:
        """The present in run seconds, as the writers' headers let this host know it."""
        headers = [w.header for w in self.writers.values() if w.header is not None and w.role not in runstate.AGENTS]
        return max(map(run_now, headers)) if headers else None

    def tick(self) -> None:
        """Let time decide, where something is due. Everything recorded so far is read first."""
        now = self.now()
        if not self.is_ready or now is None or self.rules.wake >= now - SLACK:
            return
        for one in self.writers.values():
            if not one.closed:
                self.read(one)
        gone = {w.writer for w in self._open() if w.header is not None and is_alive(w.header) is False}
        if len(gone) < len(self._open()) or self.rules.over:
            self.rules.tick(now - SLACK, gone)

    def suspended(self, seconds: float, ago: float) -> None:
        """The machine was suspended for so long, until so long ago (s)."""
        now = self.now()
        if now is not None and self.rules.rules and self.is_ready:
            span = [now - ago - seconds, now - ago]
            self.rules.suspended(*span)
            self._notes.record(self.id, Kind.DECISION, {"suspended": span})

    def _open(self) -> list[WatchedWriter]:
        return [w for w in self.writers.values() if w.role not in runstate.AGENTS and not w.closed]

    # ------------------------------------------------------------------ acting

    def act(self) -> None:
        """Abort for what was decided. It is recorded after that, by `settle`: nothing that takes long comes before an abort."""
        if not self.is_ready or self.rules.stale:
            return
        for decision in self.rules.take():
            if decision.id not in self._recorded:
                self._recorded.add(decision.id)
                self._shows_news = True
                self._waiting.append(decision)
                if decision.abort and not self.rules.over and self._still_counts(decision):
                    self._acts.abort(decision)

    def settle(self) -> bool:
        """Record what was decided; False when the spool refuses, and it is to be tried again."""
        if not self.is_ready:
            return True
        if self.rules.stale:
            self._begin_again()
            return True
        is_offered = self._offer()
        self.act()
        while self._waiting:
            if not self._keep(self._waiting[0]):
                self.problem = f"decisions cannot be recorded: {self._notes.last_error}"
                return False
            del self._waiting[0]
        return is_offered

    def _still_counts(self, decision: Decision) -> bool:
        """Say whether those whom the decision is about are still there: an agent that comes late must not stop their successors."""
        writer = decision.stream.get("writer")
        if writer is None:
            return self.rules.firing(decision.rule.id)
        known = self.writers.get(writer)
        return known is not None and not known.closed

    def _keep(self, decision: Decision) -> bool:
        if not self._notes.record(self.id, Kind.DECISION, decision.body()):
            return False
        rule = decision.rule
        state = "critical" if self.rules.firing(rule.id) else "ok"
        if rule.source != "user" and self._states.get(rule.id, "ok") != state:
            body = {"id": rule.id, "alert": rule.name, "state": state, "decision": decision.id}
            if not self._notes.record(self.id, Kind.ALERT_STATE, body):
                return False
            self._states[rule.id] = state
        return True

    def _offer(self) -> bool:
        """Record the site's rules for this run, once each; they come back through the tail. False while a reference is being made.

        Those about others come last: what they decide is to know the others.
        """
        if self._site is None or not self._changed:
            return True
        self._changed = False
        for alert in sorted(self._site(self.state), key=lambda a: a.body["source"] == "alerts"):
            if self._changed and alert.body["source"] == "alerts":
                break
            name = str(alert.body["name"])
            if self.rules.knows(name) or str(alert.body["id"]) in self._offered:  # the script's own stays
                continue
            body = dict(alert.body)
            if alert.reference is not None:
                try:
                    kept = self._references.get(self._folder, alert.reference, body)
                except LookupError:  # it was reported
                    continue
                if kept is None:
                    self._changed = True
                    continue
                body = kept.alert
                if not self._notes.record(self.id, Kind.ARTIFACT, kept.artifact):
                    continue
            if self._notes.record(self.id, Kind.ALERT, body):
                self._offered.add(str(alert.body["id"]))
                self._has_defined = True
        return not self._changed

    def offer_again(self, site: SiteRules | None) -> None:
        """The site's rules have changed."""
        self._site, self._changed = site, True

    # ------------------------------------------------------------------ the end

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended, everything is judged, and nothing came for a while."""
        if not self.is_ready or not self.rules.over or self._waiting or self._is_copying():
            self._over_since = math.inf
            return False
        now = time.monotonic()
        self._over_since = min(self._over_since, now)
        return now - self._over_since >= _GONE

    def _is_copying(self) -> bool:
        """Whether an agent still copies lines of an inbox into the run."""
        return any(
            w.role == "inbox" and not w.closed and w.header is not None and is_alive(w.header) is not False for w in self.writers.values()
        )

    def finish(self) -> None:
        """Decide what the end decides, note that all was judged, let go."""
        if self.rules.rules and os.path.isdir(self._folder.writers):
            self.rules.tick(math.inf)
            if self.settle():
                watched = {w.writer: w.sequence for w in self.writers.values() if w.role != "agent"}
                if watched != self._watched:
                    self._notes.record(self.id, Kind.DECISION, {"watched": watched})
        self.close()
        self._notes.release(self.id)

    def close(self) -> None:
        """Let go of the files."""
        for one in self.writers.values():
            one.tail.close()

    # ------------------------------------------------------------------ rules about several runs

    def take_news(self) -> bool:
        """Say whether `seen` may have changed since the last time."""
        news, self._shows_news = self._shows_news, False
        return news

    def seen(self) -> Seen:
        """Return what rules of other runs see of this one."""
        known = [rule for rule in self.rules.rules.values() if rule.when is None]
        firing = self.rules.all_firing()
        names = frozenset(rule.name for rule in known if rule.id in firing)
        return Seen(self.id, self.state, frozenset(rule.name for rule in known), names, live=not self.rules.over)

    def noted(self, rule: str) -> Mapping[str, Any] | None:
        """Return what was noted last of other runs, for a rule (by id)."""
        return self._noted.get(rule, (0, None))[1]

    def note_elsewhere(self, rule: str, alerts: dict[str, Any]) -> bool:
        """Note what a rule about several runs sees; False when the spool refuses."""
        kept = self._notes.record(self.id, Kind.DECISION, {"elsewhere": {"rule": rule, "alerts": alerts}})
        if kept:
            self._noted[rule] = time.time_ns(), alerts
        return kept

    def noted_in(self) -> str | None:
        """Return the id of the writer in which this agent notes, if it has one."""
        found = self._notes.position(self.id)
        return None if found is None else found[0]

    def take_definition(self) -> bool:
        """Say whether an alert was recorded here since the last time; it is judged when it has been read."""
        defined, self._has_defined = self._has_defined, False
        return defined

    def take_change(self) -> bool:
        """Say whether `live` may have changed since the last time."""
        changed, self._live_changed = self._live_changed, False
        return changed

    def live(self) -> list[LiveWriter]:
        """Return the writers that have not ended."""
        options = runstate.config(self.state)
        ended = self.rules.ended_writers()
        found = [
            w.standing.live(self.id, w.writer, w.header, options)
            for w in self.writers.values()
            if w.header is not None and w.role and w.role not in runstate.AGENTS and not w.closed and w.writer not in ended
        ]
        named = [p for w in self.writers.values() if w.role == "inbox" for p in w.standing.processes.values()]
        if named and found:  # by lines, which no writer's process wrote: they are the run's
            here = next((n for n, live in enumerate(found) if live.header.boot_id == this_host().boot_id), 0)
            found[here] = replace(found[here], processes=(*found[here].processes, *named))
        return found
