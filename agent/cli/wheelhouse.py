"""`agent wheelhouse`: a folder from which simspool installs without a network."""

from __future__ import annotations

import os
import re

import click

from simspool.agent.exit_codes import CommandError, ExitCode

from . import output

_VERSION = re.compile(r"3\.[0-9]{1,2}")


@click.command(short_help="Make a folder from which simspool installs without a network.")
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False))
@click.option("--sdk-only", is_flag=True, help="Only simspool's own wheel: recording needs nothing else. No network is needed for it.")
@click.option("--python", "python", metavar="VERSION", help="For another Python than this one: 3.12.")
@click.option("--platform", "platforms", multiple=True, metavar="NAME", help="For another machine: manylinux_2_28_x86_64; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print lines of JSON.")
def wheelhouse(folder: str, sdk_only: bool, python: str | None, platforms: tuple[str, ...], as_json: bool) -> int:
    """Make a folder from which simspool installs without a network: its own wheel, made from this installation, and those of all it needs.

    pip finds those as it is set up here. Carry the folder over; its README.txt tells the one command, SHA256SUMS what must have arrived.
    """
    from simspool.agent import wheelhouse as house

    if python is not None and not _VERSION.fullmatch(python):
        raise CommandError(ExitCode.USAGE, f"--python {python!r} is no version: say 3.12")
    wanted = house.For(python, platforms)
    try:
        os.makedirs(folder, exist_ok=True)
        wheel = house.own_wheel(folder)
        if not sdk_only:
            if not as_json:
                output.note(f"{wheel} is made; pip fetches what it needs, which may take minutes")
            house.fetch(folder, wheel, wanted)
        command, names = house.finish(folder, wheel, wanted, sdk_only=sdk_only)
    except OSError as error:
        raise CommandError(ExitCode.ERROR, f"cannot make {folder}: {error.strerror or error}") from None
    size = sum(os.stat(os.path.join(folder, name)).st_size for name in names)
    if as_json:
        output.echo_json({"folder": os.path.abspath(folder), "wheels": names, "bytes": size, "install": command})
    else:
        output.echo(f"{len(names)} wheels, {output.human_bytes(size)}, in {output.safe(folder)}. There, without a network:")
        output.echo(f"    {command}")
    return ExitCode.OK
