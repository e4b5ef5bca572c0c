"""`agent run`: the daemon in the foreground."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from datetime import UTC, datetime

import click

from simspool.agent.exit_codes import ExitCode

from . import output
from .settings import Settings, common


@click.command(help="Watch the spool and drain it to the server, until stopped.")
@common
def run(settings: Settings) -> int:
    """Serve the spool until SIGTERM or SIGINT; the spool is made where there is none."""
    from simspool.agent.app import Agent, agent_config

    spool = settings.open_spool(create=True)
    config = agent_config(spool, settings.server_url, settings.server_token)

    def report(text: str) -> None:
        if settings.json:
            output.echo_json({"time": datetime.now(UTC).isoformat(), "message": text})
            sys.stdout.flush()
        else:
            output.note(text)

    async def serve() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        async with Agent(config, report=report) as agent:
            await agent.serve(stop, ready=lambda: report(f"serving {spool.path}" + (f", draining to {config.url}" if config.url else "")))
        report("stopped")

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())
    return ExitCode.OK
