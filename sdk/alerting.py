"""Alerts of a run: the half of Run that defines them and sets their state (docs/alerts.md). The agent judges them.

In a run, one name has one definition, whichever of its processes gives it: a small file that is made exclusively keeps it. A disk that
refuses that file does not keep the alert from being recorded.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Literal

from simspool.spool import InvalidRecord, Kind, control

from . import validation as check
from .errors import MISTAKES, AlertNotFound
from .part import Part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from simspool.spool import RunFolder, Spool
    from simspool.spool.blobs import Blob

Source = Literal["events", "metrics", "user", "alerts"]
RangeRule = Literal["is inside range", "is outside range"]
Rule = Literal[
    "is above", "is below", "is inside range", "is outside range", "is not finite", "rate is above", "rate is below", "no progress",
    "deviates from reference",
]
Aggregation = Literal["average", "sum", "at least one", "all"]
Notification = Literal["none", "email"]


_NO_CURVE = "0" * 64


class Alerting(Part):
    """Defining alerts, and setting their states."""

    _mode: str
    _alerts: dict[str, dict[str, Any]]
    _defined: dict[str, dict[str, Any]]

    @abstractmethod
    def _request_abort(self, reason: str, *, alert: str | None = None, sticky: bool = False) -> bool:
        """Ask for an abort of this run; True when the request is kept."""

    # ------------------------------------------------------------------ defining

    def create_alert(
        self,
        name: str,
        source: Source = "metrics",
        description: str | None = None,
        frequency: float | None = None,
        window: float = 5,
        rule: Rule | None = None,
        metric: str | None = None,
        threshold: float | None = None,
        range_low: float | None = None,
        range_high: float | None = None,
        aggregation: Aggregation = "average",
        notification: Notification = "none",
        pattern: str | None = None,
        trigger_abort: bool = False,
        *,
        hold: float | None = None,
        hysteresis: float | None = None,
        clear_after: float | None = None,
        when: str | None = None,
        runs: str | None = None,
        reference: str | os.PathLike[str] | Mapping[float, float] | Iterable[tuple[float, float]] | None = None,
        tolerance: float | None = None,
        relative_tolerance: float | None = None,
        xaxis: Literal["step", "time"] | None = None,
        attach_to_run: bool = True,
    ) -> str | None:
        """Define an alert for this run; returns its id (22 letters and digits), None when it could not be recorded (which is counted).

        Times are seconds. Without `frequency` it is judged at each point or event, else at most that often. docs/alerts.md has the table
        of rules and what each takes: `metric` may hold `*`, `?` and `[...]`, `pattern` is a piece of the message or, after `re:`, a regular
        expression. `hold` is for how long the condition must be met, `hysteresis` how far on the good side it must be to be good again,
        `clear_after` for how long. `trigger_abort` stops the run when it fires. With `attach_to_run=False`, it is kept for `add_alerts`.

        With source `alerts`, `when` is an expression of other alerts, such as `stalled and not warm-up` or `3 of diverged`; `runs` means
        those of the runs that match, in place of this run's own. The rule `deviates from reference` compares with a `reference`: a run of
        the spool (id, prefix or name; its points of `metric`, as far as they lie in the spool), a CSV file, (x, value) pairs or a
        dictionary, x being a step or a time by `xaxis`. It is read now, and kept with the run.

        The same definition has the same id in every run; repeating it is harmless. Raises InvalidRecord for arguments that are
        missing, not valid or of no use to the rule, and for a name that has another definition in this run; RunNotFound and
        UnreadableFile for a reference that is not there.
        """
        given = {
            "frequency": frequency, "window": window, "rule": rule, "metric": metric, "threshold": threshold, "range_low": range_low,
            "range_high": range_high, "aggregation": aggregation, "pattern": pattern, "hold": hold, "hysteresis": hysteresis,
            "clear_after": clear_after, "when": when, "runs": runs, "reference": reference, "tolerance": tolerance,
            "relative_tolerance": relative_tolerance, "xaxis": xaxis,
        }  # fmt: skip
        return self._define(name, source, description, notification, trigger_abort, attach_to_run, given)

    def create_metric_threshold_alert(
        self,
        name: str,
        metric: str,
        threshold: float,
        rule: Literal["is above", "is below", "rate is above", "rate is below"],
        *,
        description: str | None = None,
        window: float | None = None,
        frequency: float | None = None,
        aggregation: Aggregation = "average",
        notification: Notification = "none",
        trigger_abort: bool = False,
        attach_to_run: bool = True,
        hold: float | None = None,
        hysteresis: float | None = None,
        clear_after: float | None = None,
    ) -> str | None:
        """Define an alert on a metric that is above or below a number; see `create_alert`. `window` is by default `frequency`, else 1 s."""
        given = {
            "metric": metric, "threshold": threshold, "rule": rule, "window": _window(window, frequency), "frequency": frequency,
            "aggregation": aggregation, "hold": hold, "hysteresis": hysteresis, "clear_after": clear_after,
        }  # fmt: skip
        return self._define(name, "metrics", description, notification, trigger_abort, attach_to_run, given)

    def create_metric_range_alert(
        self,
        name: str,
        metric: str,
        range_low: float,
        range_high: float,
        rule: RangeRule,
        *,
        description: str | None = None,
        window: float | None = None,
        frequency: float | None = None,
        aggregation: Aggregation = "average",
        notification: Notification = "none",
        trigger_abort: bool = False,
        attach_to_run: bool = True,
        hold: float | None = None,
        hysteresis: float | None = None,
        clear_after: float | None = None,
    ) -> str | None:
        """Define an alert on a metric inside or outside a range; see `create_alert`. `window` is by default `frequency`, else 1 s."""
        given = {
            "metric": metric, "range_low": range_low, "range_high": range_high, "rule": rule, "window": _window(window, frequency),
            "frequency": frequency, "aggregation": aggregation, "hold": hold, "hysteresis": hysteresis, "clear_after": clear_after,
        }  # fmt: skip
        return self._define(name, "metrics", description, notification, trigger_abort, attach_to_run, given)

    def create_event_alert(
        self,
        name: str,
        pattern: str,
        *,
        description: str | None = None,
        frequency: float | None = None,
        notification: Notification = "none",
        trigger_abort: bool = False,
        attach_to_run: bool = True,
        hold: float | None = None,
        clear_after: float | None = None,
    ) -> str | None:
        """Define an alert on events whose message holds `pattern`, or matches it after `re:`; see `create_alert`."""
        given = {"pattern": pattern, "frequency": frequency, "hold": hold, "clear_after": clear_after}
        return self._define(name, "events", description, notification, trigger_abort, attach_to_run, given)

    def create_user_alert(
        self,
        name: str,
        *,
        description: str | None = None,
        notification: Notification = "none",
        trigger_abort: bool = False,
        attach_to_run: bool = True,
    ) -> str | None:
        """Define an alert whose state the script sets with `log_alert`; see `create_alert`."""
        return self._define(name, "user", description, notification, trigger_abort, attach_to_run, {})

    def _define(
        self, name: str, source: str, description: str | None, notification: str, trigger_abort: bool, attach: bool, given: dict[str, Any]
    ) -> str | None:  # fmt: skip
        from simspool.spool import alert_definition

        def define(**known: Any) -> dict[str, Any]:
            return alert_definition.define(
                name, source, description=description, notification=notification, trigger_abort=trigger_abort, **given | known
            )

        try:
            reference = given.get("reference")
            body = define() if reference is None else define(reference=_NO_CURVE)
            identity = str(body["id"])
            if self._ready("create_alert") is None:
                return identity if self._default() else None
            if reference is not None:
                from simspool.spool import blobs, reference_curve

                from .reference import curve_from

                spool = self._recording.spool if self._recording is not None else None
                made = curve_from(reference, body["alert"]["metric"], body["alert"].get("xaxis", "step"), spool)
                digest = reference_curve.digest_of(made.data)
                body = define(reference=digest)
                identity = str(body["id"])
                if not self._keep_curve(digest, lambda spool, folder: blobs.put_bytes(spool, folder, made.data), made.source):
                    return None
            self._defined[identity] = body
            self._share(body)
            return identity if not attach or self._attach(body) else None
        except MISTAKES as error:
            self._mistake(error)
            return None

    def add_alerts(self, ids: list[str] | None = None, names: list[str] | None = None) -> bool:
        """Use alerts in this run that were defined before, in this or another run of the spool; True when all are recorded.

        Raises AlertNotFound for an id or name that the spool does not know, and for a name with several definitions (the message lists
        their ids); InvalidRecord when neither is given.
        """
        try:
            wanted = [*_texts("ids", ids), *_texts("names", names)]
            if not wanted:
                raise InvalidRecord("add_alerts: give ids=[...] or names=[...]")
            if self._ready("add_alerts") is None:
                return self._default()
            found = [self._by_id(i) for i in ids or []] + [self._by_name(n) for n in names or []]
            kept = [self._attach(body) for body in found]
            return all(kept)
        except MISTAKES as error:
            return self._mistake(error)

    def _attach(self, body: dict[str, Any]) -> bool:
        """Record an alert in this run, once for each process that defines it."""
        name = body["name"]
        known = self._alerts.get(name)
        if known is None and self._recording is not None and self._recording.folder is not None:
            try:
                known = control.keep_alert(control.alert_file(self._recording.folder, name), body)
            except OSError:  # the record counts; without the file, only this process knows the name
                known = None
        if known is not None and known["id"] != body["id"]:
            from simspool.spool.alert_definition import describe

            raise InvalidRecord(
                f"this run has an alert {name!r} already: {describe(known)}; not {describe(body)}: give one of them another name"
            )
        if name in self._alerts:
            return True
        reference = body["alert"].get("reference") if isinstance(body.get("alert"), dict) else None
        if reference is not None and not self._bring_curve(str(reference)):
            return False
        if not self._record(Kind.ALERT, {**body, "by": "script"}):
            return False
        self._alerts[name] = body
        return True

    def _keep_curve(self, digest: str, put: Callable[[Spool, RunFolder], Blob], source: str) -> bool:
        """Keep a reference curve with the run; False when the spool cannot take it (counted)."""
        from simspool.spool import reference_curve

        if self._recording is None:
            return False
        name = reference_curve.artifact_name(digest)
        return self._recording.keep(put, {"name": name, "category": "input", "path": source, "mime": reference_curve.MIME})

    def _bring_curve(self, digest: str) -> bool:
        """See that the curve of an alert of another run is with this one. Raises AlertNotFound where the spool has it no more."""
        from simspool.spool import blobs

        spool, folder = (self._recording.spool, self._recording.folder) if self._recording is not None else (None, None)
        if spool is None or folder is None:
            return False
        if os.path.exists(os.path.join(folder.blobs, digest)):
            return True  # whoever put it there recorded it
        others = (spool.run(run) for run in reversed(spool.run_ids()))
        path = next((path for run in others if (path := blobs.path_of(spool, run, digest)) is not None), None)
        if path is None:
            raise AlertNotFound(f"the reference curve {digest[:16]} is gone from the spool: define the alert again with create_alert")
        return self._keep_curve(digest, lambda spool, folder: blobs.put_file(spool, folder, path), "")

    def _share(self, body: dict[str, Any]) -> None:
        """Keep a definition for other runs of the spool, as far as the disk allows."""
        if self._recording is not None and self._recording.spool is not None:
            path = control.shared_alert_file(self._recording.spool, body["id"])
            try:
                if not os.path.exists(path):
                    control.keep_alert(path, body)
            except OSError:
                return

    def _by_id(self, identity: str) -> dict[str, Any]:
        body = self._defined.get(identity)
        if body is None and self._recording is not None and self._recording.spool is not None:
            try:
                body = control.read_alert(control.shared_alert_file(self._recording.spool, identity))
            except ValueError as error:
                raise AlertNotFound(f"{error}: give the id that create_alert returned, or names=[...]") from None
        if body is None:
            raise AlertNotFound(f"no alert {identity!r} in this spool: define it with create_alert first")
        return body

    def _by_name(self, name: str) -> dict[str, Any]:
        known = self._alerts.get(name)
        if known is not None:
            return known
        found = {body["id"]: body for body in self._defined.values() if body["name"] == name}
        if self._recording is not None and self._recording.spool is not None:
            shared = control.alerts_in(control.shared_alerts(self._recording.spool))
            found |= {body["id"]: body for body in shared if body["name"] == name}
        if not found:
            raise AlertNotFound(f"no alert named {name!r} in this spool: define it with create_alert first")
        if len(found) > 1:
            raise AlertNotFound(f"{len(found)} alerts are named {name!r}: give one of their ids {', '.join(sorted(found))}")
        return next(iter(found.values()))

    # ------------------------------------------------------------------ states

    def log_alert(
        self, identifier: str | None = None, state: Literal["ok", "critical"] | None = None, *, name: str | None = None
    ) -> bool:  # fmt: skip
        """Set the state of an alert that `create_user_alert` defined, by its id or its name; by default to critical.

        An alert with `trigger_abort` that becomes critical stops the run: the agent sees to that where one runs, else this process. Raises
        AlertNotFound when the run has no such alert, InvalidRecord for one that is not the user's to set.
        """
        try:
            if (identifier is None) == (name is None):
                raise InvalidRecord("log_alert: say which alert, either by its id or with name=")
            wanted = check.one_of("state", "critical" if state is None else state, ("ok", "critical"))
            text = check.check_text("alert", identifier if name is None else name)
            if self._ready("log_alert") is None:
                return self._default()
            body = self._of_this_run(lambda b: b["id" if name is None else "name"] == text, text)
            if body.get("source") != "user":
                raise InvalidRecord(f"alert {body['name']!r} is judged by its rule: only alerts of create_user_alert have a state to set")
            kept = self._record(Kind.ALERT_STATE, {"id": body["id"], "alert": body["name"], "state": wanted})
            if self._recording is not None:
                self._recording.stated.add(body["name"])
            if wanted == "critical" and body.get("abort") and self._recording is not None and not self._recording.hears_now():
                self._request_abort(f"alert {body['name']} is critical", alert=body["name"])
            return kept
        except MISTAKES as error:
            return self._mistake(error)

    def _of_this_run(self, matches: Callable[[dict[str, Any]], bool], text: str) -> dict[str, Any]:
        """Return an alert of this run, also one that another of its processes defined."""
        found = next((body for body in self._alerts.values() if matches(body)), None)
        if found is None and self._recording is not None and self._recording.folder is not None:
            found = next((b for b in control.alerts_in(control.alerts_folder(self._recording.folder)) if matches(b)), None)
        if found is None:
            raise AlertNotFound(f"this run has no alert {text!r}: define it with create_user_alert, or add it with add_alerts")
        return found


def _window(window: float | None, frequency: float | None) -> float | None:
    """Return the window of the published client's own default."""
    return window if window is not None else frequency if frequency is not None else 1.0


def _texts(what: str, values: object) -> list[str]:
    if values is None:
        return []
    if not isinstance(values, list | tuple | set) or not all(isinstance(v, str) for v in values):
        raise InvalidRecord(f"{what} must be a list of texts, not {values!r}"[:300])
    return list(values)
