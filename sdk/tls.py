"""Encrypted connections: a server's certificate and name are always verified, and there is no switch that leaves it out.

Both sides use this: the SDK's Client and the agent's targets. TLS 1.2 is the least.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from .errors import ConfigError
from .secret_files import check_private

if TYPE_CHECKING:
    import ssl

_REASON = re.compile(r"\[SSL: ([A-Z0-9_]{1,80})\]|(CERTIFICATE_VERIFY_FAILED)")
_UNTRUSTED = frozenset({2, 18, 19, 20, 21, 27})  # OpenSSL's X509_V_ERR_*: no way from the certificate to an authority that is trusted
_EXPIRED, _NOT_YET, _NAMES = 10, 9, frozenset({62, 64})
_OLD = frozenset({"UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION", "NO_PROTOCOLS_AVAILABLE", "WRONG_SSL_VERSION"})
_PLAIN = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"})
_CLIENT = (
    "CERTIFICATE_REQUIRED", "BAD_CERTIFICATE", "CERTIFICATE_EXPIRED", "CERTIFICATE_REVOKED", "CERTIFICATE_UNKNOWN", "UNKNOWN_CA",
    "ACCESS_DENIED", "UNSUPPORTED_CERTIFICATE",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tls:
    """Whom a client trusts, and who it says it is: files in PEM.

    `ca_file`: the authorities that are trusted, in place of the system's. `client_cert` with `client_key` (which may be in the same file):
    the client's own certificate, for servers that ask for one.
    """

    ca_file: str | None = None
    client_cert: str | None = None
    client_key: str | None = None

    @property
    def stamp(self) -> tuple[tuple[int, int, int] | None, ...]:
        """Changes when one of the files was replaced: short-lived certificates are renewed under a running agent."""
        return tuple(_stamp(path) for path in (self.ca_file, self.client_cert, self.client_key))


class TlsProblem(NamedTuple):
    """Why there is no encrypted connection, for people; `is_refusal`: the server wants another certificate of ours."""

    text: str
    is_refusal: bool


def client_context(tls: Tls, *, with_certificate: bool = True) -> ssl.SSLContext:
    """Return how connections are made; without our certificate for hosts that are not the configured server.

    Raises ConfigError, which names the file and what to do.
    """
    import ssl

    # not create_default_context: that would write session keys to where SSLKEYLOGFILE of the environment says
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.ca_file is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        load_authorities(context, tls.ca_file, "ca_file")
    if tls.client_key is not None and tls.client_cert is None:
        raise ConfigError(f"client_key {tls.client_key} is given without client_cert: name the certificate that belongs to it")
    if tls.client_cert is not None and with_certificate:
        load_pair(context, tls.client_cert, tls.client_key, "client_cert", "client_key")
    return context


def load_authorities(context: ssl.SSLContext, path: str, what: str) -> None:
    """Trust the authorities in a file. Raises ConfigError."""
    import ssl

    _readable(path, what)
    try:
        context.load_verify_locations(cafile=path)
    except (ssl.SSLError, OSError):
        raise ConfigError(f"{what} {path} has no certificates in PEM: it must hold the certificates of the authorities to trust") from None


def load_pair(context: ssl.SSLContext, cert: str, key: str | None, cert_is: str, key_is: str) -> None:
    """Use a certificate with its key. Raises ConfigError, also for a key that anybody may read."""
    import ssl

    _readable(cert, cert_is)
    if key is not None:
        _readable(key, key_is)
    check_private(key or cert, key_is if key is not None else cert_is)
    try:
        context.load_cert_chain(cert, key, password=lambda: "")  # an encrypted key must not ask at a terminal that nobody watches
    except ssl.SSLError as error:
        reason = error.reason or ""
        if "MISMATCH" in reason:
            raise ConfigError(f"{key_is} {key or cert} does not belong to {cert_is} {cert}: give those issued together") from None
        held = f"{cert_is} {cert}" + (f" or {key_is} {key}" if key is not None else f" (with the key in it, as no {key_is} is given)")
        raise ConfigError(f"{held} cannot be used: a certificate and an unencrypted key in PEM are expected ({reason or error})") from None
    except OSError as error:
        raise ConfigError(f"{cert_is} {cert} cannot be read: {error.strerror or error}") from None


def problem(error: BaseException | None, tls: Tls) -> TlsProblem | None:
    """Return what was wrong with the encryption, where an error of a connection comes from that."""
    import ssl

    seen: set[int] = set()
    reason = ""
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        # aiohttp's and urllib's own errors have the cause as an attribute; theirs comes first, since aiohttp's is one of these too
        for one in (*(getattr(error, name, None) for name in ("certificate_error", "os_error", "reason")), error):
            if isinstance(one, ssl.SSLCertVerificationError):
                return _of_certificate(one, tls)
            if isinstance(one, ssl.SSLEOFError | ssl.SSLZeroReturnError):
                reason = reason or "EOF"
            if isinstance(one, BaseException) and (found := _REASON.search(str(one))):
                reason = reason or found[1] or found[2]
        error = error.__cause__ or error.__context__
    if "EOF" in reason:
        return TlsProblem(closed_at_once(tls), False)
    return _of_reason(reason, tls) if reason else None


def closed_at_once(tls: Tls) -> str:
    """Return what may be behind a connection that the server closed without an answer: not every one says that our certificate is why."""
    if tls.client_cert is None:
        return "it closes the connection: where it asks for a certificate of ours, set client_cert and client_key"
    return f"it closes the connection: perhaps it does not accept our certificate {tls.client_cert}"


def _of_certificate(error: ssl.SSLCertVerificationError, tls: Tls) -> TlsProblem:
    code, said = getattr(error, "verify_code", 0), str(getattr(error, "verify_message", "") or error)
    if code == _EXPIRED:
        return TlsProblem("its certificate has expired: its owner must renew it (is this machine's clock right?)", False)
    if code == _NOT_YET:
        return TlsProblem("its certificate is not valid yet: is this machine's clock right?", False)
    if code in _NAMES:
        return TlsProblem("its certificate is for another host: use the name in the certificate as the URL's host", False)
    if code in _UNTRUSTED:
        what = f"the authorities in {tls.ca_file}" if tls.ca_file else "the authorities that this machine trusts"
        do = "is it the right file?" if tls.ca_file else "set ca_file (SIMSPOOL_CA_FILE) to the certificate of the server's authority"
        return TlsProblem(f"its certificate is not from {what} ({said}): {do}", False)
    return TlsProblem(f"its certificate is not accepted ({said[:200]})", False)


def _of_reason(reason: str, tls: Tls) -> TlsProblem:
    if reason == "CERTIFICATE_VERIFY_FAILED":
        return TlsProblem("its certificate is not accepted: set ca_file (SIMSPOOL_CA_FILE) to the one of the server's authority", False)
    if "ALERT" in reason and any(reason.endswith(name) for name in _CLIENT):
        if tls.client_cert is None:
            return TlsProblem("it asks for a certificate of ours: set client_cert and client_key", True)
        said = f"it does not accept our certificate {tls.client_cert} ({_words(reason)})"
        return TlsProblem(f"{said}: has it expired, or is it from another authority?", True)
    if reason in _OLD:
        return TlsProblem("it speaks no TLS of version 1.2 or newer: its owner must upgrade it", False)
    if reason in _PLAIN:
        return TlsProblem("it does not speak TLS at this port: is it http://, or another port?", False)
    if reason.endswith("HANDSHAKE_FAILURE"):
        return TlsProblem("it ends the handshake of TLS: it wants a certificate of ours (client_cert), or has no cipher in common", False)
    return TlsProblem(f"TLS failed ({_words(reason)})", False)


def _words(reason: str) -> str:
    return reason.replace("_", " ").lower()


def _readable(path: str, what: str) -> None:
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError as error:
        raise ConfigError(f"{what} {path} cannot be read: {error.strerror or error}") from None


def _stamp(path: str | None) -> tuple[int, int, int] | None:
    try:
        info = os.stat(path) if path is not None else None
    except OSError:
        return None
    return None if info is None else (info.st_ino, info.st_mtime_ns, info.st_size)
