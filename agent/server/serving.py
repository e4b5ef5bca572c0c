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

from simspool.sdk.address import is_in_the_clear

from . import identity, strangers
from .app import create_app
from .certificate import Certificate

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


async def run_server(
    data: Path, host: str, port: int, announce: Callable[[str], None], certificate: Certificate | None = None, public_url: str | None = None
) -> None:  # fmt: skip
    """Serve until SIGTERM or SIGINT, then finish what is being answered and close. See `serve`."""
    context = None if certificate is None else certificate.context()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    log = logging.getLogger(__name__)
    log.addFilter(_OneLine())
    runner = web.AppRunner(
        create_app(data, public_url=public_url, is_local=strangers.is_loopback(host)), access_log=None, auto_decompress=False,
        shutdown_timeout=_GRACE, keepalive_timeout=75, logger=log,
    )  # fmt: skip
    await runner.setup()
    assert runner.server is not None
    strangers.bound(runner.server, strangers.most_connections())

    def renew() -> None:
        assert context is not None
        assert certificate is not None
        try:
            certificate.load(context)
        except RuntimeError as error:
            announce(f"the certificate is left as it is: {error}")
        else:
            announce("the certificate was read again")

    if context is not None:
        loop.add_signal_handler(signal.SIGHUP, renew)
    try:
        await web.TCPSite(runner, host, port, backlog=strangers.BACKLOG, ssl_context=context).start()
        bound = runner.addresses[0]
        name = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        url = f"{'http' if context is None else 'https'}://{name}:{bound[1]}"
        if is_in_the_clear(url):
            announce("plain HTTP for other machines: tokens and data pass the network for all to read; give --cert and --key")
        identity.write_private(data / "url", url + "\n")
        announce(f"serving {url} from {data}")
        await stop.wait()
    finally:
        await runner.cleanup()


def serve(
    data: Path, host: str, port: int, announce: Callable[[str], None], certificate: Certificate | None = None, public_url: str | None = None
) -> None:  # fmt: skip
    """Serve a data folder over HTTP until SIGTERM or SIGINT. `port` 0 takes a free one; DIR/url has the real URL.

    With a `certificate`, over HTTPS; SIGHUP has its files read again. `public_url` is what clients call it, through a proxy that passes
    that name on: at a loopback address, other names are not answered. `announce` is called with lines for the user: where the token is when
    it was made just now (DIR/token, mode 0600; it is never printed: what a service prints is kept in logs), and the URL when the server
    answers. Raises RuntimeError when another server has the folder or the certificate cannot be used, PermissionError for a folder that is
    not safe to use, and OSError when the address is taken.
    """
    os.umask(0o077)  # the database's files get their mode from it
    data = data.expanduser().absolute()
    identity.prepare_folder(data)
    fd = _lock(data)
    thresholds = gc.get_threshold()
    gc.set_threshold(100_000, 20, 50)  # decoded rows come and go by the hundred thousand; none of them are cycles
    try:
        _, new = identity.first_token(data)
        if new:
            announce(f"the token was made, and is in {data / 'token'}")
        asyncio.run(run_server(data, host, port, announce, certificate, public_url))
    finally:
        gc.set_threshold(*thresholds)
        os.close(fd)
