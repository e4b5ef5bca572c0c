"""The unit files: the templates that are shipped in `simspool.systemd`, filled in for one interpreter and command line."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from importlib import resources

AGENT, SYNC, TIMER = "simspool-agent{}.service", "simspool-sync{}.service", "simspool-sync{}.timer"
CREDENTIAL = "simspool.token"
"""The credential that holds the token; a name of our own, since other services have a `token` too."""

_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_SHORTEST = 10
_DEFAULT_EVERY = 900
_IN_A_CONTAINER = (
    "# This machine is a container, and may have a boot id of its own. These two mount another /proc, with the host's: every run",
    "# would be taken for one from before a reboot.",
    "ProtectKernelTunables=no",
    "ProtectControlGroups=no",
    "ReadOnlyPaths=/proc/sys /sys",
)
_INSTANCE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def render(template: str, arguments: Sequence[str] = (), *, python: str | None = None, every: int = _DEFAULT_EVERY) -> str:
    """Return a shipped unit, by its file's name, with this (or another) interpreter's absolute path, and these arguments.

    `every`: seconds between syncs, for a timer. Raises ValueError for what a unit file cannot hold: control characters.
    """
    text = resources.files("simspool.systemd").joinpath(template).read_text(encoding="utf-8")
    return (
        text.replace("@PYTHON@", quote(_python(python)))
        .replace("@ARGUMENTS@", "".join(" " + quote(a) for a in arguments))
        .replace("@EVERY@", f"{every}s")
    )


def drop_in(
    command: str,
    arguments: Sequence[str],
    writable: Sequence[str],
    token: str | None,
    *,
    python: str | None = None,
    container: bool = False,
) -> str:
    """Return what a system service adds for one user: the command line, the folders it may write, the token's file.

    `command`: run or sync. A token file whose name ends in `.cred` is taken as encrypted (`systemd-creds encrypt`). `container`: the
    machine is one. Raises ValueError for what a unit file cannot hold.
    """
    words = " ".join([quote(_python(python)), "-P -m simspool.agent", command, *(quote(a) for a in arguments)])
    places = " ".join(quote(path, command=False) for path in writable)
    lines = ["# Written by `agent service install --system`, which overwrites it: add a file of your own beside it."]
    lines += ["[Unit]", f"RequiresMountsFor={places}", "", "[Service]"]
    lines += ["ExecStart=", f"ExecStart={words}", "ReadWritePaths=", f"ReadWritePaths={places}"]
    if token is not None:
        quote(token)
        load = "LoadCredentialEncrypted" if is_encrypted(token) else "LoadCredential"
        lines.append(f"{load}={CREDENTIAL}:{token.replace('%', '%%')}")
    if container:
        lines += _IN_A_CONTAINER
    return "\n".join(lines) + "\n"


def timer_drop_in(every: int) -> str:
    """Return what a system timer adds for one user: its interval (s)."""
    return f"[Timer]\nOnActiveSec=\nOnActiveSec=1min\nOnUnitInactiveSec={every}s\n"


def is_encrypted(token: str) -> bool:
    """Say whether a token's file is one of `systemd-creds encrypt`, by its name."""
    return token.endswith(".cred")


def parse_interval(text: str) -> int:
    """Return the seconds in `90s`, `15min`, `6h` or `1d`. Raises ValueError for anything else, and under 10 seconds."""
    match = re.fullmatch(r"([0-9]{1,6})(s|min|h|d)", text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no interval: say 90s, 15min, 6h or 1d")
    seconds = int(match[1]) * _SECONDS[match[2]]
    if seconds < _SHORTEST:
        raise ValueError(f"{text!r} is too often: {_SHORTEST}s is the least; for less, install the agent without --timer")
    return seconds


def check_instance(user: str) -> str:
    """Return the user's name if it can stand after the @ of a unit. Raises ValueError if not."""
    if not _INSTANCE.fullmatch(user):
        raise ValueError(f"the user name {user!r} cannot stand in a unit's name: use the number that `id -u` prints for that user")
    return user


def quote(word: str, *, command: bool = True) -> str:
    """Return one word of a unit file, so that systemd takes exactly this text; `command`: of a command line, where `$` counts."""
    if any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) <= 0xDFFF for c in word):
        raise ValueError(f"{word!r} has control characters or bytes that are not UTF-8: a unit file cannot hold it")
    escaped = word.replace("%", "%%")
    if command:
        escaped = escaped.replace("$", "$$")
    if word and not any(c in word for c in " '\"\\;"):
        return escaped
    return '"' + escaped.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _python(path: str | None) -> str:
    return os.path.abspath(path or sys.executable)
