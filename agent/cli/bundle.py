"""`agent bundle`: carrying what is recorded over a gap, and receipts back (docs/bundles.md)."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from simspool.agent.exit_codes import CommandError, ExitCode, code_of
from simspool.spool import Locked, Spool, atomic

from . import output
from .handover import agent_settle, api_path
from .settings import Settings, common
from .sync import where_pairs
from .view import open_view

if TYPE_CHECKING:
    from simspool.agent.app import Agent
    from simspool.agent.bundles.reading import Bundle
    from simspool.agent.bundles.settings import BundleSettings
    from simspool.agent.bundles.taking import Taken
    from simspool.agent.bundles.writing import Written
    from simspool.agent.targets.settings import TargetSettings

_PATIENCE = 600.0  # seconds: for what a running agent finds in a large spool, or for another command to end
_unsigned = click.option("--allow-unsigned", is_flag=True, help="Take also what is not signed, where keys are trusted.")
_key = click.option("--sign-key", metavar="FILE", help="The private key that signs ([bundle] sign_key).")


@click.group(short_help="Carry runs over a gap: bundles there, receipts back.")
def bundle() -> None:
    """Carry runs over a gap that no network crosses: bundles there, receipts back.

    On the machine that records: `create`. Carry the folder over, by any means. There: `import`, then drain as usual; `receipt` says what
    became of it. Back again: `apply-receipt`; what is delivered may then be pruned, and the next bundle has only what is new.
    """


@bundle.command(help="Pack what the other side lacks into a folder.")
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--folder", help="Only runs in this folder, or below it.")
@click.option("--tag", "tags", multiple=True, help="Only runs with this tag (again: and this one).")
@click.option("--where", multiple=True, metavar="KEY=VALUE", help="Only runs with this metadata value (again: and this one).")
@click.option("--full", is_flag=True, help="Everything, whatever receipts have said.")
@click.option("--volume-size", metavar="SIZE", help='The most bytes of a file: "650 MB", "4 GB" (default: no limit).')
@click.option("--output", "place", default=".", metavar="DIR", help="Where the bundle's folder is made (default: here).")
@click.option("--target", "name", metavar="NAME", help='The target of kind "bundle" that is meant, where there are several.')
@_key
@common
def create(
    settings: Settings, runs: tuple[str, ...], folder: str | None, tags: tuple[str, ...], where: tuple[str, ...], full: bool,
    volume_size: str | None, place: str, name: str | None, sign_key: str | None,
) -> int:  # fmt: skip
    """RUN is an id, a unique beginning of one, or a name; without any, all runs are meant. Runs that are still going on are carried as far
    as they are. Where there is nothing new, nothing is written.
    """
    from simspool.agent.bundles.blocks import keep_memory
    from simspool.agent.bundles.settings import parse_size
    from simspool.agent.bundles.signing import load_key
    from simspool.agent.bundles.writing import Order
    from simspool.agent.carry.target import add, choose

    body = {"runs": list(runs), "folder": folder, "tags": list(tags), "where": where_pairs(where)}
    chosen = settings.bundles
    try:
        size = parse_size(volume_size) if volume_size is not None else chosen.volume_size
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--volume-size") from None
    key_file = sign_key or chosen.sign_key
    key = None if key_file is None else load_key(key_file)
    if not os.path.isdir(place):
        raise CommandError(ExitCode.USAGE, f"there is no folder {place}: make it, or name another one with --output")
    spool = settings.open_spool()
    present = settings.targets_now(spool)
    target = choose(present, name)
    if target is None:
        target = add(spool, present)
        output.note(f'agent: added the target {target.name!r} of kind "bundle": what no receipt covers is kept in the spool from now on')
    wanted = settle_spool(settings, spool, body)
    keep_memory()
    with output.Progress("packing", show=output.human_bytes, quiet=settings.json) as bar:
        written = _write(settings, spool, target, wanted, full, Order(os.path.abspath(place), target.name, volume_size=size, key=key), bar)
    if settings.json:
        output.echo_json({**asdict(written), "target": target.name, "nothing_new": not written.path})
    else:
        _say_written(written)
    for run, why in written.problems.items():
        output.note(f"agent: {run}: {why}")
    return ExitCode.DAMAGE if written.problems else ExitCode.OK


def _write(
    settings: Settings, spool: Spool, target: TargetSettings, wanted: set[str] | None, full: bool, order: Any, bar: output.Progress
) -> Written:
    from dataclasses import replace

    from simspool.agent.bundles.writing import Written, write_bundle
    from simspool.agent.carry.custody import latest, pinned
    from simspool.agent.carry.outgoing import Outgoing
    from simspool.agent.leaving.gate import Gate
    from simspool.agent.leaving.settings import Leaving
    from simspool.spool import ids

    server = target.address
    with open_view(spool) as catalog:
        outgoing = Outgoing(spool, catalog, server, wanted, full=full)
        parts = outgoing.runs()
        if not parts:
            return Written(problems=dict(outgoing.problems))
        leaving = Leaving(settings.config.leaving, settings.config.redact)
        gate = Gate(spool, leaving, "bundle", lambda text: output.note(output.safe(f"agent: {text}")))
        gate.let(catalog, outgoing, {part.run for part in parts})
        if not full:
            receipt = (latest(catalog, server) or {}).get("id", "")
            order = replace(order, to=pinned(catalog, server) or "", receipt=receipt if ids.is_id(receipt) else "")
        return write_bundle(spool, outgoing, parts, order, bar.update)


def _say_written(written: Written) -> None:
    if not written.path:
        output.echo("nothing new: the other side has everything that is recorded here, or no bundle can change what it lacks")
        return
    human = output.human_bytes
    what = f"{written.runs} runs: {human(written.record_bytes)} of records, {written.blobs} files ({human(written.blob_bytes)})"
    size = f"{human(written.stored)} in {written.volumes} volume{'' if written.volumes == 1 else 's'}"
    output.echo(output.safe(f"{written.path}: {what}; {size}, {'signed' if written.signed else 'not signed'}"))
    if written.left:
        output.echo(f"{written.left} runs had no place in it: make another one when its receipt is here")


def settle_spool(settings: Settings, spool: Spool, body: dict[str, Any]) -> set[str] | None:
    """Have everything taken in that is recorded; return the runs that are meant. Where another command has the spool, wait for it."""
    from simspool.agent.bundles.settling import settle
    from simspool.agent.sync import Selection

    selection = Selection.parse(body)
    deadline, said = time.monotonic() + _PATIENCE, False
    while True:
        path = api_path(spool)
        found = agent_settle(path, body, _PATIENCE) if path else None
        if found is not None:
            if "error" in found:
                raise CommandError(ExitCode(found["exit_code"]), found["error"])
            return None if found["runs"] is None else set(found["runs"])
        try:
            return asyncio.run(_alone(settings, spool, lambda agent: settle(agent, selection)))
        except Locked as error:
            if time.monotonic() > deadline:
                raise
            if not said:
                said = True
                output.note(f"agent: {error}: waiting for it to end")
            time.sleep(0.25)


async def _alone(settings: Settings, spool: Spool, work: Callable[[Agent], Awaitable[set[str] | None]]) -> set[str] | None:
    """Do something as an agent that lives only for this."""
    from simspool.agent.alerts.site import SiteFile
    from simspool.agent.app import Agent, agent_config

    config = agent_config(spool, settings.server_url, settings.server_token, load=settings.targets(spool))
    agent = Agent(config, report=output.note)
    if settings.config.alerts:
        agent.site = SiteFile(settings.config.alerts, output.note, lenient=True)
    async with agent:
        return await work(agent)


@bundle.command("import", help="Put what is in bundles into the spool.")
@click.argument("paths", nargs=-1, required=True, metavar="BUNDLE...")
@_unsigned
@common
def import_(settings: Settings, paths: tuple[str, ...], allow_unsigned: bool) -> int:
    """Signature, manifest and sizes are checked before anything; then each member, before anything of it is visible. Repeating is harmless.

    Exit status 8 for a bundle that is altered, cut or incomplete, 4 for one that is not for this spool or not signed by a trusted key.
    """
    from simspool.agent.bundles.blocks import keep_memory
    from simspool.agent.bundles.log import imported, note_import
    from simspool.agent.bundles.taking import take
    from simspool.spool import SpoolError

    chosen = settings.bundles
    spool = settings.open_spool(create=True)
    worst = ExitCode.OK
    keep_memory()
    with _opened(paths, chosen, allow_unsigned) as (bundles, failed), open_view(spool) as catalog:
        for error in failed:
            output.note(f"agent: {error}")
            worst = max(worst, code_of(error))
        for one in sorted(bundles, key=lambda b: b.manifest.created):
            before = imported(spool, one.manifest.id)
            try:
                with output.Progress("importing", show=output.human_bytes, quiet=settings.json) as bar:
                    taken = take(one, spool, catalog, bar.update)
            except SpoolError as error:
                output.note(f"agent: {error}")
                worst = max(worst, code_of(error))
                continue
            if taken.exit_code == ExitCode.OK and before is None:
                note_import(spool, taken)
            worst = max(worst, taken.exit_code)
            if settings.json:
                output.echo_json({"path": one.path, "imported_before": before, **taken.as_dict()})
            else:
                _say_taken(one, taken, before)
    return worst


@contextmanager
def _opened(paths: tuple[str, ...], chosen: BundleSettings, allow_unsigned: bool) -> Iterator[tuple[list[Bundle], list[Exception]]]:
    from simspool.agent.bundles.reading import open_bundle
    from simspool.spool import SpoolError

    bundles: list[Bundle] = []
    failed: list[Exception] = []
    try:
        for path in paths:
            try:
                bundles.append(open_bundle(path, chosen.trusted, allow_unsigned=allow_unsigned))
            except SpoolError as error:
                failed.append(error)
            except OSError as error:
                raise CommandError(ExitCode.DAMAGE, f"{path} cannot be read: {error.strerror}") from None
        yield bundles, failed
    finally:
        for one in bundles:
            one.close()


def _say_taken(one: Bundle, taken: Taken, before: float | None) -> None:
    human = output.human_bytes
    if taken.nothing_new:
        when = f": it was imported on {output.iso_ns(int(before * 1e9))[:19]}Z" if before is not None else ""
        output.echo(output.safe(f"{one.path}: nothing new{when} ({taken.made_by})"))
    else:
        what = f"{human(taken.new_record_bytes)} of records, {taken.new_files} files ({human(taken.new_file_bytes)})"
        output.echo(output.safe(f"{one.path}: {taken.runs} runs of spool {taken.origin}: {what} are new here; {taken.made_by}"))
    if taken.missing:
        output.note(f"agent: incomplete: {', '.join(taken.missing)} of {one.path} are not there: bring them, and import it again")
    for why in taken.altered:
        output.note(f"agent: {why}")
    for name, why in taken.refused.items():
        output.note(f"agent: {name} is refused: {why}")


@bundle.command(help="Show what is in bundles, and who made them.")
@click.argument("paths", nargs=-1, required=True, metavar="BUNDLE...")
@click.option("--verify", "deep", is_flag=True, help="Read every member, and compare it with its digest.")
@_unsigned
@common
def show(settings: Settings, paths: tuple[str, ...], deep: bool, allow_unsigned: bool) -> int:
    """Nothing is imported. Exit status 8 for a bundle that is altered, cut or incomplete, 4 for one that no trusted key signed."""
    from simspool.agent.bundles.reading import summary, verify_members

    worst = ExitCode.OK
    with _opened(paths, settings.bundles, allow_unsigned) as (bundles, failed):
        for error in failed:
            output.note(f"agent: {error}")
            worst = max(worst, code_of(error))
        for one in bundles:
            body = summary(one)
            if deep:
                with output.Progress("reading", one.manifest.content, show=output.human_bytes, quiet=settings.json) as bar:
                    body["altered"] = verify_members(one, bar.update)
            if one.missing or body.get("altered"):
                worst = max(worst, ExitCode.DAMAGE)
            if settings.json:
                output.echo_json(body)
                continue
            for line in output.pairs(_shown(body)):
                output.echo(line)
            for why in body.get("altered", []):
                output.note(f"agent: {why}")
    return worst


def _shown(body: dict[str, Any]) -> list[tuple[str, object]]:
    human = output.human_bytes
    checked = "not read: --verify reads it" if "altered" not in body else "altered" if body["altered"] else "as the manifest says"
    return [
        ("bundle", body["path"]), ("id", body["id"]), ("made", output.iso_ns(int(body["created"] * 1e9))), ("from spool", body["from"]),
        ("for spool", body["to"] or "any"), ("builds on", f"receipt {body['receipt']}" if body["receipt"] else "nothing"),
        ("signature", body["signature"]), ("runs", body["runs"]),
        ("records", f"{human(body['record_bytes'])} in {body['segments']} parts of segments"),
        ("files", f"{body['files']} ({human(body['file_bytes'])})"),
        ("volumes", f"{body['volumes']} ({human(body['stored'])})"), ("missing", ", ".join(body["missing"]) or None), ("content", checked),
    ]  # fmt: skip


@bundle.command(help="Write down what became of what was imported, for the spool that it came from.")
@click.option("--origin", metavar="ID", help="The id of the spool that it is for (default: one for each that has sent something).")
@click.option("--output", "place", default=".", metavar="FILE|DIR", help="Where it is written (default: here).")
@_key
@common
def receipt(settings: Settings, origin: str | None, place: str, sign_key: str | None) -> int:
    """What is in custody here, and what all required targets of this spool have acknowledged. Drain first (`agent sync`)."""
    from simspool.agent.bundles import signing
    from simspool.agent.bundles.log import origins, receipt_name
    from simspool.agent.carry.receipts import encode, make_receipt

    key_file = sign_key or settings.bundles.sign_key
    key = None if key_file is None else signing.load_key(key_file)
    spool = settings.open_spool()
    present = settings.targets_now(spool)
    with open_view(spool) as catalog:
        known = origins(spool, catalog)
        wanted = known if origin is None else [one for one in known if one == origin]
        if not wanted:
            what = "nothing was imported here" if origin is None else f"nothing came here from a spool {origin!r}"
            raise CommandError(ExitCode.USAGE, f"{what}: there is nothing to give a receipt for")
        if len(wanted) > 1 and not os.path.isdir(place):
            raise CommandError(ExitCode.USAGE, f"{len(wanted)} spools sent something: --origin names one, or --output a folder")
        made = [make_receipt(spool, catalog, present, one) for one in wanted]
    for body in made:
        document = encode(body)
        path = os.path.normpath(os.path.join(place, receipt_name(body))) if os.path.isdir(place) else place
        try:
            if key is not None:
                atomic.write_file(f"{path}.sig", signing.sign(document, signing.RECEIPT, key), 0o644)
            atomic.write_file(path, document, 0o644)
        except OSError as error:
            raise CommandError(ExitCode.USAGE, f"cannot write {path}: {error.strerror}") from None
        runs = body["runs"]
        complete = sum(1 for run in runs.values() if run["complete"])
        if settings.json:
            output.echo_json({
                "path": path, "id": body["id"], "for": body["for"], "runs": len(runs), "complete": complete, "signed": key is not None,
            })  # fmt: skip
        else:
            signed = f", signed: carry {os.path.basename(path)}.sig with it" if key is not None else ""
            output.echo(output.safe(f"{path}: for spool {body['for']}, {complete} of {len(runs)} runs are delivered whole{signed}"))
    return ExitCode.OK


@bundle.command("apply-receipt", help="Take over what a receipt says was delivered.")
@click.argument("file", metavar="FILE")
@click.option("--target", "name", metavar="NAME", help='The target of kind "bundle" that is meant, where there are several.')
@_unsigned
@common
def apply_receipt(settings: Settings, file: str, name: str | None, allow_unsigned: bool) -> int:
    """What it covers counts as acknowledged by the target: it is not carried again, and may be pruned. An older receipt changes nothing.

    Exit status 4 for a receipt that is not for this spool, does not fit what is here, or is not signed by a trusted key.
    """
    from simspool.agent.bundles import signing
    from simspool.agent.carry.parts import NotTaken
    from simspool.agent.carry.target import choose

    from .applying import apply_anywhere

    document, signature = _document(file)
    made_by = signing.verify(
        document, signature, signing.RECEIPT, settings.bundles.trusted, allow_unsigned=allow_unsigned, what=file
    )
    spool = settings.open_spool()
    target = choose(settings.targets_now(spool), name)
    if target is None:
        raise CommandError(ExitCode.NO_TARGET, 'the spool has no target of kind "bundle": no bundle was made from it')
    try:
        found = apply_anywhere(spool, document, target.name)
    except NotTaken as error:
        raise CommandError(ExitCode.REFUSED, f"{file}: {error}") from None
    if settings.json:
        output.echo_json({**found, "signature": made_by})
    else:
        _say_applied(file, found, made_by)
    for what, why in found["conflicts"].items():
        output.note(f"agent: {what}: {why}")
    return ExitCode.REFUSED if found["conflicts"] else ExitCode.OK


def _document(file: str) -> tuple[bytes, bytes | None]:
    from simspool.agent.bundles.signing import LIMIT as SIGNATURE_LIMIT
    from simspool.agent.carry.receipts import LIMIT

    try:
        with open(file, "rb") as f:
            document = f.read(LIMIT + 1)
    except OSError as error:
        raise CommandError(ExitCode.USAGE, f"cannot read {file}: {error.strerror}") from None
    try:
        with open(f"{file}.sig", "rb") as f:
            return document, f.read(SIGNATURE_LIMIT)
    except FileNotFoundError:
        return document, None
    except OSError as error:
        raise CommandError(ExitCode.USAGE, f"cannot read {file}.sig: {error.strerror}") from None


def _say_applied(file: str, found: dict[str, Any], made_by: str) -> None:
    if found["nothing_new"]:
        why = " (a later receipt was here before)" if found["late"] else ""
        output.echo(output.safe(f"{file}: nothing new{why}; {made_by}"))
        return
    what = f"{found['records']} records of {found['writers']} writers and {found['files']} files are acknowledged now"
    output.echo(output.safe(f"{file}: {what}, {found['complete']} runs are delivered whole; {made_by}"))
    if found["custody"] and not found["records"]:
        output.echo("the other side has more than before, and has not delivered it yet: it is not carried again, and nothing is pruned")
    if found["refused"]:
        output.note(f"agent: {found['refused']} records or files were refused on the other side: `agent dead ls` shows them")


@bundle.command(help="Make a key that signs bundles and receipts.")
@click.argument("file", default="simspool-key", metavar="[FILE]")
@common
def keygen(settings: Settings, file: str) -> int:
    """The private key goes into FILE (mode 0600), the public one into FILE.pub: a line for `[bundle] trusted` on the other side."""
    from simspool.agent.bundles.signing import make_key

    try:
        line = make_key(file)
    except OSError as error:
        raise CommandError(ExitCode.USAGE, f"cannot write {file}: {error.strerror}") from None
    if settings.json:
        output.echo_json({"key": file, "public": line})
    else:
        output.echo(output.safe(f"{file} and {file}.pub: the other side trusts it by the line"))
        output.echo(line)
    return ExitCode.OK
