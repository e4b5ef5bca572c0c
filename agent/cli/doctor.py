"""`agent doctor`: look at everything that recording and syncing need here, and say what to do about what is not well."""

from __future__ import annotations

import collections

import click

from simspool.agent.exit_codes import ExitCode

from . import output
from .settings import Settings, common

_MARKS = {"ok": "ok", "warn": "WARN", "fail": "FAIL", "skipped": "-"}


@click.command(short_help="Look at everything that recording and syncing need here.")
@click.option("--quick", is_flag=True, help="Leave out what takes seconds: how fast the disk takes much.")
@common
def doctor(settings: Settings, quick: bool) -> int:
    """Look at everything that recording and syncing need here: Python, the spool and its disk, clocks, targets, agent, limits.

    Nothing is changed but temporary files in the spool, which are removed. Exit status 0 when nothing fails, also with warnings, else 1.
    """
    from simspool.agent.doctor.checks import CHECKS, examine
    from simspool.agent.doctor.findings import Site

    site = Site(lambda: settings.config, lambda spool: settings.targets(spool)(), quick)
    counted: collections.Counter[str] = collections.Counter()
    with output.Progress("looking", len(CHECKS), quiet=settings.json) as progress:
        for finding in examine(site, started=lambda name: progress.advance(note=name)):
            counted[finding.verdict] += 1
            progress.finish()
            if settings.json:
                output.echo_json(finding.as_dict())
                continue
            output.echo(f"{_MARKS[finding.verdict]:<4}  {output.safe(finding.check)}: {output.safe(finding.text)}")
            if finding.next:
                output.echo(f"        -> {output.safe(finding.next)}")
    code = ExitCode.ERROR if counted["fail"] else ExitCode.OK
    if settings.json:
        kinds = ("ok", "warn", "fail", "skipped")
        output.echo_json({"check": "summary", **{kind: counted[kind] for kind in kinds}, "exit_code": int(code)})
    else:
        warned, failed = counted["warn"], counted["fail"]
        output.echo(f"{sum(counted.values())} looks: {failed} fail, {warned} with a warning, {counted['skipped']} skipped")
    return code
