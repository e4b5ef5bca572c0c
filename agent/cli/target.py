"""`agent target`: to which targets a spool drains (docs/targets.md)."""

from __future__ import annotations

import asyncio
import os
import statistics
from typing import TYPE_CHECKING, Any

import click

from simspool.agent.exit_codes import CommandError, ExitCode

from . import output
from .settings import Settings, common

if TYPE_CHECKING:
    from simspool.agent.targets.settings import TargetSettings

_KINDS = ("auto", "simspool", "simvue", "mlflow", "directory", "bundle")
_ASKED = 5  # times, for the round trip
_PATIENCE = 60.0  # seconds for a target under test


@click.group(short_help="Add, list, remove and try the targets of the spool.")
def target() -> None:
    """Add, list, remove and try the targets of the spool.

    The spool drains to the server, to the [target.NAME] tables of simspool.toml, and to those added here, which are kept in the spool.
    """


@target.command(short_help="Add a target to the spool.")
@click.argument("name")
@click.argument("kind", type=click.Choice(_KINDS))
@click.argument("address", metavar="[URL|PATH]", required=False)
@click.option("--experiment", metavar="NAME", help="For mlflow: the experiment in which runs are made.")
@click.option("--format", "form", type=click.Choice(["jsonl", "csv"]), help="For directory: how metrics are written (default jsonl).")
@click.option("--best-effort", is_flag=True, help="Nothing is kept for it, and no sync fails without it.")
@click.option("--bandwidth", metavar="RATE", help='The most that is sent to it: "10 MB/s".')
@click.option("--uploads", type=click.IntRange(1, 64), metavar="N", help="The most files at a time.")
@common
def add(
    settings: Settings, name: str, kind: str, address: str | None, experiment: str | None, form: str | None, best_effort: bool,
    bandwidth: str | None, uploads: int | None,
) -> int:  # fmt: skip
    """Add a target to the spool: all that is recorded, also before now, is sent to it as well.

    --token-file is its own here, and is read again whenever the agent starts. A running agent takes the target up within seconds.
    Kind bundle has no address: bundles carry to it (`agent bundle create`), and receipts come back.
    """
    from simspool.agent.targets.settings import own_targets, parse, save_own
    from simspool.sdk.errors import ConfigError

    table: dict[str, Any] = {"kind": kind}
    if (address is None) != (kind == "bundle"):
        raise click.UsageError("kind bundle has no address" if address is not None else f"an address is missing: kind {kind} needs one")
    if address is None:
        pass
    elif kind == "directory":
        table["path"] = os.path.abspath(os.path.expanduser(address))
    else:
        table["url"] = address
    optional = {"experiment": experiment, "format": form, "bandwidth": bandwidth, "uploads": uploads}
    table |= {key: value for key, value in optional.items() if value is not None}
    if settings.token_file is not None:
        table["token_file"] = os.path.abspath(os.path.expanduser(settings.token_file))
    if best_effort:
        table["required"] = False
    settings = _without_token(settings)
    spool = settings.open_spool(create=True)
    try:
        made = parse(name, table, "spool")
        assert made is not None
        own = own_targets(spool)
        present = settings.targets(spool)()
    except ConfigError as error:
        raise CommandError(ExitCode.USAGE, str(error)) from None
    for other in present:
        if other.name == name:
            raise CommandError(ExitCode.USAGE, f"there is a target {name!r} already, in {other.source}: {_how_to_remove(other)}")
        if other.address == made.address:
            raise CommandError(ExitCode.USAGE, f"target {other.name!r} is {made.address} already: {_how_to_remove(other)}")
    if name in own:
        raise CommandError(ExitCode.USAGE, f"there is a target {name!r} already, which is not enabled: `agent target rm {name}` removes it")
    if kind == "directory":
        _make_folder(made.url)
    save_own(spool, {**own, name: table})
    if settings.json:
        output.echo_json(_listed(made))
    else:
        then = "`agent bundle create` carries to it" if kind == "bundle" else f"`agent target test {name}` tries it"
        output.echo(output.safe(f"added {name}: {made.kind} at {made.address}; {then}"))
    return ExitCode.OK


def _without_token(settings: Settings) -> Settings:
    """The token file of `add` is the new target's, not the server's."""
    return Settings(settings.spool_option, settings.url_option, None, settings.json)


def _make_folder(path: str) -> None:
    try:
        os.mkdir(path)
    except FileExistsError:
        if not os.path.isdir(path):
            raise CommandError(ExitCode.USAGE, f"{path} is not a folder") from None
    except FileNotFoundError:
        raise CommandError(ExitCode.USAGE, f"the folder above {path} is not there: is its disk mounted? make it first") from None
    except OSError as error:
        raise CommandError(ExitCode.USAGE, f"cannot make {path}: {error.strerror}") from None


def _how_to_remove(found: TargetSettings) -> str:
    if found.source == "spool":
        return f"`agent target rm {found.name}` removes it"
    return f"it is removed in {found.source}"


