"""`agent check`: scrub the spool and say what is damaged, with its bounds."""

from __future__ import annotations

import click

from simspool.agent.exit_codes import ExitCode
from simspool.agent.scrub import Totals, scrub

from . import output
from .settings import Settings, common


@click.command(short_help="Verify every segment and blob; report damage with its bounds.")
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--blobs/--no-blobs", default=True, help="Read and hash the files too (default), or only check that they are there.")
@click.option("--dead", is_flag=True, help="Take writers of other machines as dead, and salvage what they left.")
@common
def check(settings: Settings, runs: tuple[str, ...], blobs: bool, dead: bool) -> int:
    """Verify every segment and blob of the spool, or of some RUNs, and report damage with its bounds.

    Nothing is changed. Exit status 8 when damage was found, 6 when a part is of a newer format.
    RUN is an id, a unique beginning of one, or a name.
    """
    spool = settings.open_spool()
    chosen = [spool.find_run(text) for text in runs] if runs else None
    found, newer = 0, False
    with output.Progress("checking", show=output.human_bytes, quiet=settings.json) as progress:
        totals = Totals(progress=progress.update)
        for finding in scrub(spool, chosen, blobs, assume_dead=dead, totals=totals):
            found += finding.is_damage
            newer = newer or finding.kind == "newer"
            progress.finish()
            if settings.json:
                output.echo_json(finding.as_dict())
            else:
                output.echo(output.safe(finding))
    summary = {f: getattr(totals, f) for f in ("runs", "writers", "segments", "records", "blobs", "bytes")}
    if settings.json:
        output.echo_json({"kind": "summary", "damaged": found, **summary})
    else:
        read = ", ".join(f"{n:,} {name}" for name, n in summary.items() if name != "bytes")
        verdict = f"{found:,} damaged" if found else "no damage"
        output.echo(f"{read}, {output.human_bytes(totals.bytes)}: {verdict}")
    return ExitCode.DAMAGE if found else ExitCode.NEWER_FORMAT if newer else ExitCode.OK
