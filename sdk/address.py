"""Addresses of servers: what may be one, and which of them a token should not go to."""

from __future__ import annotations

from urllib.parse import urlsplit

from .errors import ConfigError


def check_address(url: str, where: str) -> str:
    """Return an address without a slash at its end. Raises ConfigError, which never shows what may be a secret."""
    if not url.startswith(("http://", "https://")):
        scheme = url.partition("://")[0][:20] if "://" in url else ""
        shown = f"{scheme}://..." if scheme else repr(hide(url)[:200])
        raise ConfigError(f"the address in {where} must begin with http:// or https://, not {shown}")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"the address in {where} is not valid: {str(error).partition(':')[0]}") from None
    if "@" in parts.netloc:
        raise ConfigError(f"the address in {where} has a user or password in it, which lists would show: put it into a token file")
    if parts.query or parts.fragment:
        raise ConfigError(f"the address in {where} goes on after a ? or #: give the address of {host} alone, and secrets in a token file")
    if not host:
        raise ConfigError(f"the address in {where} names no host")
    return url.rstrip("/")


def hide(url: str) -> str:
    """Return an address to be shown: without user, password, query and fragment."""
    before, scheme, rest = url.rpartition("://")
    authority, slash, path = rest.partition("/")
    authority = authority.partition("?")[0].partition("#")[0].rpartition("@")[2]
    return f"{before}{scheme}{authority}{slash}{path.partition('?')[0].partition('#')[0]}"


def is_in_the_clear(url: str) -> bool:
    """Say whether what is sent there passes a network unencrypted: plain HTTP to another machine."""
    import ipaddress

    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme != "http" or host == "localhost" or host.endswith(".localhost"):
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True
