"""The way to a server: whom to trust there, what to show, and through which proxy. Set per target, never by variables of other programs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import ConfigError
from .tls import Tls

WAY_KEYS = ("ca_file", "client_cert", "client_key", "proxy", "proxy_auth_file")
_ENVIRONMENT = {key: f"SIMSPOOL_{key.upper()}" for key in WAY_KEYS}


@dataclass(frozen=True, slots=True)
class Way:
    """`tls`: see there. `proxy`: the address of an HTTP proxy, `proxy_auth_file`: a file with its "user:password".

    Without `proxy`, connections are direct, whatever HTTPS_PROXY and its like say.
    """

    tls: Tls = field(default_factory=Tls)
    proxy: str | None = None
    proxy_auth_file: str | None = None

    def proxy_auth(self) -> tuple[str, str] | None:
        """Return the proxy's user and password. Raises ConfigError."""
        if self.proxy_auth_file is None:
            return None
        from .secret_files import read_secret

        user, colon, password = read_secret(self.proxy_auth_file, "proxy_auth_file").text.partition(":")
        if not colon or not user:
            raise ConfigError(f"proxy_auth_file {self.proxy_auth_file} must hold user:password")
        return user, password


def way_of(table: Mapping[str, Any], where: str, place: Callable[[str], str]) -> Way:
    """Return the way that a table's keys mean; `place` makes a path absolute. Raises ConfigError that names the key and `where`."""
    found: dict[str, str | None] = {}
    for key in WAY_KEYS:
        value = table.get(key)
        if value is not None and (not isinstance(value, str) or not value):
            raise ConfigError(f"{where}: {key} must be text, not {value!r}")
        found[key] = value if value is None or key == "proxy" else place(value)
    if found["proxy"] is not None:
        from .address import check_address

        found["proxy"] = check_address(found["proxy"], f"{where}: proxy")
    elif found["proxy_auth_file"] is not None:
        raise ConfigError(f"{where}: proxy_auth_file is given without proxy: name the proxy")
    return Way(Tls(found["ca_file"], found["client_cert"], found["client_key"]), found["proxy"], found["proxy_auth_file"])


def way_of_server(table: Mapping[str, Any], own_path: str, environ: Mapping[str, str], start: str, home: str) -> Way:
    """Return the way to `[server]`: SIMSPOOL_CA_FILE and its like first, relative to the working folder; then simspool.toml."""
    def expand(path: str) -> str:
        return home + path[1:] if path == "~" or path.startswith("~/") else path

    beside = os.path.dirname(own_path)
    merged = {key: os.path.join(beside, expand(value)) if key != "proxy" and isinstance(value := table[key], str) else table[key]
              for key in WAY_KEYS if table.get(key) is not None}  # fmt: skip
    given = {key: environ[name] for key, name in _ENVIRONMENT.items() if environ.get(name)}
    where = f"[server] in {own_path}" if own_path and not given else "SIMSPOOL_CA_FILE and its like, with [server]"
    return way_of(merged | given, where, lambda path: os.path.abspath(os.path.join(start, expand(path))))
