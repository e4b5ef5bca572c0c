"""`agent service install|status|uninstall`: the agent, or a timer for `agent sync`, in the user's systemd or the machine's."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import click

from simspool.agent.exit_codes import CommandError, ExitCode
from simspool.agent.service import places, unit
from simspool.agent.service.manager import Manager, in_container, lingers

from . import output
from .settings import Settings, common, read_token


def _whose(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command --user, --system and --for."""
    for option in (
        click.option("--for", "for_user", metavar="USER", help="With --system: whose agent; default the one who called sudo."),
        click.option("--system", "as_system", is_flag=True, help="As a service of the machine, simspool-agent@USER: needs root."),
        click.option("--user", "as_user", is_flag=True, help="As a service of your own systemd: no administrator is needed."),
    ):
        function = option(function)
    return function


def _manager(*, as_user: bool, as_system: bool, for_user: str | None) -> Manager:
    if as_user == as_system:
        raise click.UsageError("say --user (the service is your own, no administrator is needed) or --system (needs root)")
    if as_user:
        if for_user is not None:
            raise click.UsageError("--for goes with --system; your own service needs no name")
        return Manager(None)
    user = for_user or os.environ.get("SUDO_USER")
    if not user:
        raise click.UsageError("say --for USER: whose agent it is")
    try:
        return Manager(unit.check_instance(user))
    except ValueError as error:
        raise click.UsageError(str(error)) from None


@click.group(short_help="Run the agent, or a timer for syncs, as a systemd service.")
def service() -> None:
    """Run the agent as a systemd service, your own or the machine's: it starts by itself, and again after a crash or a hang."""


@service.command()
@_whose
@click.option("--timer", metavar="EVERY", help="No agent, but an `agent sync` every so often: 90s, 15min, 6h, 1d.")
@click.option("--alerts", metavar="FILE", type=click.Path(dir_okay=False), help="The agent's file of a site's alerts (SIMSPOOL_ALERTS).")
@click.option("--dry-run", is_flag=True, help="Only print the files.")
@click.option("--no-start", is_flag=True, help="Enable it, but leave the start to the next login or boot.")
@common
def install(
    settings: Settings, as_user: bool, as_system: bool, for_user: str | None, timer: str | None, alerts: str | None, dry_run: bool,
    no_start: bool,
) -> int:  # fmt: skip
    """Install, enable and start the service; again after an upgrade or another option.

    With --user, spool, address and token are taken as they are now, since a service sees neither your shell's variables nor this
    folder's files. With --system, what is not on the command line comes from that user's own files when the service starts. The
    token never goes into a unit.
    """
    manager = _manager(as_user=as_user, as_system=as_system, for_user=for_user)
    try:
        every = unit.parse_interval(timer) if timer is not None else None
        if every is not None and alerts:
            raise click.UsageError("--alerts goes with an agent: a timer's syncs evaluate nothing")
        if as_system:
            plan = _for_system(settings, manager, every, alerts, dry_run=dry_run)
        else:
            plan = _for_user(settings, manager, every, alerts or settings.config.alerts)
    except ValueError as error:
        raise CommandError(ExitCode.USAGE, str(error)) from None
    files, token, url = plan
    if dry_run:
        for path, text in files.items():
            output.echo((f"# {output.safe(path)}\n" if len(files) > 1 else "") + text.rstrip("\n"))
        return ExitCode.OK
    form = "agent" if every is None else "timer"
    if as_user and form == "timer":
        settings.open_spool(create=True)  # a first sync before the first run is no failure
    manager.install(form, files, token, start=not no_start)
    if settings.json:
        output.echo_json({"unit": manager.units[form], "files": list(files), "started": not no_start})
        return ExitCode.OK
    whose = "--user" if as_user else f"--system --for {manager.instance}"
    started = "" if no_start else " and started it"
    output.echo(f"installed {output.safe(manager.path(form))}{started}: `agent service status {whose}`")
    if not url:
        output.note("no server is configured: it will record what happens and wait; install again with --url and --token-file")
    if as_user and not lingers():
        output.note("it stops when you log out: `loginctl enable-linger` lets it go on (on some machines an administrator must)")
    return ExitCode.OK


