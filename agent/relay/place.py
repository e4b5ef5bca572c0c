"""A place: the folder that both sides of a relay reach, with bundles that arrive in `in/` and the newest receipts in `receipts/`.

A bundle has its name in `in/` when it is whole there; before that its name begins with a point. What the receiving side refuses lies
in `refused/`, with the reason beside it. Nothing hangs on a place: what is lost in it is sent again, what is there twice changes nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from simspool.agent.bundles import signing
from simspool.agent.carry import receipts
from simspool.agent.exit_codes import CommandError, ExitCode
from simspool.spool import Spool, SpoolError

IN, RECEIPTS, REFUSED = "in", "receipts", "refused"
BUNDLE = ".bundle"
RECEIPT_LIMIT, SIGNATURE_LIMIT = receipts.LIMIT, signing.LIMIT
REASON_LIMIT = 1 << 20
_NAME = re.compile(r"simspool-[0-9A-Za-z]{1,32}-[0-9]{8}T[0-9]{6}Z-[0-9A-Za-z]{1,32}\.bundle")
_SSH = re.compile(r"ssh://(?:([^/@:\s]+)@)?([^/@:\s\[\]]+|\[[0-9a-fA-F:]+\])(?::([0-9]{1,5}))?(/.+)")


class PlaceUnreachable(SpoolError):
    """Raised while a place does not answer, or its disk refuses. Nothing is lost: it is tried again."""

    exit_code = ExitCode.UNREACHABLE


class PlaceRefused(SpoolError):
    """Raised when a place is not what it should be, or lets nobody in: a wrong host key, no accepted key. The message says what to do."""

    exit_code = ExitCode.REFUSED


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a bundle was refused: as a whole (`refused` is empty), or what of it: run, writer or file -> reason."""

    reason: str
    refused: Mapping[str, str] = field(default_factory=dict)


class Place(Protocol):
    """What the sending side does with a place. Confined to one event loop. Everything raises PlaceUnreachable and PlaceRefused."""

    name: str
    staging: str | None
    """Where bundles are written so that they are in the place when they get their name; None: anywhere, then `put` brings them."""
    moved: int
    """Bytes that `put` has brought, also of what it did not finish."""

    async def waiting(self, prefix: str) -> list[str]:
        """Return the names of the whole bundles that nobody has taken yet, of those that begin so."""

    async def receipt(self, origin: str) -> tuple[bytes, bytes | None] | None:
        """Return the newest receipt for a spool, and its signature; None where there is none, or it is the one of the call before."""

    async def refusal(self, name: str) -> Refusal | None:
        """Return why a bundle was refused; None where it was not."""

    async def put(self, path: str) -> None:
        """Bring a bundle there; repeated after a failure, it goes on. The local copy is the caller's."""

    def forget(self) -> None:
        """Have `receipt` return the newest one again."""

    async def close(self) -> None:
        """Let go of it; the next call begins anew."""


def prefix_of(spool: Spool) -> str:
    """Return how the names of a spool's bundles begin."""
    return f"simspool-{spool.id[-8:]}-"


def is_bundle_name(name: str) -> bool:
    """Say whether a name in a place is one that bundles get."""
    return _NAME.fullmatch(name) is not None


def reason_name(bundle: str) -> str:
    """Return the name of the file that says why a bundle was refused."""
    return f"{bundle}.json"


def reason_text(refusal: Refusal) -> bytes:
    """Return what that file has."""
    return json.dumps({"reason": refusal.reason, "refused": dict(refusal.refused)}, indent=1, sort_keys=True).encode() + b"\n"


def parse_reason(data: bytes) -> Refusal:
    """Return what that file says. It was written on the other side: whatever is in it is a reason, and nothing else."""
    try:
        body: Any = json.loads(data[:REASON_LIMIT])
        refused = {str(k)[:100]: str(v)[:500] for k, v in list(body["refused"].items())[:100]}
        return Refusal(str(body["reason"])[:1000], refused)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return Refusal("no reason can be read")


@dataclass(frozen=True, slots=True)
class SshAddress:
    """Where a place behind SSH is: `path` is absolute, or of the user's home folder there. `user`, `port`: None for the usual ones."""

    host: str
    path: str
    user: str | None = None
    port: int | None = None


def parse_ssh(text: str) -> SshAddress:
    """Return what `ssh://[user@]host[:port]/path` says; `/~/` begins in the home folder. Raises CommandError."""
    found = _SSH.fullmatch(text)
    if found is None or ".." in found[4].split("/") or (found[3] and not 0 < int(found[3]) < 65536):
        hint = "; a password is never taken: use a key" if ":" in text.removeprefix("ssh://").partition("@")[0] and "@" in text else ""
        shown = re.sub(r":[^/@]*@", ":...@", text)
        raise CommandError(ExitCode.USAGE, f"{shown} is not ssh://[user@]host[:port]/path{hint}")
    path = found[4].removeprefix("/~/") if found[4].startswith("/~/") else found[4]
    return SshAddress(found[2].strip("[]"), path.rstrip("/") or "/", found[1], int(found[3]) if found[3] else None)


def open_place(text: str, ssh_key: str | None = None, known_hosts: str | None = None) -> Place:
    """Return the place of an address, not reached yet. Raises CommandError for one that is none."""
    if text.startswith("ssh://"):
        from .ssh import SshPlace

        return SshPlace(text, parse_ssh(text), ssh_key, known_hosts)
    from .folder import FolderPlace

    return FolderPlace(folder_of(text))


def folder_of(text: str) -> str:
    """Return the path of a place that is a folder. Raises CommandError for what is none."""
    if not text.startswith("/"):
        raise CommandError(ExitCode.USAGE, f"{text!r} is no place: give an absolute path, or ssh://[user@]host[:port]/path")
    return text.rstrip("/") or "/"
