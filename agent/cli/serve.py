"""`agent serve`: the embedded server in the foreground."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from simspool.agent.exit_codes import CommandError, ExitCode

from . import output


@click.command(short_help="Serve a folder as a server that agents drain to.")
@click.option("--data", required=True, metavar="DIR", type=click.Path(file_okay=False, path_type=Path), help="Where everything is kept.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on; 0.0.0.0 for all.")
@click.option("--port", default=8765, show_default=True, type=click.IntRange(0, 65535), help="The port; 0 takes a free one.")
@click.option("--json", "as_json", is_flag=True, help="Print lines of JSON.")
def serve(data: Path, host: str, port: int, as_json: bool) -> int:
    """Serve DIR as a server that agents drain to, until SIGTERM or Ctrl-C. It speaks Simvue's REST dialect too.

    The token is made on the first start and lies in DIR/token, which only you can read; DIR/url has the address. The server
    speaks plain HTTP: for other machines, put a TLS proxy in front of it, or go through an SSH tunnel.
    """
    from simspool.agent.server import serve as run_server

    def announce(text: str) -> None:
        if as_json:
            output.echo_json({"message": text})
        else:
            output.echo(output.safe(text))
        sys.stdout.flush()

    try:
        run_server(data, host, port, announce)
    except (RuntimeError, OSError) as error:
        raise CommandError(ExitCode.ERROR, f"cannot serve {data} on {host}:{port}: {error}") from None
    return ExitCode.OK