@target.command("ls", short_help="List the targets of the spool.")
@common
def list_(settings: Settings) -> int:
    """List the targets of the spool: where each comes from, what it does, and how many records and files wait for it."""
    from simspool.agent.status import count_waiting

    from .handover import agent_status
    from .status import targets_of
    from .view import open_view

    spool = settings.open_spool()
    present = settings.targets_now(spool)
    running = ((agent_status(spool) or {}).get("agent") or {}).get("targets", [])
    states = {one["url"]: one for one in running}
    with open_view(spool) as catalog:
        servers = {known.address: known.server for known in targets_of(settings, spool, catalog)}
        waiting = {address: count_waiting(catalog, server) for address, server in servers.items()}
    rows = []
    for one in present:
        lane = states.get(one.address, {})
        rows.append({
            **_listed(one), "state": "by bundles" if one.kind == "bundle" else lane.get("state") or "no agent runs",
            "problem": lane.get("problem", ""), "server": servers.get(one.address, ""), "waiting": waiting.get(one.address, 0),
        })  # fmt: skip
    if settings.json:
        for row in rows:
            output.echo_json(row)
        return ExitCode.OK
    if not rows:
        output.note("no target is configured: `agent target add` adds one; SIMSPOOL_URL and SIMSPOOL_TOKEN name a server")
        return ExitCode.OK
    header = ["name", "kind", "address", "required", "source", "state", "server", "waiting"]
    body = [
        [r["name"], r["kind"], r["address"], "yes" if r["required"] else "no", r["source"], r["state"], r["server"] or None, r["waiting"]]
        for r in rows
    ]
    for line in output.table(header, body):
        output.echo(line)
    for row in rows:
        if row["problem"]:
            output.note(f"{row['name']}: {row['problem']}")
    return ExitCode.OK


def _listed(found: TargetSettings) -> dict[str, Any]:
    return {
        "name": found.name, "kind": found.kind, "address": found.address, "required": found.required, "source": found.source,
        "bandwidth": found.bandwidth, "uploads": found.uploads, **found.options,
    }  # fmt: skip


@target.command(short_help="Remove a target that `agent target add` added.")
@click.argument("name")
@common
def rm(settings: Settings, name: str) -> int:
    """Remove a target that `agent target add` added. What it has stays there; added again, it goes on from there."""
    from simspool.agent.targets.settings import own_targets, save_own
    from simspool.sdk.errors import ConfigError

    spool = settings.open_spool()
    try:
        own = own_targets(spool)
    except ConfigError as error:
        raise CommandError(ExitCode.USAGE, str(error)) from None
    if name not in own:
        for other in settings.targets_now(spool):
            if other.name == name:
                raise CommandError(ExitCode.USAGE, f"target {name!r} is not the spool's own: {_how_to_remove(other)}")
        raise CommandError(ExitCode.USAGE, f"there is no target {name!r}: `agent target ls` lists them")
    save_own(spool, {other: table for other, table in own.items() if other != name})
    if settings.json:
        output.echo_json({"removed": name})
    else:
        output.echo(f"removed {name}: what it has stays there")
    return ExitCode.OK


@target.command(short_help="Connect to targets, and say what they are.")
@click.argument("name", required=False)
@click.option("--all", "everyone", is_flag=True, help="All targets.")
@common
def test(settings: Settings, name: str | None, everyone: bool) -> int:
    """Connect to a target, and say what it is: its id, limits, round-trip times, and whether it lets us in. Nothing is sent."""
    if (name is None) != everyone:
        raise CommandError(ExitCode.USAGE, "name a target, or say --all: `agent target ls` lists them")
    spool = settings.open_spool()
    present = settings.targets_now(spool)
    chosen: list[TargetSettings] = [one for one in present if everyone or one.name == name]
    if not chosen:
        if everyone:
            raise CommandError(ExitCode.NO_TARGET, "no target is configured: `agent target add` adds one")
        raise CommandError(ExitCode.USAGE, f"there is no target {name!r}: `agent target ls` lists them")
    worst = ExitCode.OK
    for one in chosen:
        code, found = asyncio.run(_try(one))
        worst = max(worst, code)
        if settings.json:
            output.echo_json({"name": one.name, "kind": one.kind, "address": one.address, "exit_code": int(code), **found})
            continue
        for line in output.pairs([("target", f"{one.name} ({one.kind}) at {one.address}"), *_said(found)]):
            output.echo(line)
    return worst


async def _try(settings: TargetSettings) -> tuple[ExitCode, dict[str, Any]]:
    from simspool.agent.targets.port import Refused, Unreachable
    from simspool.agent.targets.probe import probe

    if settings.kind == "bundle":
        return ExitCode.OK, {"note": "nothing connects to it: bundles carry to it (`agent bundle create`)"}
    try:
        found = await probe(settings, times=_ASKED, patience=_PATIENCE)
    except Refused as error:
        return ExitCode.REFUSED, {"error": str(error)}
    except Unreachable as error:
        return ExitCode.UNREACHABLE, {"error": str(error)}
    except TimeoutError:
        return ExitCode.UNREACHABLE, {"error": f"it does not answer within {_PATIENCE:.0f} s"}
    target, limits, trips = found.target, found.limits, found.trips
    return ExitCode.OK, {
        "server": found.server, "version": str(getattr(target, "version", "")), "effect": target.traits.effect,
        "written": settings.kind == "directory",
        "limits": {"body": limits.body, "decoded": limits.decoded, "ranges": limits.ranges, "blob": limits.blob},
        "round_trip": {"asked": len(trips), "median": round(statistics.median(trips), 6), "worst": round(max(trips), 6)},
    }  # fmt: skip


def _said(found: dict[str, Any]) -> list[tuple[str, object]]:
    if "error" in found:
        return [("problem", found["error"])]
    if "note" in found:
        return [("note", found["note"])]
    limits, trip, size = found["limits"], found["round_trip"], output.human_bytes
    return [
        ("server", found["server"] + (f", version {found['version']}" if found["version"] else "")),
        ("effect", found["effect"]),
        ("limits", f"{size(limits['body'])} a request, {limits['ranges']} ranges, {size(limits['blob'])} a file"),
        ("round trip", f"{1000 * trip['median']:.1f} ms (median of {trip['asked']}), {1000 * trip['worst']:.1f} ms at worst"),
        ("access", "it can be written" if found["written"] else "it lets us in; whether it can be written shows with the first records"),
    ]
