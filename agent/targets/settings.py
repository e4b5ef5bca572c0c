"""Which targets a spool drains to: `[server]` and `[target.NAME]` of simspool.toml, and what `agent target add` put into the spool.

A target is *required* (what it lacks is kept in the spool, and `agent sync` fails without it) or best-effort.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from simspool.sdk.address import check_address, is_in_the_clear
from simspool.sdk.config import Config
from simspool.sdk.errors import ConfigError
from simspool.sdk.keyring_token import resolve
from simspool.sdk.secret_files import KEYRING, read_secret
from simspool.sdk.way import WAY_KEYS, Way, way_of
from simspool.spool import Spool, atomic

BUNDLE = "bundle"
KINDS = ("auto", "simspool", "simvue", "mlflow", "directory", BUNDLE)
"""`auto`: asked which of simspool and simvue it speaks. `bundle`: nothing connects to it, bundles carry to it and receipts come back."""
SERVER = "server"  # the name of [server]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kKMGT]?)(i?)B?(?:/s)?\s*")
_KEYS = {
    "kind": str, "url": str, "path": str, "token_file": str, "required": bool, "enabled": bool, "bandwidth": (str, int), "uploads": int,
    "experiment": str, "format": str, "token": str, **dict.fromkeys(WAY_KEYS, str),
}  # fmt: skip
_OPTIONS = {"mlflow": ("experiment",), "directory": ("format",)}
_OF_BUNDLES = frozenset({"kind", "required", "enabled"})


@dataclass(frozen=True, slots=True)
class TargetSettings:
    """One target. `url` is its address, a folder's path for kind `directory`, or "bundle:" and its name, which is the server's id as well.
    `token` is never shown by `repr`.

    `bandwidth` is in bytes a second (None: no cap), `uploads` the most files at a time (None: the target's own). `options` are those of the
    kind, `way` is how its server is reached. `source` tells where it comes from: a file's path, or "spool". `concerns` are what is not safe
    about it, for people.
    """

    name: str
    kind: str
    url: str
    token: str | None = field(default=None, repr=False)
    required: bool = True
    bandwidth: float | None = None
    uploads: int | None = None
    way: Way = field(default_factory=Way)
    options: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    concerns: tuple[str, ...] = field(default=(), compare=False)

    @property
    def address(self) -> str:
        """What it drains to, as the targets of each kind call themselves (`Target.url`): the key of what is known of its server."""
        if self.kind == "directory":
            return f"file://{os.path.abspath(self.url)}"
        url = self.url.rstrip("/").removesuffix("/api")
        return f"mlflow+{url}#{self.options.get('experiment') or ''}" if self.kind == "mlflow" else url


def targets_file(spool: Spool) -> str:
    """Return where a spool's own targets are noted."""
    return os.path.join(spool.agent, "targets.json")


def load_targets(spool: Spool, config: Config, read_token: Any = None) -> list[TargetSettings]:
    """Return a spool's targets: the server, then those of simspool.toml, then the spool's own.

    Raises ConfigError for a table that is not valid, a name or an address that is there twice, and a token file that cannot be read.
    """
    made: list[TargetSettings] = []
    if config.server_url:
        made.append(_server(config))
    source = config.sources.get("targets", "")
    tables = [(name, table, source) for name, table in config.targets.items()]
    tables += [(name, table, "spool") for name, table in own_targets(spool).items()]
    for name, table, where in tables:
        found = parse(name, table, where)
        if found is None:
            continue
        for other in made:
            if other.name == found.name:
                raise ConfigError(f"target {name!r} is in {other.source or 'the settings'} and in {where}: rename one")
            if other.address == found.address:
                raise ConfigError(f"targets {other.name!r} and {name!r} are one: {found.address}: remove one")
        made.append(found)
    return made


def _server(config: Config) -> TargetSettings:
    assert config.server_url is not None
    token = resolve(config.server_token, "[server]")
    concerns = (*config.concerns, *_in_the_clear(SERVER, config.server_url, token))
    return TargetSettings(
        SERVER, "auto", config.server_url, token, way=config.server_way, source=config.sources.get("url", ""), concerns=concerns
    )


def _in_the_clear(name: str, url: str, token: str | None) -> list[str]:
    if not token or not is_in_the_clear(url):
        return []
    return [f"target {name}: the token and the data go to {url} unencrypted, for all on the way to read: use https://, or an SSH tunnel"]


def own_targets(spool: Spool) -> dict[str, dict[str, Any]]:
    """Return the tables that `agent target add` put into the spool. Raises ConfigError for a file that is none of ours."""
    path = targets_file(spool)
    try:
        found = atomic.read_json(path)["targets"]
        if not isinstance(found, dict) or not all(isinstance(t, dict) for t in found.values()):
            raise TypeError
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): repair it, or remove it and add the targets again") from None
    return found


