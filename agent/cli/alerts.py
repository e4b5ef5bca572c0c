"""`agent alerts`: what the rules say of runs, a rule more, and what the records say when they are judged again."""

from __future__ import annotations

import contextlib
import json
import math
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from simspool.agent.exit_codes import CommandError, ExitCode
from simspool.spool import Kind, RunFolder, Spool, Tail, alert_definition, control, reference_curve, runstate
from simspool.spool.frames import Record
from simspool.spool.process import is_alive
from simspool.spool.reference_curve import AXES

from . import output
from .settings import Settings, common
from .view import open_view

if TYPE_CHECKING:
    from simspool.agent.alerts.replay import Judged
    from simspool.agent.alerts.site import SiteAlert
    from simspool.sdk.reference import Made

_NUMBERS = (
    ("threshold", "For above and below: of values, or of a rate in units per second."),
    ("range-low", "The lower end of a range; it belongs to the inside."),
    ("range-high", "The upper end of a range; it belongs to the inside."),
    ("window", "Seconds of the points' own time that are judged together (default 5)."),
    ("frequency", "Judge at most that often, in seconds, in place of at each point."),
    ("hold", "Seconds that the condition must hold before the alert fires."),
    ("hysteresis", "How far on the good side a value must be before it is good again."),
    ("clear-after", "Seconds that it must be good before the alert is resolved."),
    ("tolerance", "How far a point may be from the reference."),
    ("relative-tolerance", "The same, as a part of the reference's value."),
)


