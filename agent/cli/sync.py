"""`agent sync`: everything recorded up to now is acknowledged by the server when it says so; the one-shot after a batch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any

import click

from simspool.agent.exit_codes import CommandError, ExitCode
from simspool.spool import Locked, Spool

from . import output
from .handover import agent_sync, api_path
from .settings import Settings, common


@click.command(help="Send what is recorded to the server, then stop.")
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--folder", help="Only runs in this folder, or below it.")
@click.option("--tag", "tags", multiple=True, help="Only runs with this tag (again: and this one).")
@click.option("--where", multiple=True, metavar="KEY=VALUE", help="Only runs with this metadata value (again: and this one).")
@click.option("--timeout", type=click.FloatRange(min=0), metavar="S", help="Keep trying for so many seconds.")
@common
def sync(
    settings: Settings, runs: tuple[str, ...], folder: str | None, tags: tuple[str, ...], where: tuple[str, ...], timeout: float | None
) -> int:
    """RUN is an id, a unique prefix of one, or a name; without any, everything is sent."""
    pairs = where_pairs(where)
    spool = settings.open_spool()
    body = {"runs": list(runs), "folder": folder, "tags": list(tags), "where": pairs, "timeout": timeout}
    with output.Progress("syncing", quiet=settings.json) as bar:

        def show(report: dict[str, Any]) -> None:
            done = report["records"] - report["records_left"] + report["files"] - report["files_left"]
            detail = f"{report['state']}: {report['records_left']} records, {report['files_left']} files left" + (
                f" ({report['problem']})" if report["problem"] else ""
            )
            bar.update(done, report["records"] + report["files"] or None, detail)

        report = _wherever(settings, spool, body, show)
    if settings.json:
        output.echo_json(report)
    else:
        _print(report)
    return int(report["exit_code"])


def where_pairs(where: Iterable[str]) -> list[tuple[str, str]]:
    """Return what --where says, as pairs."""
    pairs = []
    for text in where:
        key, sign, value = text.partition("=")
        if not sign:
            raise click.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--where")
        pairs.append((key, value))
    return pairs


def _wherever(settings: Settings, spool: Spool, body: dict[str, Any], show: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Let the running agent do it, or do it here; where another command has the spool, wait for it, whatever it takes."""
    began, said = time.monotonic(), False
    while True:
        path = api_path(spool)
        report = _hand_over(path, body, show) if path else None
        if report is not None:
            return report
        try:
            return _alone(settings, spool, body, show)
        except Locked as error:
            waited = time.monotonic() - began
            if body["timeout"] is not None and waited > body["timeout"]:
                raise
            if waited > 2 and not said:
                said = True
                output.note(f"agent: {error}: waiting for it to end")
            time.sleep(0.25)


def _hand_over(path: str, body: dict[str, Any], show: Callable[[dict[str, Any]], None]) -> dict[str, Any] | None:
    """Let the running agent do it; None when it went away before it was done."""
    try:
        for report in agent_sync(path, body):
            if "error" in report:
                raise CommandError(ExitCode(report["exit_code"]), report["error"])
            if report.pop("final", False):
                return report
            show(report)
    except OSError:
        return None
    return None


def _alone(settings: Settings, spool: Spool, body: dict[str, Any], show: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    from simspool.agent.alerts.site import SiteFile
    from simspool.agent.app import Agent, agent_config
    from simspool.agent.notify.settings import NotifySource
    from simspool.agent.sync import Selection

    config = agent_config(spool, settings.server_url, settings.server_token, load=settings.targets(spool))

    async def once() -> dict[str, Any]:
        agent = Agent(config, report=output.note)
        if settings.config.alerts:
            agent.site = SiteFile(settings.config.alerts, output.note, lenient=True)  # sending does not depend on it
        agent.notify = NotifySource(lambda: settings.config, output.note, lenient=True)
        async with agent:
            found = await agent.sync(Selection.parse(body), timeout=body["timeout"], progress=lambda r: show(r.as_dict()))
            return found.as_dict()

    return asyncio.run(once())


def _print(report: dict[str, Any]) -> None:
    if len(report["targets"]) < 2 or all(target["bundles"] for target in report["targets"]):
        _print_one(report)
        return
    for target in report["targets"]:
        output.echo(f"{target['name']}{'' if target['required'] else ' (best-effort)'}: {target['state']}")
        _print_one(target)


def _print_one(report: dict[str, Any]) -> None:
    state = report["state"]
    if state == "carried":
        output.echo(f"nothing is sent to it: {report['problem']}")
        return
    human = output.human_bytes
    sent = f"sent {report['sent_records']} records ({human(report['sent_bytes'])}), "
    sent += f"{report['sent_files']} files ({human(report['sent_file_bytes'])})"
    if report["known_files"]:
        sent += f", {report['known_files']} files were known"
    if state == "done" and not report["refused"]:
        output.echo(f"{report['runs']} runs are on {report['url']}: {report['records']} records, {report['files']} files; {sent}")
        if report["live_runs"]:
            output.echo(f"{report['live_runs']} of them still run: what they record from now on is for the next sync")
        return
    what = {
        "done": f"{report['refused']} records or files were refused for good",
        "unreachable": f"the server does not answer: {report['problem']}; nothing is lost, try again later",
        "refused": report["problem"],
        "no-target": report["problem"],
        "newer-format": "some runs have a newer format: upgrade simspool",
        "incomplete": "the spool lacks a part of what it should send",
    }.get(state, f"the time is over: {report['problem'] or 'run it again to go on'}")
    output.note(f"agent: {what}")
    output.note(f"agent: {sent}; {report['records_left']} records and {report['files_left']} files are left")
    for name, why in report["problems"].items():
        output.note(f"agent: {name}: {why}")