def save_own(spool: Spool, tables: Mapping[str, Mapping[str, Any]]) -> None:
    """Note a spool's own targets, durably. Raises OSError."""
    atomic.make_folder(spool.agent)
    atomic.write_json(targets_file(spool), {"targets": {name: dict(table) for name, table in tables.items()}})


def parse(name: str, table: Mapping[str, Any], source: str) -> TargetSettings | None:
    """Return the target that a table means, None for one that is not enabled. Raises ConfigError that names the key and the source."""
    where = f"[target.{name}] in {source}" if source != "spool" else f"target {name} of the spool"
    if not _NAME.fullmatch(name) or name == SERVER:
        raise ConfigError(f"{where}: a target's name is letters, digits, '.', '_' and '-', and not {SERVER!r}")
    for key, value in table.items():
        kind = _KEYS.get(key)
        if kind is None:
            raise ConfigError(f"{where}: there is no setting {key!r}; there are {', '.join(_KEYS)}")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):  # type: ignore[arg-type]
            raise ConfigError(f"{where}: {key} = {value!r} is not what is expected there")
    kind = table.get("kind", "auto")
    if kind not in KINDS:
        raise ConfigError(f"{where}: kind {kind!r} is not one of {', '.join(KINDS)}")
    for other, keys in _OPTIONS.items():
        for key in keys:
            if key in table and other != kind:
                raise ConfigError(f"{where}: {key} is a setting of kind {other!r}, not of {kind!r}")
    if kind == BUNDLE and (extra := [key for key in table if key not in _OF_BUNDLES]):
        raise ConfigError(f"{where}: {extra[0]} is no setting of kind {BUNDLE!r}: nothing connects to it")
    if table.get("enabled") is False:
        return None
    if kind == BUNDLE:
        return TargetSettings(name, BUNDLE, f"{BUNDLE}:{name}", required=table.get("required", True), source=source)
    key = "path" if kind == "directory" else "url"
    url = table.get(key)
    if not url:
        raise ConfigError(f"{where}: {key} is missing")
    if kind != "directory":
        url = check_address(url, where)
    if "path" in table and kind != "directory":
        raise ConfigError(f"{where}: path is a setting of kind 'directory', not of {kind!r}")
    if kind == "directory" and not os.path.isabs(os.path.expanduser(url)):
        raise ConfigError(f"{where}: path {url!r} must be absolute: the agent has a working folder of its own")
    uploads = table.get("uploads")
    if uploads is not None and not 1 <= uploads <= 64:
        raise ConfigError(f"{where}: uploads = {uploads} must be from 1 to 64")
    token, concern = _token(table, where)
    return TargetSettings(
        name, kind, os.path.expanduser(url) if kind == "directory" else url, token,
        table.get("required", True), _rate(table.get("bandwidth"), where), uploads, way_of(table, where, os.path.expanduser),
        {k: table[k] for k in _OPTIONS.get(kind, ()) if k in table}, source,
        tuple(c for c in (concern, *_in_the_clear(name, url, token)) if c),
    )  # fmt: skip


def _token(table: Mapping[str, Any], where: str) -> tuple[str | None, str]:
    path, named = table.get("token_file"), table.get("token")
    if path is not None and named is not None:
        raise ConfigError(f"{where}: token and token_file are one thing: give one of them")
    if named is not None:
        if not named.startswith(KEYRING):
            raise ConfigError(f'{where}: a token does not stand in settings: put it into a token_file, or name it, "keyring:SERVICE/USER"')
        return resolve(named, where), ""
    if path is None:
        return None, ""
    found, concern = read_secret(os.path.expanduser(path), f"{where}: the token file")
    return found, concern


def _rate(value: str | int | None, where: str) -> float | None:
    """Return bytes a second of "10 MB/s" (decimal), "10 MiB/s" (binary) or a number."""
    if value is None:
        return None
    found = _SIZE.fullmatch(str(value))
    rate = 0.0
    if found is not None:
        number, unit, binary = found.groups()
        rate = float(number) * (1024.0 if binary else 1000.0) ** " kMGT".index(unit.replace("K", "k") or " ")
    if rate < 1:
        raise ConfigError(f'{where}: bandwidth {value!r} is not a rate such as "10 MB/s"')
    return rate