_Plan = tuple[dict[str, str], str | None, str | None]  # files (path -> text), a token to store, the server's address


def _for_user(settings: Settings, manager: Manager, every: int | None, alerts: str | None) -> _Plan:
    arguments = ["--spool", settings.spool_dir]
    if settings.server_url:
        arguments += ["--url", settings.server_url]
    token = None
    if settings.token_file and os.path.abspath(settings.token_file) != manager.token_path:
        arguments += ["--token-file", os.path.abspath(settings.token_file)]
    elif settings.server_token:
        token = settings.server_token
        arguments += ["--token-file", manager.token_path]
    if alerts and every is None:
        arguments += ["--alerts", os.path.abspath(alerts)]
    kinds = ("agent",) if every is None else ("timer", "sync")
    files = {manager.path(k): unit.render(manager.template(k), arguments, every=every or 0) for k in kinds}
    return files, token, settings.server_url


def _for_system(settings: Settings, manager: Manager, every: int | None, alerts: str | None, *, dry_run: bool) -> _Plan:
    assert manager.instance is not None
    if os.geteuid() != 0:
        raise CommandError(ExitCode.ERROR, "--system needs root (sudo); a service of your own does not: `agent service install --user`")
    spool = os.path.abspath(settings.spool_option) if settings.spool_option else None
    found = places.places_of(manager.instance, spool, create=not dry_run)
    arguments = ["--spool", spool] if spool else []
    if settings.url_option:
        arguments += ["--url", settings.url_option]
    if alerts:
        arguments += ["--alerts", os.path.abspath(alerts)]
    token = credential = None
    if settings.token_file:
        credential = os.path.abspath(settings.token_file)
        if not unit.is_encrypted(credential):
            token, credential = read_token(credential), manager.token_path
    kinds = ("agent",) if every is None else ("timer", "sync")
    files = {os.path.join(manager.folder, manager.template(kind)): unit.render(manager.template(kind)) for kind in kinds}
    if every is not None:
        files[manager.path("timer")] = unit.timer_drop_in(every)
    command = "run" if every is None else "sync"
    files[manager.path(kinds[-1])] = unit.drop_in(command, arguments, [found.spool, found.state], credential, container=in_container())
    return files, token, settings.url_option or found.url


@service.command()
@_whose
@common
def status(settings: Settings, as_user: bool, as_system: bool, for_user: str | None) -> int:
    """Show how the service does. Exit status 0 when it runs, else 1."""
    manager = _manager(as_user=as_user, as_system=as_system, for_user=for_user)
    found = manager.state()
    if settings.json:
        line = {"installed": bool(found.form), "form": found.form or None, "active": found.active, **found.properties}
        output.echo_json(line | ({"last_sync": found.last_sync} if found.form == "timer" else {}))
    elif not found.form:
        output.echo("not installed: `agent service install`")
    else:
        rows = [("unit", manager.path(found.form)), *found.properties.items(), ("last sync", found.last_sync or None)]
        for line_text in output.pairs(rows):
            output.echo(line_text)
    return ExitCode.OK if found.active else ExitCode.ERROR


@service.command()
@_whose
@common
def uninstall(settings: Settings, as_user: bool, as_system: bool, for_user: str | None) -> int:
    """Stop the service and remove it. The spool is left alone."""
    manager = _manager(as_user=as_user, as_system=as_system, for_user=for_user)
    if as_system and os.geteuid() != 0:
        raise CommandError(ExitCode.ERROR, "--system needs root (sudo)")
    removed = manager.uninstall()
    if settings.json:
        output.echo_json({"removed": removed})
    else:
        output.echo("removed; the spool is left as it is" if removed else "there was no service")
    return ExitCode.OK
