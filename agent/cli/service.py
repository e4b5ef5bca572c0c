"""`agent service install|status|uninstall --user`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click

from simspool.agent.exit_codes import CommandError, ExitCode
from simspool.agent.service import manager, unit

from . import output
from .settings import Settings, common


def _user(function: Callable[..., Any]) -> Callable[..., Any]:
    def require(_context: click.Context, _parameter: click.Parameter, value: bool) -> bool:
        if not value:
            raise click.UsageError("say --user: the service is your own, no administrator is needed")
        return value

    option = click.option("--user", is_flag=True, expose_value=False, callback=require, help="As a service of your own systemd (required).")
    return option(function)


@click.group(short_help="Run the agent as a systemd user service.")
def service() -> None:
    """Run the agent as a systemd user service: it starts with your login, and again after a crash."""


@service.command()
@_user
@click.option("--dry-run", is_flag=True, help="Only print the unit.")
@click.option("--no-start", is_flag=True, help="Enable it, but leave the start to the next login.")
@common
def install(settings: Settings, dry_run: bool, no_start: bool) -> int:
    """Install, enable and start the service; again after an upgrade or another option.

    Spool, address and token are taken as they are now, since a service sees neither your shell's variables nor this folder's
    files. The token goes into a file that only you can read, never into the unit.
    """
    arguments = ["--spool", settings.spool_dir]
    if settings.server_url:
        arguments += ["--url", settings.server_url]
    token = None
    if settings.token_file:
        arguments += ["--token-file", os.path.abspath(settings.token_file)]
    elif settings.server_token:
        token = settings.server_token
        arguments += ["--token-file", manager.token_path()]
    try:
        text = unit.render(arguments)
    except ValueError as error:
        raise CommandError(ExitCode.USAGE, str(error)) from None
    if dry_run:
        output.echo(text.rstrip("\n"))
        return ExitCode.OK
    manager.install(text, token, start=not no_start)
    if settings.json:
        output.echo_json({"unit": manager.unit_path(), "started": not no_start})
        return ExitCode.OK
    output.echo(f"installed {output.safe(manager.unit_path())}{'' if no_start else ' and started it'}: `agent service status --user`")
    if not settings.server_url:
        output.note("no server is configured: it will record what happens and wait; install again with --url and --token-file")
    if not manager.lingers():
        output.note("it stops when you log out: `loginctl enable-linger` lets it go on (on some machines an administrator must)")
    return ExitCode.OK


@service.command()
@_user
@common
def status(settings: Settings) -> int:
    """Show how the service does. Exit status 0 when it runs, else 1."""
    found = manager.state()
    if settings.json:
        output.echo_json({"installed": found.installed, "active": found.active, **found.properties})
    elif not found.installed:
        output.echo("not installed: `agent service install --user`")
    else:
        for line in output.pairs([("unit", manager.unit_path()), *found.properties.items()]):
            output.echo(line)
    return ExitCode.OK if found.active else ExitCode.ERROR


@service.command()
@_user
@common
def uninstall(settings: Settings) -> int:
    """Stop the service and remove it. The spool is left alone."""
    removed = manager.uninstall()
    if settings.json:
        output.echo_json({"removed": removed})
    else:
        output.echo("removed; the spool is left as it is" if removed else "there was no service")
    return ExitCode.OK
