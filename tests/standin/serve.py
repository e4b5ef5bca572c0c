"""Run the stand-in as a process: `python tests/standin/serve.py --port 0 --token TOKEN --state DIR`.

Its address goes into DIR/url as soon as it answers. It ends on SIGTERM and SIGINT, and with --until-stdin-ends when its starter does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
from pathlib import Path

from aiohttp import web
from models import check
from simvue_server import Options, StandIn


async def serve(port: int, token: str, state: Path, options: Options, *, until_stdin_ends: bool) -> None:
    """Serve until a signal, or the end of the starter."""
    at = StandIn(state, token, options)
    runner = web.AppRunner(at.application(), access_log=None, shutdown_timeout=0.2, auto_decompress=False)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if until_stdin_ends:
        loop.add_reader(0, lambda: None if os.read(0, 1024) else stop.set())
    (state / "url.new").write_text(f"http://127.0.0.1:{runner.addresses[0][1]}")
    (state / "url.new").rename(state / "url")
    await stop.wait()
    await runner.cleanup()
    at.close()


def main() -> None:
    """Read the command line, and serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0 chooses a free one")
    parser.add_argument("--token", required=True, help="the published client wants a JWT with `exp`")
    parser.add_argument("--state", type=Path, required=True, help="folder of the database; made if it is missing")
    parser.add_argument("--options", type=json.loads, default={}, help="JSON object, see the class Options")
    parser.add_argument("--until-stdin-ends", action="store_true")
    given = parser.parse_args()
    options = check(Options, given.options)
    asyncio.run(serve(given.port, given.token, given.state, options, until_stdin_ends=given.until_stdin_ends))


if __name__ == "__main__":
    main()