class _Alerts(click.Group):
    """`agent alerts` and `agent alerts RUN` are short for `agent alerts list`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Alerts, short_help="Show, add, check and replay alert rules.")
def alerts() -> None:
    """Show, add, check and replay alert rules: `agent alerts [RUN]` shows the alerts of a run, or of all live runs."""


@alerts.command("list")
@click.argument("run", required=False)
@common
def show(settings: Settings, run: str | None) -> int:
    """Show the alerts of a run, or of all live runs, with their states (the same as `agent alerts [RUN]`).

    RUN is an id, a unique prefix of one, or a name.
    """
    spool = settings.open_spool()
    with open_view(spool) as catalog:
        if run is None:
            rows = catalog.rows("SELECT id, state FROM runs WHERE state IS NOT NULL ORDER BY id DESC")
        else:
            rows = catalog.rows("SELECT id, state FROM runs WHERE id = ?", (spool.find_run(run),))
    found = []
    for identity, text in rows:
        state = json.loads(text) if text else runstate.empty()
        if run is None and runstate.ended(state):
            continue
        found += [_listed(identity, state, name, told) for name, told in runstate.alerts(state).items()]
    if settings.json:
        for entry in found:
            output.echo_json(entry)
        return ExitCode.OK
    if not found:
        where = f"run {run}" if run is not None else "the runs that live now"
        output.note(f"no alerts in {where}: scripts create them, and so does `agent alerts add`")
        return ExitCode.OK
    lines = [(e["run_name"] or e["run"], e["alert"], e["state"] or "-", _time(e["since"]), e["reason"] or _words(e)) for e in found]
    for line in output.table(["run", "alert", "state", "since", "reason"], lines):
        output.echo(line)
    return ExitCode.OK


def _listed(run: str, state: dict[str, Any], name: str, told: dict[str, Any]) -> dict[str, Any]:
    return {
        "run": run, "run_name": runstate.value(state, "name"), "alert": name, "state": told["state"], "since": _seconds(told["since"]),
        "reason": told["reason"], "definition": told["definition"],
    }  # fmt: skip


def _words(entry: dict[str, Any]) -> str:
    return alert_definition.describe(entry["definition"]) if entry["definition"] else ""


def _fields(function: Any) -> Any:
    for name, text in reversed(_NUMBERS):
        function = click.option(f"--{name}", type=float, metavar="X", help=text)(function)
    texts = [
        click.option("--name", required=True, metavar="NAME", help="The alert's name; it has one definition in a run."),
        click.option("--rule", type=click.Choice(alert_definition.RULES), help="What is to be found; not for events."),
        click.option("--metric", metavar="NAME", help="A metric's name, or a pattern with *, ? and [...]."),
        click.option("--pattern", metavar="TEXT", help="For events: a piece of the message, or after `re:` a regular expression (RE2)."),
        click.option("--reference", metavar="RUN|FILE", help="To be followed: a run's points of the metric, or a CSV file of x and value."),
        click.option("--xaxis", type=click.Choice(AXES), help="Where on the reference a point belongs: by step (default) or own time."),
        click.option("--when", metavar="EXPRESSION", help="Of other alerts of the run: `stalled and not warm-up`, `3 of diverged`."),
        click.option("--runs", metavar="FILTER", help="For --when: the alerts of all runs that match, such as folder=/campaign."),
        click.option("--aggregation", type=click.Choice(alert_definition.AGGREGATIONS), help="Of the values in the window."),
        click.option("--description", metavar="TEXT", help="For people."),
        click.option("--notification", type=click.Choice(alert_definition.NOTIFICATIONS), default="none", help="What the server sends."),
        click.option("--abort", is_flag=True, help="Stop the run when it fires."),
    ]
    for option in reversed(texts):
        function = option(function)
    return function


@alerts.command()
@click.argument("run")
@_fields
@click.option("--from-start", is_flag=True, help="Judge also what the run has recorded so far.")
@common
def add(settings: Settings, /, run: str, *, from_start: bool, **fields: Any) -> int:
    """Give a run one more alert; the running agent judges it at once, else the next one does.

    RUN is an id, a unique prefix of one, or a name. Docs: the fields are those of docs/alerts.md.
    """
    from simspool.agent.alerts.references import with_curve
    from simspool.agent.alerts.replay import run_now
    from simspool.agent.alerts.rules import InvalidRule, parse_rule
    from simspool.sdk.reference import curve_from

    spool = settings.open_spool()
    folder = spool.run(spool.find_own_run(run))
    source = "alerts" if fields["when"] is not None else "events" if fields["pattern"] is not None and fields["rule"] is None else "metrics"
    reference = fields.pop("reference")
    body = alert_definition.define(
        fields.pop("name"), source, description=fields.pop("description"), notification=fields.pop("notification"),
        trigger_abort=fields.pop("abort"), **fields, reference=None if reference is None else "0" * 64,
    )  # fmt: skip
    made = None
    if reference is not None:
        made = curve_from(reference, body["alert"]["metric"], body["alert"].get("xaxis", "step"), spool)
        body = with_curve(body, reference_curve.digest_of(made.data))
    try:
        parse_rule(body)  # what only the agent can tell: RE2 is not Python's
    except InvalidRule as error:
        raise CommandError(ExitCode.USAGE, f"alert {body['name']!r}: {error}") from None
    header = next((tail.header for tail, _ in _records(folder) if tail.header is not None), None)
    if header is None:
        raise CommandError(ExitCode.RUN_NOT_FOUND, f"run {run!r} has no records yet: try again when it has begun")
    known = _kept(folder, body)
    if known["id"] != body["id"]:
        theirs, ours = alert_definition.describe(known), alert_definition.describe(body)
        raise CommandError(ExitCode.USAGE, f"this run has an alert {body['name']!r} already: {theirs}; not {ours}: give it another --name")
    there = any(r.kind == Kind.ALERT and (r.body or {}).get("id") == body["id"] for _, r in _records(folder))
    since = 0.0 if from_start else run_now(header)
    if not there:
        _record(spool, folder, {**body, "by": "user", "since": since}, made)
    if settings.json:
        output.echo_json({"run": folder.id, "id": body["id"], "name": body["name"], "since": None if there else since, "added": not there})
    elif there:
        output.echo(f"the run has this alert already: {output.safe(body['name'])}")
    else:
        output.echo(f"added {output.safe(body['name'])}: {output.safe(alert_definition.describe(body))}")
        if not from_start and not _lives(folder):
            output.note("the run has ended: only with --from-start is there anything to judge")
    return ExitCode.OK


def _kept(folder: RunFolder, body: dict[str, Any]) -> dict[str, Any]:
    """Return the run's alert of this name: this one, unless it has another. Records count where the file is missing."""
    for _, record in _records(folder):
        if record.kind == Kind.ALERT and record.body is not None and record.body.get("name") == body["name"] and "id" in record.body:
            return record.body
    try:
        return control.keep_alert(control.alert_file(folder, body["name"]), body)
    except OSError as error:
        raise CommandError(ExitCode.SPOOL_UNUSABLE, f"cannot write into {folder.control}: {error.strerror}") from None


