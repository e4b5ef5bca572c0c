"""The server's certificate: HTTPS by itself, and, where it is wanted, only for clients that have a certificate too."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from simspool.sdk import tls
from simspool.sdk.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Certificate:
    """Files in PEM: the certificate (with those between it and its authority), its key, and the authorities of clients."""

    cert: Path
    key: Path | None = None
    client_ca: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Return how connections are taken: TLS 1.2 at least. Raises RuntimeError that names the file."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.load(context)
        if self.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def load(self, context: ssl.SSLContext) -> None:
        """Read the files, also again after they were renewed: connections that are open go on. Raises RuntimeError."""
        try:
            tls.load_pair(context, str(self.cert), str(self.key) if self.key is not None else None, "--cert", "--key")
            if self.client_ca is not None:
                tls.load_authorities(context, str(self.client_ca), "--client-ca")
        except ConfigError as error:
            raise RuntimeError(str(error)) from None
