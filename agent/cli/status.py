"""`agent status`, `agent ls` and `agent show`: what is recorded, acknowledged and waiting."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import click

from simspool.agent.catalog import Catalog
from simspool.agent.exit_codes import ExitCode
from simspool.agent.status import find_run, last_server, list_runs, overview, show_run
from simspool.spool import Spool

from . import output
from .handover import agent_status
from .settings import Settings, common
from .view import open_view


@click.command(help="Show the agent, the targets and what waits to be sent.")
@common
def status(settings: Settings) -> int:
    """Ask the running agent, else read the spool."""
    spool = settings.open_spool()
    body = agent_status(spool)
    if body is None:
        with open_view(spool) as catalog:
            body = {**overview(catalog, spool, last_server(catalog, settings.server_url)), "agent": None}
            body["notifications"] = _notifications(settings, spool, catalog)
    if settings.json:
        output.echo_json(body)
        return ExitCode.OK
    agent = body["agent"]
    if agent is None:
        running = "not running: `agent sync` sends what waits, `agent run` keeps sending"
    else:
        how = ", on demand" if agent.get("on_demand") else ""
        running = f"running (pid {agent['pid']}{how}), {agent['drain']}" + (f" to {agent['url']}" if agent["url"] else "")
    runs = dict(body["runs"])
    total = runs.pop("total")
    lines: list[tuple[str, object]] = [
        ("spool", body["spool"]),
        ("agent", running),
        ("runs", f"{total}" + (f" ({', '.join(f'{n} {s}' for s, n in sorted(runs.items()))})" if runs else "")),
        ("records", _amounts(body["records"])),
        ("files", _amounts(body["files"])),
    ]
    drops = body["records"]["dropped"]
    if drops:
        lines.append(("dropped", ", ".join(f"{n} {reason}" for reason, n in drops.items())))
    for channel, told in body.get("notifications", {}).items():
        text = f"{told['sent']} sent, {told['pending']} pending" + (f", {told['abandoned']} abandoned" if told["abandoned"] else "")
        lines.append((f"by {channel}", text + (f": {told['error']}" if told["error"] and told["pending"] else "")))
    if body["damage"]:
        lines.append(("damage", f"{body['damage']} places: `agent check` says where"))
    if body["not_understood"]:
        lines.append(("inbox", f"{body['not_understood']} files with lines that were not understood: `agent check` names them"))
    if agent and agent["problem"]:
        lines.append(("problem", agent["problem"]))
    lines += [("problem", f"{what}: {why}") for what, why in (agent or {}).get("problems", {}).items()]
    for line in output.pairs(lines):
        output.echo(line)
    return ExitCode.OK


def _notifications(settings: Settings, spool: Spool, catalog: Catalog) -> dict[str, Any]:
    """Return what people were told, by the channels that an agent would have here."""
    from simspool.agent.notify.queue import since, standing
    from simspool.agent.notify.settings import parse

    path = settings.config.sources.get("notify", "")
    found = {channel.name: channel.on for channel in parse(settings.config.notify, path)}
    there = since(spool, found, path, note=False)
    return standing(catalog, {name: (on, there[name]) for name, on in found.items()}, time.time())


def _amounts(body: dict[str, Any]) -> str:
    text = f"{body['recorded']} recorded, {body['acknowledged']} acknowledged, {body['waiting']} waiting"
    return text + (f", {body['refused']} refused" if body["refused"] else "")


@click.command(help="List the runs of the spool.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many, the newest.")
@common
def ls(settings: Settings, limit: int | None) -> int:
    """Newest first, with what waits to be sent."""
    spool = settings.open_spool()
    with open_view(spool) as catalog:
        runs = list_runs(catalog, last_server(catalog, settings.server_url), limit=limit)
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
        body = show_run(catalog, spool, find_run(catalog, spool, run), last_server(catalog, settings.server_url))
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
