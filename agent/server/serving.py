"""Running the server in the foreground: lock, socket, token, signals."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from . import identity
from .app import create_app

_GRACE = 10.0


class _OneLine(logging.Filter):
    """Keeps what strangers send out of the log: a request that is no HTTP is one line, not a traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], HttpProcessingError):
            record.msg, record.args, record.exc_info = "a request that is not HTTP was refused", (), None
        return True


def _lock(data: Path) -> int:
    fd = os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise RuntimeError(f"another server is using {data}: stop it, or choose another --data") from None
    return fd


async def run_server(data: Path, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is being answered and close. See `serve`."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    log = logging.getLogger(__name__)
    log.addFilter(_OneLine())
    runner = web.AppRunner(
        create_app(data), access_log=None, auto_decompress=False, shutdown_timeout=_GRACE, keepalive_timeout=75, logger=log
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=512).start()
        bound = runner.addresses[0]
        name = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        url = f"http://{name}:{bound[1]}"
        identity.write_private(data / "url", url + "\n")
        announce(f"serving {url} from {data}")
        await stop.wait()
    finally:
        await runner.cleanup()


def serve(data: Path, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Serve a data folder over HTTP until SIGTERM or SIGINT. `port` 0 takes a free one; DIR/url has the real URL.

    `announce` is called with lines for the user: the token when it was made just now (it is printed once; DIR/token keeps it, mode
    0600), and the URL when the server answers. Raises RuntimeError when another server has the folder, PermissionError for one that is
    not safe to use, and OSError when the address is taken.
    """
    data = data.expanduser().absolute()
    identity.prepare_folder(data)
    fd = _lock(data)
    thresholds = gc.get_threshold()
    gc.set_threshold(100_000, 20, 50)  # decoded rows come and go by the hundred thousand; none of them are cycles
    try:
        token, new = identity.first_token(data)
        if new:
            announce(f"token (kept in {data / 'token'}): {token}")
        asyncio.run(run_server(data, host, port, announce))
    finally:
        gc.set_threshold(*thresholds)
        os.close(fd)
