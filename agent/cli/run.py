"""`agent run`: the daemon in the foreground."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from datetime import UTC, datetime

import click

from simspool.agent.exit_codes import ExitCode
from simspool.spool import Locked

from . import output
from .handover import api_path
from .settings import Settings, common

_PATIENCE = 30.0


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
        async with contextlib.AsyncExitStack() as stack:
            agent = Agent(config, report=report)
            give_up = loop.time() + _PATIENCE
            while not stop.is_set():
                try:
                    await stack.enter_async_context(agent)
                    break
                except Locked:  # a status or a sync lets go of the spool; an agent that serves it does not
                    if api_path(spool) is not None or loop.time() > give_up:
                        raise
                    await asyncio.sleep(0.1)
            if stop.is_set():
                return
            await agent.serve(stop, ready=lambda: report(f"serving {spool.path}" + (f", draining to {config.url}" if config.url else "")))
        report("stopped")

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())
    return ExitCode.OK
