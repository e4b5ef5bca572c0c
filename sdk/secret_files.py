"""Files that hold a secret: read with bounds, and refused where any user of the machine can read them.

What counts is who can reach the bytes: a file of mode 0644 inside a folder of mode 0700 is private.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from .errors import ConfigError

_LIMIT = 64 << 10  # bytes
KEYRING = "keyring:"
"""A token that begins so is the name of one: "keyring:SERVICE/USER"."""


class Secret(NamedTuple):
    """A secret, and what is to be said of where it lies ("" where all is well)."""

    text: str
    concern: str


def read_secret(path: str, what: str = "the token file") -> Secret:
    """Return the one word in a file. Raises ConfigError for one that is no such file, or that anybody may read."""
    try:
        with open(path, encoding="ascii") as file:
            found = file.read(_LIMIT + 1).strip()
    except (OSError, ValueError) as error:  # ValueError: no ASCII, or a NUL in the path
        why = getattr(error, "strerror", None) or "it is not text"
        raise ConfigError(f"{what} {path} cannot be read: {why}") from None
    if len(found) > _LIMIT or len(found.split()) != 1:
        raise ConfigError(f"{what} {path} holds no token: one word is expected, as `agent serve` writes it")
    return Secret(found, check_private(path, what))


def check_private(path: str, what: str) -> str:
    """Return a sentence where the file's group may read it, "" where nobody else can. Raises ConfigError where anybody may."""
    who = readers(path)
    if who == "everybody":
        raise ConfigError(f"{what} {path} can be read by every user of this machine: run `chmod 600 {path}`, and have a new one issued")
    return f"{what} {path} can be read by its group: run `chmod 600 {path}`" if who == "group" else ""


def readers(path: str) -> str:
    """Say who besides its owner can read a file: "everybody", "group" or ""."""
    try:
        mode = os.stat(path).st_mode
        at = os.path.dirname(os.path.realpath(path))
        anybody, group = bool(mode & 0o004), bool(mode & 0o040)
        while anybody or group:
            folder = os.stat(at).st_mode
            anybody = anybody and bool(folder & 0o001)
            group = group and bool(folder & 0o011)
            parent = os.path.dirname(at)
            if parent == at:
                break
            at = parent
    except OSError:
        return ""
    return "everybody" if anybody else "group" if group else ""
