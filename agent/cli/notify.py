"""`agent notify`: try the channels by which people are told."""

from __future__ import annotations

import socket
import time

import click

from simspool.agent.exit_codes import CommandError, ExitCode

from . import output
from .settings import Settings, common


@click.group(help="Tell people of alerts and ends of runs: try it out.")
def notify() -> None:
    """The channels are those of `[notify]` in simspool.toml."""


@notify.command(help="Send a test message through each channel, and say what happened.")
@click.option("--channel", "names", multiple=True, metavar="NAME", help="Only this one: terminal, file, command, mail (again: and this).")
@common
def test(settings: Settings, names: tuple[str, ...]) -> int:
    """Works beside a running agent, and without one; nothing is recorded."""
    from simspool.agent.notify.channels import NotDelivered, carrier_of
    from simspool.agent.notify.message import sample
    from simspool.agent.notify.settings import parse

    config = settings.config
    path = config.sources.get("notify", "")
    channels = parse(config.notify, path)
    if not channels:
        raise CommandError(ExitCode.USAGE, "no channel is configured: write [notify] into simspool.toml, with `terminal = true` below it")
    known = [channel.name for channel in channels]
    for name in names:
        if name not in known:
            raise CommandError(ExitCode.USAGE, f"there is no channel {name!r} in {path}: it has {', '.join(known)}")
    message = sample(socket.gethostname(), time.time())
    worst = ExitCode.OK
    for channel in channels:
        if names and channel.name not in names:
            continue
        began, why, said = time.monotonic(), None, ""
        try:
            said = carrier_of(channel, output.note, "test").deliver(message, lambda: None)
        except NotDelivered as error:
            why, worst = str(error), ExitCode.ERROR
        took = round(time.monotonic() - began, 3)
        if settings.json:
            output.echo_json({"channel": channel.name, "delivered": why is None, "error": why, "note": said or None, "seconds": took})
        else:
            what = "delivered" if why is None else f"not delivered: {why}"
            output.echo(f"{channel.name}: {output.safe(what + (f' ({said})' if said else ''))}")
    return worst
