"""The `[bundle]` table of simspool.toml: by which key bundles are signed, whose are taken, how large a volume is (docs/bundles.md)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simspool.agent.exit_codes import CommandError, ExitCode

from . import signing
from .signing import Trusted

LEAST_VOLUME = 64 << 10
_KEYS = ("sign_key", "trusted", "volume_size")
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kKMGT]?)(i?)B?\s*")


@dataclass(frozen=True, slots=True)
class BundleSettings:
    """`sign_key`: the file of the key that signs (None: nothing is signed). `trusted`: once there is one, only what these keys signed is
    taken. `volume_size`: the most bytes of a volume (None: one volume takes all)."""

    sign_key: str | None = None
    trusted: tuple[Trusted, ...] = ()
    volume_size: int | None = None


def parse(table: Mapping[str, Any], path: str) -> BundleSettings:
    """Return the settings in a `[bundle]` table of the file `path`. Raises CommandError that names the key."""

    def wrong(why: str) -> CommandError:
        return CommandError(ExitCode.USAGE, f"[bundle] in {path or 'the configuration'}: {why}")

    for key in table:
        if key not in _KEYS:
            raise wrong(f"there is no key {key!r}: use {', '.join(_KEYS)}")
    sign_key, trusted, volume_size = table.get("sign_key"), table.get("trusted", []), table.get("volume_size")
    if sign_key is not None and (not isinstance(sign_key, str) or not sign_key):
        raise wrong("sign_key must be the path of a file")
    if not isinstance(trusted, list) or not all(isinstance(t, str) for t in trusted):
        raise wrong('trusted must be a list of keys ("ssh-ed25519 AAAA... name") and files')
    if volume_size is not None and (isinstance(volume_size, bool) or not isinstance(volume_size, int | str)):
        raise wrong('volume_size must be a size such as "4 GB"')
    try:
        size = None if volume_size is None else parse_size(str(volume_size))
    except ValueError as error:
        raise wrong(f"volume_size: {error}") from None
    keys = [key for entry in trusted for key in _trusted(entry, path, wrong)]
    return BundleSettings(None if sign_key is None else _beside(path, sign_key), tuple(keys), size)


def parse_size(text: str) -> int:
    """Return the bytes of "650 MB", "4 GB", "1 GiB" or a number. Raises ValueError for what is none, or under 64 KiB."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError(f'{text!r} is not a size such as "4 GB"')
    number, unit, binary = found.groups()
    size = int(float(number) * (1024 if binary else 1000) ** " kMGT".index(unit.replace("K", "k") or " "))
    if size < LEAST_VOLUME:
        raise ValueError(f"{text!r} is under {LEAST_VOLUME >> 10} KiB")
    return size


def _trusted(entry: str, path: str, wrong: Any) -> list[Trusted]:
    if entry.startswith("ssh-"):
        key = signing.parse_public(entry)
        if key is None:
            raise wrong(f"{entry[:60]!r} is not an Ed25519 public key: `agent bundle keygen` makes one")
        return [key]
    file = _beside(path, entry)
    try:
        with open(file, encoding="utf-8") as f:
            lines = [line.strip() for line in f.read(1 << 20).splitlines()]
    except (OSError, UnicodeError) as error:
        raise wrong(f"the trusted key {file} cannot be read: {error}") from None
    found = [signing.parse_public(line) for line in lines if line and not line.startswith("#")]
    if not found or None in found:
        raise wrong(f"{file} has lines that are no Ed25519 public keys: the .pub file of `agent bundle keygen` is meant")
    return [key for key in found if key is not None]


def _beside(path: str, name: str) -> str:
    """Paths are relative to the file that names them."""
    return os.path.join(os.path.dirname(path) or os.getcwd(), os.path.expanduser(name))