def _record(spool: Spool, folder: RunFolder, body: dict[str, Any], made: Made | None) -> None:
    from simspool.agent.abort.notices import bell_path
    from simspool.agent.alerts.references import keep
    from simspool.agent.notes import RunNotes

    notes = RunNotes(spool)
    try:
        if made is not None and not notes.record(folder.id, Kind.ARTIFACT, keep(spool, folder, made)):
            raise CommandError(ExitCode.SPOOL_UNUSABLE, f"the reference could not be recorded: {notes.last_error}")
        if not notes.record(folder.id, Kind.ALERT, body):
            raise CommandError(ExitCode.SPOOL_UNUSABLE, f"the alert could not be recorded: {notes.last_error}")
        position, bell = notes.position(folder.id), bell_path(spool)
        if position is not None and bell is not None:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as ring:
                ring.sendto(f"{position[0]} {folder.id}".encode(), bell)
    finally:
        notes.close()


def _lives(folder: RunFolder) -> bool:
    state = runstate.empty()
    alive = False
    for tail, record in _records(folder):
        if tail.header is not None:
            runstate.apply(state, tail.writer, record.seq, record.kind, tail.header.wall_ns(record.boot_ns), record.body)
            alive = alive or is_alive(tail.header) is not False
    return alive and not runstate.ended(state)


def _records(folder: RunFolder) -> Iterator[tuple[Tail, Record]]:
    """All of a run's JSON records, writer by writer."""
    for writer in folder.writer_ids():
        with Tail(folder.writer(writer), folder.id) as tail:
            for dead in (False, True):
                for chunk in tail.read(dead=dead):
                    for item in chunk.items:
                        if isinstance(item, Record):
                            yield tail, item
                if tail.header is None or is_alive(tail.header) is not False:
                    break


@alerts.command()
@click.argument("run")
@click.option("--rules", metavar="FILE", type=click.Path(dir_okay=False), help="Judge by the alerts of this file, not by the run's own.")
@common
def replay(settings: Settings, run: str, rules: str | None) -> int:
    """Judge what a run has recorded again, and say whether the decisions are those that are recorded.

    RUN is an id, a unique prefix of one, or a name. Nothing is recorded. Exit status 1 when decisions differ. With --rules, all alerts
    of the file are judged from the run's beginning, whatever their `where` says, and there is nothing to compare with; references are
    made as they are now, and alerts about several runs are judged by what an agent noted for the very same alert.
    """
    from simspool.agent.alerts.replay import judge

    spool = settings.open_spool()
    folder = spool.run(spool.find_run(run))
    judged = judge(folder) if rules is None else _judge_by(rules, spool, folder)
    missing = {d.id for d in judged.missing} if rules is None else set()
    surplus = judged.surplus if rules is None else []
    differ = bool(missing or surplus)
    for problem in judged.problems:
        output.note(problem)
    for name, problem in judged.rules.problems.items():
        output.note(f"alert {name!r}: {problem}")
    decided = [{**d.body(), "recorded": None if rules is not None else d.id not in missing} for d in judged.decisions]
    decided += [{**body, "recorded": True, "made_again": False} for body in surplus]
    if settings.json:
        for body in decided:
            output.echo_json({"kind": "decision", **body})
        output.echo_json(
            {
                "kind": "summary", "run": folder.id, "decisions": len(judged.decisions), "missing": len(missing), "surplus": len(surplus),
                "equal": None if rules is not None else not differ,
            }
        )  # fmt: skip
    else:
        marks = {None: "", True: "recorded", False: "not recorded"}
        _print(decided, [("recorded only" if "made_again" in b else marks[b["recorded"]]) for b in decided])
        if rules is None:
            same = f"equal: {_count(len(judged.decisions), 'decision')}, all recorded"
            output.echo(f"differs: {len(missing)} not recorded, {len(surplus)} recorded only" if differ else same)
        else:
            output.echo(f"{_count(len(judged.decisions), 'decision')} by {_count(len(judged.rules.rules), 'alert')}")
    return ExitCode.ERROR if differ else ExitCode.OK


