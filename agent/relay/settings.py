"""The `[relay]` table of simspool.toml: where bundles are sent and from where they are taken, and how one gets there (docs/relay.md)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simspool.agent.bundles.settings import parse_size
from simspool.agent.exit_codes import CommandError, ExitCode

from .place import folder_of, parse_ssh

EVERY = 5.0
BUNDLE_SIZE = 64_000_000
_TEXTS = ("send", "target", "ssh_key", "known_hosts")
_KEYS = (*_TEXTS, "receive", "every", "bundle_size")
_LEAST_EVERY, _LONGEST_EVERY = 0.2, 86400.0


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """`send`: the place to which bundles go (None: nowhere). `receive`: folders from which they are taken. `every`: seconds between looks.

    `target`: the target of kind "bundle" that is meant, where there are several. `ssh_key`, `known_hosts`: files, None for the user's
    usual ones. `bundle_size`: about so many bytes of content go into one bundle.
    """

    send: str | None = None
    receive: tuple[str, ...] = ()
    every: float = EVERY
    target: str | None = None
    ssh_key: str | None = None
    known_hosts: str | None = None
    bundle_size: int = BUNDLE_SIZE

    def __bool__(self) -> bool:
        return bool(self.send or self.receive)


def parse(table: Mapping[str, Any], path: str) -> RelaySettings:
    """Return the settings in a `[relay]` table of the file `path`. Raises CommandError that names the key."""

    def wrong(why: str) -> CommandError:
        return CommandError(ExitCode.USAGE, f"[relay] in {path or 'the configuration'}: {why}")

    for key in table:
        if key not in _KEYS:
            raise wrong(f"there is no key {key!r}: use {', '.join(_KEYS)}")
    for key in _TEXTS:
        if key in table and (not isinstance(table[key], str) or not table[key]):
            raise wrong(f"{key} must be text")
    receive, every, size = table.get("receive", []), table.get("every", EVERY), table.get("bundle_size", BUNDLE_SIZE)
    if not isinstance(receive, list) or not all(isinstance(one, str) for one in receive):
        raise wrong("receive must be a list of folders")
    if isinstance(every, bool) or not isinstance(every, int | float) or not _LEAST_EVERY <= every <= _LONGEST_EVERY:
        raise wrong(f"every must be a number of seconds from {_LEAST_EVERY} to {_LONGEST_EVERY:.0f}")
    if isinstance(size, bool) or not isinstance(size, int | str):
        raise wrong('bundle_size must be a size such as "64 MB"')
    send = table.get("send")
    try:
        size = parse_size(str(size))
        if send is not None:
            _ = parse_ssh(send) if send.startswith("ssh://") else folder_of(send)
        receive = [folder_of(one) for one in receive]
    except (ValueError, CommandError) as error:
        raise wrong(str(error)) from None
    ssh_key, known_hosts = _beside(path, table.get("ssh_key")), _beside(path, table.get("known_hosts"))
    return RelaySettings(send, tuple(receive), float(every), table.get("target"), ssh_key, known_hosts, size)


def _beside(path: str, name: str | None) -> str | None:
    """Paths are relative to the file that names them."""
    return None if name is None else os.path.join(os.path.dirname(path) or os.getcwd(), os.path.expanduser(name))
