"""`agent status`, `agent ls` and `agent show`: what is recorded, acknowledged and waiting."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import click

from simspool.agent.catalog import Catalog
from simspool.agent.exit_codes import ExitCode
from simspool.agent.status import find_run, list_runs, overview, run_overview, show_run
from simspool.agent.truth.known import KnownTarget, counting, known_targets
from simspool.spool import Spool

from . import output
from .handover import agent_status
from .settings import Settings, common
from .view import open_view

Body = dict[str, Any]
_SPANS = 20


@click.command(short_help="Show the agent, the targets and what waits to be sent.")
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@common
def status(settings: Settings, runs: tuple[str, ...]) -> int:
    """Show the agent, the targets, and what is recorded, acknowledged, waiting, refused, dropped and lost; or that of each RUN.

    The books are checked: for every run and target, what was recorded is accounted for. Exit status 1 where it is not (a bug).
    RUN is an id, a unique beginning of one, or a name.
    """
    spool = settings.open_spool()
    if runs:
        return _of_runs(settings, spool, runs)
    body = agent_status(spool)
    if body is None:
        with open_view(spool) as catalog:
            body = {**overview(catalog, spool, targets_of(settings, spool, catalog)), "agent": None}
            body["notifications"] = _notifications(settings, spool, catalog)
            body["budget"] = _budget(settings, spool)
    if settings.json:
        output.echo_json(body)
    else:
        for line in output.pairs([*_about_agent(body), *_books(body), *_rest(body)]):
            output.echo(line)
    return _verdict(body)


def targets_of(settings: Settings, spool: Spool, catalog: Catalog) -> list[KnownTarget]:
    """Return the targets that are configured here. Raises CommandError for settings that cannot be used."""
    return known_targets(catalog, settings.targets_now(spool))


def _of_runs(settings: Settings, spool: Spool, runs: tuple[str, ...]) -> int:
    worst = ExitCode.OK
    with open_view(spool) as catalog:
        targets = targets_of(settings, spool, catalog)
        for n, text in enumerate(runs):
            body = run_overview(catalog, find_run(catalog, spool, text), targets)
            worst = max(worst, _verdict(body))
            if settings.json:
                output.echo_json(body)
                continue
            about: list[tuple[str, object]] = [("run", f"{body['id']} ({body['name']}), {body['status']}")]
            for line in ([""] if n else []) + output.pairs([*about, *_books(body)]):
                output.echo(line)
    return worst


def _verdict(body: Body) -> ExitCode:
    for wrong in body.get("imbalances", []):
        output.note(f"agent: the books do not balance, which is a bug of simspool: {wrong}")
    return ExitCode.OK if body.get("balanced", True) else ExitCode.ERROR


def _about_agent(body: Body) -> Iterator[tuple[str, object]]:
    agent = body["agent"]
    if agent is None:
        running = "not running: `agent sync` sends what waits, `agent run` keeps sending"
    else:
        how = ", on demand" if agent.get("on_demand") else ""
        lease = agent.get("lease") or {"held": True}
        doing = f"{agent['drain']}" + (f" to {agent['url']}" if agent["url"] else "")
        if not lease["held"]:
            doing = f"the agent of {lease['host'] or 'another host'} sends"
        running = f"running (pid {agent['pid']}{how}), {doing}"
    runs = dict(body["runs"])
    total = runs.pop("total")
    yield "spool", body["spool"]
    yield "agent", running
    for line in (agent or {}).get("relay", []):
        yield "relay", line
    yield "runs", f"{total}" + (f" ({', '.join(f'{n} {s}' for s, n in sorted(runs.items()))})" if runs else "")


def _books(body: Body) -> Iterator[tuple[str, object]]:
    yield "records", _amounts(body["records"])
    yield "files", _amounts(body["files"])
    for target in body["targets"] if len(body["targets"]) > 1 else ():
        how = "" if target["required"] else " (best-effort)"
        yield f"to {target['name']}{how}", _amounts(target["records"])
        if target["files"]["recorded"]:
            yield "", f"files: {_amounts(target['files'])}"
    for target in body["targets"]:
        where = f" on {target['name']}" if len(body["targets"]) > 1 else ""
        if "in_custody" in target:
            yield f"by bundles{where}", _carried(target)
        if not target["server"]:
            yield f"target {target['name']}", f"{target['url']} was never reached"
        if target["remarks"]:
            text = ", ".join(f"{n} {what}" for what, n in target["remarks"].items())
            yield f"taken otherwise{where}", text + ("" if "remarked" in target else ": `agent status RUN` says more")
        for one in target.get("remarked", [])[:_SPANS]:
            yield "", f"{one['what']}: {one['detail']} ({one['count']})"
        if target["restored"]:
            yield f"restored{where}", _restored(target["restored"])
    if body["records"]["dropped"]:
        yield "dropped", ", ".join(f"{n} {reason}" for reason, n in body["records"]["dropped"].items()) + " (refused when recorded)"
    for span in body["lost"][:_SPANS]:
        first, last = span["sequences"]
        yield "lost", f"{last - first + 1} records, {first} to {last} of writer {span['writer']} in run {span['run']}: {span['reason']}"
    if len(body["lost"]) > _SPANS:
        yield "lost", f"... and {len(body['lost']) - _SPANS} more spans: --json lists them"


def _carried(body: Body) -> str:
    if body["far"] is None:
        return "no receipt came back yet: `agent bundle create` carries what waits"
    held = f"; it has {body['in_custody']} records that it has not delivered" if body["in_custody"] else ""
    return f"to the spool {body['far']}, whose latest receipt is of {_time(body['receipt'])}{held}"


def _restored(body: Body) -> str:
    from simspool.agent.truth.restored import Gone, Restored

    found = Restored(body["at"], body["records_again"], body["files_again"], tuple(Gone(**g) for g in body["gone"]))
    return f"found restored from a backup at {_time(body['at'])}: {found}"


def _rest(body: Body) -> Iterator[tuple[str, object]]:
    agent = body["agent"]
    for channel, told in body.get("notifications", {}).items():
        text = f"{told['sent']} sent, {told['pending']} pending" + (f", {told['abandoned']} abandoned" if told["abandoned"] else "")
        yield f"by {channel}", text + (f": {told['error']}" if told["error"] and told["pending"] else "")
    if text := _of_budget(body["budget"]):
        yield "budget", text
    if body["damage"]:
        yield "damage", f"{body['damage']} places: `agent check` says where"
    if body["not_understood"]:
        yield "inbox", f"{body['not_understood']} files with lines that were not understood: `agent check` names them"
    if agent and agent["problem"]:
        yield "problem", agent["problem"]
    for what, why in (agent or {}).get("problems", {}).items():
        yield "problem", f"{what}: {why}"


def _budget(settings: Settings, spool: Spool) -> Body:
    from simspool.agent.budget.guard import look_once

    return look_once(spool, settings.config.budget)


def _of_budget(budget: Body) -> str:
    """Return the line about the spool's budget, empty where there is none and nothing is refused."""
    parts = []
    if budget["bytes_limit"] and budget["bytes"] is not None:
        parts.append(f"{output.human_bytes(budget['bytes'])} of {output.human_bytes(budget['bytes_limit'])}")
    if budget["inodes_limit"] and budget["inodes"] is not None:
        parts.append(f"{budget['inodes']:,} of {budget['inodes_limit']:,} files")
    if budget["level"]:
        since = f" since {_time(budget['since'])}" if budget["since"] else ""
        parts.append(f"{budget['refused']}{since}: {budget['why']}")
    return ", ".join(parts)