def _judge_by(file: str, spool: Spool, folder: RunFolder) -> Judged:
    from simspool.agent.alerts.curves import Curve
    from simspool.agent.alerts.references import make, with_curve
    from simspool.agent.alerts.replay import judge
    from simspool.agent.alerts.rules import parse_rule
    from simspool.agent.alerts.site import load

    found, curves = [], {}
    for alert in load(file):
        body = alert.body
        if alert.reference is not None:
            data = make(spool, alert.reference, body).data
            digest = reference_curve.digest_of(data)
            curves[digest] = Curve(data)
            body = with_curve(body, digest)
        found.append(parse_rule(body))
    return judge(folder, found, curves=curves.__getitem__)


@alerts.command()
@click.argument("run")
@common
def decisions(settings: Settings, run: str) -> int:
    """Show the decisions that are recorded in a run, in the order of their moments.

    RUN is an id, a unique prefix of one, or a name.
    """
    spool = settings.open_spool()
    folder = spool.run(spool.find_run(run))
    found: dict[str, dict[str, Any]] = {}
    for _, record in _records(folder):
        if record.kind == Kind.DECISION and record.body is not None and isinstance(record.body.get("id"), str):
            found.setdefault(record.body["id"], record.body)
    ordered = sorted(found.values(), key=lambda b: b["at"] if isinstance(b.get("at"), (int, float)) else math.inf)
    if settings.json:
        for body in ordered:
            output.echo_json(body)
    elif ordered:
        _print(ordered, None)
    else:
        output.note("no decisions are recorded in this run")
    return ExitCode.OK


@alerts.command()
@click.argument("file", type=click.Path(dir_okay=False))
@common
def check(settings: Settings, file: str) -> int:
    """Check a site's file of alerts, and show what it says. Exit status 2 when it cannot be used."""
    from simspool.agent.alerts.site import load

    found = load(file)
    if settings.json:
        for alert in found:
            output.echo_json(_checked(alert))
        return ExitCode.OK
    rows = [(a.body["name"], alert_definition.describe(_checked(a)), a.where or "all runs") for a in found]
    for line in output.table(["alert", "definition", "where"], rows):
        output.echo(line)
    return ExitCode.OK


def _checked(alert: SiteAlert) -> dict[str, Any]:
    """An alert as the file has it: a reference becomes a curve, and the alert gets its id, in each run."""
    body = {**alert.body, "where": alert.where}
    if alert.reference is not None:
        del body["id"]
        body["alert"] = {**body["alert"], "reference": {alert.reference.kind: alert.reference.text}}
    return body


def _print(bodies: list[dict[str, Any]], marks: list[str] | None) -> None:
    if not bodies:
        return
    rows = []
    for n, body in enumerate(bodies):
        at, stream = body.get("at"), body.get("stream") or {}
        shown = f"{at:.3f}" if isinstance(at, (int, float)) else None
        where = " ".join(str(stream[part]) for part in ("metric", "host", "inbox", "writer") if part in stream)
        rows.append((shown, body.get("alert"), body.get("state"), where, body.get("reason"), *([marks[n]] if marks is not None else [])))
    more = [] if marks is None else ["recorded" if any(marks) else ""]
    for line in output.table(["at (s)", "alert", "state", "stream", "reason", *more], rows):
        output.echo(line)


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _seconds(wall_ns: int | None) -> float | None:
    return None if wall_ns is None else wall_ns / 1e9


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
