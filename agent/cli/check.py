"""`agent check`: scrub the spool and say what is damaged, with its bounds; `--repair` makes good what can be."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator

import click

from simspool.agent.catalog.store import catalog_path
from simspool.agent.exit_codes import ExitCode
from simspool.agent.scrub import Finding, Totals, scrub
from simspool.agent.truth.repair import Repairer
from simspool.spool import Locked, Spool
from simspool.spool.lease import PATIENCE, Lease
from simspool.spool.lock import SpoolLock

from . import output
from .settings import Settings, common


@click.command(short_help="Verify every segment and blob; report damage with its bounds.")
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--blobs/--no-blobs", default=True, help="Read and hash the files too (default), or only check that they are there.")
@click.option("--dead", is_flag=True, help="Take writers of other machines as dead, and salvage what they left.")
@click.option("--repair", is_flag=True, help="Make good what can be, and say of the rest why not; no agent may run meanwhile.")
@common
def check(settings: Settings, runs: tuple[str, ...], blobs: bool, dead: bool, repair: bool) -> int:
    """Verify every segment and blob of the spool, or of some RUNs, and report damage with its bounds.

    Nothing is changed, unless --repair is given. Exit status 8 when damage was found (and, with --repair, is left), 6 when a part is of a
    newer format. RUN is an id, a unique beginning of one, or a name.
    """
    spool = settings.open_spool()
    chosen = [spool.find_run(text) for text in runs] if runs else None
    found = repaired = could = 0
    newer = False
    with _held(spool, repair), output.Progress("checking", show=output.human_bytes, quiet=settings.json) as progress:
        totals = Totals(progress=progress.update)
        repairer = Repairer(spool, lambda digest, path: fetch(settings, spool, digest, path), dry=not repair)
        findings = scrub(spool, chosen, blobs, assume_dead=dead, totals=totals)
        # what is to be repaired is looked at as a whole first: a repair may make later findings void
        for finding in list(findings) if repair else findings:
            found += finding.is_damage
            newer = newer or finding.kind == "newer"
            done = repairer.finding(finding)
            repaired += bool(done and done[0])
            could += bool(done)
            progress.finish()
            _show(settings, finding, done[1] if done and repair else "")
        if repair:
            for line in [*([text] if (text := repairer.catalog(catalog_path(spool))) else []), *repairer.leftovers()]:
                progress.finish()
                if settings.json:
                    output.echo_json({"kind": "repaired", "detail": line})
                else:
                    output.echo(output.safe(line))
    left = found - repaired if repair else found
    summary = {f: getattr(totals, f) for f in ("runs", "writers", "segments", "records", "blobs", "bytes")}
    if settings.json:
        output.echo_json({"kind": "summary", "damaged": found, **({"left": left} if repair else {}), **summary})
    else:
        read = ", ".join(f"{n:,} {name}" for name, n in summary.items() if name != "bytes")
        verdict = (f"{found:,} damaged" + (f", {left:,} left" if repair else "")) if found else "no damage"
        output.echo(f"{read}, {output.human_bytes(totals.bytes)}: {verdict}")
        if could and not repair:
            output.echo(f"`agent check --repair` can do something about {could:,} of them")
    return ExitCode.DAMAGE if left else ExitCode.NEWER_FORMAT if newer else ExitCode.OK


@contextlib.contextmanager
def _held(spool: Spool, wanted: bool) -> Iterator[None]:
    """Hold the spool's lock and its lease where something is to be changed. Raises Locked while an agent of any host has one of them."""
    if not wanted:
        yield
        return
    lock, lease, over = SpoolLock(spool), Lease(spool), threading.Event()
    lock.acquire()
    try:
        until = time.monotonic() + PATIENCE + 5.0
        while not lease.turn():  # one that is silent is taken for gone after its time
            if time.monotonic() > until:
                host = lease.holder.host if lease.holder is not None else "another host"
                raise Locked(f"the agent of {host} has the spool's lease: stop it first")
            time.sleep(1.0)

        def keep() -> None:
            while not over.wait(1.0):
                with contextlib.suppress(OSError):
                    lease.turn()

        keeper = threading.Thread(target=keep, daemon=True)
        keeper.start()
        try:
            yield
        finally:
            over.set()
            keeper.join()
            with contextlib.suppress(OSError):  # it is taken, after a time
                lease.release()
    finally:
        lock.release()


def _show(settings: Settings, finding: Finding, done: str) -> None:
    if settings.json:
        output.echo_json({**finding.as_dict(), **({"repair": done} if done else {})})
    else:
        output.echo(output.safe(finding))
        if done:
            output.echo(output.safe(f"    {done}"))


def fetch(settings: Settings, spool: Spool, digest: str, path: str) -> str:
    """Fetch a file's bytes from the first target that has them; return why not otherwise."""
    from simspool.agent.targets.embedded import EmbeddedTarget
    from simspool.agent.targets.port import Refused, TooLarge, Unreachable
    from simspool.sdk.errors import ConfigError

    try:
        chosen = [s for s in settings.targets(spool)() if s.kind in {"auto", "simspool"}]
    except ConfigError as error:
        return str(error)

    async def one(target: EmbeddedTarget) -> None:
        try:
            with open(path, "wb") as file:  # noqa: ASYNC230 - a command with nothing else to do
                async for block in target.fetch(digest):
                    file.write(block)
        finally:
            await target.close()

    why = "no target gives files back"
    for each in chosen:
        try:
            asyncio.run(one(EmbeddedTarget.of(each)))
        except (Unreachable, Refused, TooLarge) as error:
            why = str(error)
        else:
            return ""
    return why