def _notifications(settings: Settings, spool: Spool, catalog: Catalog) -> Body:
    """Return what people were told, by the channels that an agent would have here."""
    from simspool.agent.notify.queue import since, standing
    from simspool.agent.notify.settings import parse

    path = settings.config.sources.get("notify", "")
    found = {channel.name: channel.on for channel in parse(settings.config.notify, path)}
    there = since(spool, found, path, note=False)
    return standing(catalog, {name: (on, there[name]) for name, on in found.items()}, time.time())


def _amounts(body: Body) -> str:
    text = f"{body['recorded']} recorded, {body['acknowledged']} acknowledged, {body['waiting']} waiting"
    words = (("refused", "refused"), ("given_up", "given up"), ("lost", "lost"), ("gone", "pruned before"))
    return text + "".join(f", {body[key]} {word}" for key, word in words if body[key])


@click.command(help="List the runs of the spool.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many, the newest.")
@common
def ls(settings: Settings, limit: int | None) -> int:
    """Newest first, with what waits to be sent."""
    spool = settings.open_spool()
    with open_view(spool) as catalog:
        runs = list_runs(catalog, targets_of(settings, spool, catalog), limit=limit)
    if settings.json:
        for run in runs:
            output.echo_json(run)
        return ExitCode.OK
    rows = [(r["id"], r["name"], r["status"], r["folder"], _time(r["created"]), r["records"], r["waiting"]) for r in runs]
    for line in output.table(["id", "name", "status", "folder", "started", "records", "waiting"], rows):
        output.echo(line)
    return ExitCode.OK


@click.command(help="Show one run: status, metrics, files, what was sent.")
@click.argument("run")
@common
def show(settings: Settings, run: str) -> int:
    """RUN is an id, a unique prefix of one, or a name."""
    spool = settings.open_spool()
    with open_view(spool) as catalog:
        first = next(iter(counting(targets_of(settings, spool, catalog))), None)
        body = show_run(catalog, spool, find_run(catalog, spool, run), first.server if first else "")
    if settings.json:
        output.echo_json(body)
        return ExitCode.OK
    records = body["records"]
    lines: list[tuple[str, object]] = [
        ("id", body["id"]), ("name", body["name"]), ("status", body["status"]), ("reason", body["reason"]),
        ("folder", body["folder"]),
        ("description", body["description"]), ("tags", ", ".join(body["tags"]) or None),
        ("started", _time(body["created"])), ("ended", _time(body["ended"])),
        ("records", f"{records['recorded']} recorded, {records['acknowledged']} acknowledged"),
        ("writers", ", ".join(f"{w['role'] or 'unknown'} ({w['records']})" for w in body["writers"])),
        ("events", f"{body['events']['count']}, the last: {body['events']['last']}" if body["events"]["count"] else None),
    ]  # fmt: skip
    lines += [(f"metadata {k}", v) for k, v in body["metadata"].items()]
    for line in output.pairs(lines):
        output.echo(line)
    if body["metrics"]:
        output.echo()
        rows = [
            (name, m["count"], m["step"], f"{m['last']:.6g}" if isinstance(m["last"], float) else m["last"])
            for name, m in body["metrics"].items()
        ]
        for line in output.table(["metric", "points", "last step", "last value"], rows):
            output.echo(line)
    if body["artifacts"]:
        output.echo()
        files = [(a["name"], a["category"], a["size"], a["digest"][:12], "yes" if a["sent"] else "no") for a in body["artifacts"]]
        for line in output.table(["file", "category", "bytes", "sha256", "sent"], files):
            output.echo(line)
    for found in body["damage"]:
        where = f"segment {found['segment']} of writer {found['writer']}, bytes {found['bytes']}, records {found['sequences']}"
        output.echo(f"damage: {found['kind']} in {where}")
    return ExitCode.OK


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
