"""`agent serve`: the embedded server in the foreground."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from simspool.agent.exit_codes import CommandError, ExitCode

from . import output

_FILE = click.Path(dir_okay=False, path_type=Path)

@click.command(short_help="Serve a folder as a server that agents drain to.")
@click.option("--data", required=True, metavar="DIR", type=click.Path(file_okay=False, path_type=Path), help="Where everything is kept.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on; 0.0.0.0 for all.")
@click.option("--port", default=8765, show_default=True, type=click.IntRange(0, 65535), help="The port; 0 takes a free one.")
@click.option("--cert", metavar="FILE", type=_FILE, help="Speak HTTPS with this certificate (PEM).")
@click.option("--key", metavar="FILE", type=_FILE, help="The certificate's key; by default in the same file.")
@click.option("--client-ca", metavar="FILE", type=_FILE, help="Let in only clients with a certificate of these authorities.")
@click.option("--public-url", metavar="URL", help="What clients call it, where a proxy in front of it passes that name on.")
@click.option("--json", "as_json", is_flag=True, help="Print lines of JSON.")
def serve(
    data: Path, host: str, port: int, cert: Path | None, key: Path | None, client_ca: Path | None, public_url: str | None, as_json: bool
) -> int:  # fmt: skip
    """Serve DIR as a server that agents drain to, until SIGTERM or Ctrl-C. It speaks Simvue's REST dialect too.

    The token is made on the first start and lies in DIR/token, which only you can read; DIR/url has the address. For other
    machines, give --cert and --key, put a TLS proxy in front of it, or go through an SSH tunnel. SIGHUP has the certificate's files
    read again.
    """
    from simspool.agent.server import serve as run_server
    from simspool.agent.server.certificate import Certificate

    if cert is None and (key is not None or client_ca is not None):
        raise click.UsageError("--key and --client-ca go with --cert")
    certificate = Certificate(cert, key, client_ca) if cert is not None else None

    def announce(text: str) -> None:
        if as_json:
            output.echo_json({"message": text})
        else:
            output.echo(output.safe(text))
        sys.stdout.flush()

    try:
        run_server(data, host, port, announce, certificate, public_url)
    except (RuntimeError, OSError) as error:
        raise CommandError(ExitCode.ERROR, f"cannot serve {data} on {host}:{port}: {error}") from None
    return ExitCode.OK
