"""`agent run`: the daemon in the foreground."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import resource
import signal
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from simspool.agent.exit_codes import CommandError, ExitCode
from simspool.agent.on_demand import IDLE, IdleEnd, is_elsewhere, note_start, replace, settle, stamped
from simspool.sdk.agent_start import serving_agent
from simspool.spool import Locked

from . import output
from .handover import api_path
from .settings import Settings, common

if TYPE_CHECKING:
    from simspool.agent.app import Agent
    from simspool.agent.relay.duty import RelayDuty

_PATIENCE = 30.0
_SWITCH = 0.0005  # s: a thread that computes (the ingest) soon makes way for one that has news (the watch)


@click.command(help="Watch the spool and drain it to the server, until stopped.")
@click.option("--on-demand", is_flag=True, help="End when nothing is left to do, as an agent that a script starts does.")
@click.option(
    "--idle-end", type=click.FloatRange(min=0.1), default=IDLE, show_default=True, metavar="SECONDS", envvar="SIMSPOOL_IDLE_END",
    help="With --on-demand: end after so long with nothing to do.",
)  # fmt: skip
@click.option("--alerts", metavar="FILE", type=click.Path(dir_okay=False), help="A site's alerts, for runs that match (SIMSPOOL_ALERTS).")
@common
def run(settings: Settings, on_demand: bool, idle_end: float, alerts: str | None) -> int:
    """Serve the spool until SIGTERM or SIGINT; the spool is made where there is none (not on demand: a script has made it)."""
    from simspool.agent.alerts.site import SiteFile
    from simspool.agent.app import Agent, agent_config
    from simspool.agent.notify.settings import NotifySource
    from simspool.agent.service.notify import Notifier
    from simspool.sdk.config import Graces, load_config

    if on_demand:
        settle()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # tails and pidfds of many runs; nothing here uses select()
    sys.setswitchinterval(_SWITCH)
    manager = Notifier.from_environment(os.environ)
    if manager.watchdog:
        faulthandler.enable()  # the watchdog's SIGABRT leaves every thread's stack in the journal
    spool = settings.open_spool(create=not on_demand)
    found = settings.config.graces
    graces = Graces(found.answer, found.callback, found.term)
    config = agent_config(
        spool, settings.server_url, settings.server_token, graces, _country(settings, on_demand), settings.targets(spool),
        settings.config.budget,
    )  # fmt: skip
    alerts = alerts or settings.config.alerts
    alerts = alerts and os.path.abspath(alerts)
    folder = os.getcwd()
    if on_demand:
        os.chdir("/")  # the settings are those of the script's folder; the folder itself is not to be held

    def report(text: str) -> None:
        if settings.json:
            output.echo_json({"time": datetime.now(UTC).isoformat(), "message": text})
            sys.stdout.flush()
        else:
            output.note(stamped(text) if on_demand else text)

    # a script's agent is better than none
    notify = NotifySource(lambda: load_config(folder=folder), report, lenient=on_demand)

    async def serve() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        async with contextlib.AsyncExitStack() as stack:
            agent = Agent(config, report=report, on_demand=on_demand)
            agent.notify = notify
            if alerts:
                agent.site = SiteFile(alerts, report, lenient=on_demand)

            agent.relay = _relay(settings, agent, on_demand)

            def hang_up() -> None:
                if agent.site is not None:
                    agent.site.read_again()
                if agent.notifier is not None:
                    agent.notifier.reload()
                task = asyncio.create_task(agent.reload_targets())
                reloading.add(task)
                task.add_done_callback(reloading.discard)

            reloading: set[asyncio.Task[None]] = set()
            loop.add_signal_handler(signal.SIGHUP, hang_up)
            asked = False
            give_up = loop.time() + _PATIENCE
            while not stop.is_set():
                try:
                    await stack.enter_async_context(agent)
                    break
                except Locked:  # a status or a sync lets go of the spool; an agent that serves it does not, unless a script started it
                    if on_demand and serving_agent(spool.path) is not None:
                        return
                    asked = asked or (not on_demand and replace(spool))
                    if on_demand and (loop.time() > give_up or is_elsewhere(spool)):
                        note_start(spool, serves=False)
                        return
                    if (api_path(spool) is not None and not asked) or loop.time() > give_up:
                        raise
                    await asyncio.sleep(0.1)
            if stop.is_set():
                return

            def ready() -> None:
                names = [lane.target.url for lane in agent.drains.lanes.values()] if agent.drains is not None else []
                report(f"serving {spool.path}" + (f", draining to {', '.join(names)}" if names else ""))
                if on_demand:
                    note_start(spool, serves=True)
                    watch = asyncio.create_task(IdleEnd(agent, idle_end, report).watch(stop))
                    watch.add_done_callback(lambda _: stop.set())
                    stack.push_async_callback(_cancel, watch)
                if manager.is_there:
                    manager.ready(agent.doing())
                    stack.push_async_callback(_cancel, asyncio.create_task(manager.feed(agent.progress, agent.doing, report)))

            try:
                await agent.serve(stop, ready=ready)
            finally:
                manager.stopping()
        report("stopped")

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())
    return ExitCode.OK


def _country(settings: Settings, lenient: bool) -> str | None:
    """Return the country of emissions. A script's agent does without one that is not valid: the script has heard of it."""
    from simspool.sdk.emissions import country_of
    from simspool.sdk.errors import ConfigError

    try:
        return country_of(settings.config)
    except ConfigError as error:
        if lenient:
            return None
        raise CommandError(ExitCode.USAGE, str(error)) from None


def _relay(settings: Settings, agent: Agent, lenient: bool) -> RelayDuty | None:
    """Return what `[relay]` says; None without it. A script's agent does without settings that are not valid, and says so."""
    if not settings.config.relay:
        return None
    from simspool.agent.bundles.settings import parse as parse_bundle
    from simspool.agent.leaving.settings import Leaving
    from simspool.agent.relay.duty import RelayDuty
    from simspool.agent.relay.settings import parse

    config = settings.config
    try:
        chosen = parse(config.relay, config.sources.get("relay", ""))
        bundle = parse_bundle(config.bundle, config.sources.get("bundle", ""))
    except CommandError as error:
        if not lenient:
            raise
        agent.report(str(error))
        return None
    return RelayDuty(agent, chosen, bundle, Leaving(config.leaving, config.redact), settings.targets(agent.spool)) if chosen else None


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
